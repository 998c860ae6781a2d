"""Tests of ``compact`` on single operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import zero

from .networks import FunctionalModel
from .round_trips import compact_and_reload, compact_with_report


@pytest.mark.slow
def test_gated_units_are_removed_with_their_gates() -> None:
    for gate in (F.glu, lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[1])):
        model: Any = FunctionalModel(
            lambda m, x, gate=gate: m.out(gate(m.into(x))),
            into=nn.Linear(4, 12), out=nn.Linear(6, 2),
        )  # fmt: skip
        zero(model.out.weight, slice(None), slice(0, 2))
        small = compact_and_reload(model, torch.ones(2, 4))
        assert small.into.weight.shape == (8, 4)
        assert_outputs_match(small, model, torch.randn(5, 4))


def test_factor_of_a_zero_product_is_removed() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.out(m.one(x) * m.two(x)),
        one=nn.Linear(4, 6), two=nn.Linear(4, 6), out=nn.Linear(6, 2),
    )  # fmt: skip
    zero(model.one.weight, slice(0, 2))
    zero(model.one.bias, 0)  # 0 times anything, and a constant factor
    small = compact_and_reload(model, torch.ones(2, 4))
    assert small.two.weight.shape == (5, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


IMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "average": nn.AdaptiveAvgPool2d(3),
    "maximum": nn.MaxPool2d(3, 2, 1),
    "resize": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "instance norm": nn.InstanceNorm2d(8),
    "slopes": nn.PReLU(8),
    "one slope": nn.PReLU(),
    "shuffle": nn.PixelShuffle(2),
    "transposed": nn.ConvTranspose2d(8, 6, 2, stride=2),
    "in place": nn.SiLU(inplace=True),
    "flip and transpose": lambda x: x.flip(1).transpose(2, 3),
    "stack": lambda x: torch.stack([x, x * 2], 1).sum(1),
    "elementwise max": lambda x: torch.max(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_channels_are_removed_through_shape_preserving_operators(name: str) -> None:
    middle = IMAGES[name]
    x = torch.randn(2, 3, 8, 8)
    layers: dict[str, nn.Module] = {"first": nn.Conv2d(3, 8, 3)}
    if isinstance(middle, nn.Module):
        layers["middle"] = middle
    width = middle(layers["first"](x)).shape[1]
    model: Any = FunctionalModel(
        lambda m, x: m.last(middle(m.first(x)) if "middle" not in layers else m.middle(m.first(x))),
        **layers,
        last=nn.Conv2d(width, 4, 1),
    )
    zero(model.first.weight, slice(0, 4))
    zero(model.first.bias, slice(0, 4))
    small, report = compact_with_report(model, x)
    assert report.protected == ()
    assert small.first.out_channels == 4
    assert_outputs_match(small, model, torch.randn(2, 3, 8, 8))


def test_value_filled_in_place_is_not_folded_as_a_constant() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.into(x)
        y[:] = x.sum()
        output: torch.Tensor = m.out(y)
        return output

    model: Any = FunctionalModel(run, into=nn.Linear(3, 4), out=nn.Linear(4, 2))
    assert_outputs_match(compact_and_reload(model, torch.randn(2, 3)), model, torch.randn(2, 3))


def test_operators_without_a_rule_keep_their_features() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.out(m.rnn(m.into(x))[0]),
        into=nn.Linear(3, 6), rnn=nn.GRU(6, 5, batch_first=True), out=nn.Linear(5, 2),
    )  # fmt: skip
    zero(model.into.weight, slice(0, 3))
    small, report = compact_with_report(model, torch.randn(2, 4, 3))
    assert report.resized == ()
    assert report.protected == ("gru in rnn: no rule for this operator",)
    assert_outputs_match(small, model, torch.randn(2, 4, 3))
