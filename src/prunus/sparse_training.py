"""Sparse training: the linear layers of a pruner compute with their kept weights, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus.errors import PrunusError, listing
from prunus.pruner import Pruner
from prunus.runtime.candidates import unsuitable_tensor
from prunus.runtime.numba_extra import check_numba
from prunus.runtime.report import LayerTiming

if TYPE_CHECKING:
    from prunus.runtime.trained_layer import LayerTraining

__all__ = ["SparseTraining"]


class SparseTraining:
    """Makes training steps faster on the CPU, once a pruner has removed enough weights.

    From then on a linear layer computes its outputs, the gradient of its inputs and that of its
    weight with the kept weights only. They are those of dense training, up to rounding, except
    that the gradient of a removed weight is zero already before the optimizer's step: gradient
    clipping then uses the norm over the kept weights, and no infinity or NaN comes from a product
    with a removed weight.

    Each layer is timed in its first training step and again after removals, dense and sparse by
    turns, for each power of two of the size of a batch. It runs sparse where the median of the
    quotients favors that, else dense. Timings that other processes disturb are repeated later.
    Timing all layers takes about as long as a few dozen steps. Calls with other tensors than
    float32 on the CPU stay dense, as do autocast, ``torch.compile``, derivatives of derivatives and
    the transforms of ``torch.func``.

    Parameters, optimizer, ``state_dict`` and hooks stay as they are; copies and pickles of the
    network have ordinary layers. The memory of a layer's gradient is kept between steps.

    Args:
        pruner: The pruner. Where it reads gradients of removed weights
            (:attr:`Pruner.reads_removed_gradients`), the gradient of the weight is computed dense:
            in every fifth step while the default penalty acts, and as long as a SoftGrowth or
            GradientGrowth does.
        max_density: The fraction of kept weights up to which a layer runs sparse. Runs with equal
            seeds are then equal, which the default does not promise, because rounding depends on
            which layers are sparse. Default None: by timing.

    Raises:
        ArgumentError: ``max_density`` is out of range.
        ArgumentTypeError: An argument has the wrong type.
        PrunusError: No linear layer of the pruner can run sparse, or one does already.
        MissingExtraError: Numba is missing.

    Example:
        >>> import torch
        >>> from prunus import GradualPruning
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = Pruner(model, optimizer, None, GradualPruning(sparsity=0.95, begin=1, end=3))
        >>> sparse = SparseTraining(pruner, max_density=0.1)
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.randn(64, 256)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> sparse.sparse_layers
        ('0', '2')
        >>> bool((model[0].weight.grad[~pruner.masks["0.weight"]] == 0).all())
        True
        >>> sparse.stop()
        >>> sparse.sparse_layers
        ()
    """

    def __init__(self, pruner: Pruner, *, max_density: float | None = None) -> None:
        raise_problems(
            type_problem("pruner", pruner, Pruner, "a Pruner"),
            number_problem("max_density", max_density, least=0, most=1, optional=True),
        )
        check_numba()
        from prunus.runtime.trained_layer import LayerTraining, SparselyTrainedLinear

        prunable = {id(tensor.parameter) for tensor in pruner.selection.values()}
        self._layers: dict[str, tuple[nn.Linear, LayerTraining]] = {}
        excluded = []
        for name, module in pruner.model.named_modules():
            if not isinstance(module, nn.Linear) or id(module.weight) not in prunable:
                continue
            if type(module) is SparselyTrainedLinear:
                raise PrunusError(
                    f"{name or 'the model'} belongs to another SparseTraining: stop that one first"
                )
            reason = unsuitable_tensor(module)
            if type(module) is not nn.Linear:
                reason = f"it is a {type(module).__name__}"
            if reason is None:
                training = LayerTraining(name, max_density, lambda: pruner.reads_removed_gradients)
                self._layers[name] = module, training
            else:
                excluded.append(f"{name or 'the model'}: {reason}")
        if not self._layers:
            raise PrunusError(
                "the pruner has no linear layer that can run sparse: "
                f"{listing(excluded) or 'it prunes no weight of an nn.Linear'}. SparseTraining "
                "needs nn.Linear layers in float32 on the CPU; train dense without it"
            )
        for layer, training in self._layers.values():
            SparselyTrainedLinear.convert(layer, training)

    def __repr__(self) -> str:
        return f"SparseTraining({len(self.sparse_layers)} of {len(self._layers)} layers sparse)"

    @property
    def sparse_layers(self) -> tuple[str, ...]:
        """The names of the layers whose last call ran sparse."""
        return tuple(name for name, (_, training) in self._layers.items() if training.is_sparse)

    @property
    def timings(self) -> tuple[LayerTiming, ...]:
        """The last timing of each layer, for each size of batch and kind of call that it had.

        A call in training includes the gradients that it leads to; a call without gradients is
        another kind.
        """
        trainings = (training for _, training in self._layers.values())
        return tuple(timing for each in trainings for timing in each.timings.values())

    def stop(self) -> None:
        """Let all layers run dense again, for good."""
        from prunus.runtime.trained_layer import SparselyTrainedLinear

        for layer, training in self._layers.values():
            SparselyTrainedLinear.restore(layer)
            training.is_sparse = False
