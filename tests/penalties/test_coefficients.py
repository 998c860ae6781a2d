"""Irrelevance coefficients: values computed by hand, units, and tensors to write to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helpers.data import normal
from prunus import (
    CautiousRelevance,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
    PrunusError,
)
from prunus.penalties.coefficients import _exponential

GRADIENT = torch.tensor([0.0, -0.5, 1.0, -3.0], dtype=torch.float64)

# |g| / 2 is 0, 1/4, 1/2 and 3/2.
BY_ALPHA_2 = {
    ExponentialRelevance: [1.0, math.exp(-0.25), math.exp(-0.5), math.exp(-1.5)],
    LinearRelevance: [1.0, 0.75, 0.5, 0.0],
}


@pytest.mark.parametrize("coefficient", [ExponentialRelevance, LinearRelevance])
def test_coefficients_have_the_values_computed_by_hand(coefficient: Any) -> None:
    expected = torch.tensor(BY_ALPHA_2[coefficient], dtype=torch.float64)
    torch.testing.assert_close(coefficient(alpha=2.0)(GRADIENT), expected)
    # The unit replaces alpha, as for a chunk of a larger tensor.
    torch.testing.assert_close(coefficient(alpha=5.0)(GRADIENT, unit=2.0), expected)
    # The mean of |g| is 4.5 / 4 = 1.125, so that alpha = 16/9 gives the unit 2.
    relative = coefficient(alpha=16 / 9, relative=True)
    torch.testing.assert_close(relative(GRADIENT), expected)


@pytest.mark.parametrize("coefficient", [ExponentialRelevance, LinearRelevance])
def test_alpha_is_1_and_absolute_by_default(coefficient: Any) -> None:
    assert coefficient().unit(GRADIENT) == 1.0
    assert not coefficient().relative


@pytest.mark.parametrize("coefficient", [ExponentialRelevance, LinearRelevance])
def test_units_grow_with_the_scale_of_the_gradient(coefficient: Any) -> None:
    assert coefficient(alpha=3.0).unit(GRADIENT, 0.5) == 1.5
    relative = coefficient(alpha=3.0, relative=True)
    torch.testing.assert_close(relative.unit(GRADIENT, 0.5), torch.tensor(3 * 1.125).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_relative_unit_is_computed_from_the_mean_of_the_whole_tensor(dtype: torch.dtype) -> None:
    relative = ExponentialRelevance(alpha=2.0, relative=True)
    wide = torch.promote_types(dtype, torch.float32)
    unit = relative.unit(torch.ones(3, dtype=dtype), mean=torch.tensor(0.125, dtype=dtype))
    torch.testing.assert_close(unit, torch.tensor(0.25, dtype=wide))
    # The sum of 70,000 ones is beyond float16, whose largest number is 65,504.
    unit = relative.unit(torch.ones(70_000, dtype=dtype))
    torch.testing.assert_close(unit, torch.tensor(2.0, dtype=wide))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_smallest_relative_unit_is_four_times_the_smallest_normal_number(
    dtype: torch.dtype,
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    unit = ExponentialRelevance(relative=True).unit(torch.zeros(2, dtype=dtype))
    assert isinstance(unit, torch.Tensor)
    assert unit.dtype == wide
    assert unit.item() == 4 * torch.finfo(wide).tiny
    for coefficient in (ExponentialRelevance(relative=True), LinearRelevance(relative=True)):
        assert coefficient(torch.zeros(2, dtype=dtype)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "coefficient", [ExponentialRelevance(2.0), LinearRelevance(2.0), ConstantRelevance()]
)
def test_coefficients_are_written_to_out_and_the_gradient_stays(coefficient: Any) -> None:
    gradient, out = GRADIENT.clone(), torch.full_like(GRADIENT, 7.0)
    result = coefficient(gradient, out=out)
    assert result is out
    assert torch.equal(out, coefficient(gradient))
    assert torch.equal(gradient, GRADIENT)


def test_a_constant_coefficient_is_1_whatever_the_gradient() -> None:
    constant = ConstantRelevance()
    assert not constant.relative
    assert constant.unit(GRADIENT, 3.0, mean=torch.tensor(2.0)) == 1.0
    torch.testing.assert_close(constant(GRADIENT), torch.ones(4, dtype=torch.float64))
    assert constant(GRADIENT, out=torch.zeros(4)).tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_cautious_coefficient_is_1_where_gradient_and_weight_have_one_sign(
    dtype: torch.dtype,
) -> None:
    tiny = torch.finfo(dtype).tiny  # its square is 0
    gradient = torch.tensor([3.0, 3.0, -3.0, -3.0, 0.0, 3.0, tiny, -tiny], dtype=dtype)
    weight = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, 0.0, tiny, tiny], dtype=dtype)
    before = gradient.clone(), weight.clone()
    expected = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=dtype)
    out = torch.full_like(gradient, 7.0)
    cautious = CautiousRelevance()
    torch.testing.assert_close(cautious(gradient, weight=weight), expected, rtol=0, atol=0)
    assert cautious(gradient, unit=5.0, out=out, weight=weight) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert torch.equal(gradient, before[0])
    assert torch.equal(weight, before[1])
    assert not cautious.relative
    assert cautious.unit(gradient, 3.0, mean=torch.tensor(2.0)) == 1.0


def test_a_cautious_coefficient_without_the_weight_is_rejected() -> None:
    with pytest.raises(PrunusError, match="depends on the sign of the weight, but got none: pass"):
        CautiousRelevance()(GRADIENT)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf, "1"])
@pytest.mark.parametrize("coefficient", [ExponentialRelevance, LinearRelevance])
def test_alpha_must_be_a_finite_number_above_0(coefficient: Any, alpha: Any) -> None:
    with pytest.raises(PrunusError, match="alpha must be "):
        coefficient(alpha=alpha)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-7), (torch.bfloat16, 8e-3)])
def test_the_coefficient_of_accelerators_is_the_exponential(
    dtype: torch.dtype, bound: float
) -> None:
    gradient = (normal(4, 128, seed=1) * 3).to(dtype)
    units = torch.tensor([[0.5], [1.0], [2.0], [1e-37]])
    gradient[3, :2] = torch.tensor([0.0, -0.0])
    expected = torch.exp(-gradient.double().abs() / units.double())
    found = _exponential(gradient.clone(), units, out=None)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)
    in_place = gradient.clone()
    assert _exponential(in_place, units, out=in_place) is in_place
    assert torch.equal(in_place, found)
