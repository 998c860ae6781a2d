"""Clipping within the step, which must not change which weights are irrelevant."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from helpers.models import tanh_network
from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.states import same
from prunus import (
    ExponentialRelevance,
    PrunusError,
    RelevancePenalty,
    TaylorScore,
)
from prunus.penalties.relevance import Apply

LR, GAMMA, ALPHA = 0.5, 0.05, 0.3


def small_network() -> nn.Sequential:
    return tanh_network(6, 5, 3, dtype=torch.float64)


def backward(model: nn.Module) -> None:
    torch.manual_seed(1)
    (model(torch.randn(8, 6).double()) * 5).square().mean().backward()


def stepped(max_grad_norm: float | None, **arguments: Any) -> nn.Sequential:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    magnitude_pruner(model, optimizer, max_grad_norm=max_grad_norm, **arguments)
    backward(model)
    optimizer.step()
    return model


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])  # the first average is the first gradient
def test_relevance_is_that_of_the_gradient_before_clipping(
    apply: Apply, relative: bool, smoothing: float
) -> None:
    model = small_network()
    backward(model)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    limit = norm.item() / 7
    coefficient = ExponentialRelevance(ALPHA, relative)
    penalty = RelevancePenalty(GAMMA, coefficient, apply=apply, smoothing=smoothing)
    got = stepped(limit, penalty=penalty)
    for (name, weight), after in zip(model.named_parameters(), got.parameters(), strict=True):
        assert weight.grad is not None
        g, w = weight.grad, weight.detach()
        unit = ALPHA * g.abs().mean() if relative else ALPHA
        shrink = 2 * GAMMA * torch.exp(-g.abs() / unit)
        clipped = g / 7
        if "bias" in name:
            expected = w - LR * clipped
        elif apply == "gradient":
            expected = w - LR * (clipped + shrink * w)
        else:
            expected = (w - LR * clipped) * (1 - shrink)
        torch.testing.assert_close(after.detach(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("limit", [0.1, 1e6], ids=["clipping", "idle"])
def test_clipping_equals_torchs_to_the_bit(limit: float) -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    for expected, got in zip(model.parameters(), stepped(limit).parameters(), strict=True):
        assert torch.equal(expected, got)


def test_the_score_sees_the_gradient_before_clipping() -> None:
    scores = []
    for limit in (None, 1e-3):
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        pruner = magnitude_pruner(model, optimizer, score=TaylorScore(), max_grad_norm=limit)
        backward(model)
        optimizer.step()
        scores.append(copy.deepcopy(pruner.state_dict()["score"]))
    assert list(scores[0]) == ["0.weight", "2.weight"]
    assert same(scores[0], scores[1])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_gradient_norm_limit_not_above_zero_is_rejected(limit: float) -> None:
    with pytest.raises(PrunusError, match="max_grad_norm must be .*above 0"):
        stepped(limit)


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("steps", [0, 1], ids=["first", "later"])
def test_an_overflowing_gradient_norm_leaves_the_weights_unchanged(
    apply: Apply, steps: int
) -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pruner = magnitude_pruner(
        layer,
        optimizer,
        coupled_penalty(1e-3, apply=apply, smoothing=0.9),
        score=TaylorScore(),
        max_grad_norm=1.0,
    )
    for _ in range(steps):
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    memory = copy.deepcopy(pruner.state_dict()["score"])
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.full_like(layer.weight, 1e25)  # whose squares are infinite
    layer.bias.grad = torch.zeros_like(layer.bias)
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert same(pruner.state_dict()["score"], memory)


def test_the_norm_of_float16_gradients_under_a_scaler_does_not_overflow() -> None:
    def moved(scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(64, 8).half()
        before = model.weight.detach().clone()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        magnitude_pruner(model, optimizer, max_grad_norm=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((model(torch.ones(4, 64).half()).float() - 3).square().mean()).backward()
        scaler.step(optimizer)
        return model.weight.detach() - before

    plain, scaled = moved(1.0), moved(2.0**14)
    # The first step of Adam is the learning rate, whatever the gradient.
    torch.testing.assert_close(plain.abs(), torch.full_like(plain, 0.1), rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled, plain, rtol=0.02, atol=1e-3)


def test_sparse_gradients_are_named_before_they_are_clipped() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    magnitude_pruner(model, optimizer, max_grad_norm=1.0)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(PrunusError, match=r"0\.weight has a sparse gradient"):
        optimizer.step()


def test_a_second_pruner_on_a_clipped_optimizer_is_rejected() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = magnitude_pruner(model, optimizer, max_grad_norm=1.0)
    with pytest.raises(PrunusError, match="may have one Pruner only"):
        magnitude_pruner(model, optimizer, coupled_penalty(1e-3))
    first.detach()
    magnitude_pruner(model, optimizer, coupled_penalty(1e-3))
