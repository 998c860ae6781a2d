"""The radix selection against a plain sort."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus._engine.kth_smallest import ScoreChunk, Threshold, kth_smallest
from prunus.errors import NonFiniteError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def source(
    *vectors: torch.Tensor, where: Sequence[torch.Tensor] | None = None
) -> Callable[[], list[ScoreChunk]]:
    masks: Sequence[torch.Tensor | None] = where if where is not None else [None] * len(vectors)
    return lambda: [
        ScoreChunk(f"t{i}", v, m) for i, (v, m) in enumerate(zip(vectors, masks, strict=True))
    ]


def expected_below(joined: torch.Tensor, k: int) -> torch.Tensor:
    """A stable sort: equal values in order of position, -0.0 equal to 0.0."""
    order = torch.sort(joined.to(torch.float64) + 0.0, stable=True).indices[:k]
    below = torch.zeros(len(joined), dtype=torch.bool)
    below[order] = True
    return below


@st.composite
def scores(draw: st.DrawFn) -> tuple[list[torch.Tensor], int]:
    dtype = draw(st.sampled_from(DTYPES))
    width = {torch.float64: 64, torch.float32: 32}.get(dtype, 16)
    number = st.one_of(
        st.floats(allow_nan=False, width=width),  # type: ignore[arg-type]
        st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 5e-324, 1e-45, 1e-40]),
    )
    lists = draw(st.lists(st.lists(number, max_size=30), min_size=1, max_size=4))
    total = sum(map(len, lists))
    if total == 0:
        lists, total = [[1.0]], 1
    k = draw(st.integers(1, total))
    return [torch.tensor(values, dtype=torch.float64).to(dtype) for values in lists], k


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(scores())
def test_selection_equals_a_stable_sort(case: tuple[list[torch.Tensor], int]) -> None:
    tensors, k = case
    joined = torch.cat([t.to(torch.float64) for t in tensors])
    threshold = kth_smallest(source(*tensors), k)
    assert threshold.value == torch.sort(joined).values[k - 1].item()
    below = torch.cat([threshold.below(chunk) for chunk in source(*tensors)()])
    assert torch.equal(below, expected_below(joined, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_selected_among_the_candidates_only(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(n, generator=generator).to(dtype) for n in (100_003, 7, 50_000)]
    where = [torch.rand(len(v), generator=generator) < 0.3 for v in vectors]
    joined = torch.cat([v[w] for v, w in zip(vectors, where, strict=True)])
    for k in (1, 1_000, len(joined) // 2, len(joined)):
        threshold = kth_smallest(source(*vectors, where=where), k)
        below = torch.cat([threshold.below(chunk) for chunk in source(*vectors, where=where)()])
        assert torch.equal(below[torch.cat(where)], expected_below(joined, k))
        assert not below[~torch.cat(where)].any()


def test_mixed_types_compare_exactly() -> None:
    half = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    double = torch.tensor([1.0 + 2**-40, 2.0], dtype=torch.float64)
    threshold = kth_smallest(source(half, double), 2)
    assert threshold.value == 1.0 + 2**-40


def test_equal_values_are_selected_by_position() -> None:
    threshold = kth_smallest(source(torch.ones(3), torch.ones(4)), 4)
    below = [threshold.below(chunk).tolist() for chunk in source(torch.ones(3), torch.ones(4))()]
    assert below == [[True, True, True], [True, False, False, False]]


@pytest.mark.slow
def test_the_order_is_exact_beyond_two_to_the_24_elements() -> None:
    # Beyond 2**24 a float32 cannot count, and torch.quantile refuses.
    n = (1 << 24) + 12_345
    vector = torch.arange(n, dtype=torch.int32).view(torch.float32)  # ascending denormals and on
    shuffled = vector[torch.from_numpy(np.random.default_rng(0).permutation(n))]
    k = n - 17
    threshold = kth_smallest(
        lambda: (ScoreChunk("w", part) for part in torch.split(shuffled, 1 << 15)), k
    )
    assert threshold.key == k - 1


def test_nan_names_every_tensor_that_has_one() -> None:
    nan = torch.tensor([1.0, math.nan])
    with pytest.raises(NonFiniteError, match="scores of t0, t2 contain NaN"):
        kth_smallest(source(nan, torch.ones(2), nan), 1)


def test_nan_outside_the_candidates_does_not_matter() -> None:
    vector = torch.tensor([math.nan, 2.0, 1.0])
    where = torch.tensor([False, True, True])
    assert kth_smallest(source(vector, where=[where]), 2).value == 2.0


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range_is_rejected(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to the number of candidates, 3"):
        kth_smallest(source(torch.ones(3)), k)


def in_threads(processes: Sequence[Callable[[], list[ScoreChunk]]], k: int) -> list[Threshold]:
    """Run the selection as if each thread were a process, whose counts are summed over all."""
    barrier = threading.Barrier(len(processes), timeout=60)
    counts = [torch.zeros(0)] * len(processes)

    def run(rank: int) -> Threshold:
        def total(own: torch.Tensor) -> torch.Tensor:
            counts[rank] = own.clone()
            barrier.wait()
            summed = torch.stack(counts).sum(0)
            barrier.wait()
            return summed

        return kth_smallest(processes[rank], k, total)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(run, range(len(processes))))


def shard(
    name: str, whole: torch.Tensor, positions: Sequence[int] | torch.Tensor, counted: bool = True
) -> ScoreChunk:
    where = torch.as_tensor(positions)
    return ScoreChunk(
        name, whole[where], counted=counted, positions=lambda: where.clone(), length=len(whole)
    )


@pytest.mark.parametrize("k", range(1, 16))
def test_processes_that_hold_shards_of_the_tensors_find_the_same_threshold(k: int) -> None:
    first = torch.tensor([1.0, 2.0, 1.0, -1.0, 2.0, 1.0, 2.0, 2.0])
    copied = torch.tensor([2.0, 0.0, 2.0])
    last = torch.tensor([2.0, -1.0, 2.0, 3.0])

    def even() -> list[ScoreChunk]:
        shards = [shard("first", first, [0, 2]), shard("first", first, [4, 6])]
        return [
            *shards,
            shard("copied", copied, range(3), counted=False),
            shard("last", last, [0, 2]),
        ]

    def odd() -> list[ScoreChunk]:
        shards = [shard("first", first, [1, 3, 5, 7]), shard("copied", copied, range(3))]
        return [*shards, shard("last", last, [1, 3])]

    one, other = in_threads([even, odd], k)
    assert one == other
    below: dict[str, set[int]] = {"first": set(), "copied": set(), "last": set()}
    for chunk in (*even(), *odd()):
        below[chunk.name] |= set(chunk.all_positions()[one.below(chunk)].tolist())
    expected = torch.split(expected_below(torch.cat([first, copied, last]), k), [8, 3, 4])
    for mask, positions in zip(expected, below.values(), strict=True):
        assert set(mask.nonzero().flatten().tolist()) == positions


def test_a_process_that_holds_the_end_of_a_long_tensor_finds_the_position_of_the_tie() -> None:
    ones = torch.ones(5000)
    begin, end = shard("w", ones, range(4000)), shard("w", ones, range(4000, 5000))
    for k in (1, 2047, 2048, 2049, 4000, 4001, 4999):
        for threshold in in_threads([lambda: [begin], lambda: [end]], k):
            assert (threshold.value, threshold.split, threshold.position) == (1.0, "w", k - 1)
    for threshold in in_threads([lambda: [begin], lambda: [end]], 5000):
        assert (threshold.value, threshold.split) == (1.0, None)
    with pytest.raises(ValueError, match="from 1 to the number of candidates, 5,000, but is 5,001"):
        in_threads([lambda: [begin], lambda: [end]], 5001)


def test_a_nan_of_one_process_is_reported_by_all() -> None:
    whole = torch.tensor([1.0, math.nan, 2.0])
    with pytest.raises(NonFiniteError, match="scores of w contain NaN"):
        in_threads([lambda: [shard("w", whole, [0, 2])], lambda: [shard("w", whole, [1])]], 1)


def test_infinities_of_both_signs_are_no_nan() -> None:
    vector = torch.tensor([math.inf, -math.inf, 1.0])
    assert kth_smallest(source(vector), 1).value == -math.inf
    assert kth_smallest(source(vector), 3).value == math.inf
    where = torch.tensor([True, True, False])
    assert kth_smallest(source(vector, where=[where]), 2).value == math.inf


def test_a_threshold_has_the_values_computed_by_hand() -> None:
    threshold = kth_smallest(source(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])), 2)
    bits = 0x3F800000  # of 1.0 in float32
    assert threshold == Threshold(1.0, bits, torch.float32, frozenset({"t0"}), "t1", 0)
    assert kth_smallest(source(torch.tensor([-2.0])), 1).key == -0x40000001
    whole = kth_smallest(source(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])), 3)
    assert whole == Threshold(1.0, bits, torch.float32, frozenset({"t0", "t1"}), None, -1)


def test_scores_are_left_as_they_are() -> None:
    vector = torch.tensor([-0.0, -1.0, 2.0])
    before = vector.view(torch.int32).clone()
    kth_smallest(source(vector, where=[torch.tensor([True, False, True])]), 2)
    assert torch.equal(vector.view(torch.int32), before)


def test_equal_scores_of_different_types_are_tied() -> None:
    half = torch.tensor([1.0, 3.0, 1.0], dtype=torch.bfloat16)
    double = torch.tensor([2.0, 1.0], dtype=torch.float64)
    for tensors in ((half, double), (double, half)):
        joined = torch.cat([tensor.double() for tensor in tensors])
        for k in range(1, 6):
            threshold = kth_smallest(source(*tensors), k)
            assert threshold.dtype == torch.float64
            below = torch.cat([threshold.below(chunk) for chunk in source(*tensors)()])
            assert torch.equal(below, expected_below(joined, k))


def test_a_threshold_after_the_last_tie_of_a_tensor_splits_none() -> None:
    chunks = source(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert kth_smallest(chunks, 2) == Threshold(
        1.0, 0x3F800000, torch.float32, frozenset({"t0"}), None, -1
    )


def test_a_tie_is_split_within_tensors_of_any_length() -> None:
    for length in (2, 3, 2047, 2048, 3000, 4095, 4096):
        for k in (1, length - 1):
            threshold = kth_smallest(source(torch.zeros(length)), k)
            assert (threshold.split, threshold.position) == ("t0", k - 1)


def test_nan_in_the_first_of_several_chunks_is_reported() -> None:
    whole = torch.tensor([math.nan, 1.0])
    with pytest.raises(NonFiniteError, match="scores of w contain NaN"):
        kth_smallest(lambda: [shard("w", whole, [0]), shard("w", whole, [1])], 1)


def test_k_may_not_exceed_the_number_of_candidates() -> None:
    where = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="from 1 to the number of candidates, 2, but is 3"):
        kth_smallest(source(torch.ones(3), where=[where]), 3)


def test_a_process_that_counts_nothing_finds_the_same_threshold() -> None:
    whole = torch.tensor([3.0, 1.0, 2.0])
    counting, idle = shard("w", whole, range(3)), shard("w", whole, range(3), counted=False)
    for threshold in in_threads([lambda: [counting], lambda: [idle]], 2):
        assert (threshold.value, threshold.split) == (2.0, None)
