"""Every cell of the contract, in one process and in two: exact zeros, exact density, the formulas.

What can be combined, what a cell checks and the reference it is held against are in
``tests/contract.py``.
"""

from __future__ import annotations

import pytest

import contract
from distributed.processes import together
from optimizers import OPTIMIZERS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_one_process(optimizer: str) -> None:
    count, problems = contract.check("one process", [optimizer])
    assert problems == {}
    assert count == 39  # every method: four penalties in three ways, and none; three schedules


@pytest.mark.parametrize("layout", ["DDP", "FSDP2"])
def test_in_two_processes(layout: str) -> None:
    for count, problems in together(contract.LAYOUTS[layout], contract.check, layout):
        assert problems == {}
        assert count > 400


def test_every_method_and_optimizer_meets_every_precision() -> None:
    for layout in contract.LAYOUTS:
        met: dict[str, set[tuple[str, int]]] = {}
        for cell in contract.cells(layout):
            for key in (f"{cell.penalty} {cell.way} {cell.schedule}", cell.optimizer):
                met.setdefault(key, set()).add((cell.precision, cell.accumulation))
        every = len(contract.PRECISIONS) * len(contract.ACCUMULATIONS)
        for key, found in met.items():
            # LBFGS and relevance within the loss do without accumulation, and LBFGS without more.
            narrow = key.startswith(("LBFGS", "relevance loss", "lobster loss"))
            assert len(found) >= 2 if narrow else len(found) == every, key
