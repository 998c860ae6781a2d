"""The formula of the penalty: values computed by hand."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from helpers.data import normal
from prunus import CautiousRelevance, ConstantRelevance, ExponentialRelevance, LinearRelevance
from prunus._utils.chunks import CPU_CHUNK
from prunus.penalties.formula import PenaltyFormula

# With α = 2 the coefficients 1 − |g| / 2 are 1, 1/2 and 0.
WEIGHT = torch.tensor([[2.0], [-3.0], [4.0]])
GRADIENT = torch.tensor([[0.0], [-1.0], [5.0]])


@pytest.mark.parametrize(
    ("power", "value", "derivative", "padded"),
    [(2, 4.0 + 4.5, [4.0, -3.0, 0.0], 4.5), (1, 2.0 + 1.5, [1.0, -0.5, 0.0], 1.5)],
)
def test_the_value_and_its_derivative_are_those_computed_by_hand(
    power: Literal[1, 2], value: float, derivative: list[float], padded: float
) -> None:
    formula = PenaltyFormula(LinearRelevance(2.0), power)
    weight = WEIGHT.clone().requires_grad_()
    result = formula.value(weight, GRADIENT, None)
    result.backward()  # type: ignore[no-untyped-call]
    assert result.item() == value
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == derivative
    assert formula.value(WEIGHT, GRADIENT, 0).item() == padded
    by_hand = power * formula.coefficients(GRADIENT) * formula.factors(WEIGHT)
    assert by_hand.flatten().tolist() == derivative


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_value_is_summed_in_at_least_32_bits(dtype: torch.dtype) -> None:
    formula = PenaltyFormula(ConstantRelevance(), 2)
    value = formula.value(torch.full((70_000,), 2.0, dtype=dtype), torch.zeros(70_000), None)
    assert value.item() == 280_000.0  # beyond float16
    ones = torch.ones(2, dtype=dtype)
    value = formula.value(ones, ones, None)
    assert value.dtype == torch.promote_types(dtype, torch.float32)


def test_coefficients_are_those_of_the_gradient_without_its_scale() -> None:
    formula = PenaltyFormula(LinearRelevance(2.0), 2)
    assert formula.coefficients(GRADIENT).flatten().tolist() == [1.0, 0.5, 0.0]
    for scale in (4.0, torch.tensor(4.0)):
        scaled = formula.coefficients(GRADIENT * 4, None, scale)
        assert scaled.flatten().tolist() == [1.0, 0.5, 0.0]
    # The whole tensor's mean of 4 times α = 0.5 is the unit 2.
    relative = PenaltyFormula(LinearRelevance(0.5, relative=True), 2)
    shard = relative.coefficients(GRADIENT, mean=torch.tensor(4.0))
    assert shard.flatten().tolist() == [1.0, 0.5, 0.0]


def test_coefficients_are_written_to_out_except_in_the_padding_row() -> None:
    formula, out = PenaltyFormula(LinearRelevance(2.0), 2), torch.full_like(WEIGHT, 9.0)
    assert formula.coefficients(GRADIENT, 0, out=out) is out
    assert out.flatten().tolist() == [0.0, 0.5, 0.0]
    assert not formula.coefficients(GRADIENT.requires_grad_(), 1).requires_grad
    GRADIENT.requires_grad_(False)


def test_coefficients_of_several_chunks_are_measured_in_one_unit() -> None:
    gradient = normal(CPU_CHUNK + 7, seed=0, dtype=torch.float64)
    gradient[:10] *= 1e6
    coefficient = ExponentialRelevance(2.0, relative=True)
    expected = torch.exp(-gradient.abs() / (2.0 * gradient.abs().mean()))
    torch.testing.assert_close(PenaltyFormula(coefficient, 2).coefficients(gradient), expected)


def test_a_coefficient_that_ignores_out_is_copied() -> None:
    class Own(LinearRelevance):
        def __call__(self, gradient: torch.Tensor, **arguments: Any) -> torch.Tensor:
            return torch.full_like(gradient, 0.25)

    out = torch.zeros_like(GRADIENT)
    result = PenaltyFormula(Own(), 2).coefficients(GRADIENT, out=out)
    assert result is out
    assert out.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize("power", [1, 2])
def test_a_coefficient_of_the_weight_receives_the_weight_of_each_chunk(
    power: Literal[1, 2],
) -> None:
    weight, gradient = normal(2, 2 * CPU_CHUNK + 3, seed=1, dtype=torch.float64)
    expected = (gradient * weight > 0).double()
    formula = PenaltyFormula(CautiousRelevance(), power)
    torch.testing.assert_close(
        formula.coefficients(gradient, None, 4.0, weight=weight), expected, rtol=0, atol=0
    )
    value = formula.value(weight.requires_grad_(), gradient, None)
    torch.testing.assert_close(value, (expected * weight.abs() ** power).sum())
    value.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    derivative = power * expected * weight.detach().abs() ** (power - 1) * weight.detach().sign()
    torch.testing.assert_close(weight.grad, derivative)
