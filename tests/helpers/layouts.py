"""Layouts in which a matrix may be stored."""

from __future__ import annotations

import torch

__all__ = ["LAYOUTS", "in_layout"]

LAYOUTS = ("rows", "columns", "strided", "offset")


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a matrix of equal numbers, stored in one of :data:`LAYOUTS`, between NaN."""
    if layout == "columns":
        return x.t().contiguous().t()
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.full_like(x[:1], torch.nan), x]).t().contiguous().t()[1:]
    assert layout == "rows"
    return x
