"""The relevance penalty by itself: its formula, its arguments and its term of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from penalties.tasks import small_network
from prunus import (
    ArgumentError,
    CautiousRelevance,
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LearningRateStrength,
    LinearDecayStrength,
    LinearRelevance,
    PrunusError,
    RelevancePenalty,
    Strength,
)
from prunus._utils.chunks import CPU_CHUNK
from prunus.penalties.application import TensorStep
from prunus.penalties.formula import PenaltyFormula, Power
from prunus.penalties.gradient_application import GradientApplication
from prunus.selection import PrunableTensor, Selection, select


def test_a_large_half_precision_tensor_has_a_finite_penalty() -> None:
    layer = nn.Linear(1024, 1024, bias=False, dtype=torch.float16)
    layer.weight.data.fill_(0.5)
    value = coupled_penalty(1.0, ConstantRelevance()).bind(layer)(
        layer(torch.ones(1, 1024).half()).sum() * 0
    )
    assert value.item() == 0.25 * 1024 * 1024


@pytest.mark.slow
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
            [TensorStep(tensor, weight, mine, gamma, mask, None, mine, None, None)]
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
            lambda: coupled_penalty("much"),  # type: ignore[arg-type]
            "strength must be a number or a Strength, but is 'much'",
        ),
        (lambda: coupled_penalty(-1.0), "^strength must be at least 0, but is -1"),
        (lambda: LearningRateStrength(math.inf), "ratio must be a finite number"),
        (
            lambda: coupled_penalty(LearningRateStrength),  # type: ignore[arg-type]
            r"strength must be .* but is the class LearningRateStrength: pass an instance",
        ),
        (
            lambda: coupled_penalty(coefficient="l2"),  # type: ignore[arg-type]
            "coefficient must be a Coefficient, but is 'l2', without unit",
        ),
        (
            lambda: coupled_penalty(coefficient=ExponentialRelevance),  # type: ignore[arg-type]
            "coefficient must be a Coefficient, but is the class ExponentialRelevance: pass",
        ),
        (lambda: LinearDecayStrength(1.0, steps=1.5), "steps must be a whole number"),  # type: ignore[arg-type]
        (
            lambda: coupled_penalty(10**400, power=3, apply="q"),  # type: ignore[arg-type]
            "^strength must be a finite number .* 1,329 bits; power must be 1 .*; apply must be ",
        ),
        (lambda: LinearDecayStrength(1.0, steps=0), "steps must be at least 1, but is 0"),
        (
            lambda: coupled_penalty(power=3),
            r"power must be 1 .* or 2 .*, but is 3",
        ),
        (
            lambda: coupled_penalty(apply="both"),  # type: ignore[arg-type]
            "apply must be 'gradient', 'loss' or 'decoupled', but is 'both'",
        ),
        (
            lambda: coupled_penalty(smoothing=1.0),
            "smoothing must be from 0 to below 1, but is 1.0",
        ),
        (
            lambda: coupled_penalty(smoothing=math.nan),
            "smoothing must be a finite number from 0 to below 1, but is nan",
        ),
        (
            lambda: coupled_penalty(smoothing="much"),
            "smoothing must be a finite number from 0 to below 1, but is 'much'",
        ),
        (
            lambda: coupled_penalty(apply="loss", smoothing=0.9),
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
    term = coupled_penalty(0.1).bind(small_network())
    with pytest.raises(ArgumentError, match=r"the scalar loss .* got a tensor of shape \(3,\)"):
        term(torch.ones(3))


def test_a_strength_that_changes_outside_a_pruner_is_rejected() -> None:
    with pytest.raises(
        PrunusError, match=r"needs a constant strength, but has LearningRateStrength"
    ):
        coupled_penalty(LearningRateStrength(0.1)).bind(small_network())


def test_smoothing_outside_a_pruner_is_rejected() -> None:
    with pytest.raises(PrunusError, match=r"has no memory, but smoothing is 0.9: use Pruner"):
        coupled_penalty(smoothing=0.9).bind(small_network())


def test_a_stored_penalty_term_follows_the_changing_strength() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    penalty = RelevancePenalty(LinearDecayStrength(1.0, steps=2), ConstantRelevance(), apply="loss")
    term = magnitude_pruner(layer, optimizer, penalty).penalty
    values = []
    for _ in range(3):
        values.append(term(layer(torch.ones(1, 1)).sum()).item())
        optimizer.step()
    assert values == [1.0, 0.5, 0.0]


def test_the_term_is_refused_where_the_pruner_applies_the_penalty_itself() -> None:
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrunusError, match='apply="gradient"'):
        _ = magnitude_pruner(model, optimizer, coupled_penalty(0.1)).penalty
    with pytest.raises(PrunusError, match="no penalty"):
        _ = magnitude_pruner(model, optimizer).penalty


def test_the_term_of_a_selection_is_that_of_its_tensors() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    selection = select(model, "1")
    term = coupled_penalty(0.5, ConstantRelevance()).bind(selection)
    assert term.selection is selection
    nn.init.constant_(selection["1.weight"].parameter, 3.0)
    assert term(model(torch.ones(1, 2)).sum()).item() == 0.5 * 2 * 3.0**2


def test_smoothing_is_rejected_for_a_coefficient_that_depends_on_signs() -> None:
    with pytest.raises(ArgumentError) as caught:
        coupled_penalty(0.1, CautiousRelevance(), smoothing=0.9)
    assert str(caught.value) == (
        "smoothing must be 0 with CautiousRelevance(), which depends on the sign of the gradient, "
        "but is 0.9: an average of |∂L/∂w| has no sign; choose another coefficient, or smoothing=0"
    )


class WithoutOut:
    """A coefficient that lacks an argument."""

    relative = False

    def unit(self, gradient: torch.Tensor, scale: object = 1.0, *, mean: object = None) -> float:
        return 1.0

    def __call__(self, gradient: torch.Tensor, *, unit: object = None) -> torch.Tensor:
        return torch.ones_like(gradient)


class Scalar(WithoutOut):
    def __call__(self, gradient: torch.Tensor, **_: object) -> torch.Tensor:
        return gradient.mean()


class Undefined(WithoutOut):
    def __call__(self, gradient: torch.Tensor, **_: object) -> torch.Tensor:
        return gradient / gradient


@pytest.mark.parametrize(
    ("coefficient", "message"),
    [
        (
            WithoutOut(),
            r"coefficient must be a Coefficient, called as .*\(gradient, \*, unit, out\), but "
            r"WithoutOut raised TypeError: .*'out'",
        ),
        (Scalar(), r"of the gradient's shape, \(3,\) in a trial, but Scalar returned \(\)"),
        (Undefined(), r"finite numbers, but .* Undefined returned \[1.0, nan, 1.0\]"),
    ],
)
def test_coefficient_that_fails_a_trial_is_rejected_at_once(coefficient: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        coupled_penalty(0.1, coefficient)
