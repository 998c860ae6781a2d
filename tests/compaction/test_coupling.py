"""Tests of the coupling of units, on groups worked out by hand."""

from __future__ import annotations

import pytest
import torch

from prunus.compaction.coupling import Backtrack, Coupling


def test_groups_are_named_by_their_smallest_unit() -> None:
    coupling = Coupling()
    units = coupling.new_units(6)  # 1 to 6; unit 0 is that of protected units
    coupling.couple(units[[5, 3]], units[[3, 1]])  # 6 with 4, and 4 with 2
    coupling.couple(units[4:5], units[2:3])  # 5 with 3
    assert coupling.groups().tolist() == [0, 1, 2, 3, 2, 3, 2]


def test_coupling_broadcasts_in_both_directions() -> None:
    for swapped in (False, True):
        coupling = Coupling()
        units = coupling.new_units(4).view(2, 2)
        pair = (units, units[:, :1])
        coupling.couple(*(pair[::-1] if swapped else pair))
        assert coupling.groups().tolist() == [0, 1, 1, 3, 3]


def test_protected_units_are_in_group_zero_with_all_coupled_ones() -> None:
    coupling = Coupling()
    first, second = coupling.new_units(2), coupling.new_units(2)
    coupling.couple(first, second)
    coupling.protect(second[1:], "reason")
    coupling.protect(second[1:], "reason")
    assert coupling.groups().tolist() == [0, 1, 0, 1, 0]
    assert coupling.reasons == ["reason"]


def test_merge_couples_all_tensors() -> None:
    coupling = Coupling()
    first, second, third = (coupling.new_units(2) for _ in range(3))
    merged = coupling.merge([first, second, third])
    assert merged is first
    assert coupling.groups().tolist() == [0, 1, 2, 1, 2, 1, 2]


def test_merge_protects_units_where_a_tensor_has_none() -> None:
    coupling = Coupling()
    first, second, free = (coupling.new_units(1) for _ in range(3))
    assert coupling.merge([first, None, second]) is None
    assert coupling.groups().tolist() == [0, 0, 0, int(free)]
    assert coupling.reasons == []


def test_merge_of_nothing_has_no_units() -> None:
    coupling = Coupling()
    assert coupling.merge([]) is None
    assert coupling.merge([None, None]) is None


def test_backtracking_tries_each_option_and_returns_to_the_first() -> None:
    choices: dict[str, int] = {}

    def attempt() -> tuple[Coupling, torch.Tensor, int]:
        coupling = Coupling(choices)
        units = coupling.new_units(4).view(2, 2)
        return coupling, units, coupling.choose("line 1", [units, units.T])

    chosen = []
    for _ in range(2):
        coupling, units, choice = attempt()
        chosen.append(choice)
        coupling.backtrack(coupling.new_units(1))  # not among the units of the choice
        with pytest.raises(Backtrack):
            coupling.backtrack(units[0])
    coupling, units, choice = attempt()
    chosen.append(choice)
    coupling.backtrack(units[0])  # every option has been tried
    assert chosen == [0, 1, 0]
