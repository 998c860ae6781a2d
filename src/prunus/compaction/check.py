"""Making sure that a smaller model says what the larger one says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["TOLERANCE", "draws", "tolerance"]

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The largest difference of an output to accept, relative to its largest magnitude, by type."""


def draws(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int = 3
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield the example itself, and then random inputs like it.

    Floating-point inputs are normal, integers lie within the range of the example, and what is true
    or false stays as it is.

    Args:
        args: The positional arguments of the example.
        kwargs: Its keyword arguments.
        count: How many random ones.
    """
    draw = torch.Generator().manual_seed(0)

    def drawn(held: Any) -> Any:
        if not isinstance(held, torch.Tensor) or held.dtype == torch.bool or not held.numel():
            return held
        if held.is_floating_point():
            made = torch.randn(held.shape, generator=draw, dtype=torch.float64)
        elif held.is_complex():
            made = torch.randn(held.shape, generator=draw, dtype=torch.complex128)
        else:
            low, high = int(held.min()), int(held.max())
            made = torch.randint(low, high + 1, held.shape, generator=draw)
        return made.to(held.dtype).to(held.device)

    yield args, dict(kwargs)
    for _ in range(count):
        yield pytree.tree_map(drawn, args), pytree.tree_map(drawn, dict(kwargs))


def tolerance(tensors: list[torch.Tensor]) -> float:
    """Return the tolerance of the coarsest type among tensors."""
    return max((TOLERANCE.get(tensor.dtype, 0.0) for tensor in tensors), default=0.0)
