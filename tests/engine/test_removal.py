"""Removal of an exact number of weights, the smallest first, with a minimum per tensor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus import (
    MagnitudeScore,
    Masks,
    NonFiniteError,
    PrunusError,
    RandomScore,
    TaylorScore,
    select,
)
from prunus._engine.removal import Remover


def model_of(*vectors: list[float]) -> nn.Module:
    model = nn.Module()
    for index, vector in enumerate(vectors):
        model.register_parameter(f"w{index}", nn.Parameter(torch.tensor(vector)))
    return model


def remover(model: nn.Module, min_density: float = 0.0) -> Remover:
    return Remover(Masks(select(model, "*")), MagnitudeScore(), {}, min_density)


def by_plain_sort(vectors: list[list[float]], keep: int, min_density: float) -> list[list[bool]]:
    """Return masks by brute force: remove in sorted order, except what the minimum protects."""
    flat = [(abs(v), i, j) for i, vector in enumerate(vectors) for j, v in enumerate(vector)]
    left = [len(vector) for vector in vectors]
    least = [math.ceil(min_density * len(vector)) for vector in vectors]
    masks = [[True] * len(vector) for vector in vectors]
    excess = len(flat) - keep
    for _, i, j in sorted(flat):
        if excess and left[i] > least[i]:
            masks[i][j] = False
            left[i] -= 1
            excess -= 1
    return masks


number = st.one_of(
    st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, 1.0, -1.0, 2.0]), st.just(math.inf)
)


@settings(max_examples=300, deadline=None)
@given(
    vectors=st.lists(st.lists(number, min_size=1, max_size=12), min_size=1, max_size=4),
    share=st.floats(0, 1),
    min_density=st.sampled_from([0.0, 0.01, 0.3, 0.9]),
)
def test_removal_takes_the_smallest_scores(
    vectors: list[list[float]], share: float, min_density: float
) -> None:
    total = sum(map(len, vectors))
    least = sum(math.ceil(min_density * len(vector)) for vector in vectors)
    keep = least + round(share * (total - least))
    removal = remover(model_of(*vectors), min_density)
    changed = removal.keep(keep)
    expected = by_plain_sort(vectors, keep, min_density)
    assert [mask.tolist() for mask in removal.masks.values()] == expected
    assert removal.masks.kept == keep
    assert changed == [f"w{i}" for i, mask in enumerate(expected) if not all(mask)]


def test_removing_in_steps_is_removing_at_once() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 10))
    at_once, in_steps = remover(model), remover(model)
    at_once.keep(1234)
    for keep in (60_000, 30_000, 29_999, 5_000, 1234):
        in_steps.keep(keep)
        assert in_steps.masks.kept == keep
    assert not any(at_once.masks.differences(in_steps.masks).values())


def test_the_padding_row_is_never_removed() -> None:
    embedding = nn.Embedding(6, 4, padding_idx=1)  # its padding row is zero: the smallest of all
    removal = Remover(Masks(select(embedding)), MagnitudeScore(), {})
    removal.keep(3)
    assert removal.masks.kept == 3
    assert removal.masks["weight"][1].all()
    assert int(removal.masks["weight"].sum()) == 3 + 4


def test_the_guard_keeps_a_weight_in_every_layer() -> None:
    model = model_of([1e-9] * 50, [1.0] * 50)
    plain, guarded = remover(model), remover(model, 1e-4)
    plain.keep(10)
    guarded.keep(10)
    assert [int(m.sum()) for m in plain.masks.values()] == [0, 10]
    assert [int(m.sum()) for m in guarded.masks.values()] == [1, 9]


def test_keeping_less_than_the_minimum_density_is_rejected() -> None:
    removal = remover(model_of([1.0] * 10, [2.0] * 10), 0.25)
    with pytest.raises(PrunusError, match="cannot keep only 5 weights.*at least 6 over 2 tensors"):
        removal.keep(5)
    assert removal.masks.kept == 20


def test_nan_names_the_tensor_and_removes_nothing() -> None:
    removal = remover(model_of([1.0, 2.0], [math.nan, 1.0]))
    with pytest.raises(NonFiniteError, match="scores of w1 contain NaN"):
        removal.keep(1)
    assert removal.masks.kept == 4


def test_weights_of_different_types_are_compared_exactly() -> None:
    model = nn.Module()
    model.register_parameter("a", nn.Parameter(torch.tensor([1.0, 4.0], dtype=torch.bfloat16)))
    model.register_parameter("b", nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64)))
    removal = remover(model)
    removal.keep(2)
    assert [mask.tolist() for mask in removal.masks.values()] == [[False, True], [True, False]]


def test_random_scores_are_fair_and_repeat_by_seed() -> None:
    def kept(seed: int, event: int) -> torch.Tensor:
        masks = Masks(select(nn.Linear(200, 500, bias=False)))
        Remover(masks, RandomScore(seed), {}, seed=event).keep(50_000)
        return masks["weight"]

    assert torch.equal(kept(0, 0), kept(0, 0))
    for other in (kept(1, 0), kept(0, 1)):
        # Two fair halves of 100,000 agree on half of them, to within 6 deviations of 158.
        assert abs(int((kept(0, 0) == other).sum()) - 50_000) < 950
    rows = kept(0, 0).sum(dim=1).double()
    assert abs(rows.mean().item() - 100) < 1e-9
    assert 5.5 < rows.std().item() < 8.7  # sqrt(200 / 4) = 7.07


def test_taylor_scores_go_by_the_remembered_product() -> None:
    model: Any = model_of([5.0, 1.0, 3.0])
    score = TaylorScore(smoothing=0.0)
    memory = score.observe(model.w0.detach(), torch.tensor([0.1, 2.0, 0.0]), None)
    removal = Remover(Masks(select(model, "*")), score, {"w0": memory})
    removal.keep(1)
    assert removal.masks["w0"].tolist() == [False, True, False]
    with pytest.raises(PrunusError, match=r"needs the gradient of at least one .* shape \(3,\)"):
        Remover(Masks(select(model, "*")), score, {}).keep(1)
