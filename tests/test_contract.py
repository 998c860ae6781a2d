"""Contract: every pair of method and optimizer against the formulas, in one process and in two.

The cells, their checks and the reference are in ``benchmarks/robustness/contract``.
"""

from __future__ import annotations

import pytest

from benchmarks.processes import run_in_processes
from benchmarks.robustness.contract.cells import ACCUMULATIONS, LAYOUTS, PRECISIONS, cells
from benchmarks.robustness.contract.optimizers import OPTIMIZERS
from benchmarks.robustness.contract.training import check


@pytest.mark.parametrize(
    "optimizer",
    [
        # One is quick enough for `make check`.
        name if name == "AdamW" else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_every_cell_in_one_process_meets_the_reference(optimizer: str) -> None:
    count, problems = check("one process", [optimizer])
    assert problems == {}
    # Every method: four penalties, applied in three ways, and none, and four scores from gradients
    # with one penalty; each with three schedules. Two allocations and four growths, once each.
    assert count == 57


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # 18 optimizers, without the two LBFGS, with 51 methods: without relevance and lobster in
        # the loss, each with three schedules; two allocations and four growths.
        ("DDP", 18 * 51),
        # 16 optimizers, without Adafactor and Rprop besides, with 45 methods: nothing in the loss.
        ("FSDP2", 16 * 45),
    ],
)
def test_every_cell_in_two_processes_meets_the_reference(layout: str, expected: int) -> None:
    for count, problems in run_in_processes(LAYOUTS[layout], check, layout):
        assert problems == {}
        assert count == expected


def test_every_method_and_optimizer_meets_every_precision() -> None:
    for layout in LAYOUTS:
        met: dict[str, set[tuple[str, int]]] = {}
        for cell in cells(layout):
            for key in (
                f"{cell.penalty} {cell.apply} {cell.schedule} {cell.score} {cell.allocation} "
                f"{cell.growth}",
                cell.optimizer,
            ):
                met.setdefault(key, set()).add((cell.precision, cell.accumulation))
        every = len(PRECISIONS) * len(ACCUMULATIONS)
        for key, found in met.items():
            # LBFGS and relevance within the loss do without accumulation, and LBFGS without more.
            narrow = key.startswith(("LBFGS", "relevance loss", "lobster loss"))
            assert len(found) >= 2 if narrow else len(found) == every, key
