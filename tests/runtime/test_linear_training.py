"""Tests of products and gradients with kept weights against dense ones in float64."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.robustness.kernel_faults import Fault, freshly_imported
from helpers.comparisons import UNIT_ROUNDOFF
from prunus.runtime.linear_training import KeptWeight, sparse_linear

LAYOUTS = ("by item", "by feature", "strided", "same for all items", "offset")


def random_mask(outputs: int, inputs: int, density: float) -> torch.Tensor:
    """Draw a mask with an empty row, a full one and an empty column."""
    mask = torch.rand(outputs, inputs) < density
    mask[0], mask[-1] = False, True
    mask[:, inputs // 2] = False
    return mask


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return equal numbers, stored in another layout."""
    if layout == "by feature":
        return x.t().contiguous().t()
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "same for all items":
        return x[:1].expand_as(x)
    if layout == "offset":
        return torch.cat([torch.full_like(x[:3], torch.nan), x]).t().contiguous().t()[3:]
    return x


def assert_product(
    found: torch.Tensor, left: torch.Tensor, right: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """Check a product of two float32 matrices within the rounding of each element's sum.

    Args:
        found: The product to check.
        left: The left factor.
        right: The right factor.
        mask: False where the product is to be zero. Default: nowhere.
    """
    kept = torch.ones(found.shape) if mask is None else mask
    expected = left.double() @ right.double() * kept
    magnitude = left.double().abs() @ right.double().abs() * kept
    terms = left.shape[1] + 2
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert bool(((found.double() - expected).abs() <= UNIT_ROUNDOFF * terms * magnitude).all())


def compare(
    kept_weight: Any, items: int, inputs: int, outputs: int, density: float, layout: str
) -> None:
    """Compare products and gradients with dense ones in float64.

    Args:
        kept_weight: The class to check.
        items: Number of items.
        inputs: Columns of the weight.
        outputs: Rows of the weight.
        density: Fraction of kept elements.
        layout: Layout of the inputs and of the gradient of the outputs.
    """
    torch.manual_seed(0)
    mask = random_mask(outputs, inputs, density)
    kept, weight = kept_weight(mask), torch.randn(outputs, inputs) * mask
    weight[-1, 0] = 0  # kept
    x = in_layout(torch.randn(items, inputs), layout)
    gradient = in_layout(torch.randn(items, outputs), layout)
    assert kept.read(weight, None)
    assert_product(kept.outputs(x), x, weight.t())
    assert_product(kept.input_gradient(gradient), gradient, weight)
    kept._buffer.take().fill_(torch.nan)
    of_weight = kept.weight_gradient(x, gradient)
    assert bool((of_weight[~mask] == 0).all())
    assert_product(of_weight, gradient.t(), x, mask)


CASES = [
    (1, 5, 3, 0.5),
    (2, 40, 7, 0.3),
    (16, 33, 40, 0.2),
    (33, 64, 32, 0.9),
    (128, 300, 30, 0.6),
    (300, 2_100, 20, 0.05),  # in three chunks
    (20, 70_000, 4, 0.001),  # with indices of 32 bits
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_match_float64(
    case: tuple[int, int, int, float], layout: str
) -> None:
    compare(KeptWeight, *case, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["by item", "by feature"])
def test_threads_compute_the_same(layout: str) -> None:
    torch.set_num_threads(2)
    compare(KeptWeight, 128, 300, 300, 0.6, layout)


FAULTS = [
    Fault("last element", "kernels.gradient", "range(whole, end)", "range(whole, end - 1)", ""),
    Fault("row not cleared", "kernels.gradient", "(target, columns * 4)", "(target, 0)", ""),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_comparison_finds_planted_fault(fault: Fault, tmp_path: Path) -> None:
    with freshly_imported(fault, tmp_path):
        kept_weight = importlib.import_module("prunus.runtime.linear_training").KeptWeight
        with pytest.raises(AssertionError):
            compare(
                kept_weight, 300 if "chunk" in fault.name else 33, 2_100, 20, 0.05, "by feature"
            )


def test_gradients_equal_autograds() -> None:
    torch.manual_seed(0)
    mask = torch.rand(30, 20) < 0.3
    kept, bias = KeptWeight(mask), torch.randn(30, requires_grad=True)
    weight = (torch.randn(30, 20) * mask).requires_grad_()
    x, gradient = torch.randn(2, 8, 20, requires_grad=True), torch.randn(2, 8, 30)
    kept.read(weight, bias)
    inputs = x, weight, bias
    y = sparse_linear(*inputs, kept)
    dense = F.linear(*(each.double() for each in inputs))
    torch.testing.assert_close(y.double(), dense, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(y, inputs, gradient)
    of_x, of_weight, of_bias = torch.autograd.grad(dense, inputs, gradient.double())
    for each, expected in zip(found, (of_x, of_weight * mask, of_bias), strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_gradients_equal_autograds() -> None:
    torch.manual_seed(0)
    mask = torch.rand(6, 5) < 0.5
    kept, bias = KeptWeight(mask), torch.randn(6, requires_grad=True)
    weight = (torch.randn(6, 5) * mask).requires_grad_()
    x = torch.randn(4, 5, requires_grad=True)
    kept.read(weight, bias)

    def second(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(of_x.square().sum(), (x, weight, bias))

    found, expected = (
        second(sparse_linear(x, weight, bias, kept)),
        second(F.linear(x, weight, bias)),
    )
    places = (torch.tensor(True), mask, torch.tensor(True))
    for each, other, place in zip(found, expected, places, strict=True):
        torch.testing.assert_close(each * place, other * place, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [1e-30, -1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (4, 36), (2, 17)])
def test_read_finds_a_removed_weight_that_is_not_zero(value: float, place: tuple[int, int]) -> None:
    mask = torch.zeros(5, 37, dtype=torch.bool)
    mask[:, ::3] = True
    mask[place] = False
    kept, weight = KeptWeight(mask), torch.randn(5, 37) * mask
    assert kept.read(weight, None)
    weight[place] = value
    assert not kept.read(weight, None)


def test_read_accepts_a_kept_weight_that_is_zero_or_not_finite() -> None:
    mask = torch.tensor([[True, True, True, False]])
    kept, weight = KeptWeight(mask), torch.tensor([[0.0, torch.nan, torch.inf, -0.0]])
    assert kept.read(weight, None)
    assert kept.weight_gradient(torch.ones(2, 4), torch.ones(2, 1)).tolist() == [[2, 2, 2, 0]]


def test_memory_of_a_gradient_in_use_is_not_written_to() -> None:
    kept = KeptWeight(torch.ones(3, 4, dtype=torch.bool))
    x, gradient = torch.ones(2, 4), torch.ones(2, 3)
    first = kept.weight_gradient(x, gradient)
    part = first[0]  # another tensor with the same memory
    address = first.data_ptr()
    del first
    second = kept.weight_gradient(x, 2 * gradient)
    assert part.tolist() == [2.0] * 4
    assert second.tolist() == [[4.0] * 4] * 3
    del part, second
    assert kept.weight_gradient(x, gradient).data_ptr() == address


def test_a_weight_changed_before_the_backward_pass_raises_torchs_error() -> None:
    kept = KeptWeight(torch.ones(3, 4, dtype=torch.bool))
    weight = torch.randn(3, 4, requires_grad=True)
    kept.read(weight, None)
    y = sparse_linear(torch.randn(2, 4, requires_grad=True), weight, None, kept)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()  # type: ignore[no-untyped-call]
