"""The base class of sparse layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import nn

from prunus.errors import ArgumentError
from prunus.runtime.rows import SparseRows

__all__ = ["CHUNK_BYTES", "SparseLayer", "available_threads", "is_worth_sharing"]

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

    Args:
        rows: The non-zero weights.
        size: Number of all weights, including zeros.
        relu: Whether the layer also applies a ReLU.
    """

    def __init__(self, rows: SparseRows, size: int, relu: bool) -> None:
        super().__init__()
        self.rows, self.size, self.relu = rows, size, relu
        self._plans: dict[Any, Any] = {}

    @property
    def density(self) -> float:
        """The fraction of weights that are not zero."""
        return len(self.rows.values) / max(1, self.size)

    def _summary(self) -> str:
        return f"density={self.density:.3g}" + (", with ReLU" if self.relu else "")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._plans.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # plans hold addresses

    def _plan_for(self, key: Any, make_plan: Callable[[], Any]) -> Any:
        """Return the plan for inputs of a shape and layout, and make it if there is none yet."""
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[key] = make_plan()
        return plan

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
