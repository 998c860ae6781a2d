"""Contract table: every method, optimizer, precision, accumulation and process layout combined.

Each cell is trained by prunus and compared with the same training by the formulas in float64: exact
zeros, exact density, and a bounded distance of the removals and of the final weights. ``make test``
runs a part that covers every pair of method and optimizer. Run from the repository's root:
``python -m benchmarks.robustness.contract_table``; it takes about half an hour.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RESULTS, save
from benchmarks.processes import run_in_processes
from benchmarks.robustness.contract.cells import LAYOUTS, MAGNIFIED, PRECISIONS, ROUGH, product
from benchmarks.robustness.contract.training import Outcome, run


def run_layout(layout: str, most: int | None) -> dict[str, Any]:
    """Run the cells of a layout, as each of its processes does; return their outcomes."""
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    problems: dict[str, list[str]] = {}
    for cell in islice(product(layout), most):
        outcome = run(cell)
        special = cell.optimizer in ROUGH or cell.optimizer in MAGNIFIED
        outcomes[f"{cell.precision}{f', {cell.optimizer}' if special else ''}"].append(outcome)
        if outcome.problems:
            problems[str(cell)] = outcome.problems
    return {
        "cells": sum(map(len, outcomes.values())),
        "problems": problems,
        "distances": {
            name: {
                "cells": len(each),
                "median": statistics.median(outcome.distance for outcome in each),
                "largest": max(outcome.distance for outcome in each),
                "across the threshold, largest": max(outcome.across for outcome in each),
            }
            for name, each in outcomes.items()
        },
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = RESULTS / "contract_table.json"
    parser.add_argument("--quick", action="store_true", help="a few cells: does it run at all?")
    parser.add_argument("--out", type=Path, default=out, help="default: beside the benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    most = 20 if arguments.quick else None
    figures: dict[str, Any] = {}
    for layout, processes in LAYOUTS.items():
        first, *others = (
            run_in_processes(processes, run_layout, layout, most)
            if processes > 1
            else [run_layout(layout, most)]
        )
        assert all(other == first for other in others), "the processes disagree"
        figures[layout] = first
        print(f"{layout}: {first['cells']:,} cells, {len(first['problems'])} with problems")
    bounds = {
        "by precision": PRECISIONS,
        "at least, by optimizer": ROUGH,
        "times, by optimizer": MAGNIFIED,
    }
    save(arguments.out, 0, {"bounds": bounds, "layouts": figures})
    sys.exit(any(layout["problems"] for layout in figures.values()))


if __name__ == "__main__":
    main()
