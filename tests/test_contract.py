"""Every cell of the contract, in one process and in two: exact zeros, exact density, the formulas.

What can be combined, what a cell checks and the reference it is held against are in
``benchmarks/robustness/contract``.
"""

from __future__ import annotations

import pytest

from benchmarks.processes import together
from benchmarks.robustness.contract import training as contract
from benchmarks.robustness.contract.optimizers import OPTIMIZERS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_cell_in_one_process_meets_the_reference(optimizer: str) -> None:
    count, problems = contract.check("one process", [optimizer])
    assert problems == {}
    assert count == 39  # every method: four penalties in three ways, and none; three schedules


@pytest.mark.parametrize(
    ("layout", "cells"),
    [
        # 18 optimizers, without the two LBFGS, with 33 methods: without relevance and lobster in
        # the loss, each with three schedules.
        ("DDP", 18 * 33),
        # 16 optimizers, without Adafactor and Rprop besides, with 27 methods: nothing in the loss.
        ("FSDP2", 16 * 27),
    ],
)
def test_every_cell_in_two_processes_meets_the_reference(layout: str, cells: int) -> None:
    for count, problems in together(contract.LAYOUTS[layout], contract.check, layout):
        assert problems == {}
        assert count == cells


def test_every_method_and_optimizer_meets_every_precision() -> None:
    for layout in contract.LAYOUTS:
        met: dict[str, set[tuple[str, int]]] = {}
        for cell in contract.cells(layout):
            for key in (f"{cell.penalty} {cell.apply} {cell.schedule}", cell.optimizer):
                met.setdefault(key, set()).add((cell.precision, cell.accumulation))
        every = len(contract.PRECISIONS) * len(contract.ACCUMULATIONS)
        for key, found in met.items():
            # LBFGS and relevance within the loss do without accumulation, and LBFGS without more.
            narrow = key.startswith(("LBFGS", "relevance loss", "lobster loss"))
            assert len(found) >= 2 if narrow else len(found) == every, key
