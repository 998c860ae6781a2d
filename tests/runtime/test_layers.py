"""Tests of sparse layers against dense ones in float64."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_layer_matches_float64
from helpers.layouts import LAYOUTS, in_layout
from helpers.sparse_models import sparsify_with_zero_rows
from prunus import PrunusError
from prunus.runtime.convolution import SparseConv
from prunus.runtime.fusion import is_fusible_pool
from prunus.runtime.linear import SparseLinear

THREADS = (1, 2)


@st.composite
def layouts(draw: st.DrawFn, *shape: int) -> torch.Tensor:
    """Draw a matrix of random numbers in one of the layouts that tensors may have."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return in_layout(x, draw(st.sampled_from(LAYOUTS)))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    items=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 128, 129, 300])),
    inputs=st.one_of(st.integers(1, 40), st.just(700)),
    outputs=st.integers(1, 40),
    sparsity=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    bias=st.booleans(),
    relu=st.booleans(),
    by_item=st.booleans(),
    threads=st.sampled_from(THREADS),
)
def test_linear_matches_float64_reference(
    data: st.DataObject,
    items: int,
    inputs: int,
    outputs: int,
    sparsity: float,
    bias: bool,
    relu: bool,
    by_item: bool,
    threads: int,
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    linear = nn.Linear(inputs, outputs, bias=bias)
    sparsify_with_zero_rows(linear, sparsity)
    sparse = SparseLinear(linear, relu=relu, by_item=by_item)
    x = data.draw(layouts(items, inputs))
    expected = nn.Sequential(linear, nn.ReLU()) if relu else linear
    found = assert_layer_matches_float64(sparse, expected, x)
    if by_item:
        assert found.is_contiguous()


def test_linear_matches_float64_reference_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(600, 500)
    sparsify_with_zero_rows(linear, 0.5)
    sparse = SparseLinear(linear)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for items in (1, 64, 1000):
            assert_layer_matches_float64(sparse, linear, torch.randn(items, 600))


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "batches"), [(5_000, (256, 301)), (70_000, (40, 43))])
def test_linear_matches_float64_reference_for_activations_beyond_the_second_level_cache(
    inputs: int, batches: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, 24)
    for sparsity in (0.9, 0.9999, 1.0):  # the last one leaves rows without an element
        sparsify_with_zero_rows(linear, sparsity)
        sparse = SparseLinear(linear)
        for threads, items in itertools.product(THREADS, batches):
            torch.set_num_threads(threads)
            assert_layer_matches_float64(sparse, linear, torch.rand(inputs, items).t())


# The fewer terms a sum has, the closer its bound.
@pytest.mark.parametrize("sparsity", [0.9, 0.999])
def test_linear_matches_float64_reference_for_32_bit_indices(sparsity: float) -> None:
    linear = nn.Linear(70_000, 3)
    sparsify_with_zero_rows(linear, sparsity)
    sparse = SparseLinear(linear)
    assert sparse.rows.columns.dtype == torch.int32
    for items in (1, 4):
        assert_layer_matches_float64(sparse, linear, torch.rand(items, 70_000))


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.one_of(st.integers(1, 20), st.sampled_from([28, 32, 40, 70])),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    sparsity=st.sampled_from([0.0, 0.7, 1.0]),
    relu=st.booleans(),
    layout=st.sampled_from(["planes", "last", "strided", "cut"]),
    threads=st.sampled_from(THREADS),
)
def test_convolution_matches_float64_reference_or_rejects_small_images(
    images: int,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    sparsity: float,
    relu: bool,
    layout: str,
    threads: int,
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    conv = nn.Conv2d(4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    sparsify_with_zero_rows(conv, sparsity)
    sparse = SparseConv(conv, relu=relu)
    x = torch.randn(images, 4, height, width)
    if layout == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    elif layout == "cut":
        x = nn.functional.pad(x, (3, 2, 1, 2), value=torch.nan)[:, :, 1:-2, 3:-2]
    expected = nn.Sequential(conv, nn.ReLU()) if relu else conv
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if height + 2 * padding[0] < reach[0] or width + 2 * padding[1] < reach[1]:
        with pytest.raises(
            PrunusError, match=r"the kernel covers \d+×\d+ pixels, but the input has"
        ):
            sparse(x)
    else:
        assert_layer_matches_float64(sparse, expected, x)
        # The planes are used again, and their borders must still be zero.
        assert_layer_matches_float64(sparse, expected, x + 1)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    images=st.integers(1, 3),
    height=st.integers(3, 20),
    width=st.one_of(st.integers(3, 20), st.sampled_from([28, 40, 70])),
    kernel=st.sampled_from([1, 2, 3]),
    padding=st.sampled_from([0, 1]),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    relu=st.booleans(),
    threads=st.sampled_from(THREADS),
)
def test_pooled_convolution_matches_float64_reference_or_rejects_small_images(
    images: int,
    height: int,
    width: int,
    kernel: int,
    padding: int,
    window: tuple[int, int],
    stride: tuple[int, int],
    relu: bool,
    threads: int,
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    conv, pool = nn.Conv2d(4, 6, kernel, padding=padding), nn.MaxPool2d(window, stride)
    sparsify_with_zero_rows(conv, 0.6)
    assert is_fusible_pool(pool)
    sparse = SparseConv(conv, relu=relu, pool=pool)
    x = torch.randn(images, 4, height, width)
    layers = [conv, *([nn.ReLU()] if relu else []), pool]
    size = [n + 2 * padding - kernel + 1 for n in (height, width)]
    if size[0] < window[0] or size[1] < window[1]:
        with pytest.raises(RuntimeError, match="too small"):
            sparse(x)
        return
    expected = nn.Sequential(*layers)
    assert_layer_matches_float64(sparse, expected, x)
    assert_layer_matches_float64(sparse, expected, x[0] + 1)


def test_pooled_convolution_matches_float64_reference_in_two_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    conv, pool = nn.Conv2d(16, 24, 3, padding=1), nn.MaxPool2d(3, 2)
    sparsify_with_zero_rows(conv, 0.5)
    for images in (1, 2, 5):
        assert_layer_matches_float64(
            SparseConv(conv, pool=pool), nn.Sequential(conv, pool), torch.randn(images, 16, 24, 24)
        )


def test_pooling_propagates_nan_and_infinity_as_torch_does() -> None:
    conv, pool = nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2)
    nn.init.ones_(conv.weight)
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    for place in ((0, 0), (1, 1), (0, 3), (7, 6)):
        x[0, 0, place[0], place[1]] = torch.nan
    x[0, 0, 4, 4] = -torch.inf
    with torch.no_grad():
        found, expected = SparseConv(conv, pool=pool)(x), pool(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_convolution_matches_float64_reference_in_two_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    for padding in (0, 1):
        conv = nn.Conv2d(16, 24, 3, padding=padding)
        sparsify_with_zero_rows(conv, 0.8)
        for images in (1, 2, 5):
            assert_layer_matches_float64(SparseConv(conv), conv, torch.randn(images, 16, 24, 24))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_convolution_accepts_one_dimension_single_images_and_empty_batches(padding: Any) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(3, 5, 4, padding=padding)
    sparsify_with_zero_rows(conv, 0.5)
    assert_layer_matches_float64(SparseConv(conv), conv, torch.randn(2, 3, 50))
    assert_layer_matches_float64(SparseConv(conv), conv, torch.randn(3, 50))
    plane = nn.Conv2d(3, 5, 4, padding=padding)
    assert_layer_matches_float64(SparseConv(plane), plane, torch.randn(3, 9, 9))
    assert_layer_matches_float64(SparseConv(plane), plane, torch.zeros(0, 3, 9, 9))


def test_linear_propagates_nan_through_non_zero_weights_and_relu() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    sparse = SparseLinear(linear, relu=True)
    for items in (1, 5):
        y = sparse(torch.tensor([[torch.nan, 1.0]]).expand(items, 2))
        assert y.isnan().all()
        assert not sparse(torch.zeros(items, 2)).isnan().any()


def test_linear_keeps_all_leading_dimensions() -> None:
    linear = nn.Linear(6, 4)
    for shape in ((6,), (2, 3, 6), (2, 0, 6), (1, 1, 6)):
        assert_layer_matches_float64(SparseLinear(linear), linear, torch.randn(shape))


def test_copies_and_pickles_do_not_share_weights() -> None:
    linear = nn.Linear(50, 40)
    sparsify_with_zero_rows(linear, 0.8)
    x = torch.randn(3, 50)
    sparse = SparseLinear(linear)
    before = assert_layer_matches_float64(sparse, linear, x)
    twins = [copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))]
    sparse.rows.values.zero_()
    sparse.rows.bias.zero_()
    assert not sparse(x).any()
    for twin in twins:
        torch.testing.assert_close(twin(x), before, rtol=0, atol=0)


def test_load_state_dict_takes_effect_in_a_layer_that_has_run() -> None:
    linear = nn.Linear(50, 40)
    sparsify_with_zero_rows(linear, 0.8)
    sparse, x = SparseLinear(linear), torch.randn(3, 50)
    before = assert_layer_matches_float64(sparse, linear, x)
    state = {key: value.clone() for key, value in sparse.state_dict().items()}
    sparse.rows.values.zero_()
    sparse.load_state_dict(state)
    assert torch.equal(sparse(x), before)


def test_python_threads_sharing_a_layer_get_the_results_of_one_thread() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    sparsify_with_zero_rows(conv, 0.5)
    sparse = SparseConv(conv)
    inputs = [torch.randn(2, 8, 16, 16) for _ in range(4)]
    expected = [assert_layer_matches_float64(sparse, conv, x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(50) if not torch.equal(sparse(inputs[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PROCESS = """
import sys, torch
from torch import nn
from prunus.runtime.convolution import SparseConv
torch.manual_seed(0)
for window in sys.argv[1:]:
    conv, pool = nn.Conv2d(2, 3, 1), nn.MaxPool2d(int(window), 1)
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        found, expected = SparseConv(conv, pool=pool)(x), pool(conv(x))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    print(window)
"""


@pytest.mark.slow
def test_processes_compiling_at_the_same_time_run_their_own_kernels(tmp_path: Path) -> None:
    def start(*windows: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROCESS, *windows]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def compared(process: subprocess.Popen[str]) -> list[str]:
        """Return the windows whose outputs were compared and matched."""
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        return out.split()

    assert list(map(compared, [start("1"), start("2"), start("3")])) == [["1"], ["2"], ["3"]]
    # Each process finds its own kernels among those written to the disk at the same time.
    assert compared(start("3", "2", "1")) == ["3", "2", "1"]
    of_pools = [path.name for path in tmp_path.rglob("*.nbi") if "pool_channels" in path.name]
    assert len(of_pools) == 3  # one index per kernel
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}
    assert compared(start("2")) == ["2"]
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), r"of shape \(\.\.\., 6\), but is of shape \(2, 5\)"),
        (torch.zeros(()), r"of shape \(\.\.\., 6\), but is of shape \(\)"),
        (torch.zeros(2, 6).double(), "float32, but is float64"),
        (torch.zeros(2, 6, device="meta"), "on the CPU, but is on meta"),
        (torch.zeros(2, 6, requires_grad=True), "without a gradient.*torch.no_grad"),
    ],
)
def test_unsuitable_inputs_are_rejected(x: torch.Tensor, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        SparseLinear(nn.Linear(6, 4))(x)


def test_all_faults_of_an_input_are_reported_together() -> None:
    with pytest.raises(PrunusError, match=r"\(items, 3, height, width\).*float32, but is float64"):
        SparseConv(nn.Conv2d(3, 4, 3))(torch.zeros(1, 2, 8, 8).double())
