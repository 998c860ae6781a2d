"""Sparse models and what makes models sparse, for tests of the runtime, compaction and export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["TiedEmbedding", "fill", "sparsified", "sparsify_with_zero_rows", "zero"]


def zero(tensor: torch.Tensor, *index: Any) -> None:
    """Set the elements at an index to zero, all without one."""
    with torch.no_grad():
        tensor[index] = 0


def fill(tensor: torch.Tensor, *values: float) -> None:
    """Set all elements of a tensor, row by row."""
    with torch.no_grad():
        tensor.copy_(torch.tensor(values).reshape(tensor.shape))


def sparsified(model: nn.Module, sparsity: float = 0.95) -> Any:
    """Set this fraction of every matrix to zero, at random, and return the model for inference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand_like(parameter) >= sparsity)
    return model.eval()


def sparsify_with_zero_rows(layer: nn.Module, sparsity: float, seed: int = 1) -> None:
    """Set this fraction of a layer's weight to zero, and the first fifth of its rows entirely.

    Args:
        layer: The layer, changed in place.
        sparsity: The fraction.
        seed: Draws the weights to remove. It must not be that of the layer's initialization: the
            same numbers would then be drawn, and only the largest weights kept, all positive.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = layer.get_parameter("weight")
        weight.mul_(torch.rand(weight.shape, generator=draw) >= sparsity)
        weight[: len(weight) // 5] = 0


class TiedEmbedding(nn.Module):
    """An embedding and an output layer that share one weight."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight
