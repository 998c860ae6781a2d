"""Tests of sparse linear layers in bfloat16 and int8 against references in float64."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_layer_matches_float64
from helpers.layouts import LAYOUTS, in_layout
from helpers.rounding import integer_layer, rounded_layer, to_bfloat16, to_integers
from helpers.sparse_models import sparsify_with_zero_rows
from prunus import ArgumentError, Block, OneShot, Pruner, PrunusError
from prunus.runtime.kernels.arithmetic import Arithmetic, arithmetic_for
from prunus.runtime.linear import SparseLinear
from prunus.runtime.precision import BFloat16, Int8, Precision
from prunus.runtime.rows import SparseRows

TYPES: dict[str, Precision] = {
    "bfloat16": BFloat16(),
    "int8": Int8(scale=0.03, zero_point=101),
    "int8 of positive numbers": Int8(scale=2**-7, zero_point=0),
}


def arithmetics(group: int) -> list[Arithmetic]:
    """Return the generic arithmetic, and the processor's instruction if it has one."""
    generic = Arithmetic(group, native=False)
    return list({generic, arithmetic_for(group)})


def assert_matches_reference(
    linear: nn.Linear, precision: Precision, x: torch.Tensor, **options: Any
) -> list[torch.Tensor]:
    """Compare a layer, by every arithmetic, with a layer of rounded numbers in float64.

    Returns:
        The outputs of each.
    """
    if isinstance(precision, Int8):
        exact = integer_layer(linear)
        rounded = to_integers(x, precision.scale, precision.zero_point)
    else:
        exact = rounded_layer(linear, to_bfloat16(linear.weight))
        rounded = to_bfloat16(x)
    expected = nn.Sequential(exact, nn.ReLU()) if options.get("relu") else exact
    return [
        assert_layer_matches_float64(
            SparseLinear(linear, precision=precision, arithmetic=each, **options),
            expected,
            x,
            rounded,
        )
        for each in arithmetics(precision.group)
    ]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(TYPES)),
    items=st.sampled_from([0, 1, 2, 5, 11, 16, 17, 37, 65, 300]),
    inputs=st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 129, 700])),
    outputs=st.integers(1, 40),
    sparsity=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
    relu=st.booleans(),
    by_item=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_rounded_linear_matches_float64_reference(
    name: str,
    items: int,
    inputs: int,
    outputs: int,
    sparsity: float,
    layout: str,
    bias: bool,
    relu: bool,
    by_item: bool,
    threads: int,
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    linear = nn.Linear(inputs, outputs, bias=bias)
    sparsify_with_zero_rows(linear, sparsity)
    x = in_layout(torch.randn(items, inputs), layout)
    found = assert_matches_reference(linear, TYPES[name], x, relu=relu, by_item=by_item)
    if "int8" in name:
        assert all(torch.equal(found[0], each) for each in found)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("name", TYPES)
def test_rounded_linear_matches_float64_reference_for_tails_and_threads(
    name: str, layout: str
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(135, 21)
    sparsify_with_zero_rows(linear, 0.5)
    for threads, items in ((1, 37), (1, 1), (2, 37)):
        torch.set_num_threads(threads)
        x = in_layout(torch.randn(items, 135), layout)
        assert_matches_reference(linear, TYPES[name], x, relu=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_rounded_linear_matches_float64_reference_where_threads_share_the_work(name: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    linear = nn.Linear(1030, 500)
    sparsify_with_zero_rows(linear, 0.5)
    for layout in ("rows", "columns"):
        x = in_layout(torch.randn(300, 1030), layout)
        assert_matches_reference(linear, TYPES[name], x, by_item=True)


@pytest.mark.parametrize("name", TYPES)
def test_rounded_linear_matches_float64_reference_for_32_bit_indices(name: str) -> None:
    group = TYPES[name].group
    linear = nn.Linear(66_000 * group, 2)
    sparsify_with_zero_rows(linear, 0.999)
    assert SparseLinear(linear, precision=TYPES[name]).rows.columns.dtype == torch.int32
    assert_matches_reference(linear, TYPES[name], torch.rand(3, 66_000 * group))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "block"), [(BFloat16(), (1, 2)), (TYPES["int8"], (1, 4))])
def test_blocks_of_the_pattern_fill_words(precision: Precision, block: tuple[int, int]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.05)
    pruner = Pruner(linear, optimizer, None, OneShot(sparsity=0.8, at=1), pattern=Block(*block))
    for _ in range(2):
        linear(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    rows = SparseRows(linear.weight, linear.bias, precision)
    assert rows.values.numel() == int((linear.weight != 0).sum())
    assert rows.values.shape[1] == block[1]
    assert_matches_reference(linear, precision, torch.randn(20, 64))


@pytest.mark.parametrize("name", TYPES)
def test_rounded_linear_accepts_any_leading_dimensions_and_no_features(name: str) -> None:
    linear = nn.Linear(6, 4)
    for shape in ((6,), (2, 3, 6), (2, 0, 6), (1, 1, 6)):
        assert_matches_reference(linear, TYPES[name], torch.randn(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the initialization
        empty = nn.Linear(0, 4)
    found = SparseLinear(empty, precision=TYPES[name])(torch.zeros(3, 0))
    assert torch.equal(found, empty.bias.detach().expand(3, 4))


def identity(features: int, precision: Precision, arithmetic: Arithmetic) -> SparseLinear:
    """Return a layer that returns its rounded input."""
    linear = nn.Linear(features, features, bias=False)
    nn.init.eye_(linear.weight)
    return SparseLinear(linear, precision=precision, arithmetic=arithmetic)


@pytest.mark.parametrize("arithmetic", arithmetics(2))
@pytest.mark.parametrize("items", [1, 16, 17])
def test_activations_round_to_bfloat16_as_torch_rounds_them(
    arithmetic: Arithmetic, items: int
) -> None:
    numbers = [
        0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8,
        3.3961e38, torch.finfo(torch.float32).max, torch.inf, -torch.inf, 2.0**-126,
    ]  # fmt: skip
    for number in numbers:
        x = torch.zeros(items, 40)
        x[:, 7] = number
        with torch.no_grad():
            found = identity(40, BFloat16(), arithmetic)(x)[:, 7]
        assert torch.equal(found, x[:, 7].bfloat16().float()), number


@pytest.mark.parametrize("arithmetic", arithmetics(2))
def test_bfloat16_propagates_nan_to_the_outputs_that_read_it(arithmetic: Arithmetic) -> None:
    for layout in ("rows", "columns"):
        x = torch.zeros(19, 40)
        x[3, 7] = x[18, 39] = torch.nan
        x[5, 2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN, too
        with torch.no_grad():
            found = identity(40, BFloat16(), arithmetic)(in_layout(x, layout))
        # An element beside it shares its word, whose other weight is 0, and 0·NaN is NaN.
        assert found.isnan().nonzero().tolist() == [
            [3, 6], [3, 7], [5, 2], [5, 3], [18, 38], [18, 39],
        ]  # fmt: skip


@pytest.mark.parametrize("arithmetic", arithmetics(4))
def test_int8_rounds_ties_to_even_saturates_and_keeps_zero(arithmetic: Arithmetic) -> None:
    # Steps of 1/4 from -100/4 = -25 to 155/4 = 38.75.
    precision = Int8(scale=0.25, zero_point=100)
    x = torch.tensor([[0.0, 0.125, 0.375, -0.125, 38.75, 39.0, 1e9, torch.inf, -25.0, -25.4, -1e9]])
    expected = [0.0, 0.0, 0.5, 0.0, 38.75, 38.75, 38.75, 38.75, -25.0, -25.0, -25.0]
    with torch.no_grad():
        found = identity(11, precision, arithmetic)(x)[0]
    # The weight 1 is 127 times the factor 1/127, both rounded to float32.
    torch.testing.assert_close(found, torch.tensor(expected), rtol=3 * 2**-24, atol=0)


def test_range_of_int8_contains_zero_and_is_divided_into_255_steps() -> None:
    for bounds, scale, zero_point in [
        ((0.0, 255.0), 1.0, 0),
        ((3.0, 51.0), 51 / 255, 0),  # 0 is always represented
        ((-255.0, -1.0), 1.0, 255),
        ((-100.0, 155.0), 1.0, 100),
        ((0.0, 0.0), 1.0, 0),
    ]:
        found = Int8.for_range(*bounds)
        assert found.scale == pytest.approx(scale, rel=2**-23)
        assert found.zero_point == zero_point
    tiny = Int8.for_range(0.0, 1e-45)
    assert 0 < tiny.scale < math.inf
    assert tiny.factor.isfinite()


def test_zeros_and_small_weights_are_zero_in_int8() -> None:
    weight = torch.tensor([[1.27, 0.0, 0.004, -0.006, 0.0], [0.0] * 5])
    rows = SparseRows(weight, None, TYPES["int8"])
    assert rows.values.tolist() == [[127, 0, 0, -1]]
    assert rows.nonzeros == 2
    expected = torch.tensor([[1.27, 0.0, 0.0, -0.01, 0.0], [0.0] * 5])
    torch.testing.assert_close(rows.dense(), expected)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("place", [(0, 0), (15, 63), (3, 69), (18, 5), (18, 69)])
def test_nan_in_the_input_of_int8_is_an_error(place: tuple[int, int], layout: str) -> None:
    sparse = SparseLinear(nn.Linear(70, 3), precision=TYPES["int8"])
    x = torch.zeros(19, 70)
    assert not sparse(in_layout(x, layout)).isnan().any()
    x[place] = torch.nan
    with pytest.raises(PrunusError, match="in int8 received NaN.*find where it arises"):
        sparse(in_layout(x, layout))


@pytest.mark.slow
def test_nan_in_the_input_of_int8_is_an_error_where_threads_share_the_work() -> None:
    torch.set_num_threads(2)
    sparse = SparseLinear(nn.Linear(1000, 3), precision=TYPES["int8"])
    for layout in ("rows", "columns"):
        x = torch.zeros(300, 1000)
        sparse(in_layout(x, layout))
        x[299, 999] = torch.nan
        with pytest.raises(PrunusError, match="in int8 received NaN"):
            sparse(in_layout(x, layout))


def test_weights_that_int8_cannot_represent_are_rejected() -> None:
    linear = nn.Linear(4, 2)
    for number in (torch.nan, torch.inf):
        nn.init.constant_(linear.weight, number)
        with pytest.raises(ArgumentError, match="NaN or infinite elements"):
            SparseLinear(linear, precision=TYPES["int8"])
    # 255·127·66,312 is above 2³¹ - 1, and 255·127·66,311 is not.
    for columns, problem in ((66_312, True), (66_311, False)):
        ones = torch.ones(1, columns)
        assert (TYPES["int8"].weight_problem(ones) is not None) == problem


def test_the_longest_row_of_int8_does_not_overflow() -> None:
    linear = nn.Linear(66_311, 1, bias=False)
    nn.init.ones_(linear.weight)
    precision = Int8(scale=1.0, zero_point=0)
    (found, *_) = assert_matches_reference(linear, precision, torch.full((2, 66_311), 255.0))
    assert float(found[0, 0]) == pytest.approx(255 * 66_311, rel=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_rounded_layer_stores_no_weights_in_float32(name: str) -> None:
    precision = TYPES[name]
    linear = nn.Linear(50, 40)
    sparsify_with_zero_rows(linear, 0.8)
    sparse = SparseLinear(linear, precision=precision)
    assert sparse.rows.values.dtype == precision.dtype
    assert sparse.weight.dtype == torch.float32  # of the inputs that a network converts to it
    rounded = integer_layer(linear) if "int8" in name else None
    expected = to_bfloat16(linear.weight) if rounded is None else rounded.weight.detach()
    torch.testing.assert_close(sparse.weight.clone(), expected.float(), rtol=2**-23, atol=0)
    assert precision.name in repr(sparse)
    floats = [each for each in sparse.parameters() if each.dtype == torch.float32]
    assert [each.numel() for each in floats] == [40]  # the bias


@pytest.mark.parametrize("name", TYPES)
def test_copies_pickles_and_states_of_rounded_layers_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(50, 40)
    sparsify_with_zero_rows(linear, 0.8)
    x = torch.randn(3, 50)
    sparse = SparseLinear(linear, precision=TYPES[name])
    before = sparse(x)
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(twin(x), before)
    state = {key: value.clone() for key, value in sparse.state_dict().items()}
    sparse.rows.values.zero_()
    if "int8" in name:
        sparse.rows.zero_point.fill_(3)
        sparse.rows.input_scale.fill_(2.0)
    sparse.load_state_dict(state)
    assert torch.equal(sparse(x), before)


@pytest.mark.parametrize("name", TYPES)
def test_converted_rounded_layer_is_rejected(name: str) -> None:
    sparse = SparseLinear(nn.Linear(4, 2), precision=TYPES[name]).double()
    with pytest.raises(PrunusError, match=f"computes in {TYPES[name].name} with inputs in float32"):
        sparse(torch.zeros(3, 4))
