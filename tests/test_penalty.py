"""The penalty against autograd alone, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.training import squared_error, train
from prunus import (
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LearningRateStrength,
    LinearDecayStrength,
    LinearRelevance,
    Pruner,
    PrunusError,
    RelevancePenalty,
    Strength,
)
from prunus._utils.chunks import CPU_CHUNK
from prunus.penalties.application import TensorStep
from prunus.penalties.decoupled_application import shrink_
from prunus.penalties.formula import PenaltyFormula, Power
from prunus.penalties.gradient_application import GradientApplication
from prunus.penalties.relevance import Apply
from prunus.selection import PrunableTensor, Selection

BATCH = noise_batch(32, 8, 3, seed=1, dtype=torch.float64)

SEVEN: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}

# Each coefficient again, as a formula of its own that the library's code has no part in.
FORMULAS: dict[str, tuple[Coefficient, Callable[[torch.Tensor], torch.Tensor]]] = {
    "exponential": (ExponentialRelevance(0.02), lambda g: torch.exp(-torch.abs(g) / 0.02)),
    "exponential relative": (
        ExponentialRelevance(0.5, relative=True),
        lambda g: torch.exp(-torch.abs(g) / torch.abs(g).mean() / 0.5),
    ),
    "lobster": (LinearRelevance(), lambda g: torch.clamp(1 - torch.abs(g), min=0)),
    "constant": (ConstantRelevance(), torch.ones_like),
}


def small_network() -> Any:
    return tanh_network(8, 16, 3, seed=3, dtype=torch.float64)


def task_loss(model: nn.Module) -> torch.Tensor:
    return squared_error(model, BATCH)


def reference(
    formula: Callable[[torch.Tensor], torch.Tensor],
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
            (formula(g).detach() * w.abs() ** power).sum()
            for g, w in zip(gradients, weights, strict=True)
        )
        (task_loss(model) + gamma * regularizer).backward()
        optimizer.step()
    return model


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
    pruner = Pruner(model, optimizer, penalty)
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
    Pruner(mine, optimizer, RelevancePenalty(0.01, coefficient, apply="decoupled"))
    other = build(list(theirs.parameters()))
    weights = [theirs[0].weight, theirs[2].weight]
    for _ in range(50):
        optimizer.zero_grad()
        task_loss(mine).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        gradients = torch.autograd.grad(task_loss(theirs), weights)
        other.zero_grad()
        task_loss(theirs).backward()  # type: ignore[no-untyped-call]
        other.step()
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                w -= 2 * 0.01 * formula(g) * w
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_smoothing_sees_the_moving_average_of_gradient_magnitudes(name: str, apply: Apply) -> None:
    coefficient, formula = FORMULAS[name]
    mine, theirs = small_network(), small_network()
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.01)
    Pruner(mine, optimizer, RelevancePenalty(0.01, coefficient, apply=apply, smoothing=0.8))
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
            terms = [(formula(a) * w**2).sum() for a, w in zip(averages, weights, strict=True)]
            loss = loss + 0.01 * sum(terms)
        other.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        other.step()
        if apply == "decoupled":
            with torch.no_grad():
                for w, a in zip(weights, averages, strict=True):
                    w -= 2 * 0.01 * formula(a) * w
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("phase", range(10))
def test_smoothing_shrinks_rarely_used_embeddings_less(phase: int) -> None:
    def left(smoothing: float) -> float:
        model = nn.Embedding(2, 1)
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        penalty = RelevancePenalty(
            0.05, ExponentialRelevance(0.2, relative=True), apply="decoupled", smoothing=smoothing
        )
        Pruner(model, optimizer, penalty)
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
    pruner = Pruner(model, optimizer, RelevancePenalty(gamma, apply="decoupled"))
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
    with pytest.warns(UserWarning, match="16 bits of 1.weight, .* apply='decoupled'"):
        Pruner(model, optimizer, RelevancePenalty(0.1, apply=apply))


@pytest.mark.parametrize("power", [1, 2])
def test_remainders_stay_exact_while_the_optimizer_moves_the_weights(power: Literal[1, 2]) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(6, 8, padding_idx=1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    penalty = RelevancePenalty(1e-4, ConstantRelevance(), power=power, apply="decoupled")
    pruner = Pruner(model, optimizer, penalty)
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
    pruner = Pruner(model, optimizer, RelevancePenalty(0.1, apply="decoupled"))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert pruner.state_dict()["remainders"] == {}


def one_weight(value: float, penalty: RelevancePenalty, gradient: float, lr: float = 0.5) -> float:
    """Train a single weight for a step of SGD with a given gradient."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(value)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    Pruner(layer, optimizer, penalty)
    layer.weight.grad = torch.full_like(layer.weight, gradient)
    optimizer.step()
    return layer.weight.item()


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        # w = 2, g = 0.1, learning rate 0.5, γ = 0.25
        (RelevancePenalty(0.25), 2 - 0.5 * (0.1 + 0.5 * math.exp(-0.1) * 2)),
        (RelevancePenalty(0.25, LinearRelevance()), 2 - 0.5 * (0.1 + 0.5 * 0.9 * 2)),
        (RelevancePenalty(0.25, ConstantRelevance()), 2 - 0.5 * (0.1 + 0.5 * 2)),
        (RelevancePenalty(0.25, ConstantRelevance(), power=1), 2 - 0.5 * (0.1 + 0.25)),
        (RelevancePenalty(0.25, apply="decoupled"), (2 - 0.05) * (1 - 0.5 * math.exp(-0.1))),
        (RelevancePenalty(0.25, ConstantRelevance(), power=1, apply="decoupled"), 2 - 0.05 - 0.25),
        # Stronger than it takes to reach zero: stops there, on both powers.
        (RelevancePenalty(3.0, ConstantRelevance(), apply="decoupled"), 0.0),
        (RelevancePenalty(3.0, ConstantRelevance(), power=1, apply="decoupled"), 0.0),
        # γ = 0.25 · learning rate
        (
            RelevancePenalty(LearningRateStrength(0.25), ConstantRelevance()),
            2 - 0.5 * (0.1 + 0.25 * 2),
        ),
        (RelevancePenalty(0.0, apply="decoupled"), 2 - 0.05),
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
    pruner = Pruner(embedding, optimizer, RelevancePenalty(0.1, apply=apply))
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


def test_a_large_half_precision_tensor_has_a_finite_penalty() -> None:
    layer = nn.Linear(1024, 1024, bias=False, dtype=torch.float16)
    layer.weight.data.fill_(0.5)
    value = RelevancePenalty(1.0, ConstantRelevance()).bind(layer)(
        layer(torch.ones(1, 1024).half()).sum() * 0
    )
    assert value.item() == 0.25 * 1024 * 1024


def test_a_step_whose_loss_lacks_the_penalty_warns() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, optimizer, RelevancePenalty(0.1, apply="loss"))
    task_loss(model).backward()  # type: ignore[no-untyped-call]
    with pytest.warns(UserWarning, match=r"without the penalty.*loss \+ pruner.penalty\(loss\)"):
        optimizer.step()


def test_linear_decay_starts_again_at_each_pruning() -> None:
    layer = nn.Linear(10, 1, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(torch.arange(1.0, 11.0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner = Pruner(
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
    Pruner(
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
        pruner = Pruner(model, optimizer, RelevancePenalty(0.1, apply=apply))
        before = model["idle"].weight.detach().clone()
        loss = model["used"](torch.ones(1, 4)).sum()
        if apply == "loss":
            loss = loss + pruner.penalty(loss)
        loss.backward()
        optimizer.step()
        assert torch.equal(model["idle"].weight, before)


@settings(max_examples=50, deadline=None)
@given(
    numel=st.sampled_from([1, 7, CPU_CHUNK - 1, CPU_CHUNK, 2 * CPU_CHUNK + 3]),
    gamma=st.floats(0, 0.4),
    alpha=st.floats(1e-3, 10),
    relative=st.booleans(),
    power=st.sampled_from([1, 2]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_penalty_computed_in_chunks_equals_the_whole_formula(
    numel: int, gamma: float, alpha: float, relative: bool, power: Power, strided: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, gradient = torch.randn(2, numel, dtype=torch.float64)
    mask = torch.rand(numel) < 0.5
    if strided:
        weight, gradient, mask = (t.repeat_interleave(2)[::2] for t in (weight, gradient, mask))
    unit = alpha * (gradient.abs().mean() if relative else 1.0)
    c = torch.exp(-gradient.abs() / unit)
    shrink = 2 * c * weight if power == 2 else c * weight.sign()
    formula = PenaltyFormula(ExponentialRelevance(alpha, relative), power)
    mine = gradient.clone()
    tensor = PrunableTensor("weight", nn.Parameter(weight))
    application = GradientApplication(formula, Selection([tensor]), dict)
    with torch.no_grad():
        application.before_step(
            TensorStep(tensor, weight, mine, gamma, mask, None, mine, None, None)
        )
    # The mean of 131,075 numbers summed in another order differs by 1e-14, and all that follows.
    torch.testing.assert_close(mine, (gradient + gamma * shrink) * mask, rtol=0, atol=1e-12)
    out = torch.empty_like(gradient)
    formula.coefficients(gradient, out=out)
    torch.testing.assert_close(out, c, rtol=0, atol=1e-12)


def test_a_zero_gradient_is_wholly_irrelevant_also_when_relative() -> None:
    for coefficient in (
        ExponentialRelevance(0.1, relative=True),
        LinearRelevance(0.1, relative=True),
    ):
        assert coefficient(torch.zeros(4)).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "coefficient", [ExponentialRelevance(), LinearRelevance(), ConstantRelevance()]
)
@given(g=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_coefficients_lie_between_0_and_1_and_fall_with_the_gradient(
    coefficient: Coefficient, g: list[float]
) -> None:
    gradient = torch.tensor(sorted(g, key=abs))
    c = coefficient(gradient)
    assert bool(((c >= 0) & (c <= 1)).all())
    assert bool((c.diff() <= 0).all())
    torch.testing.assert_close(coefficient(-gradient), c)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialRelevance(0.0), "alpha must be above 0, but is 0.0"),
        (lambda: LinearRelevance(math.nan), "alpha must be a finite number above 0, but is nan"),
        (
            lambda: RelevancePenalty("much"),  # type: ignore[arg-type]
            "strength must be a number or a Strength, but is 'much'",
        ),
        (lambda: RelevancePenalty(-1.0), "a strength must be at least 0, but is -1"),
        (lambda: LearningRateStrength(math.inf), "strength must be a finite number"),
        (
            lambda: RelevancePenalty(LearningRateStrength),  # type: ignore[arg-type]
            r"strength must be .* but is the class LearningRateStrength: pass an instance",
        ),
        (
            lambda: RelevancePenalty(coefficient="l2"),  # type: ignore[arg-type]
            "coefficient must be a Coefficient, but is 'l2', without unit",
        ),
        (
            lambda: RelevancePenalty(coefficient=ExponentialRelevance),  # type: ignore[arg-type]
            "coefficient must be a Coefficient, but is the class ExponentialRelevance: pass",
        ),
        (lambda: LinearDecayStrength(1.0, steps=1.5), "steps must be a whole number"),  # type: ignore[arg-type]
        (
            lambda: RelevancePenalty(10**400, power=3, apply="q"),  # type: ignore[arg-type]
            "^a strength must be a finite number .* 1,329 bits; power must be 1 .*; apply must be ",
        ),
        (lambda: LinearDecayStrength(1.0, steps=0), "steps must be at least 1, but is 0"),
        (
            lambda: RelevancePenalty(power=3),  # type: ignore[arg-type]
            r"power must be 1 .* or 2 .*, but is 3",
        ),
        (
            lambda: RelevancePenalty(apply="both"),  # type: ignore[arg-type]
            "apply must be 'gradient', 'loss' or 'decoupled', but is 'both'",
        ),
        (
            lambda: RelevancePenalty(smoothing=1.0),
            "smoothing must be from 0 to below 1, but is 1.0",
        ),
        (
            lambda: RelevancePenalty(smoothing=math.nan),
            "smoothing must be a finite number from 0 to below 1, but is nan",
        ),
        (
            lambda: RelevancePenalty(smoothing="much"),  # type: ignore[arg-type]
            "smoothing must be a finite number from 0 to below 1, but is 'much'",
        ),
        (
            lambda: RelevancePenalty(apply="loss", smoothing=0.9),
            'smoothing needs apply="gradient" or "decoupled", but is 0.9 with apply="loss"',
        ),
    ],
)
def test_invalid_arguments_are_rejected(
    make: Callable[[], Strength | Coefficient], message: str
) -> None:
    with pytest.raises(PrunusError, match=message):
        make()


def test_the_term_needs_a_scalar_with_a_graph() -> None:
    term = RelevancePenalty(0.1).bind(small_network())
    with pytest.raises(PrunusError, match=r"the scalar loss .* got a tensor of shape \(3,\)"):
        term(torch.ones(3))


def test_a_strength_that_changes_outside_a_pruner_is_rejected() -> None:
    with pytest.raises(
        PrunusError, match=r"needs a constant strength, but has LearningRateStrength"
    ):
        RelevancePenalty(LearningRateStrength(0.1)).bind(small_network())


def test_smoothing_outside_a_pruner_is_rejected() -> None:
    with pytest.raises(PrunusError, match=r"has no memory, but smoothing is 0.9: use Pruner"):
        RelevancePenalty(smoothing=0.9).bind(small_network())


def test_a_stored_penalty_term_follows_the_changing_strength() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    penalty = RelevancePenalty(LinearDecayStrength(1.0, steps=2), ConstantRelevance(), apply="loss")
    term = Pruner(layer, optimizer, penalty).penalty
    values = []
    for _ in range(3):
        values.append(term(layer(torch.ones(1, 1)).sum()).item())
        optimizer.step()
    assert values == [1.0, 0.5, 0.0]


def test_the_term_is_refused_where_the_pruner_applies_the_penalty_itself() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrunusError, match='apply="gradient"'):
        _ = Pruner(model, optimizer, RelevancePenalty(0.1)).penalty
    with pytest.raises(PrunusError, match="no penalty"):
        _ = Pruner(model, optimizer).penalty
