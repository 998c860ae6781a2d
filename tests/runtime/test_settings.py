"""Sweep of the settings of layers: a sparse layer computes them as torch does, or rejects them."""

from __future__ import annotations

import collections
import random
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_layer_matches_float64
from helpers.sparse_models import sparsify_with_zero_rows
from prunus import ArgumentError
from prunus.runtime.convolution import SparseConv
from prunus.runtime.linear import SparseLinear

Settings = dict[str, Any]


def draw_linear(draw: random.Random) -> tuple[Settings, tuple[int, ...]]:
    """Return the settings of a linear layer, and the shape of an input."""
    features = draw.randint(1, 24)
    settings = {
        "in_features": features,
        "out_features": draw.randint(1, 12),
        "bias": draw.random() < 0.7,
    }
    leading = draw.choice([(), (0,), (1,), (2,), (7,), (18,), (1, 1), (3, 0), (2, 3), (2, 1, 2)])
    return settings, (*leading, features)


def draw_convolution(draw: random.Random, dimensions: int) -> tuple[Settings, tuple[int, ...]]:
    """Return the settings of a convolution, and the shape of an input."""

    def sizes(*choices: int) -> Any:
        if draw.random() < 0.4:
            return draw.choice(choices)
        return tuple(draw.choice(choices) for _ in range(dimensions))

    groups = draw.choice([1, 1, 1, 2, 3])
    channels = groups * draw.randint(1, 3)
    settings = {
        "in_channels": channels,
        "out_channels": groups * draw.randint(1, 3),
        "kernel_size": sizes(1, 2, 3, 5),
        "stride": sizes(1, 1, 2, 3, 4),
        "dilation": sizes(1, 1, 2, 3),
        "padding": draw.choice(["same", "valid", sizes(0, 1, 2, 5)]),
        "groups": groups,
        "bias": draw.random() < 0.7,
    }
    if draw.random() < 0.05:
        settings["padding_mode"] = draw.choice(["reflect", "replicate", "circular"])
    if settings["padding"] == "same" and draw.random() < 0.8:
        settings["stride"] = 1  # torch rejects other strides
    leading = draw.choice([(), (0,), (1,), (2,)])
    return settings, (*leading, channels, *(draw.randint(1, 20) for _ in range(dimensions)))


def outcome_of(layer_type: type[nn.Module], settings: Settings, shape: tuple[int, ...]) -> str:
    """Compare the sparse layer with torch's, and return how the comparison ended."""
    sparse_type: Any = SparseLinear if layer_type is nn.Linear else SparseConv
    try:
        layer: Any = layer_type(**settings)
    except ValueError:
        return "rejected by torch"
    sparsify_with_zero_rows(layer, random.Random(repr(settings)).choice([0.0, 0.5, 0.9]))
    if settings.get("padding_mode", "zeros") != "zeros":
        with pytest.raises(ArgumentError, match=r"padding_mode is .*, not 'zeros': keep it dense"):
            sparse_type(layer)
        return "rejected"
    sparse, x = sparse_type(layer), torch.randn(shape)
    for name, value in vars(layer).items():
        assert name.startswith("_") or getattr(sparse, name) == value, name
    try:
        with torch.no_grad():
            layer(x)
    except RuntimeError:  # the image is smaller than the kernel
        with pytest.raises(ArgumentError, match="the kernel covers"):
            sparse(x)
        return "too small"
    assert_layer_matches_float64(sparse, layer, x)
    return "compared"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("layer_type", "rounds"), [(nn.Linear, 400), (nn.Conv1d, 1400), (nn.Conv2d, 1400)]
)
def test_random_settings_match_float64_reference_or_are_rejected(
    layer_type: type[nn.Module], rounds: int
) -> None:
    torch.manual_seed(0)
    draw = random.Random(layer_type.__name__)
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(rounds):
        if layer_type is nn.Linear:
            settings, shape = draw_linear(draw)
        else:
            settings, shape = draw_convolution(draw, 1 if layer_type is nn.Conv1d else 2)
        try:
            outcomes[outcome_of(layer_type, settings, shape)] += 1
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(
                f"{layer_type.__name__}({settings}) of {shape}: {error}"
            ) from error
    assert outcomes["compared"] >= 0.7 * rounds, outcomes
    assert layer_type is nn.Linear or min(outcomes["rejected"], outcomes["too small"]) > 10
