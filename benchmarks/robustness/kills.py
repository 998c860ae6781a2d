"""Interruption of runs of the command: whether each survives and ends with the same bits.

A small recipe is run once undisturbed. Then it is run many times and disturbed, each time in one of
these ways, several times in succession, and resumed until it ends:

- killed at random: SIGKILL after a delay drawn from the whole life of the process;
- killed at a call: SIGKILL just before, or within, one of the calls that change its files; every
  call is chosen once;
- terminated: SIGTERM after such a delay. The process has to end with 143 and report the progress
  that it saved, unless the run had not begun or was complete;
- full disk: no space from a certain call on, or a small file system, where one may be mounted. The
  process has to end with 2 and one message;
- damaged: killed, its newest checkpoint then truncated, zeroed, altered or deleted, and perhaps
  killed again while it resumes. The checkpoint before has to be loaded, with a message.

After each disturbance every file has to be whole, and the progress saved must not decrease. At the
end, files, metrics and summary have to equal those of the undisturbed run, except for times. Every
problem is printed and counted, and makes this exit with 1.

Run from the repository's root: ``python -m benchmarks.robustness.kills``
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import options, save
from benchmarks.robustness.interruption.kinds import KINDS
from benchmarks.robustness.interruption.runs import RECIPE, SETTINGS, Runner


def _may_mount(folder: Path) -> bool:
    disk = folder / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        if subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
            return False
    except FileNotFoundError:
        return False
    subprocess.run(["umount", str(disk)], check=True)
    return True


def measure(runner: Runner, kind: str, runs: int, seed: int) -> dict[str, Any]:
    """Disturb this many runs in one way; return the figures of the kind."""
    order = list(range(1, runner.calls + 1))
    random.Random(seed).shuffle(order)
    hits: Counter[str] = Counter()
    lost = unequal = 0
    for number in range(runs):
        draw = random.Random(f"{seed} {kind} {number}")
        trial = KINDS[kind](runner, draw, order[number % len(order)])
        hits.update(trial.hits)
        lost, unequal = lost + bool(trial.lost), unequal + bool(trial.unequal)
        for problem in (*trial.lost, *trial.unequal):
            print(f"{kind}, run {number}, after {trial.hits}: {problem}", flush=True)
        shutil.rmtree(trial.out.parent)
    figures = {"runs": runs, "disturbances": hits.total(), "lost": lost, "unequal": unequal}
    print(f"{kind}: " + ", ".join(f"{value} {name}" for name, value in figures.items()), flush=True)
    return {**figures, "where": dict(sorted(hits.items()))}


def main() -> None:
    """Disturb runs in all ways, write the result file."""
    parser = options("Runs that are killed, terminated, out of room or damaged.", "kills")
    parser.add_argument("--runs", type=int, help="of each kind; default: chosen for each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ |= {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        for _ in range(3):
            runner.signalled(runner.trial())
        runs = {
            "killed at random": 20,
            "killed at a call": runner.calls,
            "terminated": 10,
            "full disk": 40,
            "small disk": 12 if _may_mount(runner.folder) else 0,
            "damaged": 24,
        }
        kinds = {}
        for kind, most in runs.items():
            few = 2 if arguments.quick else arguments.runs
            kinds[kind] = measure(
                runner, kind, most if few is None else min(few, most), arguments.seed
            )
        calls = runner.calls
    figures = {"recipe": RECIPE, "settings": SETTINGS, "calls": calls, "kinds": kinds}
    save(arguments.out, arguments.seed, figures)
    sys.exit(any(kind["lost"] or kind["unequal"] for kind in kinds.values()))


if __name__ == "__main__":
    main()
