"""Small data sets, drawn from generators of their own."""

from __future__ import annotations

import torch

Batch = tuple[torch.Tensor, torch.Tensor]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return normally distributed numbers; the global generator is not used."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise_batch(
    rows: int, inputs: int, outputs: int, *, seed: int, dtype: torch.dtype = torch.float32
) -> Batch:
    """Return inputs drawn with ``seed`` and unrelated targets drawn with ``seed + 1``."""
    return (
        normal(rows, inputs, seed=seed, dtype=dtype),
        normal(rows, outputs, seed=seed + 1, dtype=dtype),
    )


def tanh_batch() -> Batch:
    """Return 48 inputs of 12 features and, as targets, the tanh of the first three."""
    inputs = normal(48, 12, seed=1)
    return inputs, inputs[:, :3].tanh()
