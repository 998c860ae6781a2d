"""Probe inputs on which the compact model is compared with the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["probe_inputs"]


def probe_inputs(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int = 3
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield the example inputs, and then random inputs of the same shapes and types.

    Floating-point inputs are drawn from the normal distribution, integers from the range that the
    example spans; boolean inputs stay unchanged.

    Args:
        args: The positional arguments of the example.
        kwargs: The keyword arguments of the example.
        count: The number of random inputs. Default 3.
    """
    generator = torch.Generator().manual_seed(0)

    def random_like(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dtype == torch.bool or not leaf.numel():
            return leaf
        if leaf.is_floating_point():
            drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        elif leaf.is_complex():
            drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.complex128)
        else:
            low, high = int(leaf.min()), int(leaf.max())
            drawn = torch.randint(low, high + 1, leaf.shape, generator=generator)
        return drawn.to(leaf.dtype).to(leaf.device)

    yield args, dict(kwargs)
    for _ in range(count):
        yield pytree.tree_map(random_like, args), pytree.tree_map(random_like, dict(kwargs))
