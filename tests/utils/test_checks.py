"""Checks of arguments: the values that pass, and the messages about those that do not."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parameter import UninitializedParameter

from prunus import CheckpointError, MagnitudeScore, PrunusError
from prunus._utils.checks import (
    as_number,
    choice_problem,
    method_problem,
    number_problem,
    raise_problems,
    type_problem,
)

BOUND = st.one_of(st.none(), st.integers(-9, 9))


@given(value=st.integers(-20, 20), low=BOUND, high=BOUND, above=st.booleans(), below=st.booleans())
def test_a_number_is_accepted_exactly_within_its_bounds(
    value: int, low: int | None, high: int | None, above: bool, below: bool
) -> None:
    limits: dict[str, Any] = {
        "above" if above else "least": low,
        "below" if below else "most": high,
    }
    allowed = range(
        -100 if low is None else low + above, 101 if high is None else high + (not below)
    )
    problem = number_problem("n", value, whole=True, **limits)
    if value in allowed:
        assert problem is None
    else:
        lower = "" if low is None else f"above {low}" if above else f"at least {low}"
        upper = "" if high is None else f"below {high}" if below else f"at most {high}"
        words = " and ".join(filter(None, [lower, upper]))
        if low is not None and high is not None and not above:
            words = f"from {low} to below {high}" if below else f"from {low} to {high}"
        assert problem == f"n must be {words}, but is {value}"


@pytest.mark.parametrize("value", [3, 3.5, np.float32(2), np.int64(2), Fraction(1, 3)])
def test_numbers_of_every_type_are_numbers(value: Any) -> None:
    assert number_problem("n", value, above=0) is None


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        ("3", {"least": 1}, "n must be a finite number of at least 1, but is '3'"),
        (True, {}, "n must be a finite number, but is True"),
        (math.nan, {"above": 0}, "n must be a finite number above 0, but is nan"),
        (
            None,
            {"least": 0, "below": 1},
            "n must be a finite number from 0 to below 1, but is None",
        ),
        (2.5, {"whole": True, "least": 1}, "n must be a whole number of at least 1, but is 2.5"),
        (2000, {"least": 0, "most": 1000}, "n must be from 0 to 1,000, but is 2,000"),
        (2, {"above": 0, "below": 1}, "n must be above 0 and below 1, but is 2"),
        (0, {"least": 1, "optional": True}, "n must be at least 1 or None, but is 0"),
        (torch.ones(2), {}, "n must be a finite number, but is Tensor of shape (2,)"),
        (int, {}, "n must be a finite number, but is the class int"),
        (torch.tensor(0.5), {}, "n must be a finite number, but is tensor(0.5000)"),
        (
            UninitializedParameter(),
            {},
            "n must be a finite number, but is <UninitializedParameter>",
        ),
        (
            10**400,
            {"most": 1},
            "n must be a finite number of at most 1, but is a whole number of 1,329 bits",
        ),
        (
            10**400,
            {"whole": True, "most": 1},
            "n must be at most 1, but is a whole number of 1,329 bits",
        ),
        (5, {"most": 3}, "n must be at most 3, but is 5"),
        (5, {"below": 3}, "n must be below 3, but is 5"),
    ],
)
def test_a_value_that_is_no_number_is_described(
    value: Any, limits: dict[str, Any], message: str
) -> None:
    assert number_problem("n", value, **limits) == message


@pytest.mark.parametrize(
    "value", [0.5, 1, np.float64(0.5), np.array([0.5]), torch.tensor([[0.5]]), Decimal("0.5")]
)
def test_a_container_of_one_number_is_converted_to_a_float(value: Any) -> None:
    assert as_number("n", value) in (0.5, 1.0)
    assert type(as_number("n", value)) is float


@pytest.mark.parametrize(
    "value",
    [
        "0.5",
        [0.5],
        {"a": 0.5},
        None,
        True,
        torch.tensor(True),
        torch.empty((), device="meta"),
        10**400,
        torch.ones(2),
        np.ones(3),
    ],
)
def test_a_container_of_no_or_several_numbers_is_rejected(value: Any) -> None:
    with pytest.raises(PrunusError, match="n must be a number, but is "):
        as_number("n", value)


def test_an_argument_of_the_wrong_type_is_described() -> None:
    assert type_problem("a", [1], list, "a list") is None
    assert type_problem("a", None, list, "a list", optional=True) is None
    message = "a must be a list or None, but is 3: give one"
    assert type_problem("a", 3, list, "a list", fix="give one", optional=True) == message


def test_a_value_outside_the_choices_is_described() -> None:
    assert choice_problem("a", 1, (1, 2)) is None
    assert choice_problem("a", np.int64(2), (1, 2)) is None
    assert choice_problem("a", np.str_("b"), ("b",)) is None
    assert choice_problem("a", True, (1, 2)) == "a must be 1 or 2, but is True"
    assert choice_problem("a", 3, (1, 2), "one or two") == "a must be one or two, but is 3"
    assert choice_problem("a", np.ones(2), ("b",)) == "a must be 'b', but is ndarray of shape (2,)"


def test_missing_methods_are_listed() -> None:
    assert method_problem("score", MagnitudeScore(), ["compute"], "a Score") is None
    assert method_problem("score", MagnitudeScore, ["compute"], "a Score") == (
        "score must be a Score, but is the class MagnitudeScore: pass an instance, "
        "MagnitudeScore(...)"
    )
    assert method_problem("score", "size", ["compute", "observe"], "a Score") == (
        "score must be a Score, but is 'size', without compute, observe"
    )
    assert method_problem("n", 3, ["numerator"], "a method", attributes=["real", "fake"]) == (
        "n must be a method, but is 3, without fake, numerator"
    )


def test_all_problems_are_reported_at_once() -> None:
    raise_problems()
    raise_problems(None, None)
    with pytest.raises(PrunusError, match="^one; two$"):
        raise_problems("one", None, "two")
    with pytest.raises(CheckpointError, match="^one; two$"):
        raise_problems("one", None, "two", error=CheckpointError)
