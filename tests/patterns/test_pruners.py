"""Pruners with patterns: schedules, allocations, first masks, best states and resumption."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from helpers.pruners import magnitude_pruner
from patterns import reference
from prunus import (
    NM,
    AlternatingGrowth,
    Block,
    Channels,
    CheckpointError,
    Columns,
    ErdosRenyiAllocation,
    GradualPruning,
    Heads,
    IterativePruning,
    Masks,
    OneShot,
    Pattern,
    Pruner,
    PrunusError,
    Rows,
    SoftGrowth,
    TargetAllocation,
    ThresholdSearch,
    UniformAllocation,
    select,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = nn.Linear(20, 24), nn.Linear(24, 12), nn.Linear(12, 6)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 20, generator=generator)
        optimizer.zero_grad()
        (model(x) - x[:, :6]).square().mean().backward()
        optimizer.step()


def partly_removed(pruner: Pruner, pattern: Pattern, name: str) -> int:
    """Return how many blocks of a tensor are neither whole nor removed."""
    mask = pruner.masks[name].flatten(1)
    groups = reference.blocks(pattern, *mask.shape)
    return sum(len({bool(mask[i, j]) for i, j in group}) > 1 for group in groups)


def most_kept(pruner: Pruner, pattern: NM, name: str) -> dict[int, int]:
    mask = pruner.masks[name].flatten(1).tolist()
    return {size: max(kept) for size, kept in reference.zeros_by_group(pattern, mask).items()}


BLOCKS = [Block(1, 4), Block(4, 1), Block(3, 5), Rows(), Columns(), Channels(), Heads(6)]


@pytest.mark.parametrize("pattern", BLOCKS, ids=repr)
@pytest.mark.parametrize("allocation", [None, UniformAllocation(), ErdosRenyiAllocation()])
def test_gradual_pruning_reaches_the_number_but_for_a_group(
    pattern: Pattern, allocation: Any
) -> None:
    model = network()
    optimizer = sgd(model)
    options = {} if allocation is None else {"allocation": allocation}
    schedule = GradualPruning(sparsity=0.6, begin=0, end=20, every=5)
    pruner = Pruner(model, optimizer, None, schedule, pattern=pattern, **options)
    sparsities, slack = [], pruner._remover().slack
    for step in range(24):
        train(model, optimizer, 1, seed=step)
        sparsities.append(pruner.sparsity)
        for name in pruner.masks:
            assert partly_removed(pruner, pattern, name) == 0
    kept = pruner.masks.selection.prunable - round(0.6 * pruner.masks.selection.prunable)
    assert kept <= pruner.masks.kept <= kept + slack
    assert sparsities == sorted(sparsities)
    assert sparsities[0] == 0 < sparsities[9]
    assert not pruner.masks.revived()


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(2, 3, "output")], ids=repr)
@pytest.mark.parametrize("gradual", [True, False])
def test_schedules_end_at_exactly_n_of_m(pattern: NM, gradual: bool) -> None:
    model = network()
    optimizer = sgd(model)
    sparsity = 1 - float(pattern.density)
    schedule = (
        GradualPruning(sparsity=sparsity, begin=0, end=20, every=5)
        if gradual
        else OneShot(sparsity=sparsity, at=3)
    )
    pruner = Pruner(model, optimizer, None, schedule, pattern=pattern)
    for step in range(22):
        train(model, optimizer, 1, seed=step)
        assert all(
            int(m.sum()) >= float(pattern.density) * m.numel() for m in pruner.masks.values()
        )
    for name in pruner.masks:
        groups = reference.zeros_by_group(pattern, pruner.masks[name].tolist())
        assert groups == {size: {reference.kept_of(pattern, size)} for size in groups}
    assert pruner.schedule.done
    pruner.finish()  # without a warning


def test_n_of_m_beside_other_tensors_approaches_its_number_in_step() -> None:
    model = network()
    optimizer = sgd(model)
    schedule = GradualPruning(kept=300, begin=0, end=10, every=5, power=1)
    pruner = Pruner(model, optimizer, None, schedule, pattern={"0": NM(2, 4), "2": Rows()})
    train(model, optimizer, 5)
    # Half of the removals, and of the 480 weights 120 of 240 removed in the end.
    assert pruner.masks.kept_in("0.weight") == 360
    train(model, optimizer, 5)
    assert pruner.masks.kept_in("0.weight") == 240
    assert 300 <= pruner.masks.kept < 300 + 24
    assert most_kept(pruner, NM(2, 4), "0.weight") == {4: 2}
    assert partly_removed(pruner, Rows(), "2.weight") == 0


def test_without_a_final_number_n_of_m_comes_first() -> None:
    model = network()
    pruner = magnitude_pruner(model, sgd(model), pattern={"0": NM(2, 4)})
    pruner.prune(kept=840 - 239)
    assert [int(mask.sum()) for mask in pruner.masks.values()] == [241, 288, 72]
    pruner.prune(kept=500)
    assert pruner.masks.kept_in("0.weight") == 240
    assert pruner.masks.kept == 500


def test_iterative_pruning_ends_within_a_group_of_its_target() -> None:
    for pattern, fraction in (
        (Rows(), 0.01),
        (Block(1, 4), 0.3),
        (NM(2, 4), 0.1),
        (Rows(), 0.2),
    ):
        model = network()
        schedule = IterativePruning(fraction=fraction, target=0.5)
        pruner = magnitude_pruner(
            model, sgd(model), schedule=schedule, floor=0.0, pattern=pattern, keep_best=False
        )
        counts = [pruner.masks.kept]
        while not pruner.done:
            pruner.step(1.0)
            counts.append(pruner.masks.kept)
            assert len(counts) < 200
        assert all(b < a for a, b in itertools.pairwise(counts[:-1]))
        assert 420 <= counts[-1] <= 420 + (0 if isinstance(pattern, NM) else 23)


def test_iterative_pruning_ends_where_min_density_keeps_groups() -> None:
    model = network()
    schedule = IterativePruning(fraction=0.4)
    pruner = magnitude_pruner(model, sgd(model), schedule=schedule, floor=0.0, pattern=Rows())
    while not pruner.done:
        pruner.step(1.0)
        assert len(pruner.history) < 60
    assert all(bool(mask.any()) for mask in pruner.masks.values())
    assert pruner.masks.kept <= 2 * (20 + 24 + 12)


def test_a_threshold_search_ends_when_no_group_is_within_the_tolerance() -> None:
    model = network()
    calls = []

    def evaluate() -> float:
        calls.append(1)
        return 2.0 + 0.002 * sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)

    schedule = ThresholdSearch(evaluate=evaluate, patience=1, tolerance=0.1)
    pruner = magnitude_pruner(model, sgd(model), schedule=schedule, floor=0.0, pattern=Rows())
    while not pruner.done:
        pruner.step(1.0)
        assert len(pruner.history) < 30
    assert pruner.sparsity > 0
    assert all(partly_removed(pruner, Rows(), name) == 0 for name in pruner.masks)
    assert len(calls) < 200


def test_a_threshold_search_that_allows_a_part_of_a_group_only_is_over() -> None:
    model = network()
    dense = 840

    def evaluate() -> float:
        kept = sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)
        return 2.0 if kept == dense else 100.0

    schedule = ThresholdSearch(evaluate=evaluate, patience=1)
    pruner = magnitude_pruner(model, sgd(model), schedule=schedule, floor=0.0, pattern=Rows())
    assert pruner.slack == 23
    for _ in range(2):
        pruner.step(1.0)
    assert pruner.done
    assert pruner.sparsity == 0
    pruner.finish()


def test_first_masks_may_cut_groups() -> None:
    model = network()
    selection = select(model)
    masks = Masks(selection)
    masks["0.weight"][:, 1] = False  # of each 4 weights, one
    pruner = magnitude_pruner(
        model, sgd(model), selection=selection, masks=masks, pattern={"0": NM(2, 4), "2": Rows()}
    )
    pruner.prune(kept=400)
    assert most_kept(pruner, NM(2, 4), "0.weight") == {4: 2}
    assert pruner.masks.kept_in("0.weight") == 240
    assert partly_removed(pruner, Rows(), "2.weight") == 0


def test_the_best_state_is_delivered_in_whole_groups() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None, floor=0.5, pattern=Block(2, 2))
    for metric in (1.0, 0.9, 0.8, 0.1, 0.1):
        train(model, optimizer, 3)
        pruner.step(metric)
    kept = [round((1 - v.sparsity) * 840) for v in pruner.history if v.met]
    pruner.finish()
    assert pruner.masks.kept == min(kept) < 840
    assert all(partly_removed(pruner, Block(2, 2), name) == 0 for name in pruner.masks)


@pytest.mark.parametrize(
    "pattern", [NM(2, 4), {"0": Block(3, 2), "2": NM(1, 2)}, Columns()], ids=repr
)
def test_a_resumed_run_has_the_same_bits(pattern: Any) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        model = network()
        optimizer = sgd(model)
        schedule = GradualPruning(sparsity=0.5, begin=0, end=12, every=2)
        return model, optimizer, Pruner(model, optimizer, None, schedule, pattern=pattern)

    model, optimizer, pruner = build()
    train(model, optimizer, 6)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    train(model, optimizer, 9, seed=2)
    resumed, other_optimizer, other = build()
    resumed.load_state_dict(states[0])
    other_optimizer.load_state_dict(states[1])
    other.load_state_dict(states[2])
    train(resumed, other_optimizer, 9, seed=2)
    assert 0.4 < pruner.sparsity <= 0.5
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_a_state_of_other_patterns_is_rejected() -> None:
    model = network()
    state = magnitude_pruner(model, sgd(model), pattern={"0": NM(2, 4), "2": Rows()}).state_dict()
    other = magnitude_pruner(network_ := network(), sgd(network_), pattern={"0": NM(2, 4)})
    message = r"2\.weight \(Rows\(\) there, None here\); pass the pattern"
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert other.masks.kept == 840


def test_incomplete_patterns_are_reported_when_training_ends() -> None:
    model = network()
    pruner = magnitude_pruner(model, sgd(model), pattern={"0": NM(2, 4), "2": Rows()})
    pruner.prune(sparsity=0.1)
    with pytest.warns(UserWarning, match=r"not complete in 0\.weight \(156 weights more\)"):
        pruner.finish()


@pytest.mark.parametrize(
    "growth",
    [SoftGrowth(until=16, every=2), AlternatingGrowth(sparse=2, dense=6, until=16)],
    ids=repr,
)
def test_growth_that_chooses_again_keeps_n_of_m(growth: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = OneShot(sparsity=0.5, at=2)
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, pattern=NM(2, 4), growth=growth)
    masks = []
    for step in range(20):
        train(model, optimizer, 1, seed=step)
        if pruner.sparsity:
            masks.append(pruner.masks["0.weight"].clone())
            assert all(most_kept(pruner, NM(2, 4), name) == {4: 2} for name in pruner.masks)
    # Some weights returned.
    assert any(bool((after & ~before).any()) for before, after in itertools.pairwise(masks))


def test_targets_of_tensors_in_blocks_are_approached_in_whole_blocks() -> None:
    model = network()
    allocation = TargetAllocation({"0": 0.8})
    pruner = magnitude_pruner(model, sgd(model), allocation=allocation, pattern=Block(2, 2))
    pruner.prune(sparsity=0.6)
    assert pruner.masks.kept_in("0.weight") == 96
    assert 840 - 504 <= pruner.masks.kept < 840 - 504 + 4


def test_the_score_and_the_cost_are_those_of_the_loss() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None, pattern=Rows(), floor=0.0)
    train(model, optimizer, 20)
    memory = {name: pruner._hooks.observer.memory[name]["fisher"].clone() for name in pruner.masks}
    weights = {name: t.weight.clone() for name, t in pruner.selection.items()}
    removed = pruner.prune(sparsity=0.3)
    cost = sum(
        float((weights[n].double().square() * memory[n].double())[~pruner.masks[n]].sum())
        for n in pruner.masks
    )
    validation = pruner.step(1.0)
    assert removed > 200
    assert validation.predicted_cost == pytest.approx(cost / 2, rel=1e-5)


def test_an_error_removes_nothing() -> None:
    model = network()
    pruner = magnitude_pruner(model, sgd(model), pattern=NM(2, 4))
    with pytest.raises(
        PrunusError, match=r"pattern=NM\(n=2, m=4.*keep at least 420 over 3 tensors"
    ):
        pruner.prune(sparsity=0.7)
    assert pruner.sparsity == 0
