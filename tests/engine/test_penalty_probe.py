"""The penalty probe: what it reports of a step, worked by hand, and when it warns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from prunus import (
    AutomaticStrength,
    ConstantRelevance,
    ExponentialRelevance,
    FisherScore,
    Growth,
    IterativePruning,
    LinearRelevance,
    MagnitudeScore,
    Pruner,
    RelevancePenalty,
    Schedule,
    SoftGrowth,
    Validation,
    select,
)
from prunus._engine.optimizers import Optimizers
from prunus._engine.penalty_probe import PenaltyProbe
from prunus.penalties.application import TensorStep


class CopiesForbidden(TorchFunctionMode):
    """Fails if a tensor is moved to another device, for which a step would wait."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if args and isinstance(args[0], torch.Tensor) and isinstance(result, torch.Tensor):
            assert result.device == args[0].device, func
        return result


GRADIENT = [0.0, 0.25, 0.75, 2.0]
"""With relu(1 − |g|) the coefficients are 1, 0.75, 0.25 and 0."""


def layer_and_sgd(**options: Any) -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    return layer, torch.optim.SGD(layer.parameters(), **{"lr": 0.5, **options})


def step(
    layer: nn.Linear, optimizer: torch.optim.Optimizer, gradient: Sequence[float] = GRADIENT
) -> None:
    layer.weight.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()


@pytest.mark.parametrize(("apply", "rate"), [("decoupled", 1.0), ("gradient", 0.5)])
def test_report_has_the_values_worked_by_hand(apply: Any, rate: float) -> None:
    layer, optimizer = layer_and_sgd(weight_decay=0.01)
    penalty = RelevancePenalty(0.1, LinearRelevance(), apply=apply)
    pruner = Pruner(layer, optimizer, penalty, score=MagnitudeScore())
    step(layer, optimizer)
    report = pruner.step(0.5).penalty
    assert report is not None
    assert report.mean_coefficient == 0.5
    assert report.irrelevant == 0.5
    assert report.shrink == pytest.approx(0.2 * rate)
    assert report.weight_decay == pytest.approx(0.005)


@pytest.mark.parametrize("apply", ["decoupled", "gradient"])
@pytest.mark.parametrize("growth", [None, SoftGrowth(until=9)], ids=["none", "soft"])
def test_removed_weights_do_not_count(growth: Growth | None, apply: Any) -> None:
    layer, optimizer = layer_and_sgd()
    penalty = RelevancePenalty(0.1, LinearRelevance(), apply=apply)
    pruner = Pruner(layer, optimizer, penalty, Schedule(), score=MagnitudeScore(), growth=growth)
    pruner.prune(kept=3)  # the first, whose coefficient is 1
    step(layer, optimizer)
    report = pruner.step(0.5).penalty
    assert report is not None
    assert report.mean_coefficient == pytest.approx(1 / 3)
    assert report.irrelevant == pytest.approx(1 / 3)


def test_tensors_on_several_devices_are_measured_without_copies_between_them() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    optimizer, selection = torch.optim.SGD(model.parameters()), select(model)
    optimizers = Optimizers([optimizer], selection)
    probe = PenaltyProbe(RelevancePenalty(0.1, LinearRelevance()), optimizers, selection)
    probe.begin(0)
    with FakeTensorMode(), CopiesForbidden():  # fake tensors have any device and no numbers
        for number, tensor in enumerate(selection.values()):
            weight, gradient = torch.ones(2, 1, 4, device=f"cuda:{number}")
            taken = TensorStep(tensor, weight, gradient, 0.1, None, None, gradient, None, None)
            probe.measure(0, taken, None)
    probe.end(0)
    assert not probe.is_due(0)


def test_the_sums_of_all_devices_are_reported_and_saved() -> None:
    layer, optimizer = layer_and_sgd(weight_decay=0.01)
    pruner = Pruner(layer, optimizer, RelevancePenalty(0.1, LinearRelevance()))
    step(layer, optimizer)
    probe = pruner._hooks.probe
    assert probe is not None
    (sums,) = probe._sums.values()
    probe._sums[0, torch.device("meta")] = {**sums, "coefficients": 4.0}  # as if of a second layer
    saved = probe.state_dict()
    assert saved["coefficients"] == 6.0
    assert saved["weights"] == 8
    report = probe.report(1)
    assert report is not None
    assert report.mean_coefficient == 0.75
    assert report.irrelevant == 0.5
    probe.load_state_dict(saved)
    assert probe.report(1) == report


def test_only_the_first_step_after_a_validation_is_measured() -> None:
    layer, optimizer = layer_and_sgd()
    pruner = Pruner(layer, optimizer, RelevancePenalty(0.1, LinearRelevance()))
    step(layer, optimizer)
    step(layer, optimizer, [0.0, 0.0, 0.0, 0.0])
    first = pruner.step(0.5).penalty
    assert first is not None
    assert first.mean_coefficient == 0.5
    assert pruner.step(0.5).penalty is None  # no step since
    step(layer, optimizer, [0.0, 0.0, 0.0, 2.0])
    second = pruner.step(0.5).penalty
    assert second is not None
    assert second.mean_coefficient == 0.75


def test_a_penalty_that_does_not_act_is_not_reported() -> None:
    layer, optimizer = layer_and_sgd(lr=0.0)
    before = layer.weight.detach().clone()
    pruner = Pruner(layer, optimizer, RelevancePenalty(0.0, LinearRelevance()))
    step(layer, optimizer)
    assert pruner.step(0.5).penalty is None
    assert torch.equal(layer.weight, before)


def test_the_first_step_that_the_penalty_acts_in_is_measured() -> None:
    layer, optimizer = layer_and_sgd()
    strength = AutomaticStrength(remaining=0.25, every=2)
    schedule = IterativePruning()
    pruner = Pruner(
        layer, optimizer, RelevancePenalty(strength, LinearRelevance()), schedule, floor=1.0
    )
    zeros = [0.0, 0.0, 0.0, 0.0]
    for _ in range(3):
        step(layer, optimizer, zeros)
    assert pruner.step(0.5).penalty is None  # the interval was not known
    for gradient in (zeros, GRADIENT, zeros):  # it acts in the second, one later than before
        step(layer, optimizer, gradient)
    report = pruner.step(0.5).penalty
    assert report is not None
    assert report.mean_coefficient == 0.5
    assert report.shrink == pytest.approx((1 - 0.25 ** (2 / 3)) / 2)


def test_a_penalty_of_magnitudes_has_no_fraction_to_report() -> None:
    layer, optimizer = layer_and_sgd()
    penalty = RelevancePenalty(0.1, LinearRelevance(), power=1)
    pruner = Pruner(layer, optimizer, penalty)
    step(layer, optimizer)
    report = pruner.step(0.5).penalty
    assert report is not None
    assert report.shrink is None


def test_a_pruner_without_a_penalty_reports_none() -> None:
    layer, optimizer = layer_and_sgd()
    pruner = Pruner(layer, optimizer)
    step(layer, optimizer)
    assert pruner.step(0.5).penalty is None


def warned_at(penalty: RelevancePenalty, gradient: Sequence[float], **options: Any) -> list[str]:
    """Validate twice after a step each; return the warnings."""
    layer, optimizer = layer_and_sgd(**options)
    pruner = Pruner(layer, optimizer, penalty, score=MagnitudeScore())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            step(layer, optimizer, gradient)
            pruner.step(0.5)
    return [str(warning.message) for warning in caught]


def test_a_nearly_constant_coefficient_warns_once_with_the_fix() -> None:
    penalty = RelevancePenalty(0.1, ExponentialRelevance(1.0))
    (message,) = warned_at(penalty, [1e-3, -1e-3, 1e-3, 1e-3])
    assert message.startswith(
        "the penalty is nearly plain L2: the irrelevance coefficients are 0.999 on average"
    )
    assert message.endswith("ExponentialRelevance(0.2, relative=True)")


def test_a_penalty_far_below_the_weight_decay_warns_once_with_the_fix() -> None:
    penalty = RelevancePenalty(1e-5, LinearRelevance())
    (message,) = warned_at(penalty, GRADIENT, weight_decay=1e-3)
    # 2γ = 2e-5 and 1e-3 · lr = 5e-4 are 25 times apart.
    assert message == (
        "the penalty is too weak to matter: in a step it shrinks an irrelevant weight by 2.0e-05 "
        "of its size, and the optimizer's weight decay shrinks every weight by 5.0e-04. Choose a "
        "strength about 30 times as large, or leave strength out to have it found"
    )


@pytest.mark.parametrize(
    ("penalty", "gradient", "decay"),
    [
        (RelevancePenalty(0.1, ConstantRelevance()), [1e-3] * 4, 0.0),  # L2 is meant
        (RelevancePenalty(0.1, ExponentialRelevance(0.2, relative=True)), [0.0] * 4, 0.0),
        (RelevancePenalty(1e-3, LinearRelevance()), GRADIENT, 5e-4),
        (RelevancePenalty(0.0, LinearRelevance()), GRADIENT, 5e-4),  # switched off
        # Adam would make any of it as large as a gradient.
        (RelevancePenalty(1e-5, LinearRelevance(), apply="gradient"), GRADIENT, 5e-4),
        (RelevancePenalty(AutomaticStrength(0.999)), GRADIENT, 0.5),
    ],
)
def test_a_penalty_that_can_matter_does_not_warn(
    penalty: RelevancePenalty, gradient: Sequence[float], decay: float
) -> None:
    assert warned_at(penalty, gradient, weight_decay=decay) == []


def validations(schedule: Schedule, metrics: Sequence[float]) -> list[Validation]:
    """Validate after a step each, with a score that remembers the last gradient alone."""
    layer, optimizer = layer_and_sgd(lr=0.0)
    pruner = Pruner(
        layer, optimizer, None, schedule, floor=0.0, score=FisherScore(smoothing=0.0, every=1)
    )
    seen = []
    for metric in metrics:
        step(layer, optimizer)
        seen.append(pruner.step(metric))
    return seen


def test_predicted_cost_is_half_the_sum_of_the_removed_scores() -> None:
    # The scores w²·g² are 0, 0.25, 81/16 and 64; a half of four weights is removed, then of two.
    seen = validations(IterativePruning(fraction=0.5), [0.9, 0.8, 0.75])
    assert [validation.removed for validation in seen] == [2, 1, 0]
    assert [validation.predicted_cost for validation in seen] == [None, 0.125, 81 / 32]
    assert seen[0].change is None
    assert [seen[1].change, seen[2].change] == pytest.approx([-0.1, -0.05])


def test_a_score_of_magnitudes_predicts_no_cost() -> None:
    layer, optimizer = layer_and_sgd()
    pruner = Pruner(
        layer, optimizer, None, IterativePruning(fraction=0.5), floor=0.0, score=MagnitudeScore()
    )
    assert pruner.step(0.9).removed == 2
    assert pruner.step(0.9).predicted_cost is None


def test_a_failed_removal_leaves_the_predicted_cost() -> None:
    layer, optimizer = layer_and_sgd(lr=0.0)
    score = FisherScore(smoothing=0.0, every=1)
    schedule = IterativePruning(fraction=0.5)
    pruner = Pruner(layer, optimizer, None, schedule, floor=0.0, score=score)
    step(layer, optimizer)
    pruner.step(0.9)
    step(layer, optimizer, [math.nan] * 4)
    with pytest.raises(Exception, match="NaN"):
        pruner.step(0.9)
    assert pruner.state_dict()["predicted_cost"] == 0.125


@pytest.mark.parametrize("batch", [8, 64])
def test_predicted_cost_is_what_the_loss_of_a_converged_model_rises_by(batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4096, 20, generator=generator, dtype=torch.float64)
    true = torch.randn(20, generator=generator, dtype=torch.float64)
    y = torch.bernoulli(torch.sigmoid(x @ true), generator=generator)
    layer = nn.Linear(20, 1, bias=False, dtype=torch.float64)

    def backward(rows: torch.Tensor) -> float:
        layer.zero_grad()
        value: Any = nn.functional.binary_cross_entropy_with_logits(layer(x[rows])[:, 0], y[rows])
        value.backward()
        return float(value.detach())

    everything = torch.arange(4096)
    newton: Any = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    newton.step(lambda: backward(everything))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    score = FisherScore(smoothing=0.9999, every=1, examples=batch)
    schedule = IterativePruning(fraction=0.2)
    pruner = Pruner(layer, optimizer, None, schedule, mode="min", score=score)
    for rows in torch.randperm(4096, generator=generator).view(-1, batch):
        backward(rows)
        optimizer.step()
    pruner.step(backward(everything))
    after = pruner.step(backward(everything))
    # To second order, and with the squares of the gradients in place of the second derivative.
    assert after.predicted_cost is not None
    assert after.change is not None
    assert 0.6 < after.predicted_cost / after.change < 1.6
