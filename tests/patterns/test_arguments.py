"""Patterns that cannot be used, and their messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.pruners import magnitude_pruner
from prunus import (
    NM,
    ArgumentError,
    ArgumentTypeError,
    Block,
    Channels,
    Columns,
    GradientGrowth,
    GradualPruning,
    Heads,
    OneShot,
    Pattern,
    Pruner,
    RandomGrowth,
    Rows,
    SoftGrowth,
    TargetAllocation,
    select,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 6))


def pruner_of(model: nn.Module, **options: Any) -> Pruner:
    return magnitude_pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: NM(4, 4),
            r"^n must be below m=4, but is 4: NM\(2, 4\) keeps 2 of each 4 weights$",
        ),
        (lambda: NM(0, 4), r"^n must be at least 1, but is 0"),
        (lambda: NM(2, 4, along="rows"), r"^along must be 'input' or 'output', but is 'rows'$"),  # type: ignore[arg-type]
        (lambda: Block(0, 4), r"^rows must be at least 1, but is 0$"),
        (lambda: Block(0, 0), r"^rows must be at least 1, but is 0; columns must be at least 1"),
        (lambda: Heads(0), r"^size must be at least 1, but is 0$"),
    ],
)
def test_arguments_out_of_range_are_rejected(build: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


@pytest.mark.parametrize("pattern", ["2:4", NM, [Block(1, 4)], 4])
def test_what_is_no_pattern_is_rejected(pattern: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^pattern must be a Pattern, a mapping of name"):
        pruner_of(network(), pattern=pattern)


def test_a_mapping_must_have_patterns() -> None:
    with pytest.raises(ArgumentError, match=r"^pattern must have an entry, but is empty"):
        pruner_of(network(), pattern={})
    with pytest.raises(
        ArgumentTypeError, match=r"^the pattern of '0' must be a Pattern, but is '2:4'"
    ):
        pruner_of(network(), pattern={"0": "2:4"})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            Block(7, 30),
            r"Block\(rows=7, columns=30\) needs a matrix of at least 7×30, which "
            r"0\.weight \(24×20, Linear\) has not; .*2\.weight \(6×24, Linear\) has not\. Name the",
        ),
        (NM(2, 21), r"at least 21 weights along the input dimension, which 0\.weight \(24×20"),
        (NM(2, 8, "output"), r"at least 8 weights along the output dimension, which 2\.weight"),
        (Heads(5), r"Heads\(size=5.*\) needs a multiple of 5 along the output dimension, which 0"),
        (Heads(5, "input"), r"a multiple of 5 along the input dimension, which 2\.weight \(6×24"),
    ],
)
def test_patterns_that_do_not_fit_are_rejected(pattern: Pattern, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pruner_of(network(), pattern=pattern)


def test_names_that_match_no_matrix_are_rejected() -> None:
    with pytest.raises(ArgumentError, match=r"nothing is matched by pattern='decoder'"):
        pruner_of(network(), pattern={"decoder": Rows()})
    model = network()
    selection = select(model, biases=True)
    with pytest.raises(ArgumentError, match=r"only others are matched by '\*\.bias' \(0\.bias, 2"):
        pruner_of(model, pattern={"*.bias": Rows()}, selection=selection)
    with pytest.raises(
        ArgumentError, match=r"needs a tensor of two dimensions or more, but 0\.bias"
    ):
        pruner_of(model, pattern=Rows(), selection=select(model, "*.bias"))


def test_biases_beside_matrices_have_no_pattern() -> None:
    model = network()
    pruner = pruner_of(model, pattern=Rows(), selection=select(model, biases=True))
    assert set(pruner._patterns) == {"0.weight", "2.weight"}


def test_two_patterns_of_one_tensor_are_rejected() -> None:
    message = (
        r"every tensor must have at most one pattern, but several are those of 0\.weight "
        r"\(Rows\(\) by '0', NM\(n=2, m=4, along='input'\) by Linear\)"
    )
    with pytest.raises(ArgumentError, match=message):
        pruner_of(network(), pattern={"0": Rows(), "2": NM(2, 4), nn.Linear: NM(2, 4)})
    assert pruner_of(network(), pattern={"0": Rows(), "*": Rows()}).sparsity == 0


def test_two_patterns_of_a_tied_tensor_are_rejected() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(12, 8), "head": nn.Linear(8, 12, bias=False)})
    model["head"].weight = model["table"].weight
    with pytest.raises(
        ArgumentError, match=r"table\.weight = head\.weight \(Rows\(\) by 'table', Bl"
    ):
        pruner_of(model, pattern={"table": Rows(), "head": Block(1, 4)})
    with pytest.raises(
        ArgumentError, match=r"Channels\(\) needs rows that are neurons .*Embedding and L"
    ):
        pruner_of(model, pattern=Channels())
    assert pruner_of(model, pattern={"head": NM(2, 4)}).prune(sparsity=0.5) == 48


def test_tensors_without_one_matrix_are_rejected() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 8))

    experts = nn.ModuleDict({"experts": Experts()})
    with pytest.raises(ArgumentError, match=r"experts\.up is a stack of matrices of experts"):
        pruner_of(experts, pattern=Block(1, 4))
    grouped = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=2))
    with pytest.raises(ArgumentError, match=r"0\.weight is a transposed convolution in groups"):
        pruner_of(grouped, pattern=NM(2, 4))
    recurrent = nn.LSTM(8, 8)
    with pytest.raises(ArgumentError, match=r"Channels.*weight_hh_l0 \(32×8, LSTM\) has not"):
        pruner_of(recurrent, pattern=Channels())
    tied = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ArgumentError, match=r"0\.weight = 1\.weight is tied between layers that"):
        pruner_of(tied, pattern=Rows())


@pytest.mark.parametrize(
    ("pattern", "growth"),
    [
        (NM(2, 4), RandomGrowth()),
        ({"0": NM(2, 4)}, GradientGrowth(until=9)),
        (Block(1, 4), RandomGrowth()),
        (Rows(), SoftGrowth(until=9)),
    ],
    ids=repr,
)
def test_growth_of_single_weights_is_rejected(pattern: Any, growth: Any) -> None:
    message = rf"pattern must be None with growth={type(growth).__name__}, .* but is "
    with pytest.raises(ArgumentError, match=message):
        pruner_of(network(), pattern=pattern, growth=growth)


def test_a_schedule_must_complete_n_of_m() -> None:
    for sparsity, bound in ((0.3, "at most 312"), (0.7, "at least 312")):
        schedule = OneShot(sparsity=sparsity, at=1)
        with pytest.raises(
            ArgumentError, match=rf"0\.weight, 2\.weight keep {bound} of 624 weights"
        ):
            pruner_of(network(), pattern=NM(2, 4), schedule=schedule)
    # The other tensor has 144 weights.
    with pytest.raises(ArgumentError, match=r"0\.weight keep at most 384 of 624 weights"):
        pruner_of(network(), pattern={"0": NM(2, 4)}, schedule=OneShot(sparsity=0.3, at=1))
    pruner_of(network(), pattern={"0": NM(2, 4)}, schedule=OneShot(sparsity=0.4, at=1))


def test_the_padding_row_does_not_count_in_n_of_m() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=1))
    for along in ("input", "output"):
        pattern = NM(1, 2, along)
        with pytest.raises(ArgumentError, match=r"keep at most (10|12) of 20 weights"):
            pruner_of(model, pattern=pattern, schedule=GradualPruning(kept=13, end=2))
    with pytest.raises(ArgumentError, match=r"keep at most 10 of 20 weights"):
        pruner_of(model, pattern=NM(1, 2), schedule=GradualPruning(kept=11, end=2))
    pruner_of(model, pattern=NM(1, 2), schedule=GradualPruning(kept=10, end=2))


def test_smaller_groups_at_the_end_do_not_count_as_a_wrong_sparsity() -> None:
    model = nn.Sequential(nn.Linear(27, 8))  # 6 groups of 4 and one of 3: 14 of 27 stay
    pruner = pruner_of(model, pattern=NM(2, 4), schedule=OneShot(sparsity=0.5, at=1))
    pruner.prune(kept=8 * 14)
    assert pruner.masks["0.weight"].sum(dim=1).tolist() == [14] * 8


def test_min_density_and_targets_must_allow_n_of_m() -> None:
    with pytest.raises(
        ArgumentError, match=r"min_density=0\.6 is above the density of the N:M patt"
    ):
        pruner_of(network(), pattern=NM(2, 4), min_density=0.6)
    allocation = TargetAllocation({"0": 0.3})
    with pytest.raises(ArgumentError, match=r"there are targets for 0\.weight, too"):
        pruner_of(network(), pattern=NM(2, 4), allocation=allocation)
    pruner_of(network(), pattern={"2": NM(2, 4)}, allocation=allocation)


def test_a_schedule_must_remove_a_group() -> None:
    schedule = GradualPruning(kept=610, begin=0, end=9, every=3)
    with pytest.raises(
        ArgumentError, match=r"removes 14 of 624 weights, but the smallest group, of R"
    ):
        pruner_of(network(), pattern=Rows(), schedule=schedule)
    pruner_of(network(), pattern={"0": Columns()}, schedule=schedule)
