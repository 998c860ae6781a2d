"""Allocations: the spread of a sparsity over the tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.data import tanh_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.training import train
from prunus import (
    Allocation,
    ArgumentError,
    ArgumentTypeError,
    ErdosRenyiAllocation,
    GlobalAllocation,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
    Pruner,
    PruningStatus,
    PrunusError,
    Schedule,
    TargetAllocation,
    ThresholdSearch,
    UniformAllocation,
    select,
)
from prunus.allocation import Pool, TensorCounts


def mlp() -> nn.Sequential:
    """Return the layers of a 784-300-100-10 perceptron."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))


def pruner_of(model: nn.Module, allocation: Allocation, **options: Any) -> Pruner:
    """Return a pruner without a penalty, by magnitude, which needs no training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Pruner(model, optimizer, None, score=MagnitudeScore(), allocation=allocation, **options)


def kept_in(pruner: Pruner) -> list[int]:
    return [int(mask.sum()) for mask in pruner.masks.values()]


def counts(shape: tuple[int, ...], kept: int | None = None, least: int = 0) -> TensorCounts:
    numel = math.prod(shape)
    return TensorCounts(
        name=f"w{shape}",
        shape=shape,
        prunable=numel,
        kept=numel if kept is None else kept,
        least=least,
    )


def erdos_renyi(
    shapes: Sequence[tuple[int, ...]], density: float, *, kernel: bool
) -> list[tuple[float, int]]:
    """Return density and size of each tensor by the formula, as in the code of RigL."""
    sizes = np.array([math.prod(shape) for shape in shapes], dtype=np.float64)
    used = [shape if kernel else shape[:2] for shape in shapes]
    ratios = np.array([sum(shape) / math.prod(shape) for shape in used], dtype=np.float64)
    dense: set[int] = set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        budget = density * sizes.sum() - sum(sizes[i] for i in dense)
        epsilon = budget / sum(ratios[i] * sizes[i] for i in sparse)
        exceeding = [i for i in sparse if epsilon * ratios[i] > 1]
        if not exceeding:
            break
        # As there, only the largest ratio becomes dense in each round.
        largest = max(ratios[i] for i in exceeding)
        dense |= {i for i in exceeding if ratios[i] == largest}
    densities = [1.0 if i in dense else epsilon * ratios[i] for i in range(len(shapes))]
    return list(zip(densities, map(int, sizes), strict=True))


def test_erk_of_a_perceptron_is_that_worked_by_hand() -> None:
    # 266,200 weights, of which 26,620 are kept. Fans sum to 784 + 300 = 1084, 400 and 110: 1594
    # in all. 26,620 / 1594 · 110 = 1837 exceeds the 1000 weights of the last layer, which stays
    # dense. The others have 25,620 / 1484 · (1084, 400) = 18,714.34 and 6905.66, rounded to
    # 18,714 and 6906.
    pruner = pruner_of(mlp(), ErdosRenyiAllocation())
    assert pruner.prune(sparsity=0.9) == 266_200 - 26_620
    assert kept_in(pruner) == [18_714, 6_906, 1_000]


def test_erk_of_a_small_convolutional_network_is_that_worked_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, (5, 1)), nn.Linear(16, 10))
    # Sizes (8, 3, 3, 3), (16, 8, 5, 1) and (10, 16): 216 + 640 + 160 = 1016 weights, of which 203
    # are kept. With kernels the sums are 17, 30 and 26, 73 in all: 203 / 73 · (17, 30, 26) =
    # 47.27, 83.42, 72.30, and the one left over is the second's, 0.42.
    pruner = pruner_of(model, ErdosRenyiAllocation())
    pruner.prune(kept=203)
    assert kept_in(pruner) == [47, 84, 72]
    pruner.detach()
    # Without, ε · (8 + 3) / 24 · 216 = 99 ε, ε · 24 / 128 · 640 = 120 ε and 26 ε: 203 / 245 ·
    # (99, 120, 26) = 82.03, 99.43, 21.54, and the one left over is the last's, 0.54.
    pruner = pruner_of(model, ErdosRenyiAllocation(kernel=False))
    pruner.prune(kept=203)
    assert kept_in(pruner) == [82, 99, 22]


SHAPES = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 1, 1), (10, 128), (300, 20, 7), (40,)]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.05, 0.01])
def test_erdos_renyi_is_the_formula_in_float64(density: float, kernel: bool) -> None:
    tensors = [counts(shape) for shape in SHAPES]
    keep = round(density * sum(t.prunable for t in tensors))
    pools = ErdosRenyiAllocation(kernel=kernel).pools(tensors, keep)
    assert sum(pool.keep for pool in pools) == keep
    exact = keep / sum(t.prunable for t in tensors)
    for pool, (expected, size) in zip(
        pools, erdos_renyi(SHAPES, exact, kernel=kernel), strict=True
    ):
        assert abs(pool.keep - expected * size) < 1


def test_padding_rows_do_not_count_for_erk() -> None:
    model = nn.Sequential(nn.Embedding(5, 8, padding_idx=0), nn.Linear(8, 4, bias=False))
    # The density of (5, 8) is ε · 13 / 40, of (4, 8) ε · 12 / 32; 32 weights of each may be pruned,
    # so that 32 · (13 / 40, 12 / 32) = 10.4 and 12 are the proportions of the kept weights: of 28,
    # 28 / 22.4 · (10.4, 12) = 13 and 15.
    pruner = pruner_of(model, ErdosRenyiAllocation())
    pruner.prune(kept=28)
    assert [pruner.masks.kept_in(name) for name in pruner.masks] == [13, 15]


def test_uniform_allocation_gives_each_tensor_the_same_density() -> None:
    model = mlp()
    pruner = pruner_of(model, UniformAllocation())
    pruner.prune(sparsity=0.75)
    assert kept_in(pruner) == [235_200 // 4, 30_000 // 4, 1_000 // 4]
    for name, tensor in pruner.selection.items():
        magnitudes, mask = mlp().get_parameter(name).abs(), pruner.masks[name]
        assert magnitudes[mask].min() > magnitudes[~mask].max(), name  # the largest of each
        assert int(tensor.weight.count_nonzero()) == int(mask.sum())


def test_global_allocation_is_the_default() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default = Pruner(model, optimizer, score=MagnitudeScore())
    explicit = pruner_of(mlp(), GlobalAllocation())
    assert default.allocation == GlobalAllocation()
    for pruner in (default, explicit):
        pruner.prune(sparsity=0.9)
    assert not any(default.masks.differences(explicit.masks).values())
    magnitudes = torch.cat([p.flatten() for n, p in mlp().named_parameters() if "weight" in n])
    kept = torch.cat([mask.flatten() for mask in default.masks.values()])
    assert magnitudes.abs()[kept].min() > magnitudes.abs()[~kept].max()


def test_tied_tensor_has_one_share() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight = model[0].weight
    pruner = pruner_of(model, UniformAllocation())
    pruner.prune(kept=48)  # half of 64 + 32
    assert kept_in(pruner) == [32, 16]


def test_tensor_below_its_share_stays_and_the_others_have_the_rest() -> None:
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(3)))
    selection = select(model)
    masks = {name: torch.ones(10, 10, dtype=torch.bool) for name in selection}
    masks["1.weight"].view(-1)[10:] = False
    pruner = pruner_of(model, UniformAllocation(), selection=selection, masks=masks)
    pruner.prune(sparsity=0.5)  # 150 are kept: 10 there, and 70 in each of the others
    assert kept_in(pruner) == [70, 10, 70]
    pruner.prune(kept=24)  # 8 in each
    assert kept_in(pruner) == [8, 8, 8]


def test_minimum_density_holds_in_each_tensor_and_the_others_lose_more() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 4))
    pruner = pruner_of(model, ErdosRenyiAllocation(), min_density=0.5)
    # 200 to 104: of 5220 weights 3434 and 1786, but the last layer has 400, and the first at
    # least 5000.
    pruner.prune(kept=5_220)
    assert kept_in(pruner) == [5_000, 220]


TENSORS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 12)),
        st.tuples(st.integers(1, 6), st.integers(1, 8)),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)

ALLOCATIONS: list[Allocation] = [
    GlobalAllocation(),
    UniformAllocation(),
    ErdosRenyiAllocation(),
    ErdosRenyiAllocation(kernel=False),
    TargetAllocation({"0": 0.5}),
    TargetAllocation({"0": 0.25, "[12]": 0.8}),
]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    shapes=TENSORS,
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    min_density=st.sampled_from([0.0, 0.01, 0.2]),
    allocation=st.sampled_from(ALLOCATIONS),
    seed=st.integers(0, 3),
)
def test_totals_are_exact_and_masks_only_lose_weights(
    shapes: list[tuple[int, ...]],
    fractions: list[float],
    min_density: float,
    allocation: Allocation,
    seed: int,
) -> None:
    if isinstance(allocation, TargetAllocation):
        shapes = [*shapes, (3, 4), (5, 2), (6,)]  # so that each pattern has a tensor
    torch.manual_seed(seed)
    model = nn.ParameterList([torch.randn(shape) for shape in shapes])
    pruner = pruner_of(model, allocation, selection=select(model, "*"), min_density=min_density)
    total = sum(map(math.prod, shapes))
    least = pruner._remover().least
    for fraction in sorted(fractions):
        keep = total - math.floor(fraction * (total - least))
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        pruner.prune(kept=keep)
        assert pruner.masks.kept == sum(kept_in(pruner)) == keep
        for name, mask in pruner.masks.items():
            assert not (mask & ~before[name]).any(), name
            assert int(mask.sum()) >= math.ceil(min_density * mask.numel() - 1e-9), name


@pytest.mark.parametrize("allocation", [UniformAllocation(), ErdosRenyiAllocation()])
def test_gradual_pruning_ends_at_the_shares_of_pruning_at_once(allocation: Allocation) -> None:
    at_once = pruner_of(tanh_network(12, 16, 3), allocation)
    at_once.prune(sparsity=0.8)
    model = tanh_network(12, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = GradualPruning(sparsity=0.8, end=8, every=1)
    gradual = Pruner(model, optimizer, None, schedule, allocation=allocation)
    train(model, optimizer, tanh_batch(), 12)
    # 240 weights, of which 48 are kept.
    assert sum(kept_in(gradual)) == 48
    for shares in zip(kept_in(gradual), kept_in(at_once), strict=True):
        assert abs(shares[0] - shares[1]) <= 1


def test_iterative_pruning_keeps_the_allocation_and_stops_at_its_target() -> None:
    model = tanh_network(12, 16, 3)
    schedule = IterativePruning(fraction=0.3, target=0.7)
    pruner = pruner_of(model, UniformAllocation(), schedule=schedule)
    while not pruner.done:
        pruner.step(1.0)
        first, last = kept_in(pruner)
        assert abs(first / 192 - last / 48) < 1 / 48
    assert kept_in(pruner) == [58, 14]  # 72 of 240; 57.6 and 14.4


def three_layers() -> nn.Sequential:
    """Return layers of 200, 100 and 50 weights, of the same scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10), nn.Linear(10, 5))
    for layer in model:
        nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    return model


def test_tensors_have_their_targets_and_the_others_one_threshold() -> None:
    model = three_layers()
    pruner = pruner_of(model, TargetAllocation({"0": 0.9}))
    pruner.prune(sparsity=0.8)  # 280 of 350: 180 of the first, 100 of the others
    assert kept_in(pruner)[0] == 20
    names = ("1.weight", "2.weight")
    others = torch.cat([three_layers().get_parameter(n).abs().flatten() for n in names])
    kept = torch.cat([mask.flatten() for mask in list(pruner.masks.values())[1:]])
    assert int(kept.sum()) == 50
    assert others[kept].min() > others[~kept].max()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"0": 0.9}, [20, 50]),
        ({"0.weight": 0.9}, [20, 50]),
        ({"0": 0.9, nn.ReLU: 0.9}, None),
        ({lambda name, tensor, module: tensor.shape[0] == 10: 0.9}, [20, 10]),
        ({nn.Linear: 0.8}, [40, 20, 10]),
        ({"*": 0.8}, [40, 20, 10]),
    ],
)
def test_patterns_are_those_of_select(targets: dict[Any, float], expected: list[int]) -> None:
    if expected is None:
        message = message_of(lambda: pruner_of(three_layers(), TargetAllocation(targets)))
        assert "nothing is matched by targets=ReLU (types here: Linear, Sequential)" in message
        return
    pruner = pruner_of(three_layers(), TargetAllocation(targets))
    pruner.prune(kept=70)
    kept = kept_in(pruner)
    assert kept[0] == expected[0]
    assert kept == expected if len(expected) == 3 else sum(kept) == 70


def test_gradual_pruning_approaches_targets_in_step_with_the_whole() -> None:
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = GradualPruning(sparsity=0.7, end=4, every=1, power=1.0)
    targets = TargetAllocation({"0": 0.9, "1": 0.4})
    pruner = Pruner(model, optimizer, None, schedule, allocation=targets)
    removed = []
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        sizes = zip((200, 100, 50), kept_in(pruner), strict=True)
        removed.append([size - kept for size, kept in sizes])
    # Of 245 removals 180 are of the first layer and 40 of the second. After step 1, 61 removals:
    # 61 / 245 · (180, 40) = 44.8 and 10.0. After 122: 89.6 and 19.9; after 184: 135.2 and 30.0.
    assert removed == [[45, 10, 6], [90, 20, 12], [135, 30, 19], [180, 40, 25]]


def test_validations_and_trials_approach_targets_in_step_with_the_whole() -> None:
    model = three_layers()
    first, tried = model.get_parameter("0.weight"), []

    def measure() -> float:
        tried.append(int(first.count_nonzero()))
        return 1.0

    class Trying(Schedule):
        def final_kept(self, prunable: int) -> int:
            return 105

        def after_validation(self, status: PruningStatus) -> int:
            assert status.metric_if_kept is not None
            status.metric_if_kept(245, measure)
            return 245

    pruner = pruner_of(model, TargetAllocation({"0": 0.9}), schedule=Trying())
    pruner.step(1.0)
    # 105 of 245 removals: 105 / 245 · 180 = 77.1 are of the first layer.
    assert tried == [123]
    assert kept_in(pruner)[0] == 123


def test_targets_come_first_when_the_final_number_is_open() -> None:
    pruner = pruner_of(three_layers(), TargetAllocation({"0": 0.9, "2": 0.3}))
    pruner.prune(kept=295)  # 55 removals: 55 / 195 · (180, 15) = 50.77 and 4.23
    assert kept_in(pruner) == [200 - 51, 100, 50 - 4]
    pruner.prune(kept=100)
    assert kept_in(pruner) == [20, 45, 35]


def test_targets_of_all_tensors_are_met_up_to_a_weight() -> None:
    pruner = pruner_of(three_layers(), TargetAllocation({"*": 0.333}))
    # 66.6, 33.3 and 16.65 are 116.55 removals, so that 117 are possible and 118 are not.
    message = "cannot keep only 232 weights: the targets of TargetAllocation keep at least 233 over"
    assert message in message_of(lambda: pruner.prune(kept=232))
    assert kept_in(pruner) == [200, 100, 50]
    # 117 / 116.55 · (66.6, 33.3, 16.65) = 66.86, 33.43, 16.71: two are left over.
    pruner.prune(kept=233)
    assert kept_in(pruner) == [133, 67, 33]


def test_target_of_zero_leaves_a_tensor_dense() -> None:
    pruner = pruner_of(three_layers(), TargetAllocation({"1": 0}))
    pruner.prune(kept=102)  # one weight in each of the others, by the minimum density
    assert kept_in(pruner) == [1, 100, 1]
    message = message_of(lambda: pruner.prune(kept=101))
    assert message.startswith("cannot keep only 101 weights: the targets of TargetAllocation keep")


def test_removals_by_a_floor_stop_at_the_targets() -> None:
    pruner = pruner_of(
        three_layers(), TargetAllocation({"*": 0.5}), schedule=IterativePruning(fraction=0.4)
    )
    while not pruner.done:
        pruner.step(1.0)
    assert kept_in(pruner) == [100, 50, 25]


def test_tensor_that_keeps_less_than_its_target_stays() -> None:
    model = three_layers()
    masks = {name: torch.ones_like(t.weight, dtype=torch.bool) for name, t in select(model).items()}
    masks["0.weight"].view(-1)[10:] = False
    pruner = pruner_of(model, TargetAllocation({"0": 0.5}), masks=masks)
    pruner.prune(kept=40)
    kept = kept_in(pruner)
    assert (kept[0], sum(kept)) == (10, 40)
    pruner.detach()
    pruner = pruner_of(three_layers(), TargetAllocation({"0": 0.5, "1": 0.5}), masks=masks)
    pruner.prune(kept=140)  # of 210 removals 190 are done already, and 20 are of the second
    assert kept_in(pruner) == [10, 80, 50]


def test_targets_lose_no_more_than_all_removals_when_others_have_lost_weights() -> None:
    model = three_layers()
    masks = {name: torch.ones_like(t.weight, dtype=torch.bool) for name, t in select(model).items()}
    masks["1.weight"].view(-1)[60:] = False
    pruner = pruner_of(model, TargetAllocation({"0": 0.9}), masks=masks)
    pruner.prune(kept=280)  # 30 more removals: all are of the first, which is to lose 180
    assert kept_in(pruner) == [170, 60, 50]


def test_targets_are_rounded_up_where_the_others_are_at_their_minimum() -> None:
    pruner = pruner_of(three_layers(), TargetAllocation({"0": 0.332}), min_density=0.1)
    # 66.4 are 67 removals, and 10 and 5 stay in the others.
    pruner.prune(kept=133 + 10 + 5)
    assert kept_in(pruner) == [133, 10, 5]


def test_final_numbers_that_rounding_allows_are_accepted() -> None:
    # 116.55 removals, rounded down or up.
    for kept, accepted in ((350 - 116, True), (350 - 117, True), (350 - 115, False)):
        schedule = GradualPruning(kept=kept, end=3)
        arguments: Any = {"allocation": TargetAllocation({"*": 0.333}), "schedule": schedule}
        if accepted:
            pruner_of(three_layers(), **arguments)
        else:
            message = message_of(lambda: pruner_of(three_layers(), **arguments))  # noqa: B023
            assert "keep at most 234 of 350" in message


def test_tied_tensor_has_the_target_of_any_of_its_names() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight = model[0].weight
    pruner = pruner_of(model, TargetAllocation({"1": 0.25}))
    pruner.prune(kept=60)
    assert kept_in(pruner) == [48, 12]
    both = TargetAllocation({"0": 0.5, "1": 0.25})
    message = message_of(lambda: pruner_of(model, both), ArgumentError)
    assert "several are those of 0.weight (0.5 by '0', 0.25 by '1'): change the" in message


def test_two_patterns_with_the_same_target_agree() -> None:
    pruner = pruner_of(three_layers(), TargetAllocation({"0": 0.5, "*.weight": 0.5}))
    pruner.prune(sparsity=0.5)
    assert kept_in(pruner) == [100, 50, 25]


def test_decimal_sparsities_are_exact() -> None:
    # In binary 0.7 · 10 and 1 - 0.9 are not whole and not 0.1.
    model = nn.Sequential(nn.Linear(10, 1), nn.Linear(10, 10))
    pruner = pruner_of(model, TargetAllocation({"0": 0.7, "1": 0.9}), min_density=0.1)
    pruner.prune(kept=13)
    assert kept_in(pruner) == [3, 10]
    pruner.detach()
    assert pruner_of(model, TargetAllocation({"*": 0.7}), min_density=0.3)  # 1 - 0.3 is below 0.7


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (
            {"3": 0.5, "first*": 0.1, "1": 0.5},
            {},
            r"nothing is matched by targets='3' \(nearest names: .*; targets='first\*' \(nearest",
        ),
        ({"0.bias": 0.5}, {}, r"nothing is matched by targets='0.bias' \(nearest names: 0.weight"),
        ({2: 0.5}, {}, "each pattern of targets must be a glob, a module type or a predicate"),
        (
            {"0": 0.5, "*": 0.25, "2.weight": 0.75},
            {},
            r"at most one target, but several are those of 0.weight \(0.5 by '0', 0.25 by '\*'\), "
            r"2.weight \(0.25 by '\*', 0.75 by '2.weight'\): change the patterns",
        ),
        (
            {"0": 0.95, "1": 0.5, "2": 1},
            {"min_density": 0.1},
            r"with min_density=0.1 a target must be at most 0.9, but is larger for 0.weight "
            r"\(0.95\), 2.weight \(1\): lower the targets or min_density",
        ),
        (
            {"*": 0.5},
            {"schedule": OneShot(sparsity=0.9)},
            r"keep at least 175 of 350 weights \(sparsity 0.5\), but the schedule keeps 35 "
            r"\(sparsity 0.9\): raise the targets or change",
        ),
        (
            {"0": 0.9, "1": 0.8},
            {"schedule": GradualPruning(sparsity=0.7, end=3)},
            r"keep at most 90 of 350 weights \(sparsity 0.7429\), but the schedule keeps 105 "
            r"\(sparsity 0.7\): lower the targets or change",
        ),
    ],
)
def test_targets_that_do_not_fit_are_rejected_and_nothing_is_attached(
    targets: dict[Any, float], options: dict[str, Any], message: str
) -> None:
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=message):
        Pruner(model, optimizer, allocation=TargetAllocation(targets), **options)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_pattern_of_a_tensor_that_is_not_selected_is_rejected() -> None:
    model = three_layers()
    allocation = TargetAllocation({"2": 0.5})
    message = message_of(lambda: pruner_of(model, allocation, selection=select(model, exclude="2")))
    assert "nothing is matched by targets='2'" in message


@pytest.mark.parametrize("schedule", [OneShot(sparsity=0.5), IterativePruning(target=0.5)])
def test_targets_equal_to_that_of_the_schedule_are_accepted(schedule: Schedule) -> None:
    assert pruner_of(three_layers(), TargetAllocation({"*": 0.5}), schedule=schedule)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: TargetAllocation({"a": 1.5, nn.Linear: -1}),
            ArgumentError,
            "the target of 'a' must be from 0 to 1, but is 1.5; the target of Linear must be from "
            "0 to 1, but is -1",
        ),
        (
            lambda: TargetAllocation({"a": "0.5"}),  # type: ignore[dict-item]
            ArgumentTypeError,
            "the target of 'a' must be a finite number from 0 to 1, but is '0.5'",
        ),
        (
            lambda: TargetAllocation([0.5]),  # type: ignore[arg-type]
            ArgumentTypeError,
            'targets must be sparsities by pattern, but is [0.5]: TargetAllocation({"0": 0.5})',
        ),
        (lambda: TargetAllocation({}), ArgumentError, "targets must be sparsities by pattern, but"),
        (
            lambda: ErdosRenyiAllocation(kernel=1),  # type: ignore[arg-type]
            ArgumentTypeError,
            "kernel must be True or False, but is 1",
        ),
        (
            lambda: pruner_of(mlp(), "uniform"),  # type: ignore[arg-type]
            ArgumentTypeError,
            "allocation must be an Allocation, but is 'uniform': such as UniformAllocation()",
        ),
        (
            lambda: pruner_of(mlp(), UniformAllocation),  # type: ignore[arg-type]
            ArgumentTypeError,
            "allocation must be an Allocation, but is the class UniformAllocation: such",
        ),
        (
            lambda: TargetAllocation({"0": 0.5}).pools([counts((2, 3))], 3),
            PrunusError,
            "TargetAllocation has patterns: call bind(model, selection) first",
        ),
    ],
)
def test_wrong_arguments_are_rejected(build: Any, error: type[PrunusError], message: str) -> None:
    assert message_of(build, error).startswith(message)


def test_later_changes_of_the_targets_have_no_effect() -> None:
    targets = {"0": 0.5}
    allocation = TargetAllocation(targets)  # type: ignore[arg-type]
    targets["1"] = 3.0
    assert allocation.targets == {"0": 0.5}


class Fixed(Allocation):
    """An allocation that returns the same pools, whatever is asked for."""

    def __init__(self, *pools: Pool) -> None:
        self.fixed = pools

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> Sequence[Pool]:
        return self.fixed


def test_custom_pools_are_used() -> None:
    pruner = pruner_of(
        three_layers(), Fixed(Pool(("2.weight", "0.weight"), 30), Pool(("1.weight",), 70))
    )
    pruner.prune(kept=100)
    kept = kept_in(pruner)
    assert (kept[0] + kept[2], kept[1]) == (30, 70)


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        (
            [Pool(("0.weight",), 50), Pool(("1.weight", "1.weight"), 50)],
            "Fixed.pools: each of 0.weight, 1.weight, 2.weight must be in one pool, but the pools "
            "have 0.weight, 1.weight, 1.weight",
        ),
        (
            [Pool(("0.weight",), 0), Pool(("1.weight",), 101), Pool(("2.weight",), 9)],
            "Fixed.pools: the pool of 0.weight must keep 1 to 200 weights, but keeps 0; the pool "
            "of 1.weight must keep 1 to 100 weights, but keeps 101; all pools must keep 100 "
            "weights, but keep 110",
        ),
    ],
)
def test_custom_pools_that_cannot_be_used_are_rejected(pools: list[Pool], message: str) -> None:
    pruner = pruner_of(three_layers(), Fixed(*pools))
    assert message_of(lambda: pruner.prune(kept=100)) == message
    assert kept_in(pruner) == [200, 100, 50]


def test_an_error_names_the_tensors_of_all_pools_and_removes_nothing() -> None:
    model = three_layers()
    for name in ("0.weight", "2.weight"):
        model.get_parameter(name).data[0, 0] = math.nan
    pruner = pruner_of(model, UniformAllocation())
    message = message_of(lambda: pruner.prune(sparsity=0.5))
    assert "the scores of 0.weight, 2.weight contain NaN" in message
    assert kept_in(pruner) == [200, 100, 50]


def test_pools_are_pruned_within_their_minimum_density() -> None:
    model = three_layers()
    model.get_parameter("1.weight").data.mul_(1e-3)  # the first to go
    pool = Pool(("1.weight", "2.weight"), 60), Pool(("0.weight",), 200)
    pruner = pruner_of(model, Fixed(*pool), min_density=0.2)
    pruner.prune(kept=260)
    assert kept_in(pruner) == [200, 20, 40]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), None),
        (IterativePruning(), None),
        (IterativePruning(target=0.75), 25),
        (OneShot(sparsity=0.9), 10),
        (GradualPruning(sparsity=0.8, end=5), 20),
        (GradualPruning(kept=7, end=5), 7),
        (ThresholdSearch(evaluate=lambda: 0.0, target=0.6), 40),
        (ThresholdSearch(evaluate=lambda: 0.0), None),
    ],
)
def test_schedules_report_their_final_number(schedule: Schedule, expected: int | None) -> None:
    assert schedule.final_kept(100) == expected
