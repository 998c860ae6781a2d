"""The penalty against autograd alone, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.states import same, states_equal
from helpers.training import train
from penalties.tasks import BATCH, small_network, task_loss
from prunus import (
    CautiousRelevance,
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    FisherScore,
    LearningRateStrength,
    LinearDecayStrength,
    LinearRelevance,
    MovementScore,
    NonFiniteError,
    Pruner,
    RelevancePenalty,
    Score,
    SensitivityScore,
    TaylorScore,
)
from prunus.penalties.decoupled_application import shrink_
from prunus.penalties.relevance import Apply

SEVEN: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}

Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Each coefficient again, as a formula of its own that the library's code has no part in.
FORMULAS: dict[str, tuple[Coefficient, Formula]] = {
    "exponential": (ExponentialRelevance(0.02), lambda g, w: torch.exp(-torch.abs(g) / 0.02)),
    "exponential relative": (
        ExponentialRelevance(0.5, relative=True),
        lambda g, w: torch.exp(-torch.abs(g) / torch.abs(g).mean() / 0.5),
    ),
    "lobster": (LinearRelevance(), lambda g, w: torch.clamp(1 - torch.abs(g), min=0)),
    "constant": (ConstantRelevance(), lambda g, w: torch.ones_like(g)),
    "cautious": (CautiousRelevance(), lambda g, w: (g * w > 0).double()),
}


def reference(
    formula: Formula,
    power: int,
    build: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    steps: int,
    gamma: float,
) -> Any:
    """The method as the authors run it, by autograd alone."""
    model = small_network()
    optimizer = build(list(model.parameters()))
    weights = [model[0].weight, model[2].weight]
    for _ in range(steps):
        optimizer.zero_grad()
        gradients = torch.autograd.grad(task_loss(model), weights)
        regularizer = sum(
            (formula(g, w).detach() * w.abs() ** power).sum()
            for g, w in zip(gradients, weights, strict=True)
        )
        (task_loss(model) + gamma * regularizer).backward()
        optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("apply", ["gradient", "loss"])
@pytest.mark.parametrize(
    ("name", "power"), [*((name, 2) for name in FORMULAS), ("constant", 1)], ids=str
)
@pytest.mark.parametrize("build", SEVEN.values(), ids=SEVEN)
def test_both_coupled_ways_are_the_authors_update(
    build: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    name: str,
    power: int,
    apply: str,
) -> None:
    coefficient, formula = FORMULAS[name]
    model = small_network()
    optimizer = build(list(model.parameters()))
    penalty = RelevancePenalty(0.03, coefficient, power=power, apply=apply)  # type: ignore[arg-type]
    pruner = magnitude_pruner(model, optimizer, penalty)
    train(model, optimizer, BATCH, 50, pruner.penalty if apply == "loss" else None)
    expected = reference(formula, power, build, 50, 0.03)
    untouched = reference(formula, power, build, 50, 0.0)
    for mine, theirs, plain in zip(
        model.parameters(), expected.parameters(), untouched.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert not torch.allclose(mine, plain, rtol=0, atol=1e-4)  # the penalty did something


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("build", SEVEN.values(), ids=SEVEN)
def test_the_decoupled_way_shrinks_after_the_step(
    build: Callable[[list[torch.Tensor]], torch.optim.Optimizer], name: str
) -> None:
    coefficient, formula = FORMULAS[name]
    mine, theirs = small_network(), small_network()
    optimizer = build(list(mine.parameters()))
    magnitude_pruner(mine, optimizer, RelevancePenalty(0.01, coefficient, apply="decoupled"))
    other = build(list(theirs.parameters()))
    weights = [theirs[0].weight, theirs[2].weight]
    for _ in range(50):
        optimizer.zero_grad()
        task_loss(mine).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        gradients = torch.autograd.grad(task_loss(theirs), weights)
        before = [formula(g, w.detach()) for g, w in zip(gradients, weights, strict=True)]
        other.zero_grad()
        task_loss(theirs).backward()  # type: ignore[no-untyped-call]
        other.step()
        with torch.no_grad():
            for w, c in zip(weights, before, strict=True):
                w -= 2 * 0.01 * c * w
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "cautious"])
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_smoothing_sees_the_moving_average_of_gradient_magnitudes(name: str, apply: Apply) -> None:
    coefficient, formula = FORMULAS[name]
    mine, theirs = small_network(), small_network()
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.01)
    magnitude_pruner(
        mine, optimizer, RelevancePenalty(0.01, coefficient, apply=apply, smoothing=0.8)
    )
    other = torch.optim.Adam(theirs.parameters(), lr=0.01)
    weights = [theirs[0].weight, theirs[2].weight]
    averages: list[torch.Tensor] = []
    for step in range(50):
        optimizer.zero_grad()
        (task_loss(mine) * (1 + step % 3)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss = task_loss(theirs) * (1 + step % 3)
        gradients = [g.abs() for g in torch.autograd.grad(loss, weights)]
        # The plain mean of the first five, which are 1 / (1 - 0.8), and then the moving average.
        new = max(0.2, 1 / (step + 1))
        past = averages or gradients
        averages = [(1 - new) * a + new * g for a, g in zip(past, gradients, strict=True)]
        loss = task_loss(theirs) * (1 + step % 3)
        if apply == "gradient":
            terms = [(formula(a, w) * w**2).sum() for a, w in zip(averages, weights, strict=True)]
            loss = loss + 0.01 * sum(terms)
        other.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        other.step()
        if apply == "decoupled":
            with torch.no_grad():
                for w, a in zip(weights, averages, strict=True):
                    w -= 2 * 0.01 * formula(a, w) * w
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize(
    "score", [FisherScore(every=1), TaylorScore(), SensitivityScore(), MovementScore()]
)
def test_a_run_resumes_from_restored_weights_after_a_step_that_is_not_finite(
    score: Score, apply: Apply
) -> None:
    def trained(*, bad: bool) -> tuple[nn.Module, Pruner]:
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = Pruner(
            model, optimizer, coupled_penalty(1e-2, apply=apply, smoothing=0.9), score=score
        )
        train(model, optimizer, BATCH, 2)
        if bad:
            state = copy.deepcopy(model.state_dict())
            for parameter, value in zip(model.parameters(), (math.nan, math.inf) * 2, strict=False):
                parameter.grad = torch.full_like(parameter, value)
            optimizer.step()
            assert not any(parameter.isfinite().any() for parameter in model.parameters())
            with pytest.raises(NonFiniteError, match=r"scores of 0\.weight, 2\.weight"):
                pruner.prune(sparsity=0.5)
            model.load_state_dict(state)
        train(model, optimizer, BATCH, 2)
        pruner.prune(sparsity=0.5)
        return model, pruner

    (expected, one), (found, other) = trained(bad=False), trained(bad=True)
    assert states_equal(found, expected)
    for key in ("averages", "averaged", "score", "observed"):
        assert same(other.state_dict()[key], one.state_dict()[key]), key


@pytest.mark.parametrize("phase", range(10))
def test_smoothing_shrinks_rarely_used_embeddings_less(phase: int) -> None:
    def left(smoothing: float) -> float:
        model = nn.Embedding(2, 1)
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        penalty = RelevancePenalty(
            0.05, ExponentialRelevance(0.2, relative=True), apply="decoupled", smoothing=smoothing
        )
        magnitude_pruner(model, optimizer, penalty)
        for step in range(200):
            optimizer.zero_grad()
            model(torch.tensor([int(step % 10 == phase)])).sum().backward()
            optimizer.step()
        return model.weight[1].item()

    # Nine steps of ten shrink by a tenth what the last batch did not use.
    assert left(0.0) == pytest.approx(0.9**180, rel=1e-3)
    # On average its gradient is a fifth of the mean one, in units of a fifth: it shrinks by e times
    # less at each step, but for the first few, whose average is still coarse.
    steady = (1 - 0.1 / math.e) ** 200
    assert steady / 4 < left(0.99) < steady * 4


def one_weight(value: float, penalty: RelevancePenalty, gradient: float, lr: float = 0.5) -> float:
    """Train a single weight for a step of SGD with a given gradient."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(value)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    magnitude_pruner(layer, optimizer, penalty)
    layer.weight.grad = torch.full_like(layer.weight, gradient)
    optimizer.step()
    return layer.weight.item()


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        # w = 2, g = 0.1, learning rate 0.5, γ = 0.25
        (coupled_penalty(0.25), 2 - 0.5 * (0.1 + 0.5 * math.exp(-0.1) * 2)),
        (coupled_penalty(0.25, LinearRelevance()), 2 - 0.5 * (0.1 + 0.5 * 0.9 * 2)),
        (coupled_penalty(0.25, ConstantRelevance()), 2 - 0.5 * (0.1 + 0.5 * 2)),
        (coupled_penalty(0.25, ConstantRelevance(), power=1), 2 - 0.5 * (0.1 + 0.25)),
        (coupled_penalty(0.25, apply="decoupled"), (2 - 0.05) * (1 - 0.5 * math.exp(-0.1))),
        (RelevancePenalty(0.25, ConstantRelevance(), power=1, apply="decoupled"), 2 - 0.05 - 0.25),
        # Stronger than it takes to reach zero: stops there, on both powers.
        (RelevancePenalty(3.0, ConstantRelevance(), apply="decoupled"), 0.0),
        (RelevancePenalty(3.0, ConstantRelevance(), power=1, apply="decoupled"), 0.0),
        # γ = 0.25 · learning rate
        (
            coupled_penalty(LearningRateStrength(0.25), ConstantRelevance()),
            2 - 0.5 * (0.1 + 0.25 * 2),
        ),
        (coupled_penalty(0.0, apply="decoupled"), 2 - 0.05),
    ],
)
def test_one_step_gives_the_weight_computed_by_hand(
    penalty: RelevancePenalty, expected: float
) -> None:
    assert one_weight(2.0, penalty, 0.1) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.7, 0.9, 3.0])
@pytest.mark.parametrize("power", [1, 2])
def test_decoupled_shrinking_stops_at_zero(
    dtype: torch.dtype, gamma: float, power: Literal[1, 2]
) -> None:
    weight = torch.randn(1000, dtype=torch.float64).mul_(0.1).to(dtype)
    shrink_(weight, torch.ones_like(weight), gamma, power)
    assert not weight.any()


@pytest.mark.parametrize("apply", ["gradient", "loss", "decoupled"])
def test_the_padding_row_is_not_moved(apply: Apply) -> None:
    embedding = nn.Embedding(4, 2, padding_idx=1)
    embedding.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.5)
    pruner = magnitude_pruner(embedding, optimizer, coupled_penalty(0.1, apply=apply))
    loss = embedding(torch.tensor([0, 1])).sum()
    if apply == "loss":
        loss = loss + pruner.penalty(loss)
    loss.backward()
    optimizer.step()
    assert (embedding.weight == 1.0).all(dim=1).tolist() == [False, True, False, False]


def test_a_custom_coefficient_may_ignore_out() -> None:
    class Half:
        relative = False

        def unit(
            self,
            gradient: torch.Tensor,
            scale: torch.Tensor | float = 1.0,
            *,
            mean: torch.Tensor | None = None,
        ) -> float:
            return 1.0

        def __call__(
            self,
            gradient: torch.Tensor,
            *,
            unit: torch.Tensor | float | None = None,
            out: torch.Tensor | None = None,
        ) -> torch.Tensor:
            return torch.full_like(gradient, 0.5)

    for apply in ("gradient", "decoupled"):
        penalty = RelevancePenalty(0.25, Half(), apply=apply)
        lr = 1.0
        assert one_weight(2.0, penalty, 0.0, lr) == pytest.approx(2.0 - 2 * 0.25 * 0.5 * 2.0)


def test_a_step_whose_loss_lacks_the_penalty_warns() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    magnitude_pruner(model, optimizer, coupled_penalty(0.1, apply="loss"))
    task_loss(model).backward()  # type: ignore[no-untyped-call]
    with pytest.warns(UserWarning, match=r"without the penalty.*loss \+ pruner.penalty\(loss\)"):
        optimizer.step()


def test_linear_decay_starts_again_at_each_pruning() -> None:
    layer = nn.Linear(10, 1, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(torch.arange(1.0, 11.0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner = magnitude_pruner(
        layer,
        optimizer,
        RelevancePenalty(
            LinearDecayStrength(0.05, steps=2), ConstantRelevance(), apply="decoupled"
        ),
    )
    factors = []
    for step in range(6):
        if step == 3:
            pruner.prune(sparsity=0.5)
        before = layer.weight[0, -1].item()
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
        factors.append(layer.weight[0, -1].item() / before)
    assert factors == pytest.approx([0.9, 0.95, 1.0, 0.9, 0.95, 1.0])


def test_a_group_of_its_own_follows_its_own_learning_rate() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.0},
            {"params": model[2].parameters(), "lr": 0.2},
        ],
        lr=1.0,
    )
    magnitude_pruner(
        model,
        optimizer,
        RelevancePenalty(LearningRateStrength(0.5), ConstantRelevance(), apply="decoupled"),
    )
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0].weight, rtol=0, atol=0)
    torch.testing.assert_close(model[2].weight, before[2].weight * 0.8)


def test_a_tensor_that_the_loss_does_not_reach_is_left_alone_by_every_way() -> None:
    for apply in ("gradient", "loss", "decoupled"):
        model: Any = nn.ModuleDict({"used": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = magnitude_pruner(model, optimizer, coupled_penalty(0.1, apply=apply))
        before = model["idle"].weight.detach().clone()
        loss = model["used"](torch.ones(1, 4)).sum()
        if apply == "loss":
            loss = loss + pruner.penalty(loss)
        loss.backward()
        optimizer.step()
        assert torch.equal(model["idle"].weight, before)
