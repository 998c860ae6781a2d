"""The remainders of 16-bit weights, which keep what rounding would lose."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from prunus import (
    ConstantRelevance,
    RelevancePenalty,
)
from prunus.penalties.relevance import Apply


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("gamma", "steps"), [(5e-5, 10_000), (5e-7, 10_000), (0.05, 20)])
def test_short_types_lose_no_shrink_to_rounding(
    dtype: torch.dtype, gamma: float, steps: int
) -> None:
    model = nn.Linear(40, 1, bias=False)
    nn.init.uniform_(model.weight, -1.0, 1.0)
    model.to(dtype)
    begin = model.weight.detach().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, coupled_penalty(gamma, apply="decoupled"))
    model.weight.grad = torch.zeros_like(model.weight)
    for _ in range(steps):
        optimizer.step()
    expected = begin * (1 - 2 * gamma) ** steps
    torch.testing.assert_close(model.weight.double(), expected, rtol=0.05, atol=0)
    # What the weight itself cannot hold is in the remainder.
    exact = model.weight.double() + pruner.state_dict()["remainders"]["weight"]
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("apply", ["gradient", "loss"])
def test_16_bit_weights_without_decoupled_penalty_warn(apply: Apply) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1).bfloat16())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(
        UserWarning, match="rounded to the 16-bit type of 1.weight and may .* apply='decoupled'"
    ):
        magnitude_pruner(model, optimizer, coupled_penalty(0.1, apply=apply))


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 2])
def test_remainders_stay_exact_while_the_optimizer_moves_the_weights(power: Literal[1, 2]) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(6, 8, padding_idx=1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    penalty = RelevancePenalty(1e-4, ConstantRelevance(), power=power, apply="decoupled")
    pruner = magnitude_pruner(model, optimizer, penalty)
    pruner.prune(sparsity=0.25)
    kept = pruner.masks["weight"]
    moving = kept.clone()
    moving[1] = False
    expected = model.weight.detach().double()
    for step in range(3000):
        move = 2.0 if step == 1500 else 0.0
        model.weight.grad = torch.full_like(model.weight, move) * moving
        optimizer.step()
        expected -= 0.25 * move * moving
        shrink = 2e-4 * expected if power == 2 else 1e-4 * expected.sign()
        shrink[1] = 0.0  # padding
        expected -= torch.where(expected.abs() < shrink.abs(), expected, shrink)
    exact = model.weight.double() + pruner.state_dict()["remainders"]["weight"]
    assert not model.weight[~kept].any()
    assert not model.weight[1].any()
    torch.testing.assert_close(
        exact[kept], expected[kept], rtol=0, atol=0.01
    )  # the move was rounded


def test_float32_weights_have_no_remainders() -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, coupled_penalty(0.1, apply="decoupled"))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert pruner.state_dict()["remainders"] == {}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_restored_after_a_bad_step_have_the_remainders_from_before(
    value: float, power: Literal[1, 2]
) -> None:
    model = nn.Linear(40, 1, bias=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = RelevancePenalty(1e-5, ConstantRelevance(), power=power)
    pruner = magnitude_pruner(model, optimizer, penalty)
    for _ in range(3):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    weight = model.weight.detach().clone()
    remainder = pruner.state_dict()["remainders"]["weight"].clone()
    assert remainder.any()
    model.weight.grad = torch.full_like(model.weight, value)
    optimizer.step()
    assert not model.weight.isfinite().any()
    with torch.no_grad():
        model.weight.copy_(weight)
    found = pruner.state_dict()["remainders"]["weight"]
    torch.testing.assert_close(found, remainder, rtol=0, atol=0)
