"""Reproduction of a recipe over several seeds, with mean and spread of its results.

Each run is a separate process. Each run reads the test split once, at its end, for no decision. For
example::

    python -m benchmarks.studies.reproduce mnist-lenet300 --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, write_record
from prunus.recipes.registry import find_recipe

Summary = dict[str, Any]

FIGURES: dict[str, Callable[[Summary], float]] = {
    "dense_test_error_percent": lambda s: 100 * (1 - s["dense"]["test"]),
    "sparse_test_error_percent": lambda s: 100 * (1 - s["sparse"]["test"]),
    "sparse_validation_error_percent": lambda s: 100 * (1 - s["sparse"]["validation"]),
    "compression_ratio": lambda s: s["compression_ratio"],
    "nonzero": lambda s: s["nonzero"],
    "seconds": lambda s: s["seconds"]["total"],
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data", help="as in `prunus run`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", help="of the result file; default: the recipe")
    arguments = parser.parse_args()
    recipe = find_recipe(arguments.recipe)
    summaries = []
    with tempfile.TemporaryDirectory() as parent:
        for seed in arguments.seeds:
            out = Path(parent) / str(seed)
            command = _command(recipe.name, seed, arguments.settings)
            data = ["--data", arguments.data] if arguments.data else []
            subprocess.run([*command, *data, "--out", str(out)], check=True)
            summaries.append(json.loads((out / "summary.json").read_text()))
    figures = {name: _spread([f(s) for s in summaries]) for name, f in FIGURES.items()}
    record = {
        # Without the path of the data on this machine.
        "commands": [
            " ".join(["prunus", *_command(recipe.name, seed, arguments.settings)[3:]])
            for seed in arguments.seeds
        ],
        "data": recipe.data,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": recipe.config.with_settings(arguments.settings).as_dict(),
        "figures": figures,
        "runs": summaries,
    }
    name = arguments.name or recipe.name
    write_record(RESULTS / f"{name}.json", record, digits=6)
    for figure, values in figures.items():
        print(f"{figure}: {values['mean']:.4g} ± {values['deviation']:.2g} {values['each']}")


def _command(recipe: str, seed: int, settings: Sequence[str]) -> list[str]:
    changes = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "prunus", "run", recipe, "--seed", str(seed), *changes]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "each": list(values)}


if __name__ == "__main__":
    main()
