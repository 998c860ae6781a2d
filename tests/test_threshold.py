"""The radix selection against a plain sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus._engine.kth_smallest import ScoreChunk, kth_smallest
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


@settings(max_examples=400, deadline=None)
@given(scores())
def test_selection_equals_a_stable_sort(case: tuple[list[torch.Tensor], int]) -> None:
    tensors, k = case
    joined = torch.cat([t.to(torch.float64) for t in tensors])
    cut = kth_smallest(source(*tensors), k)
    assert cut.value == torch.sort(joined).values[k - 1].item()
    below = torch.cat([cut.below(chunk) for chunk in source(*tensors)()])
    assert torch.equal(below, expected_below(joined, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_selected_among_the_candidates_only(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(n, generator=generator).to(dtype) for n in (100_003, 7, 50_000)]
    where = [torch.rand(len(v), generator=generator) < 0.3 for v in vectors]
    joined = torch.cat([v[w] for v, w in zip(vectors, where, strict=True)])
    for k in (1, 1_000, len(joined) // 2, len(joined)):
        cut = kth_smallest(source(*vectors, where=where), k)
        below = torch.cat([cut.below(chunk) for chunk in source(*vectors, where=where)()])
        assert torch.equal(below[torch.cat(where)], expected_below(joined, k))
        assert not below[~torch.cat(where)].any()


def test_mixed_types_compare_exactly() -> None:
    half = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    double = torch.tensor([1.0 + 2**-40, 2.0], dtype=torch.float64)
    cut = kth_smallest(source(half, double), 2)
    assert cut.value == 1.0 + 2**-40


def test_equal_values_are_selected_by_position() -> None:
    cut = kth_smallest(source(torch.ones(3), torch.ones(4)), 4)
    below = [cut.below(chunk).tolist() for chunk in source(torch.ones(3), torch.ones(4))()]
    assert below == [[True, True, True], [True, False, False, False]]


def test_the_order_is_exact_beyond_two_to_the_24_elements() -> None:
    # Beyond 2**24 a float32 cannot count, and torch.quantile refuses.
    n = (1 << 24) + 12_345
    vector = torch.arange(n, dtype=torch.int32).view(torch.float32)  # ascending denormals and on
    shuffled = vector[torch.from_numpy(np.random.default_rng(0).permutation(n))]
    k = n - 17
    cut = kth_smallest(
        lambda: (ScoreChunk("w", part) for part in torch.split(shuffled, 1 << 15)), k
    )
    assert cut.key == k - 1


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
