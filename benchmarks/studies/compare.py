"""Comparison of methods that prune the same dense networks to several compression ratios.

For each seed one dense network is trained, and every method starts from a copy of it, with the same
epochs, batches and schedule. Every run is a separate process and reads the test split once, at its
end. The result file is written after each run, and its runs are not repeated, so that the benchmark
can be stopped and continued with the same command. For example::

    python -m benchmarks.studies.compare shakespeare-lm --set autocast=true --ratios 10 5 --out FILE

The committed result files are complete: without ``--out`` nothing is trained, and their tables are
printed: means ± standard deviations over the seeds, and the differences between methods within each
seed ± the standard error of their mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prunus
from benchmarks.measuring import RESULTS, rounded, write_record
from prunus.recipes.method_settings import method_settings
from prunus.recipes.registry import find_recipe

METHODS = ("prunus", "relevance", "L2", "magnitude", "paper")
"""The methods of the tables, as :func:`changes` accepts them.

"prunus" is the default; "relevance" is the paper's penalty with a strength tuned for the recipe,
and removes by magnitude; "paper" has the strength and the scale of the paper.
"""

_RECORDS = {"relevance": "magnitude", "L2": "l2"}
"""The methods of the registry that a comparison starts from, where the names differ."""

_RELEVANCE: dict[str, Any] = {"penalty": "relevance", "alpha": 0.2, "smoothing": 0.0}

_TUNED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "relevance": {
        "digits": {**_RELEVANCE, "strength": 0.01, "alpha": 0.1},
        "mnist-lenet300": {**_RELEVANCE, "strength": 0.015},
        "mnist-lenet5": {**_RELEVANCE, "strength": 0.05, "alpha": 0.05},
        "multi30k-translation": {**_RELEVANCE, "strength": 0.3, "smoothing": 0.99},
        "taskmaster-dialogue": {**_RELEVANCE, "strength": 3.0, "smoothing": 0.99},
        "shakespeare-lm": {**_RELEVANCE, "strength": 3.0, "smoothing": 0.99},
    },
    "L2": {
        "multi30k-translation": {"strength": 0.002},
        "taskmaster-dialogue": {"strength": 0.03},
        "shakespeare-lm": {"strength": 0.03},
    },
}
"""The settings of a method for a recipe, chosen on the validation split with unreported seeds.

The strength of L2 for the dialogues is that for Tiny Shakespeare, transferred by the sum of a run's
learning rates, by which γ is multiplied in the course of the run.
"""


_DIGITS = 6
"""Significant digits of the numbers in a result file."""


def changes(recipe: str, method: str) -> list[str]:
    """Return the changes that a method makes to the recipe's settings.

    Args:
        recipe: The name of the recipe.
        method: A name in :data:`METHODS`, or one of the registry.
    """
    own = find_recipe(recipe).config.as_dict()
    record = prunus.method(_RECORDS.get(method, method))
    settings = {**method_settings(record), **_TUNED.get(method, {}).get(recipe, {})}
    return [f"{key}={value}" for key, value in settings.items() if own[key] != value]


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    recipe = find_recipe(arguments.recipe)
    settings = recipe.config.with_settings(arguments.settings).as_dict()
    default = RESULTS / f"compare-{recipe.name}.json"
    out: Path = arguments.out or default
    wanted = {
        "recipe": recipe.name,
        "data": recipe.data or "a folder",
        "settings": settings,
        "methods": {method: changes(recipe.name, method) for method in arguments.methods},
    }
    record = _started(out, wanted)
    before = len(record["runs"])
    with tempfile.TemporaryDirectory() as parent:
        folder = arguments.runs or Path(parent)
        for seed in arguments.seeds:
            dense: Path | None = None
            for ratio in arguments.ratios or [settings["ratio"]]:
                for method in arguments.methods:
                    if _holds(record, method, ratio, seed):
                        continue
                    path = folder / f"{recipe.name}-{seed}-{method.replace(' ', '-')}-{ratio:g}"
                    dense = dense or _finished(folder, f"{recipe.name}-{seed}-")
                    changed = changes(recipe.name, method)
                    chosen = [*changed, *arguments.settings, f"ratio={ratio}"]
                    command = ["run", recipe.name, "--seed", str(seed)]
                    command += [part for setting in chosen for part in ("--set", setting)]
                    hidden = ["--out", str(path)]
                    if (path / "config.json").exists():
                        hidden += ["--resume"]  # with the data and the dense network it has
                    else:
                        hidden += ["--data", arguments.data] if arguments.data else []
                        hidden += ["--dense", str(dense)] if dense else []
                    subprocess.run([sys.executable, "-m", "prunus", *command, *hidden], check=True)
                    dense = dense or path
                    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
                    record["runs"].append(
                        {
                            "method": method,
                            "ratio": ratio,
                            "command": " ".join(["prunus", *command]),
                            "summary": json.loads((path / "summary.json").read_text()),
                        }
                    )
                    write_record(out, record, digits=_DIGITS)
    if len(record["runs"]) == before:
        print(f"{out.name} holds all of these runs, so that nothing was trained\n")
    print("\n".join(table(record)))


def digits(record: dict[str, Any]) -> int:
    """Return the number of decimals shown of the metric."""
    metric = record["runs"][0]["summary"]["metric"]["name"]
    return {"bits per character": 3, "accuracy": 4}.get(metric, 2)


def spread(values: Sequence[float], decimals: int, sign: str = "") -> str:
    """Return a mean and, for several values, their standard deviation as text."""
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{decimals}f}{deviation}"


@dataclass(frozen=True)
class Outcome:
    """Results of one method at one ratio, over the seeds."""

    sparsity: float
    seeds: list[int]
    dense: list[float]
    """The test metric of each seed's dense network."""
    values: list[float]

    def only(self, seeds: Collection[int]) -> Outcome:
        """Return the results of these seeds alone."""
        places = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        dense, values = ([own[i] for i in places] for own in (self.dense, self.values))
        return Outcome(self.sparsity, [self.seeds[i] for i in places], dense, values)

    @property
    def gaps(self) -> list[float]:
        """Each seed's value minus that of its dense network."""
        return [value - dense for value, dense in zip(self.values, self.dense, strict=True)]


def dense_values(record: dict[str, Any]) -> list[float]:
    """Return the test metric of each seed's dense network."""
    dense: dict[int, float] = {}
    for run in record["runs"]:
        seed, value = run["summary"]["seed"], run["summary"]["dense"]["test"]
        if dense.setdefault(seed, value) != value:
            raise ValueError(f"the runs of seed {seed} are of two dense networks")
    return list(dense.values())


def outcomes(record: dict[str, Any]) -> dict[tuple[float, str], Outcome]:
    """Return the outcome of each ratio and method."""
    gathered: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in sorted(record["runs"], key=lambda run: int(run["summary"]["seed"])):
        gathered.setdefault((run["ratio"], run["method"]), []).append(run["summary"])
    return {
        key: Outcome(
            statistics.fmean(summary["sparsity"] for summary in own),
            [summary["seed"] for summary in own],
            [summary["dense"]["test"] for summary in own],
            [summary["sparse"]["test"] for summary in own],
        )
        for key, own in gathered.items()
    }


def lead(ours: Outcome, theirs: Outcome, *, maximised: bool) -> tuple[float, float] | None:
    """Return by how much one method is better than another, and the standard error.

    Both are of the differences within each seed that both methods have. None if these are fewer
    than two.

    Args:
        ours: The results of the method that is better if the result is positive.
        theirs: The results of the other.
        maximised: Whether a larger metric is better.
    """
    others = dict(zip(theirs.seeds, theirs.values, strict=True))
    sign = 1 if maximised else -1
    differences = [
        sign * (value - others[seed])
        for seed, value in zip(ours.seeds, ours.values, strict=True)
        if seed in others
    ]
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), error


def table(record: dict[str, Any]) -> list[str]:
    """Return a row of Markdown for each ratio and method, the dense networks first."""
    metric, decimals = record["runs"][0]["summary"]["metric"], digits(record)
    rows = [
        f"| network | sparsity | test {metric['name']} | against dense | prunus is better by |",
        "|---|---|---|---|---|",
    ]
    rows.append(f"| dense | 0 | {spread(dense_values(record), decimals)} | | |")
    results = outcomes(record)
    for (ratio, method), got in results.items():
        values, gaps = spread(got.values, decimals), spread(got.gaps, decimals, "+")
        ours = results.get((ratio, "prunus"))
        found = None
        if ours is not None and method != "prunus":
            found = lead(ours, got, maximised=metric["mode"] == "max")
        ahead = "" if found is None else f"{found[0]:+.{decimals}f} ± {found[1]:.{decimals}f}"
        rows.append(f"| {method} | {got.sparsity:.1%} | {values} | {gaps} | {ahead} |")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data", help="as in `prunus run`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", help="default: the recipe's own")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=dict.fromkeys([*METHODS, *prunus.methods]),
        default=list(METHODS),
    )
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="the result file; default: in benchmarks/results")
    parser.add_argument("--runs", type=Path, help="keep the runs here; default: delete them")
    arguments = parser.parse_args()
    changed = [changes(arguments.recipe, method) for method in arguments.methods]
    compared = {"ratio", *(change.partition("=")[0] for own in changed for change in own)}
    # A schedule that was passed is that of all methods.
    compared -= {"schedule"}
    own = [s for s in arguments.settings if s.partition("=")[0] in compared]
    if own:
        parser.error(f"the comparison itself sets what --set {own[0]} would change")
    return arguments


def _started(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if not out.exists():
        return {**wanted, "runs": []}
    record: dict[str, Any] = json.loads(out.read_text())
    wanted = rounded(wanted, _DIGITS)  # as the record is
    differing = [key for key in wanted if key != "methods" and record.get(key) != wanted[key]]
    recorded = record["methods"]
    # The record may have other methods, but not other settings for one of these.
    methods = {**wanted["methods"], **recorded}
    if methods != {**recorded, **wanted["methods"]}:
        differing.append("methods")
    if differing:
        sys.exit(f"{out.name} has other {', '.join(differing)}: name another file by --out")
    return {**record, "methods": methods}


def _holds(record: dict[str, Any], method: str, ratio: float, seed: int) -> bool:
    wanted = (method, ratio, seed)
    return wanted in [(r["method"], r["ratio"], r["summary"]["seed"]) for r in record["runs"]]


def _finished(folder: Path, prefix: str) -> Path | None:
    """Return a finished run of this seed, with its dense network."""
    found = sorted(folder.glob(f"{prefix}*/summary.json"))
    return found[0].parent if found else None


if __name__ == "__main__":
    main()
