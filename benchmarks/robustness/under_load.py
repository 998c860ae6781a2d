"""Decisions of ``speed_up`` and ``prunus bench`` on a busy machine, compared with a quiet one.

One sparse network is timed again and again, half of the calls beside busy processes. Two of its
layers are many times faster sparse, and the last one is dense, so that every call has to replace
the same layers and recommend the same variant; and no ratio of two times, of a sparse layer or
network and the dense one, may be more than twice the quiet median, or less than half of it. Exits
with 1 otherwise. It takes five minutes.

Run from the repository's root, while nothing else runs:
``python -m benchmarks.robustness.under_load --threads 1``
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import options, save, thin
from prunus import speed_up
from prunus.bench import bench

BATCH = 32
SPARSITIES = (0.99, 0.97, 0.0)
"""Of the layers."""

MOST_TIMES_LARGER = 2.0
"""The most times that a ratio may be larger or smaller than the quiet median."""

_BUSY = "x = bytearray(1 << 25)\nwhile True: x[:] = x[1:] + x[:1]; sum(range(100_000))"
"""What a busy process does: it computes, and moves more memory than the caches hold."""


@dataclass(frozen=True)
class Call:
    """The outcome of one call.

    Attributes:
        decision: What it decided, as text.
        ratios: The times of sparse layers and networks, in those of the dense ones, by name.
        disturbed: Whether it reports that other processes disturbed its timings.
    """

    decision: str
    ratios: Mapping[str, float]
    disturbed: bool


def network() -> nn.Module:
    """Return the network."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 512) for _ in SPARSITIES]
    for layer, sparsity in zip(layers, SPARSITIES, strict=True):
        thin(layer, sparsity)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


def call_speed_up(model: nn.Module) -> Call:
    """Call ``speed_up``."""
    _, report = speed_up(model, torch.randn(BATCH, 512), return_report=True)
    tried = [each for each in report.layers if not math.isnan(each.sparse_ms)]
    ratios = {each.name: each.sparse_ms / each.dense_ms for each in tried}
    ratios["network"] = report.sparse_ms / report.dense_ms
    return Call(f"replaces {', '.join(report.replaced) or 'nothing'}", ratios, report.disturbed)


def call_bench(model: nn.Module) -> Call:
    """Call the function of ``prunus bench``."""
    report = bench(
        model,
        lambda items: torch.randn(items, 512),
        batches=[BATCH],
        threads=[torch.get_num_threads()],
        seconds=0.3,
        variants=["sparse"],
    )
    (row,) = report.rows
    faster = row.times_faster.get("sparse", 0.0)
    advice = re.sub(r"\d[\d.]*", "#", report.recommendation.partition(";")[0])
    decision = f"replaces {', '.join(row.replaced) or 'nothing'}; {advice}"
    return Call(decision, {"sparse": 1 / faster} if faster else {}, bool(row.disturbed))


FUNCTIONS: Mapping[str, Callable[[nn.Module], Call]] = {
    "speed_up": call_speed_up,
    "bench": call_bench,
}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run busy processes beside the body."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def summary(calls: list[Call]) -> dict[str, Any]:
    """Return how often each decision was made, and the spread of each ratio."""
    names = dict.fromkeys(name for call in calls for name in call.ratios)
    ratios = {name: [call.ratios[name] for call in calls if name in call.ratios] for name in names}
    return {
        "calls": len(calls),
        "decisions": dict(Counter(call.decision for call in calls)),
        "disturbed": sum(call.disturbed for call in calls),
        "ratios": {
            name: {"least": min(values), "median": median(values), "largest": max(values)}
            for name, values in ratios.items()
        },
    }


def problems(quiet: list[Call], busy: list[Call]) -> list[str]:
    """Return what is wrong with calls beside busy processes, compared with quiet ones."""
    found = []
    decisions = Counter(call.decision for call in [*quiet, *busy])
    if len(decisions) > 1:
        found.append(f"decisions differ: {dict(decisions)}")
    usual = {name: values["median"] for name, values in summary(quiet)["ratios"].items()}
    for call in busy:
        for name, ratio in call.ratios.items():
            if name in usual and max(ratio / usual[name], usual[name] / ratio) > MOST_TIMES_LARGER:
                found.append(
                    f"{name}: ratio {ratio:.3g}, of which the quiet median is {usual[name]:.3g}"
                )
    return found


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__.splitlines()[0], "under_load")
    parser.add_argument("--calls", type=int, default=50, help="of each function; default: 50")
    parser.add_argument("--busy", type=int, default=4, help="busy processes; default: 4")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count = 4 if arguments.quick else arguments.calls
    model, start = network(), time.perf_counter()
    figures: dict[str, Any] = {"busy_processes": arguments.busy, "batch": BATCH}
    failed = False
    for name, function in FUNCTIONS.items():
        function(model)  # compiles the kernels
        quiet = [function(model) for _ in range(count // 2)]
        with busy_processes(arguments.busy):
            busy = [function(model) for _ in range(count - count // 2)]
        found = problems(quiet, busy)
        failed |= bool(found)
        figures[name] = {"quiet": summary(quiet), "busy": summary(busy), "problems": found}
        print(f"{name}: {figures[name]}", flush=True)
    figures["seconds"] = time.perf_counter() - start
    save(arguments.out, arguments.seed, figures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
