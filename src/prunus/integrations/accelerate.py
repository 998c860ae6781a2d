"""The pruner for training loops with Hugging Face's ``accelerate``."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, Unpack
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from prunus._distributed.wrappers import deepspeed_problem
from prunus._engine.default_method import PenaltyChoice
from prunus._engine.optimizers import as_list
from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.extras import missing_extra
from prunus._utils.files import load_tree, save_tree
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.integrations.common import STATE_FILE, PrunerOptions, saved_state
from prunus.pruner import Pruner
from prunus.schedules import Schedule

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType
except ImportError as error:
    raise missing_extra("prunus.integrations.accelerate", "accelerate", error) from error

__all__ = ["AcceleratedPruner"]


class AcceleratedPruner(Pruner):
    """A :class:`~prunus.Pruner` of the model and optimizer that ``accelerator.prepare`` returns.

    It attaches to the optimizer inside the prepared one, so that it counts the steps that are
    really taken: none while ``accelerator.accumulate`` accumulates gradients, and none that the
    gradient scaler skips. In several processes each builds a pruner, and all remove the same
    weights; the metric must be equal in all of them, computed from the outputs that
    ``accelerator.gather_for_metrics`` collects. Each process holds the whole model
    (DistributedDataParallel), or a shard of it, with
    ``FullyShardedDataParallelPlugin(fsdp_version=2)``.

    ``accelerator.save_state`` saves its state as ``prunus.safetensors`` (that of a second pruner as
    ``prunus_1.safetensors``), and ``accelerator.load_state`` loads it: a resumed run equals the
    uninterrupted one bit for bit. The file holds whole tensors, which the first process gathers in
    the CPU's memory if the model is sharded. It is not registered by
    ``register_for_checkpointing``, which would pickle it. ``save_state`` writes one file after
    another, so a run that may be killed should save to a new folder each time.

    Pass ``max_grad_norm`` instead of calling ``accelerator.clip_grad_norm_``, which makes weights
    look less relevant than they are: it clips by the same rule after relevance has been measured.

    Args:
        accelerator: The accelerator that prepared the model and the optimizer.
        model: The prepared model.
        optimizer: The prepared optimizer, or a list of several.
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        options: The other arguments of :class:`~prunus.Pruner`, by name: ``floor``, ``mode``,
            ``dense_metric``, ``score``, ``allocation``, ``selection``, ``masks``, ``min_density``,
            ``keep_best``, ``max_grad_norm``, ``growth`` and ``pattern``.

    Raises:
        ArgumentTypeError: ``accelerator`` is not an accelerator, or as for
            :class:`~prunus.Pruner`.
        PrunusError: The optimizer was not prepared, DeepSpeed, Megatron-LM or
            FullyShardedDataParallel trains the model, or as for :class:`~prunus.Pruner`.

    Example:
        >>> accelerator = Accelerator(cpu=True)
        >>> model = nn.Linear(100, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> pruner = AcceleratedPruner(accelerator, model, optimizer)
        >>> accelerator.backward(model(torch.ones(4, 100)).square().mean())
        >>> optimizer.step()
        >>> pruner.prune(sparsity=0.9)
        90
        >>> int(model.weight.count_nonzero())
        10
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        penalty: PenaltyChoice = "auto",
        schedule: Schedule | None = None,
        **options: Unpack[PrunerOptions],
    ) -> None:
        several = as_list(optimizer)
        _check_prepared(accelerator, model, several)
        super().__init__(model, [_unwrapped(one) for one in several], penalty, schedule, **options)
        self._accelerator = accelerator
        self._file_name = _register(self)
        self._loaded_file: Path | None = None
        self._handles = [
            accelerator.register_save_state_pre_hook(self._save),
            accelerator.register_load_state_pre_hook(self._load),
            *(
                # Disabled for the compiler, which would compile again after each load.
                one.register_step_pre_hook(
                    torch.compiler.disable(self._check_loaded)  # type: ignore[no-untyped-call]
                )
                for one in self.optimizers
            ),
        ]

    def detach(self) -> None:
        """Detach from the optimizer and from the accelerator's checkpoints."""
        for handle in self._handles:
            handle.remove()
        _pruners[self._accelerator].discard(self)
        super().detach()

    def _save(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        """Save the state; a hook of ``accelerator.save_state``."""
        del models, weights
        accelerator = self._accelerator
        on_each_node = accelerator.project_configuration.save_on_each_node
        writes = accelerator.is_local_main_process if on_each_node else accelerator.is_main_process
        state = saved_state(self, writes=writes)
        if state is not None:
            save_tree(Path(folder) / self._file_name, state)

    def _load(self, models: list[nn.Module], folder: str) -> None:
        """Load the state; a hook of ``accelerator.load_state``."""
        del models
        file = Path(folder) / self._file_name
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {self._file_name}: it was saved without this pruner. Load it "
                "before you build the pruner, or call detach() on pruners that are no longer used"
            )
        self.load_state_dict(load_tree(file))
        self._loaded_file = file

    def _check_loaded(self, *_: Any) -> None:
        """Check at the first step after a load that the weights are of the same checkpoint.

        That step would hide that they are not. An earlier check is not possible, because the
        accelerator, or a third-party hook, loads the weights after the pruner's state.
        """
        file, self._loaded_file = self._loaded_file, None
        nonzero = self.masks.revived() if file else {}
        if nonzero:
            raise CheckpointError(
                f"the model's weights were not saved together with {file}: weights that were "
                f"removed are not zero in {listing(list(nonzero))}. The process may have been "
                "killed while it overwrote this folder: load another one, and save to a new folder "
                "each time"
            )


_pruners: MutableMapping[Accelerator, WeakSet[AcceleratedPruner]] = WeakKeyDictionary()
"""The attached pruners of each accelerator."""


def _register(pruner: AcceleratedPruner) -> str:
    """Return the first numbered file name that no other pruner of the accelerator has."""
    others = _pruners.setdefault(pruner._accelerator, WeakSet())
    used, path = {other._file_name for other in others}, Path(STATE_FILE)
    names = (f"{path.stem}_{i}{path.suffix}" if i else STATE_FILE for i in range(len(used) + 1))
    others.add(pruner)
    return next(name for name in names if name not in used)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _check_prepared(
    accelerator: Accelerator, model: nn.Module, optimizers: Sequence[object]
) -> None:
    raise_problems(
        type_problem(
            "accelerator",
            accelerator,
            Accelerator,
            "an accelerate.Accelerator",
            fix="AcceleratedPruner(accelerator, model, optimizer, ...)",
        )
    )
    raise_problems(
        deepspeed_problem(model, *optimizers, accelerator.state.deepspeed_plugin), error=PrunusError
    )
    if accelerator.distributed_type == DistributedType.MEGATRON_LM:
        raise PrunusError(
            "AcceleratedPruner does not work with Megatron-LM, whose optimizer steps on copies of "
            "the weights: use DistributedDataParallel, or "
            "FullyShardedDataParallelPlugin(fsdp_version=2)"
        )
    bare = [type(one).__name__ for one in optimizers if not isinstance(one, AcceleratedOptimizer)]
    if bare:
        raise PrunusError(
            "AcceleratedPruner needs the model and the optimizer that accelerator.prepare "
            f"returned, but the optimizer is a bare {listing(bare)}: call "
            "model, optimizer = accelerator.prepare(model, optimizer) first"
        )
