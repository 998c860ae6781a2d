"""The base class of sparse layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import nn

from prunus.errors import ArgumentError, PrunusError
from prunus.runtime.candidates import unsupported_setting
from prunus.runtime.modules import keep_settings, keep_tensors
from prunus.runtime.precision import FLOAT32, Precision, type_name
from prunus.runtime.rows import SparseRows
from prunus.runtime.weight import SparseWeight

__all__ = ["CHUNK_BYTES", "SparseLayer", "available_threads", "is_worth_sharing"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d

_WORTH_SHARING = 9_000
"""Cost of a product above which threads share it, as :func:`prunus.runtime.tiling.tile_cost`.

A heuristic: about 18 microseconds of one thread, several times what waking another thread takes.
Too low, small layers wait for threads; too high, one thread works while the others are idle.
"""

CHUNK_BYTES = 1 << 17
"""Bytes of the matrix, at least, that are read before the next tile of activations.

A heuristic: a larger chunk evicts the activations from the second-level cache, a smaller one reads
each tile more often.
"""

_MAX_PLANS = 32
"""Shapes and layouts of inputs whose plans a layer keeps; above it all are dropped.

A heuristic that bounds memory where every batch has another size.
"""

_MAX_THREADS = int(numba.config.NUMBA_NUM_THREADS)


def available_threads() -> int:
    """Return torch's number of threads, at most as many as Numba has."""
    return min(torch.get_num_threads(), _MAX_THREADS)


def is_worth_sharing(cost: float, threads: int) -> bool:
    """Return whether threads share a product of this cost, or one computes it alone."""
    return threads > 1 and cost > _WORTH_SHARING


class SparseLayer(nn.Module):
    """A layer that computes with its non-zero weights only.

    It has the attributes of the layer that it replaces: the settings, ``weight``, ``bias`` and any
    others that were set on it, because a network may read them.

    Args:
        layer: The layer to copy.
        relu: Whether the layer also applies a ReLU.
        replaces: The layer whose attributes to have, if its weight differs from the one to compute
            with: a batch norm was folded into that, or the layer selects some of its inputs. Its
            non-zero weights are stored besides. Default None: ``layer``.
        precision: The type to compute in. Default: float32.

    Raises:
        ArgumentError: The layer is of another type, or has a setting or a tensor that sparse layers
            do not support.
    """

    layer_types: tuple[type[nn.Module], ...]
    """Types of the layers that can be copied."""

    def __init__(
        self,
        layer: Layer,
        relu: bool,
        replaces: Layer | None = None,
        precision: Precision = FLOAT32,
    ) -> None:
        super().__init__()
        if type(layer) not in self.layer_types:
            reason = f"is of type {type(layer).__name__}"
        else:
            reason = unsupported_setting(layer) or ""
        if not reason and (problem := precision.weight_problem(layer.weight.flatten(1))):
            reason = problem
        if reason:
            types = " or ".join(each.__name__ for each in self.layer_types)
            raise ArgumentError(
                f"{type(self).__name__}: the layer must be a {types} in float32 on the CPU with "
                f"zero padding, but {reason}: keep it dense"
            )
        former = layer if replaces is None else replaces
        keep_settings(self, former)
        keep_tensors(self, former, excluded=("weight", "bias"))
        self.rows = SparseRows(layer.weight.flatten(1), layer.bias, precision)
        self.original: SparseRows | None = None
        if former is not layer:
            self.original = SparseRows(former.weight.flatten(1), former.bias, precision)
        self._weight_shape, self._has_bias = former.weight.shape, former.bias is not None
        self.size, self.relu = layer.weight.numel(), relu
        self._plans: dict[Any, Any] = {}

    @property
    def weight(self) -> SparseWeight:
        """The weight of the replaced layer, for reading.

        Its type, device and shape cost nothing; each read of elements builds the dense matrix.
        """
        return SparseWeight(self.original or self.rows, self._weight_shape)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the replaced layer."""
        return (self.original or self.rows).bias if self._has_bias else None

    @property
    def density(self) -> float:
        """The fraction of weights that are not zero."""
        return self.rows.nonzeros / max(1, self.size)

    def _summary(self) -> str:
        lower = "" if self.rows.group == 1 else f", {type_name(self.rows.dtype)}"
        return f"density={self.density:.3g}{lower}" + (", with ReLU" if self.relu else "")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._plans.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._plans.clear()  # they depend on places of elements, and hold addresses
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # plans hold addresses

    def _plan_for(self, key: Any, make_plan: Callable[[], Any]) -> Any:
        """Return the plan for inputs of a shape and layout, and make it if there is none yet."""
        plan = self._plans.get(key)
        if plan is None:
            self._check_rows()
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = make_plan()
        return plan

    def _check_rows(self) -> None:
        """Raise an error if the kernels cannot read the weights."""
        rows = self.rows
        wrong = sorted(
            f"{each.dtype} on {each.device}"
            for each, dtype in ((rows.values, rows.dtype), (rows.bias, torch.float32))
            if each.dtype != dtype or each.device.type != "cpu"
        )
        if wrong:
            raise PrunusError(
                f"{type(self).__name__} computes in {type_name(rows.dtype)} with inputs in float32 "
                "on the CPU, but its weights were "
                f"converted to {wrong[0]}: convert the dense network instead"
            )

    def _check(self, x: torch.Tensor, shape_fits: bool, expected_shape: str) -> None:
        """Raise one error that lists all problems of an input, if there are any."""
        problems = []
        if not shape_fits:
            problems.append(f"of shape {expected_shape}, but is of shape {tuple(x.shape)}")
        if x.dtype != torch.float32:
            problems.append(f"float32, but is {str(x.dtype).removeprefix('torch.')}")
        if x.device.type != "cpu":
            problems.append(f"on the CPU, but is on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            problems.append(
                "without a gradient, because this layer is for inference: call it under "
                "torch.no_grad(), and train the network that it was built from"
            )
        if problems:
            raise ArgumentError(
                f"{type(self).__name__}: the input must be " + "; and ".join(problems)
            )
