"""Constraints: no bound, and the metric of the dense network."""

from __future__ import annotations

import math

import pytest

from prunus.constraint import Constraint, Mode


@pytest.mark.parametrize(("mode", "bound"), [("max", -math.inf), ("min", math.inf)])
def test_without_a_floor_every_metric_meets_the_bound(mode: Mode, bound: float) -> None:
    constraint = Constraint(mode=mode)
    assert constraint.bound == bound
    assert constraint.met(bound)
    assert not constraint.needs_dense_metric


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
