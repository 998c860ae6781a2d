"""Layers that read only some of the features that they are given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["SELECTING", "SelectingConv1d", "SelectingConv2d", "SelectingConv3d", "SelectingLinear"]


class SelectingLinear(nn.Linear):
    """A linear layer of some of the features: those whose numbers ``selected`` holds.

    Example:
        >>> from prunus import compact
        >>> model = nn.Linear(1000, 8)
        >>> _ = model.weight.data[:, 3:].zero_()
        >>> small = compact(model, torch.ones(2, 1000))
        >>> small.selected, small.weight.shape
        (tensor([0, 1, 2]), torch.Size([8, 3]))
    """

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch's own
        return super().forward(input.index_select(-1, self.selected))


class SelectingConv1d(nn.Conv1d):
    """A convolution of some of the channels: those whose numbers ``selected`` holds."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-2, self.selected))


class SelectingConv2d(nn.Conv2d):
    """A convolution of some of the channels: those whose numbers ``selected`` holds."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-3, self.selected))


class SelectingConv3d(nn.Conv3d):
    """A convolution of some of the channels: those whose numbers ``selected`` holds."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-4, self.selected))


SELECTING: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SelectingLinear,
    nn.Conv1d: SelectingConv1d,
    nn.Conv2d: SelectingConv2d,
    nn.Conv3d: SelectingConv3d,
}
"""What a layer becomes that selects features."""
