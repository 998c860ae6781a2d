"""Removal of groups of weights, compared with plain Python, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patterns import reference
from prunus import (
    NM,
    Block,
    Channels,
    Columns,
    FisherScore,
    Heads,
    MagnitudeScore,
    Masks,
    NonFiniteError,
    Pattern,
    Rows,
    TaylorScore,
    UniformAllocation,
    select,
)
from prunus._engine.counts import full_counts, least_kept
from prunus._engine.kth_smallest import ScoreChunk, kth_smallest
from prunus._engine.pattern_allocation import PatternAllocation
from prunus._engine.removal import Remover
from prunus.allocation import GlobalAllocation
from prunus.patterns.binding import bind


def model_of(*weights: torch.Tensor) -> nn.Module:
    layers = []
    for weight in weights:
        shape, kernel = weight.shape, tuple(weight.shape[2:])
        layer: nn.Module = (
            nn.Conv2d(shape[1], shape[0], kernel, bias=False)  # type: ignore[arg-type]
            if kernel
            else nn.Linear(shape[1], shape[0], bias=False)
        )
        layer.weight = nn.Parameter(weight.clone())
        layers.append(layer)
    return nn.Sequential(*layers)


def remover(
    model: nn.Module,
    patterns: dict[str, Pattern] | Pattern | None,
    *,
    min_density: float = 0.0,
    score: Any = None,
    memory: Any = None,
) -> Remover:
    selection = select(model)
    bound = bind(patterns, model, selection)  # type: ignore[arg-type]
    densities = {n: t.pattern.density for n, t in bound.items() if isinstance(t.pattern, NM)}
    allocation = GlobalAllocation()
    return Remover(
        Masks(selection),
        score or MagnitudeScore(),
        memory or {},
        min_density,
        allocation=PatternAllocation(allocation, densities, {n: bound[n].fewest for n in densities})
        if densities
        else allocation,
        patterns=bound,
    )


def matrices(masks: Masks) -> list[list[list[bool]]]:
    return [mask.flatten(1).tolist() for mask in masks.values()]


@st.composite
def patterns_for(draw: st.DrawFn, rows: int, columns: int) -> Pattern | None:
    options: list[st.SearchStrategy[Pattern | None]] = [
        st.none(),
        st.builds(Block, st.integers(1, rows), st.integers(1, columns)),
        st.sampled_from([Rows(), Columns(), Channels()]),
        st.sampled_from([Heads(d) for d in range(1, rows + 1) if rows % d == 0]),
        st.sampled_from([Heads(d, "input") for d in range(1, columns + 1) if columns % d == 0]),
    ]
    return draw(st.one_of(options))


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def magnitudes(tensor: torch.Tensor) -> list[list[float]]:
    values: list[list[float]] = tensor.flatten(1).double().abs().tolist()
    return values


def remove_some_(mask: torch.Tensor, data: st.DataObject) -> None:
    """Remove no weights, or a fifth of them at random."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    mask.copy_(torch.rand(mask.shape, generator=generator) < data.draw(st.sampled_from([1.0, 0.8])))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(
        st.one_of(
            st.tuples(st.integers(1, 6), st.integers(1, 7)),
            st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
        )
    )
    # A few values only, so that ties are common; their means are exact or far from a tie.
    values = draw(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 0.5, 7.0]),
            min_size=math.prod(shape),
            max_size=math.prod(shape),
        )
    )
    tensor = torch.tensor(values, dtype=draw(st.sampled_from(DTYPES[:3]))).reshape(shape)
    if len(shape) == 4 and draw(st.booleans()):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=3), st.data())
def test_groups_are_removed_as_by_plain_python(
    weights: list[torch.Tensor], data: st.DataObject
) -> None:
    model = model_of(*weights)
    shapes = [weight.flatten(1).shape for weight in weights]
    chosen = [data.draw(patterns_for(*shape)) for shape in shapes]
    patterns = {f"{i}": p for i, p in enumerate(chosen) if p is not None}
    density = data.draw(st.sampled_from([0.0, 1e-4, 0.3]))
    removal = remover(model, patterns or None, min_density=density)
    for mask in removal.masks.values():  # some are removed already
        remove_some_(mask, data)
    before = matrices(removal.masks)
    kept = [sum(map(sum, mask)) for mask in before]
    least = [min(k, least_kept(w.numel(), density)) for k, w in zip(kept, weights, strict=True)]
    keep = data.draw(st.integers(sum(least), sum(kept)))
    expected = reference.remove(
        [magnitudes(weight) for weight in weights], before, chosen, sum(kept) - keep, least
    )
    slack = removal.slack
    removal.keep(keep)
    assert matrices(removal.masks) == expected
    assert removal.masks.kept >= keep
    if keep >= removal.least and sum(kept) > keep:
        assert removal.masks.kept <= keep + slack


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    tensors(), st.integers(1, 5), st.integers(1, 4), st.sampled_from(["input", "output"]), st.data()
)
def test_n_of_m_are_kept_as_by_plain_python(
    weight: torch.Tensor, n: int, more: int, along: Any, data: st.DataObject
) -> None:
    rows, columns = weight.flatten(1).shape
    pattern = NM(n, n + more, along)
    if (columns if along == "input" else rows) < pattern.m:
        return
    removal = remover(model_of(weight), pattern)
    mask = removal.masks["0.weight"]
    remove_some_(mask, data)
    total = int(mask.sum())
    scores = magnitudes(weight)
    complete = total - len(reference.smallest_of_each(pattern, scores, matrices(removal.masks)[0]))
    assert removal.least == complete
    for keep in sorted(data.draw(st.lists(st.integers(complete, total), max_size=3)), reverse=True):
        now = matrices(removal.masks)
        excess = max(0, int(mask.sum()) - keep)
        expected = reference.remove([scores], now, [pattern], excess, [0])
        removal.keep(keep)
        assert matrices(removal.masks) == expected
    removal.keep(complete)
    assert removal.masks.kept == complete
    for size, counts in reference.zeros_by_group(pattern, matrices(removal.masks)[0]).items():
        assert max(counts) <= reference.kept_of(pattern, size)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([0.5, 1.0, 1.5, 2.0]), st.integers(0, 5)),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=3,
    ),
    st.data(),
)
def test_ranks_count_the_weights_of_groups(
    rows: list[list[tuple[float, int]]], data: st.DataObject
) -> None:
    total = sum(size for row in rows for _, size in row)
    if total == 0:
        return
    k = data.draw(st.integers(1, total))

    def chunks() -> list[ScoreChunk]:
        return [
            ScoreChunk(
                f"t{i}",
                torch.tensor([score for score, _ in row]),
                torch.tensor([size > 0 for _, size in row]),
                torch.tensor([size for _, size in row]),
            )
            for i, row in enumerate(rows)
        ]

    threshold = kth_smallest(chunks, k)
    order = sorted((s, i, j, n) for i, row in enumerate(rows) for j, (s, n) in enumerate(row) if n)
    below, left = set(), k
    for _, i, j, size in order:
        if size > left:
            break
        below.add((i, j))
        left -= size
    found = {
        (i, j)
        for i, chunk in enumerate(chunks())
        for j in threshold.below(chunk).nonzero().flatten().tolist()
    }
    assert found == below
    assert threshold.shortfall == left


def test_a_group_scores_the_mean_of_its_kept_weights() -> None:
    # Means of the blocks: 2.5, 2, 4 and 1; in the second one a weight is removed already.
    weight = torch.tensor([[2.0, 3.0, 9.0, 2.0], [4.0, 4.0, 0.5, 1.5]])
    removal = remover(model_of(weight), Block(1, 2))
    removal.masks["0.weight"][0, 2] = False
    removal.keep(4)  # of 7: the last block has two weights, the second one
    assert removal.masks["0.weight"].tolist() == [
        [True, True, False, False],
        [True, True, False, False],
    ]


def test_fewer_weights_are_removed_than_a_group_has_left_over() -> None:
    weight = torch.tensor([[1.0, 1.0, 2.0], [2.0, 3.0, 3.0]])
    removal = remover(model_of(weight), Block(1, 2))
    assert removal.slack == 1
    assert removal.keep(4).tensors == ["0.weight"]  # the first block; of equal scores the earlier
    assert removal.keep(4).tensors == []
    assert removal.masks["0.weight"].tolist() == [[False, False, True], [True, True, True]]
    removal.keep(3)  # the incomplete block of one weight
    assert removal.masks["0.weight"].tolist() == [[False, False, False], [True, True, True]]
    assert removal.keep(2).tensors == []  # the next block has two weights, 2.5 on average
    assert removal.masks.kept == 3


def test_the_cost_of_a_removal_is_that_of_all_weights_of_its_groups() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    memory = {"0.weight": {"fisher": torch.tensor([[2.0, 1.0, 1.0, 0.5]])}}
    removal = remover(model_of(weight), Block(1, 2), score=FisherScore(), memory=memory)
    # w²·F is 2, 4, 9 and 8: the first block has a sum of 6, of which half is the cost.
    assert removal.keep(2).predicted_cost == 3.0


def test_min_density_keeps_whole_groups() -> None:
    small, large = torch.full((4, 3), 0.1), torch.full((4, 3), 5.0)
    removal = remover(model_of(small, large), Rows(), min_density=0.3)
    # 0.3 · 12 weights are 3.6, so that 4 weights stay: two rows, since one has 3.
    removal.keep(13)
    assert [int(mask.sum()) for mask in removal.masks.values()] == [6, 9]
    assert removal.least == 12


def test_groups_and_single_weights_are_compared_by_their_means() -> None:
    model = model_of(torch.tensor([[1.0, 5.0], [1.0, 2.0]]), torch.tensor([[1.2, 1.6, 4.0]]))
    removal = remover(model, {"0": Rows()})
    removal.keep(3)  # in order: 1.2, the row of mean 1.5, 1.6, the row of mean 3
    assert matrices(removal.masks) == [[[True, True], [False, False]], [[False, False, True]]]


def test_nan_in_a_group_names_the_tensor() -> None:
    for pattern in (Block(1, 2), NM(1, 2), NM(1, 2, "output"), Columns()):
        model = model_of(torch.ones(4, 4), torch.tensor([[1.0, 2.0], [math.nan, 3.0]]))
        removal = remover(model, pattern)
        with pytest.raises(NonFiniteError, match=r"scores of 1\.weight contain NaN"):
            removal.keep(14)
        assert removal.masks.kept == 20


@pytest.mark.parametrize("pattern", [Block(1, 2), NM(1, 2)])
def test_a_weight_that_is_nan_is_found_by_scores_that_do_not_read_it(pattern: Pattern) -> None:
    model = model_of(torch.tensor([[1.0, math.nan, 3.0, 4.0]]))
    memory = {"0.weight": {"product": torch.ones(1, 4)}}
    removal = remover(model, pattern, score=TaylorScore(), memory=memory)
    with pytest.raises(NonFiniteError, match=r"scores of 0\.weight contain NaN"):
        removal.keep(2)


def test_nan_at_a_removed_weight_does_not_matter() -> None:
    removal = remover(model_of(torch.tensor([[1.0, math.nan, 3.0, 4.0]])), Block(1, 2))
    removal.masks["0.weight"][0, 1] = False
    removal.keep(2)
    assert removal.masks["0.weight"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("size", [1, 5_000, 1 << 30])
@pytest.mark.parametrize("tied", [False, True])
def test_slabs_of_whole_groups_do_not_change_what_is_removed(
    monkeypatch: pytest.MonkeyPatch, size: int, tied: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.ones(61, 211) if tied else torch.randn(61, 211)
    for pattern in (Block(4, 1), Block(3, 8), NM(2, 4), NM(3, 8, "output"), Columns(), Rows()):
        plain, divided = remover(model_of(weight), pattern), remover(model_of(weight), pattern)
        keep = max(plain.least, 8_000)
        plain.keep(keep)
        with monkeypatch.context() as patch:
            patch.setattr("prunus._engine.removal.SCORE_CHUNK", size)
            divided.keep(keep)
        assert not any(plain.masks.differences(divided.masks).values())
        assert keep <= plain.masks.kept < keep + 211


def test_of_equal_means_the_earlier_groups_are_removed() -> None:
    removal = remover(model_of(torch.ones(4, 6)), Block(1, 2))
    removal.keep(14)
    assert removal.masks["0.weight"].tolist() == [
        [False] * 6,
        [False] * 4 + [True] * 2,
        [True] * 6,
        [True] * 6,
    ]


def test_the_memory_format_does_not_change_what_is_removed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    for pattern in (NM(2, 4), Block(2, 3), Columns(), Heads(3, "input")):
        plain = remover(model_of(weight), pattern)
        last = remover(model_of(weight.to(memory_format=torch.channels_last)), pattern)
        for removal in (plain, last):
            removal.keep(max(removal.least, 150))
        assert last.masks.selection["0.weight"].weight.is_contiguous(
            memory_format=torch.channels_last
        )
        assert not any(plain.masks.differences(last.masks).values())


def test_transposed_layers_are_transposed_matrices() -> None:
    torch.manual_seed(0)
    transposed = nn.ConvTranspose2d(6, 4, 3, bias=False)
    layer, weight = nn.Sequential(transposed), transposed.weight.detach()
    reference_model = model_of(weight.transpose(0, 1).contiguous())
    for pattern in (Channels(), Block(2, 5), NM(2, 4), NM(1, 2, "output"), Columns()):
        stored, plain = remover(layer, pattern), remover(reference_model, pattern)
        for removal in (stored, plain):
            removal.keep(max(removal.least, 120))
        mask = stored.masks["0.weight"].transpose(0, 1)
        assert torch.equal(mask, plain.masks["0.weight"])
        assert 0 < int(mask.sum()) < 216


def test_padding_rows_are_in_no_group() -> None:
    embedding = nn.Embedding(6, 4, padding_idx=1)
    for pattern in (Rows(), Columns(), Block(2, 2), NM(2, 4), NM(1, 3, "output")):
        model = nn.Sequential(embedding)
        removal = remover(model, pattern)
        before = removal.masks.kept
        removal.keep(max(removal.least, 10))
        mask = removal.masks["0.weight"]
        assert mask[1].all(), pattern
        assert 10 <= removal.masks.kept < before == 20
    columns = remover(nn.Sequential(embedding), Columns())
    columns.keep(5)
    assert columns.masks.kept == 5  # a column has five prunable weights


def test_unequal_allocation_pools_fall_short_by_less_than_a_group_each() -> None:
    torch.manual_seed(0)
    model = model_of(torch.randn(10, 9), torch.randn(12, 7))
    selection = select(model)
    removal = Remover(
        Masks(selection),
        MagnitudeScore(),
        {},
        allocation=UniformAllocation(),
        patterns=bind(Rows(), model, selection),
    )
    assert removal.slack == 8 + 6
    removal.keep(87)  # half of each: 45 and 42
    assert [int(mask.sum()) for mask in removal.masks.values()] == [45, 42]
    removal.keep(80)
    # 80 · 90/174 is 41.4 and 38.6: no row of 9 fits in 4 weights, and none of 7 in 3.
    assert removal.masks.kept == 87


def test_single_weights_are_removed_as_without_the_argument() -> None:
    torch.manual_seed(0)
    model = model_of(torch.randn(40, 30), torch.randn(20, 3, 3, 3))
    one, plain = remover(model, Block(1, 1)), remover(model, None)
    for removal in (one, plain):
        removal.keep(321)
        assert removal.masks.kept == 321
    assert not any(one.masks.differences(plain.masks).values())
    assert [c.least for c in full_counts(select(model), 0.1)] == [120, 54]
