"""Constraints: no bound, and the metric of the dense network."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.pruners import magnitude_pruner
from helpers.pruning import classifier, sgd
from helpers.states import same
from prunus import ArgumentError, IterativePruning
from prunus.constraint import Constraint, Mode, constraint_problems


@pytest.mark.parametrize(("mode", "bound"), [("max", -math.inf), ("min", math.inf)])
def test_without_a_floor_every_metric_meets_the_bound(mode: Mode, bound: float) -> None:
    constraint = Constraint(mode=mode)
    assert constraint.bound == bound
    assert constraint.met(bound)
    assert not constraint.needs_dense_metric


def test_numbers_may_be_tensors_of_one_element() -> None:
    floor: Any = torch.tensor(0.75)
    dense: Any = torch.tensor([2.0])
    assert Constraint(floor, dense_metric=dense) == Constraint(0.75, dense_metric=2.0)
    assert Constraint("dense-0.5", dense_metric=dense).bound == 1.5
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), floor="dense-0.5", dense_metric=dense)
    assert pruner.floor == 1.5
    assert type(pruner.constraint.dense_metric) is float
    with pytest.raises(ArgumentError, match="floor must be a number"):
        Constraint(torch.ones(2))  # type: ignore[arg-type]


def test_only_an_unknown_dense_metric_is_replaced() -> None:
    constraint = Constraint("dense-0.5", mode="max")
    assert constraint.needs_dense_metric
    known = constraint.with_dense_metric(2.0)
    assert known == Constraint("dense-0.5", mode="max", dense_metric=2.0)
    assert known.bound == 1.5
    assert not known.needs_dense_metric
    assert known.with_dense_metric(3.0) is known


@pytest.mark.parametrize(
    ("mode", "bound_name", "relax"), [("max", "floor", "lower"), ("min", "ceiling", "raise")]
)
def test_bound_is_named_by_the_side_it_limits(mode: Mode, bound_name: str, relax: str) -> None:
    constraint = Constraint(0.9, mode)
    assert (constraint.bound_name, constraint.relax) == (bound_name, relax)


@pytest.mark.parametrize(
    ("floor", "mode", "fix"),
    [
        ("dense+0.1", "max", '"dense-0.1" to allow a smaller one'),
        ("dense+0.5%", "max", '"dense-0.5%" to allow a smaller one'),
        ("dense - -2", "max", '"dense-2" to allow a smaller one'),
        ("dense-0.5%", "min", '"dense+0.5%" to allow a larger one'),
        ("dense-0.1", "min", '"dense+0.1" to allow a larger one'),
    ],
)
def test_a_floor_better_than_the_dense_metric_is_rejected_with_the_right_sign(
    floor: str, mode: Mode, fix: str
) -> None:
    side = "above" if mode == "max" else "below"
    message = f'floor={floor!r} with mode="{mode}" asks for a metric {side} that of the dense'
    with pytest.raises(ArgumentError, match=re.escape(message)) as caught:
        Constraint(floor, mode)
    assert fix in str(caught.value)
    model = classifier()
    with pytest.raises(ArgumentError, match=re.escape(message)):
        magnitude_pruner(model, sgd(model), floor=floor, mode=mode)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("floor", ["dense", "dense+0", "dense-0%", "dense*1.1", "dense*0.9"])
def test_floors_without_a_wrong_sign_are_accepted(floor: str, mode: Mode) -> None:
    assert list(filter(None, constraint_problems(floor, mode, 0.5))) == []


@given(
    dense=st.floats(-1e6, 1e6),
    percent=st.floats(0, 200),
    mode=st.sampled_from(["max", "min"]),
)
def test_the_dense_metric_meets_every_percentage(dense: float, percent: float, mode: Mode) -> None:
    floor = f"dense{'-' if mode == 'max' else '+'}{percent!r}%"
    constraint = Constraint(floor, mode, dense)
    assert constraint.met(dense)
    assert abs(constraint.bound - dense) == pytest.approx(abs(dense) * percent / 100, abs=1e-9)


@pytest.mark.parametrize(
    ("floor", "mode", "metric", "factor", "fix"),
    [
        (98, "max", 0.98, "100", "floor=0.98"),
        (0.98, "max", 98.0, "100", "floor=98"),
        ("98", "max", 0.49, "200", "floor=0.98"),
        (0.02, "min", 2.5, "125", "floor=2"),
    ],
)
def test_floors_of_another_unit_are_found(
    floor: Any, mode: Mode, metric: float, factor: str, fix: str
) -> None:
    problem = Constraint(floor, mode).unit_problem(metric)
    assert problem is not None
    assert f"differ by a factor of {factor}, " in problem
    assert f"pass {fix}, or" in problem
    assert f'"dense{"-" if mode == "max" else "+"}0.5%"' in problem
    model = classifier()
    with pytest.raises(ArgumentError, match=re.escape(problem)):
        magnitude_pruner(model, sgd(model), floor=floor, mode=mode, dense_metric=metric)


@pytest.mark.parametrize(
    ("floor", "mode", "metric"),
    [
        (0.98, "max", 0.01),  # an accuracy at the start of training
        (27.2, "max", 2.0),  # a BLEU score early in training
        (25.0, "min", 30000.0),  # a perplexity at the start
        (1e-2, "min", 1e-6),
        (10.0, "min", 0.1),  # a generous ceiling of a loss
        (0.02, "min", 30.0),  # a loss at the start
        (0.0, "max", 35.0),
        (-1.0, "max", 50.0),
        (50.0, "max", 0.0),
        (1.5, "max", 0.9),
        (None, "max", 50.0),
        ("dense-0.5", "max", 50.0),
        ("dense*0.01", "max", 50.0),
    ],
)
def test_floors_of_the_same_unit_are_accepted(floor: Any, mode: Mode, metric: float) -> None:
    assert Constraint(floor, mode).unit_problem(metric) is None


def test_a_floor_that_is_always_met_is_rejected_before_anything_changes() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.98)
    before, schedule = pruner.state_dict(), pruner.schedule.state_dict()
    for call in (pruner.step, pruner.consider, pruner.step):
        with pytest.raises(ArgumentError, match="differ by a factor of 100, as if their units"):
            call(98.0)
    assert pruner.sparsity == 0.0
    assert pruner.schedule.state_dict() == schedule
    assert same(pruner.state_dict(), before)


def test_a_floor_that_is_far_away_is_reported_once() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=98)
    with pytest.warns(
        UserWarning, match=r"pass floor=0\.98, .*Nothing is removed until it is met$"
    ):
        assert pruner.step(0.976).removed == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pruner.step(0.977).removed == 0


def test_a_percentage_is_described_with_the_number_that_it_is() -> None:
    for mode, floor, text in (
        ("max", "dense-2%", "'dense-2%' (49, which is 2 percent of the dense metric 50 below it)"),
        ("min", "dense+2%", "'dense+2%' (51, which is 2 percent of the dense metric 50 above it)"),
        ("max", "dense-0.5", "'dense-0.5' (49.5)"),
    ):
        chosen: Any = mode
        assert Constraint(floor, chosen, 50.0).description == text
    assert Constraint("dense-2%").description == "'dense-2%' (unknown)"


def test_a_margin_is_above_zero_where_the_metric_is_better_than_the_floor() -> None:
    assert Constraint(0.75).margin(0.875) == 0.125
    assert Constraint(0.75).margin(0.5) == -0.25
    assert Constraint(2.0, "min").margin(1.5) == 0.5
    assert Constraint(2.0, "min").margin(3.0) == -1.0
    assert Constraint().margin(0.5) == math.inf


@pytest.mark.parametrize("passed", [True, False])
def test_a_distance_that_looks_like_a_percentage_is_reported(passed: bool) -> None:
    model = classifier()
    dense = 0.98 if passed else None
    message = (
        "the floor 'dense-0.5' accepts 0.48 where the dense network has 0.98: for 0.5 percent "
        'pass "dense-0.5%"'
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        magnitude_pruner(model, sgd(model), floor="dense-0.5", dense_metric=dense).consider(0.98)


@pytest.mark.parametrize(
    ("floor", "mode", "metric"),
    [
        ("dense-0.5%", "max", 0.98),
        ("dense-0.09", "max", 0.98),
        ("dense-0.5", "max", 27.7),  # BLEU
        ("dense*0.5", "max", 0.98),
        (0.48, "max", 0.98),
        ("dense+0.5", "min", 2.2),
        ("dense+0.1", "min", 0.9),
        ("dense*99%", "max", 0.98),
    ],
)
def test_a_distance_in_the_unit_of_the_metric_is_not_reported(
    floor: Any, mode: Any, metric: float
) -> None:
    assert Constraint(floor, mode).wide_problem(metric) is None


def test_a_product_far_below_the_metric_is_reported() -> None:
    assert Constraint("dense*0.5%").wide_problem(0.98) == (
        "the floor 'dense*0.5%' accepts 0.0049 where the dense network has 0.98: for 0.5 percent "
        'pass "dense-0.5%"'
    )
    assert Constraint("dense*0.4").wide_problem(27.0) is not None


def test_a_wide_distance_of_a_loss_is_reported_with_its_own_sign() -> None:
    assert Constraint("dense+0.5", "min").wide_problem(0.2) == (
        "the ceiling 'dense+0.5' accepts 0.7 where the dense network has 0.2: for 0.5 percent "
        'pass "dense+0.5%"'
    )
