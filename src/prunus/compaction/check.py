"""Making sure that a smaller model says what the larger one says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["TOLERANCE", "difference", "draws", "run", "tolerance"]

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


def run(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0
) -> list[torch.Tensor]:
    """Return the tensors that a model returns, in order; the state of torch's draws stays."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(_tensors(model(*args, **kwargs)))


def _tensors(returned: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(returned):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):  # of a kind that torch does not know
            yield from _tensors(list(leaf.values()))


def tolerance(tensors: list[torch.Tensor]) -> float:
    """Return the tolerance of the coarsest type among tensors."""
    return max((TOLERANCE.get(tensor.dtype, 0.0) for tensor in tensors), default=0.0)


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference of two models' outputs, relative to their largest magnitude.

    Infinite if they differ in number, shape or type, or in where they are not finite.

    Example:
        >>> difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [(o.shape, o.dtype) for o in one] != [(o.shape, o.dtype) for o in other]:
        return float("inf")
    worst = 0.0
    for left, right in zip(one, other, strict=True):
        if not (left.is_floating_point() or left.is_complex()):
            worst = worst if torch.equal(left, right) else float("inf")
            continue
        wide = torch.complex128 if left.is_complex() else torch.float64
        left, right = left.detach().to(wide), right.detach().to(wide)
        finite = left.isfinite()
        if not torch.equal(finite, right.isfinite()) or not torch.equal(
            left[~finite].nan_to_num(), right[~finite].nan_to_num()
        ):
            return float("inf")
        if bool(finite.any()):
            largest = float(left[finite].abs().max())
            apart = float((left[finite] - right[finite]).abs().max())
            worst = max(worst, apart / largest if largest else (float("inf") if apart else 0.0))
    return worst
