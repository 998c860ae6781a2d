"""Every cell of the contract: method, optimizer, precision, accumulation, processes, all of each.

Each is trained by prunus and held against the same training spelled out in float64, without
prunus: exact zeros, exact density, and both the removals and the end within a stated distance (see
``contract/training.py``; ``make test`` runs a part that covers every pair of method and optimizer).
Run from the repository's root: ``python -m benchmarks.robustness.contract_table``; it takes about
half an hour.
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
from benchmarks.processes import together
from benchmarks.robustness.contract import training as contract


def run(layout: str, most: int | None) -> dict[str, Any]:
    """Run the cells of a layout, in as many processes as it has."""
    outcomes: dict[str, list[contract.Outcome]] = defaultdict(list)
    problems: dict[str, list[str]] = {}
    for cell in islice(contract.product(layout), most):
        outcome = contract.run(cell)
        special = cell.optimizer in contract.ROUGH or cell.optimizer in contract.MAGNIFIED
        outcomes[f"{cell.precision}{f', {cell.optimizer}' if special else ''}"].append(outcome)
        if outcome.problems:
            problems[str(cell)] = outcome.problems
    return {
        "cells": sum(map(len, outcomes.values())),
        "problems": problems,
        "distances": {
            name: {
                "cells": len(own),
                "median": statistics.median(outcome.distance for outcome in own),
                "largest": max(outcome.distance for outcome in own),
                "across the threshold, largest": max(outcome.across for outcome in own),
            }
            for name, own in outcomes.items()
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
    for layout, processes in contract.LAYOUTS.items():
        # Of several processes all find the same, or the contract would not hold.
        first, *others = (
            together(processes, run, layout, most) if processes > 1 else [run(layout, most)]
        )
        assert all(other == first for other in others)
        figures[layout] = first
        wrong = len(first["problems"])
        print(f"{layout}: {first['cells']:,} cells, {wrong} with problems")
    bounds = {
        "by precision": contract.PRECISIONS,
        "at least, by optimizer": contract.ROUGH,
        "times, by optimizer": contract.MAGNIFIED,
    }
    save(arguments.out, 0, {"bounds": bounds, "layouts": figures})
    sys.exit(any(layout["problems"] for layout in figures.values()))


if __name__ == "__main__":
    main()
