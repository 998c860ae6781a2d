"""Tests of ``compact`` on models whose forward reads a part or a reduction of a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.data import normal
from helpers.sparse_models import zero

from .networks import FunctionalModel
from .round_trips import compact_and_reload

READS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "row": lambda gains: gains[1],
    "last row": lambda gains: gains.select(0, -1),
    "column": lambda gains: gains.t()[:, 0],
    "element": lambda gains: gains[1, 2],
    "flat slice": lambda gains: gains.view(-1)[8:16],
    "unbind": lambda gains: gains.unbind(0)[1],
    "chunk": lambda gains: gains.chunk(3)[1].squeeze(0),
    "squeeze": lambda gains: gains[:1].squeeze(0),
    "sum": lambda gains: gains.sum(0),
    "mean": lambda gains: gains.mean(0),
    "maximum": lambda gains: gains.amax(0),
    "softmax": lambda gains: gains.softmax(0)[1],
    "list of rows": lambda gains: gains[[0, 2]].prod(0),
    "sum of rows": lambda gains: gains[0] + gains[2],
    "stacked rows": lambda gains: torch.stack([gains[0], gains[2]]).sum(0),
    "embedding of a scalar": lambda gains: F.embedding(torch.tensor(1), gains),
    "expanded row": lambda gains: gains[1].expand(5, 8),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "row" else pytest.param(name, marks=pytest.mark.slow) for name in READS],
)
@pytest.mark.parametrize("combine", [torch.mul, torch.add], ids=["factor", "term"])
def test_part_of_a_parameter_may_be_read(
    name: str, combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    read = READS[name]
    model: Any = FunctionalModel(
        lambda m, x: m.out(combine(m.into(x), read(m.gains)).relu()),
        into=nn.Linear(8, 8), out=nn.Linear(8, 2),
    )  # fmt: skip
    model.gains = nn.Parameter(normal(3, 8, seed=1))
    zero(model.gains, slice(None), 4)  # one that the row removes or leaves constant
    zero(model.into.weight, slice(0, 3))
    zero(model.into.bias, slice(0, 2))
    zero(model.out.weight, slice(None), slice(5, None))
    small = compact_and_reload(model, normal(5, 8, seed=2))
    assert_outputs_match(small, model, normal(5, 8, seed=3))


def test_units_are_removed_with_the_elements_of_the_row_that_is_read() -> None:
    model: Any = FunctionalModel(
        lambda m, x: m.out((m.into(x) * m.gains[1]).relu()),
        into=nn.Linear(8, 8),
        out=nn.Linear(8, 2),
    )
    model.gains = nn.Parameter(normal(3, 8, seed=1))
    zero(model.out.weight, slice(None), slice(5, None))
    small = compact_and_reload(model, normal(5, 8, seed=2))
    assert small.into.weight.shape == (5, 8)
    assert small.gains.shape == (3, 5)  # the rows that are not read stay beside it
    assert_outputs_match(small, model, normal(5, 8, seed=3))
