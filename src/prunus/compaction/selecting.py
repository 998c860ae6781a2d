"""Layers that read only some of the features that they are given."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

__all__ = [
    "SELECTING",
    "SelectingConv1d",
    "SelectingConv2d",
    "SelectingConv3d",
    "SelectingLinear",
    "reading_all",
]


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


def reading_all(layer: nn.Module, features: int) -> nn.Module:
    """Return an ordinary layer that does the same, with zeros for what a selecting one leaves out.

    Args:
        layer: A selecting layer; any other is returned as it is.
        features: How many features it is given.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.__class__ = SelectingLinear
        >>> layer.register_buffer("selected", torch.tensor([0, 3]))
        >>> whole = reading_all(layer, 5)
        >>> x = torch.randn(4, 5)
        >>> torch.allclose(whole(x), layer(x)), type(whole).__name__, whole.weight.shape
        (True, 'Linear', torch.Size([1, 5]))
    """
    kind = next((plain for plain, own in SELECTING.items() if type(layer) is own), None)
    if kind is None:
        return layer
    whole = copy.deepcopy(layer)
    selected: torch.Tensor = whole._buffers.pop("selected")  # type: ignore[assignment]
    whole.__class__ = kind
    weight: torch.Tensor = whole.weight  # type: ignore[assignment]
    wide = torch.zeros(weight.shape[0], features, *weight.shape[2:], dtype=weight.dtype)
    wide[:, selected] = weight.detach()
    whole.weight = nn.Parameter(wide, requires_grad=weight.requires_grad)
    setattr(whole, "in_features" if kind is nn.Linear else "in_channels", features)
    return whole
