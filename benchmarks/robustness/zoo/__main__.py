"""Zoo: does each function of prunus return an equal model, or refuse, for every architecture?

Small models of transformers and timm with random weights are trained for a few steps, pruned,
stored, made smaller, made faster and exported, and compared with the model before. Run from the
repository's root: ``python -m benchmarks.robustness.zoo``; it takes about half an hour. timm is
installed by ``pip install --no-deps timm``: its models use nothing of torchvision.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RESULTS, save
from benchmarks.robustness.zoo.functions import FUNCTIONS, REQUIRED, SPARSITY, STEPS, run
from benchmarks.robustness.zoo.registry import ARCHITECTURES

_PACKAGES = ("transformers", "timm", "onnx", "onnxscript", "onnxruntime", "numba")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few models: does it run at all?")
    parser.add_argument("--only", nargs="*", help="parts of the names of the architectures to run")
    parser.add_argument("--functions", nargs="*", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--resume", action="store_true", help="keep what --out already has")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json", help="%(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [
        name
        for name in ARCHITECTURES
        if arguments.only is None or any(part in name for part in arguments.only)
    ][: 3 if arguments.quick else None]
    rows: dict[str, dict[str, Any]] = {}
    if arguments.resume and arguments.out.exists():
        rows = {_key(row): row for row in json.loads(arguments.out.read_text())["architectures"]}
    for name in names:
        known = rows[name]["outcomes"] if name in rows else {}
        missing = [key for key in arguments.functions if key not in known]
        if not missing:
            continue
        architecture, start = ARCHITECTURES[name], time.perf_counter()
        outcomes = run(architecture, [*REQUIRED, *missing])
        found = known | {key: asdict(outcome) for key, outcome in outcomes.items()}
        rows[name] = {
            "name": architecture.name,
            "library": architecture.library,
            "kind": architecture.kind,
            "model": architecture.model,
            "outcomes": {key: found[key] for key in FUNCTIONS if key in found},
        }
        seconds = time.perf_counter() - start
        statuses = ", ".join(f"{key} {outcome.status}" for key, outcome in outcomes.items())
        print(f"{name}, {seconds:.0f} s: {statuses}", flush=True)
        figures = {
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "steps": STEPS,
            "sparsity": SPARSITY,
            "architectures": [rows[name] for name in ARCHITECTURES if name in rows],
        }
        save(arguments.out, 0, figures)
    counts = Counter(
        outcome["status"] for row in rows.values() for outcome in row["outcomes"].values()
    )
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    sys.exit(counts["wrong"] > 0)


def _key(row: dict[str, Any]) -> str:
    return f"{row['library']}: {row['name']}"


if __name__ == "__main__":
    main()
