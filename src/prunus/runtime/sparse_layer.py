"""What sparse layers have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import nn

from prunus.errors import PrunusError
from prunus.runtime.rows import SparseRows

__all__ = ["CHUNK_BYTES", "WORTH_SHARING", "SparseLayer", "threads_at_hand"]

WORTH_SHARING = 9_000
"""What a product must cost, by :func:`prunus.runtime.tiling.cost`, that waking a thread pays."""

CHUNK_BYTES = 1 << 17
"""What is read of the matrix, at least, before the next tile of activations has its turn."""

_REMEMBERED = 32
"""Kinds of input of which a layer keeps what it worked out."""

_MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)


def threads_at_hand() -> int:
    """Return how many threads torch would use."""
    return min(torch.get_num_threads(), _MOST_THREADS)


class SparseLayer(nn.Module):
    """What sparse layers have in common.

    Args:
        rows: The weight.
        size: Elements of the weight, zeros included.
        rectified: Whether the layer does what a ReLU after it would do.
    """

    def __init__(self, rows: SparseRows, size: int, rectified: bool) -> None:
        super().__init__()
        self.rows, self.size, self.rectified = rows, size, rectified
        self._floor = np.float32(0.0 if rectified else -np.inf)
        self._plans: dict[Any, Any] = {}

    @property
    def density(self) -> float:
        """The share of the weight that is not zero."""
        return len(self.rows.values) / max(1, self.size)

    def _about(self) -> str:
        return f"density={self.density:.3g}" + (", with ReLU" if self.rectified else "")

    def _apply(self, *arguments: Any, **settings: Any) -> Any:
        self._plans.clear()
        return super()._apply(*arguments, **settings)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # they hold addresses

    def _planned(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was worked out for inputs of this kind."""
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            plan = self._plans[key] = make()
        return plan

    def _check(self, x: torch.Tensor, fits: bool, wanted: str) -> None:
        problems = []
        if not fits:
            problems.append(f"of shape {wanted}, but is of shape {tuple(x.shape)}")
        if x.dtype != torch.float32:
            problems.append(f"float32, but is {str(x.dtype).removeprefix('torch.')}")
        if x.device.type != "cpu":
            problems.append(f"on the CPU, but is on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            problems.append(
                "without a gradient, for this layer was made for inference: call it under "
                "torch.no_grad(), and train the network that it was made from"
            )
        if problems:
            raise PrunusError(
                f"{type(self).__name__}: the input must be " + "; and ".join(problems)
            )
