"""The matrices of a file as layers, to time a network of unknown structure."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunus.errors import ArgumentError

__all__ = ["MatrixLayers"]


class MatrixLayers(nn.Module):
    """The matrices of a file as separate linear layers, to time a network of unknown structure.

    Args:
        tensors: The tensors by name. Each float32 tensor of two or more dimensions becomes a layer
            with as many outputs as its first dimension has elements; the others are ignored.

    Raises:
        ArgumentError: There is no such tensor.

    Example:
        >>> layers = MatrixLayers({"a": torch.eye(3), "b": torch.ones(3)})
        >>> [tuple(y.shape) for y in layers(*layers.example(5))]
        [(5, 3)]
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self._widths: list[int] = []
        for tensor in tensors.values():
            if tensor.dim() > 1 and tensor.numel() and tensor.dtype == torch.float32:
                matrix = tensor.flatten(1)
                layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
                layer.weight = nn.Parameter(matrix)
                self.layers.append(layer)
                self._widths.append(matrix.shape[1])
        if not self.layers:
            raise ArgumentError(
                "there is no matrix in float32 among the tensors, so nothing to time: pass your "
                "network itself to prunus.bench.bench(model, example) in Python"
            )

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each layer's output for its own input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return random inputs, one of shape (batch, columns of the matrix) for each layer."""
        return tuple(torch.randn(batch, width) for width in self._widths)
