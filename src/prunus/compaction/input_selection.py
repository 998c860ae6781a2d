"""Layers that select the input features for which they have weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

__all__ = [
    "SELECTING_TYPES",
    "SelectingConv1d",
    "SelectingConv2d",
    "SelectingConv3d",
    "SelectingLinear",
    "without_selection",
]


class SelectingLinear(nn.Linear):
    """A linear layer of some input features: those whose indices are in the buffer ``selected``.

    Example:
        >>> from prunus import compact
        >>> model = nn.Linear(1000, 8)
        >>> _ = model.weight.data[:, 3:].zero_()
        >>> small = compact(model, torch.ones(2, 1000))
        >>> small.selected, small.weight.shape
        (tensor([0, 1, 2]), torch.Size([8, 3]))
    """

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        return super().forward(input.index_select(-1, self.selected))


class SelectingConv1d(nn.Conv1d):
    """A convolution of some input channels: those whose indices are in the buffer ``selected``."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-2, self.selected))


class SelectingConv2d(nn.Conv2d):
    """A convolution of some input channels: those whose indices are in the buffer ``selected``."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-3, self.selected))


class SelectingConv3d(nn.Conv3d):
    """A convolution of some input channels: those whose indices are in the buffer ``selected``."""

    selected: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input.index_select(-4, self.selected))


SELECTING_TYPES: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SelectingLinear,
    nn.Conv1d: SelectingConv1d,
    nn.Conv2d: SelectingConv2d,
    nn.Conv3d: SelectingConv3d,
}
"""The selecting type that replaces each plain layer type."""


def without_selection(layer: nn.Module, in_features: int) -> nn.Module:
    """Return a plain layer with the same outputs, its weights 0 for features not selected.

    Args:
        layer: A selecting layer; a layer of any other type is returned unchanged.
        in_features: The number of input features or channels of the plain layer.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.__class__ = SelectingLinear
        >>> layer.register_buffer("selected", torch.tensor([0, 3]))
        >>> plain = without_selection(layer, 5)
        >>> x = torch.randn(4, 5)
        >>> torch.allclose(plain(x), layer(x)), type(plain).__name__, plain.weight.shape
        (True, 'Linear', torch.Size([1, 5]))
    """
    plain_types = {selecting: plain for plain, selecting in SELECTING_TYPES.items()}
    plain_type = plain_types.get(type(layer))
    if plain_type is None:
        return layer
    plain = copy.deepcopy(layer)
    selected: torch.Tensor = plain._buffers.pop("selected")  # type: ignore[assignment]
    plain.__class__ = plain_type
    weight: torch.Tensor = plain.weight  # type: ignore[assignment]
    wide = torch.zeros(weight.shape[0], in_features, *weight.shape[2:], dtype=weight.dtype)
    wide[:, selected] = weight.detach()
    plain.weight = nn.Parameter(wide, requires_grad=weight.requires_grad)
    setattr(plain, "in_features" if plain_type is nn.Linear else "in_channels", in_features)
    return plain
