"""Removal of an exact number of weights, the smallest first, with a minimum per tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.peers import PeerGroup
from prunus import (
    FisherScore,
    MagnitudeScore,
    Masks,
    NonFiniteError,
    Pruner,
    PrunusError,
    RandomScore,
    TaylorScore,
    select,
)
from prunus._engine.counts import least_kept
from prunus._engine.kth_smallest import SCORE_CHUNK
from prunus._engine.removal import Remover, _sum


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


@pytest.mark.slow
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
    assert changed.tensors == [f"w{i}" for i, mask in enumerate(expected) if not all(mask)]


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
    memory = {"product": torch.zeros(3)}
    score.observe(model.w0.detach(), torch.tensor([0.1, 2.0, 0.0]), memory, count=1)
    removal = Remover(Masks(select(model, "*")), score, {"w0": memory})
    removal.keep(1)
    assert removal.masks["w0"].tolist() == [False, True, False]


def test_a_removal_before_the_gradients_that_the_score_needs_names_every_tensor() -> None:
    model = model_of([5.0, 1.0], [2.0], [3.0])
    removal = Remover(Masks(select(model, "*")), FisherScore(), {"w1": {"fisher": torch.ones(1)}})
    compared: list[float] = []

    def check_equal(values: Mapping[str, float]) -> None:
        compared.extend(values.values())

    with pytest.raises(
        PrunusError, match=r"^FisherScore needs the gradient of at least .* but w0, w2 had none: "
    ):
        removal.keep(1, check_equal)
    assert removal.masks.kept == 4
    assert all(map(math.isnan, compared))  # the other processes do not wait


def test_weights_that_are_nan_are_refused_by_scores_that_do_not_read_them() -> None:
    model: Any = model_of([5.0, math.nan], [2.0], [math.nan, 1.0])
    memory = {name: {"product": torch.ones_like(p)} for name, p in model.named_parameters()}
    removal = Remover(Masks(select(model, "*")), TaylorScore(), memory)
    with pytest.raises(NonFiniteError, match=r"^the scores of w0, w2 contain NaN or belong to"):
        removal.keep(1)
    assert removal.masks.kept == 5


def test_weights_that_are_nan_are_named_where_no_gradient_was_finite() -> None:
    model = model_of([5.0, math.nan], [2.0])
    removal = Remover(Masks(select(model, "*")), FisherScore(), {})
    with pytest.raises(NonFiniteError, match=r"^the weights of w0 are NaN or infinite"):
        removal.keep(1)
    assert removal.masks.kept == 3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(number, number), min_size=2, max_size=40),
    st.data(),
)
def test_fisher_scores_are_sorted_as_in_float64(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    weights = [w if math.isfinite(w) else 1.0 for w, _ in pairs]
    gradients = [g if math.isfinite(g) else 1.0 for _, g in pairs]
    score, split = FisherScore(), data.draw(st.integers(1, len(pairs) - 1))
    parts = (weights[:split], gradients[:split]), (weights[split:], gradients[split:])
    model = model_of(*(part for part, _ in parts))
    memory = {}
    for index, (part, gradient) in enumerate(parts):
        memory[f"w{index}"] = {"fisher": torch.zeros(len(part))}
        observed = torch.tensor(gradient)
        score.observe(torch.tensor(part), observed, memory[f"w{index}"], count=1)
    removal = Remover(Masks(select(model, "*")), score, memory)
    keep = data.draw(st.integers(0, len(pairs)))
    removal.keep(keep)
    costs = (torch.tensor(weights).double() * torch.tensor(gradients).double()).square()
    kept = torch.cat(list(removal.masks.values()))
    assert int(kept.sum()) == keep
    if 0 < keep < len(pairs):
        # Up to the rounding of the score, of which squares below 1e-38 have more.
        assert costs[kept].min() >= costs[~kept].max() * (1 - 1e-6) - 1e-38


def test_the_costs_of_tensors_on_several_devices_are_added_on_one() -> None:
    with FakeTensorMode():  # fake tensors have any device and no numbers
        costs = [torch.ones((), dtype=torch.float64, device=f"cuda:{n}") for n in (0, 1)]
        assert _sum(costs, torch.device("cuda:0")).device == torch.device("cuda:0")
        assert _sum(costs, torch.device("cpu")).device == torch.device("cpu")
    assert _sum([torch.tensor(0.5), torch.tensor(2.0)], torch.device("cpu")).item() == 2.5
    assert _sum([], torch.device("cpu")).item() == 0.0


def test_an_error_in_adding_the_costs_of_all_processes_removes_nothing() -> None:
    class Failing(PeerGroup):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            if counts.is_floating_point():
                raise PrunusError("a process did not answer")
            return super().sum(counts)

    model = model_of([3.0, 1.0], [2.0])
    selection = select(model, "*")
    selection.process_group = Failing()
    memory = {name: {"fisher": torch.ones_like(t.weight)} for name, t in selection.items()}
    removal = Remover(Masks(selection), FisherScore(), memory)
    with pytest.raises(PrunusError, match="a process did not answer"):
        removal.keep(1)
    assert all(bool(mask.all()) for mask in removal.masks.values())


def test_positions_of_removed_weights_are_compared_before_anything_is_removed() -> None:
    removal = remover(model_of([5.0, 1.0, 3.0], [2.0, 9.0], [8.0]))
    compared: list[dict[str, float]] = []

    def check_equal(values: Mapping[str, float]) -> None:
        compared.append(dict(values))
        assert removal.masks.kept == 6

    assert removal.keep(3, check_equal).tensors == ["w0", "w1"]
    # Removed are 1.0 and 3.0 at positions 1 and 2 of w0, and 2.0 at position 0 of w1. Counted
    # from 1, the sums are 2 + 3, 1 and 0.
    (values,) = compared
    assert list(values.values()) == [5.0, 1.0, 0.0]
    assert [name.split()[2] for name in values] == ["w0", "w1", "w2"]
    assert removal.keep(3, check_equal).tensors == []
    assert removal.keep(4, check_equal).tensors == []
    assert len(compared) == 1


def test_sums_of_positions_are_those_of_all_chunks() -> None:
    model = model_of([1.0] * (2 * SCORE_CHUNK + 10), [2.0])
    compared: list[float] = []
    remover(model).keep(1, lambda values: compared.extend(values.values()))
    numel = 2 * SCORE_CHUNK + 10
    assert compared == [numel * (numel + 1) / 2, 0.0]


def test_equal_scores_are_removed_up_to_any_position_of_a_long_tensor() -> None:
    numel = 2 * SCORE_CHUNK + 10
    removal = remover(model_of([1.0] * numel))
    removal.keep(3)
    assert removal.masks["w0"].nonzero().flatten().tolist() == [numel - 3, numel - 2, numel - 1]


def test_of_large_sums_of_positions_the_lowest_52_bits_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = torch.tensor([(1 << 52) + 5, 0])
    monkeypatch.setattr("prunus.patterns.layout.positions", lambda *_: large)
    compared: list[float] = []
    remover(model_of([1.0, 2.0])).keep(1, lambda values: compared.extend(values.values()))
    assert compared == [6.0]  # of 2^52 + 6


def test_other_processes_learn_of_an_error_which_stays_the_one_reported() -> None:
    removal = remover(model_of([1.0, 2.0], [math.nan, 1.0]))
    compared: list[float] = []

    def check_equal(values: Mapping[str, float]) -> None:
        compared.extend(values.values())
        raise PrunusError("the processes differ")

    with pytest.raises(NonFiniteError, match="scores of w1 contain NaN"):
        removal.keep(1, check_equal)
    assert len(compared) == 2
    assert all(map(math.isnan, compared))


def test_the_guard_counts_what_all_chunks_of_a_tensor_would_lose() -> None:
    numel = SCORE_CHUNK + 100
    removal = remover(model_of([1.0] * numel, [2.0] * numel), 0.5)
    assert removal.least == 2 * (numel // 2)
    removal.keep(numel + 10)
    assert [int(mask.sum()) for mask in removal.masks.values()] == [numel // 2, numel // 2 + 10]
    assert not removal.masks["w0"][: numel // 2].any()  # the earliest of equal scores


def test_the_guard_leaves_tensors_alone_that_are_at_their_minimum() -> None:
    removal = remover(model_of([1.0] * 4, [2.0] * 4, [3.0] * 4), 0.5)
    removal.keep(8)
    assert [int(mask.sum()) for mask in removal.masks.values()] == [2, 2, 4]
    assert removal.keep(6).tensors == ["w2"]
    assert [int(mask.sum()) for mask in removal.masks.values()] == [2, 2, 2]
    below = remover(model_of([1.0] * 4, [2.0] * 4), 0.5)
    below.masks["w0"][:3] = False  # by hand, below the minimum
    assert below.least == 1 + 2
    assert below.keep(3).tensors == ["w1"]
    assert [int(mask.sum()) for mask in below.masks.values()] == [1, 2]


def test_the_least_kept_is_rounded_up_but_for_rounding_errors() -> None:
    assert [least_kept(100, density) for density in (0.0, 1e-4, 0.07, 0.071, 1.0)] == [
        0,
        1,
        7,
        8,
        100,
    ]


def test_shards_are_counted_by_one_process_and_removed_by_all() -> None:
    shapes = []

    class Recorded(PeerGroup):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(counts.shape))
            return super().sum(counts)

    model = model_of([5.0, 1.0, 3.0], [2.0, 9.0])
    selection = select(model, "*")
    selection.process_group = Recorded()
    removal = Remover(Masks(selection), MagnitudeScore(), {})
    assert removal.keep(3).tensors == ["w0", "w1"]
    assert [mask.tolist() for mask in removal.masks.values()] == [
        [True, False, True],
        [False, True],
    ]
    assert removal.masks.kept == 3
    # Of the threshold, the candidates and NaN by tensor and the counts of each digit are summed.
    assert {(2, 2), (1 << 11,)} < set(shapes)


MASK = (1 << 64) - 1


def split_mix(position: int, seed: int, event: int, name: str) -> float:
    """Return the number of SplitMix64 by Python's integers."""
    key = hash((seed, event, int.from_bytes(name.encode(), "big"))) & (MASK >> 2)
    state = (position + key) * 0x9E3779B97F4A7C15 & MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    state ^= state >> 31
    return (state >> 40) / 2**24


class Recording(RandomScore):
    """A random score that keeps what it drew."""

    drawn: ClassVar[list[torch.Tensor]] = []

    def compute(self, weight: Any, memory: Any, *, uniform: Any) -> torch.Tensor:
        assert memory == {}
        numbers: torch.Tensor = uniform(self.seed)
        assert numbers.shape == weight.shape
        assert numbers.dtype == torch.float32
        self.drawn.append(numbers)
        return numbers


def test_random_numbers_are_those_of_split_mix_by_position_name_seed_and_event() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    Recording.drawn.clear()
    Remover(Masks(select(model)), Recording(seed=7), {}, seed=3).keep(9)
    numbers = [split_mix(i, 7, 3, "a.weight") for i in range(6)]
    assert Recording.drawn[0].flatten().tolist() == numbers
    assert Recording.drawn[1].flatten().tolist() == [
        split_mix(i, 7, 3, "b.weight") for i in range(4)
    ]
    long = nn.Linear(SCORE_CHUNK + 5, 1, bias=False)
    Recording.drawn.clear()
    Remover(Masks(select(long)), Recording(), {}).keep(1)
    tail = Recording.drawn[1].flatten().tolist()
    assert tail == [split_mix(SCORE_CHUNK + i, 0, 0, "weight") for i in range(5)]
    assert max(map(float, map(torch.max, Recording.drawn))) < 1.0


def test_a_memory_is_read_chunk_by_chunk_beside_its_weights() -> None:
    numel = SCORE_CHUNK + 2
    model = model_of([1.0] * numel)
    memory = torch.arange(numel, 0, -1, dtype=torch.float32)
    removal = Remover(Masks(select(model, "*")), TaylorScore(), {"w0": {"product": memory}})
    removal.keep(3)
    assert removal.masks["w0"].nonzero().flatten().tolist() == [0, 1, 2]


class _WithUnusedLayer(nn.Module):
    """A network with a layer that its output does not depend on, as an unused pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(10, 10, bias=False)
        self.pooler = nn.Linear(10, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.pooler(x)
        y: torch.Tensor = self.used(x)
        return y


def test_weights_that_the_loss_does_not_depend_on_are_removed_first_with_one_warning() -> None:
    torch.manual_seed(0)
    model = _WithUnusedLayer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(model, optimizer, penalty=None)
    for _ in range(100):
        optimizer.zero_grad()
        (model(torch.randn(4, 10)) - 1).square().sum().backward()
        optimizer.step()
    with pytest.warns(UserWarning, match=r"pooler\.weight had no gradient in 100 steps") as seen:
        pruner.prune(sparsity=0.45)
    assert [pruner.masks.kept_in(name) for name in pruner.masks] == [100, 10]
    pruner.prune(sparsity=0.6)
    assert [pruner.masks.kept_in(name) for name in pruner.masks] == [79, 1]  # min_density keeps one
    assert len(seen) == 1
