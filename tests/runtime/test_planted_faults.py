"""Tests that the comparison with float64 finds faults planted into kernels and plans."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.robustness.kernel_faults import FAULTS, Fault, freshly_imported
from benchmarks.robustness.training_faults import TRAINING_FAULTS, TrainingFault
from helpers.comparisons import assert_layer_matches_float64
from helpers.rounding import integer_layer, rounded_layer, to_bfloat16, to_integers
from helpers.sparse_models import sparsify_with_zero_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def linear_case(
    inputs: int,
    outputs: int,
    items: int,
    *,
    sparsity: float = 0.5,
    by_feature: bool = True,
    relu: bool = False,
    threads: int = 1,
) -> Callable[[Any, Any], None]:
    """Return the comparison of a linear layer with float64, given both classes of layers."""

    def compare(sparse_linear: Any, _: Any) -> None:
        torch.set_num_threads(threads)
        linear = nn.Linear(inputs, outputs)
        sparsify_with_zero_rows(linear, sparsity)
        x = torch.randn(items, inputs)
        x = x.t().contiguous().t() if by_feature else x
        expected = nn.Sequential(linear, nn.ReLU()) if relu else linear
        assert_layer_matches_float64(sparse_linear(linear, relu=relu), expected, x)

    return compare


def rounded_case(
    name: str, *, by_feature: bool = False, native: bool = True
) -> Callable[[Any, Any], None]:
    """Return the comparison of a linear layer in bfloat16 or int8 with one in float64."""

    def compare(sparse_linear: Any, _: Any) -> None:
        # Those that were imported together with the layer, after the fault was planted.
        kernels = importlib.import_module("prunus.runtime.kernels.arithmetic")
        types = importlib.import_module("prunus.runtime.precision")
        torch.manual_seed(0)
        linear = nn.Linear(150, 21)
        sparsify_with_zero_rows(linear, 0.5)
        x = torch.randn(37, 150)
        x = x.t().contiguous().t() if by_feature else x
        if name == "int8":
            precision = types.Int8(scale=2**-6, zero_point=101)
            expected, rounded = integer_layer(linear), to_integers(x, 2**-6, 101)
        else:
            precision = types.BFloat16()
            expected = rounded_layer(linear, to_bfloat16(linear.weight))
            rounded = to_bfloat16(x)
        arithmetic = kernels.arithmetic_for(precision.group)
        if not native:
            arithmetic = kernels.Arithmetic(precision.group, native=False)
        sparse = sparse_linear(linear, precision=precision, arithmetic=arithmetic)
        assert_layer_matches_float64(sparse, expected, x, rounded)

    return compare


def image_case(
    conv: Callable[[], nn.Conv1d | nn.Conv2d],
    *shape: int,
    pool: tuple[int, int] | None = None,
    threads: int = 1,
) -> Callable[[Any, Any], None]:
    """Return the comparison of a convolution with float64, given both classes of layers."""

    def compare(_: Any, sparse_conv: Any) -> None:
        torch.set_num_threads(threads)
        layer = conv()
        sparsify_with_zero_rows(layer, 0.3)
        pooling = None if pool is None else nn.MaxPool2d(*pool)
        expected = layer if pooling is None else nn.Sequential(layer, pooling)
        assert_layer_matches_float64(sparse_conv(layer, pool=pooling), expected, torch.randn(shape))

    return compare


CASES: dict[str, Callable[[Any, Any], None]] = {
    "items in place": linear_case(40, 21, 37),
    "items in panels": linear_case(40, 21, 37, by_feature=False),
    "items with ReLU": linear_case(40, 21, 37, relu=True),
    "items in two threads": linear_case(600, 500, 64, threads=2),
    "single item": linear_case(41, 21, 1, sparsity=0.0),
    "single item in two threads": linear_case(600, 500, 1, sparsity=0.2, threads=2),
    "32-bit indices": linear_case(70_000, 3, 4, sparsity=0.99),
    "items in bfloat16": rounded_case("bfloat16"),
    "items in bfloat16 without its instruction": rounded_case("bfloat16", native=False),
    "items in int8": rounded_case("int8"),
    "items in place in int8": rounded_case("int8", by_feature=True),
    "items in int8 without its instruction": rounded_case("int8", native=False),
    "padded image": image_case(lambda: nn.Conv2d(4, 8, 3, padding=1), 2, 4, 12, 11),
    "uneven padding": image_case(lambda: nn.Conv1d(3, 5, 4, padding="same"), 2, 3, 50),
    "strided image": image_case(lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), 2, 4, 13, 15),
    "strided image of one line": image_case(
        lambda: nn.Conv1d(4, 8, 5, stride=2, padding=2), 2, 4, 31
    ),
    "image with two strides": image_case(
        lambda: nn.Conv2d(4, 8, 3, stride=(2, 3), padding=1), 2, 4, 13, 15
    ),
    "dilated image": image_case(lambda: nn.Conv2d(4, 8, 3, dilation=2), 2, 4, 13, 15),
    "grouped image": image_case(lambda: nn.Conv2d(4, 8, 3, groups=2), 2, 4, 13, 15),
    "image in two threads": image_case(
        lambda: nn.Conv2d(16, 24, 3, padding=1), 1, 16, 24, 24, threads=2
    ),
    "images in two threads": image_case(
        lambda: nn.Conv2d(16, 24, 3, padding=1), 5, 16, 24, 24, threads=2
    ),
    "pooled image": image_case(lambda: nn.Conv2d(4, 6, 3), 2, 4, 15, 18, pool=(2, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_comparison_accepts_the_runtime_without_a_fault(case: str) -> None:
    from prunus.runtime.convolution import SparseConv
    from prunus.runtime.linear import SparseLinear

    CASES[case](SparseLinear, SparseConv)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_comparison_finds_planted_fault(fault: Fault, tmp_path: Path) -> None:
    with (
        freshly_imported(fault, tmp_path) as classes,
        pytest.raises(AssertionError, match="outputs are beyond their bounds"),
    ):
        CASES[fault.case](*classes)


@pytest.mark.parametrize("fault", TRAINING_FAULTS, ids=lambda fault: fault.name)
def test_fault_of_the_training_can_be_planted(fault: TrainingFault) -> None:
    root = Path(__file__).resolve().parents[2]
    source = (root / "src" / f"{fault.full_module.replace('.', '/')}.py").read_text()
    compile(fault.plant(source), fault.full_module, "exec")
    assert (root / fault.tests).exists()


def test_planting_leaves_the_runtime_as_it_was(tmp_path: Path) -> None:
    import prunus.runtime.linear

    before = prunus.runtime, prunus.runtime.linear.SparseLinear
    with freshly_imported(FAULTS[0], tmp_path) as (sparse_linear, _):
        assert sparse_linear is not before[1]
    assert (prunus.runtime, prunus.runtime.linear.SparseLinear) == before
    CASES["items in place"](before[1], None)


def test_fault_whose_passage_is_gone_is_reported() -> None:
    fault = Fault("gone", "rows", "no such passage", "", "items in place")
    with pytest.raises(ValueError, match=r"gone: .* must occur once in prunus.runtime.rows, but"):
        fault.plant("another source")
