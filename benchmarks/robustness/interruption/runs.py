"""Disturbed runs: their processes, files, and comparison with the undisturbed run."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness.interruption.calls import Disturbance, disturbed
from prunus._utils.files import load_tree
from prunus.errors import CheckpointError

RECIPE = "digits"
# Removals at nearly every step, momentum, a score with state, and a floor that decides which state
# is delivered: everything that a checkpoint must hold.
SETTINGS: dict[str, Any] = {
    "dense_epochs": 2,
    "epochs": 4,
    "batch_size": 32,
    "schedule": "gradual",
    "schedule_end": 0.9,
    "ratio": 30,
    "score": "taylor",
    "strength": 1,
    "strength_schedule": "linear",
    "floor": "dense-0.3",
}
TIMEOUT = 300.0  # seconds

Saved = tuple[int, int]
"""Progress of the newest checkpoint: whole epochs, and steps of the next one."""


@dataclass(frozen=True)
class Ended:
    """End of a process.

    Attributes:
        code: Its exit code, or minus the signal that ended it.
        text: Its output.
        where: The call at which it was disturbed; empty if it was not.
        calls: Number of its calls that change files.
    """

    code: int
    text: str
    where: str = ""
    calls: int = 0

    @property
    def phase(self) -> str:
        """The last phase of the run, by its output."""
        seen = "start-up"
        marks = {"data:": "preparing", "dense:": "dense training", "prune:": "sparse training"}
        for line in self.text.splitlines():
            for mark, phase in marks.items():
                if line.startswith(mark):
                    seen = phase
            if line.startswith((RECIPE, "written to", "the run in")):
                seen = "after the run"
        return seen


@dataclass
class Trial:
    """One run of the command, with its disturbances and the problems found.

    Attributes:
        out: Its directory.
        hits: The call or phase of each disturbance.
        lost: Problems found after the disturbances, as sentences.
        unequal: Differences from the undisturbed run at the end.
        saved: Progress of its newest checkpoint at the last inspection.
    """

    out: Path
    hits: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    saved: Saved = (0, 0)

    @property
    def begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.out / "config.json").exists()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.out / "checkpoints" / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The checkpoint before the newest."""
        return self.out / "checkpoints" / "previous.safetensors"

    def expect(self, condition: bool, problem: str) -> None:
        """Record the problem unless the condition holds."""
        if not condition:
            self.lost.append(problem)

    def inspect(self) -> None:
        """Check that every file is whole, and that the progress saved has not decreased."""
        for path in sorted(self.out.glob("checkpoints/*.safetensors")):
            if path.name != "dense.safetensors":  # not a tree; the resumed run reads it
                try:
                    load_tree(path)
                except CheckpointError as error:
                    self.lost.append(f"torn: {error}")
        saved = self._saved()
        self.expect(saved >= self.saved, f"{self.saved} was saved, {saved} is left")
        self.saved = saved
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        self.expect(lines >= saved[0], f"{lines} lines of metrics for {saved[0]} epochs")

    def _saved(self) -> Saved:
        if not self.last.exists():
            return (0, 0)
        state = load_tree(self.last)
        partial = state["partial_epoch"]
        return (state["metric_lines"], partial["steps"] if partial else 0)


class Runner:
    """Runner of the recipe, in disturbed processes or as a command, after one undisturbed run.

    Args:
        folder: Folder for all files written.

    Attributes:
        undisturbed: The directory of the undisturbed run.
        calls: Number of its calls that change files.
        seconds: Shortest times of the command: until training begins, and from then on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.undisturbed = folder / "undisturbed"
        self.seconds = (math.inf, math.inf)
        self._runs = 0
        self._output = folder / "output"
        # Processes forked from the server have all imports loaded.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["prunus.cli.app", "prunus.recipes.run.training", "sklearn.datasets", "torch._dynamo"]
        )
        self.calls = self.watched(Trial(self.undisturbed), Disturbance()).calls

    def trial(self) -> Trial:
        """Return a run that has not begun."""
        self._runs += 1
        return Trial(self.folder / f"run-{self._runs}" / "out")

    def watched(self, trial: Trial, disturbance: Disturbance) -> Ended:
        """Begin or resume a run in a process with this disturbance."""
        report = self.folder / "report"
        process = self._context.Process(
            target=disturbed,
            args=(self._arguments(trial), trial.out, disturbance, self._output, report),
        )
        process.start()
        process.join(TIMEOUT)
        assert process.exitcode is not None, f"{trial.out} hangs"
        record = json.loads(report.read_text())
        return Ended(process.exitcode, self._output.read_text(), record["where"], record["calls"])

    def signalled(
        self, trial: Trial, number: signal.Signals | None = None, draw: random.Random | None = None
    ) -> Ended:
        """Begin or resume a run by the command, and send it a signal at a random moment.

        The moment is drawn from the whole life of the process, most of which is start-up, or, half
        of the times, from the time after training began.
        """
        from_start = draw is None or draw.random() < 0.5
        span = sum(self.seconds) if from_start else self.seconds[1]
        delay = draw.uniform(0, span) if draw is not None else math.inf
        fresh, sent = not trial.begun, False
        with self._command(trial) as process:
            begun, started = time.perf_counter(), math.inf
            while process.poll() is None:
                now = time.perf_counter()
                assert now - begun < TIMEOUT, f"{trial.out} hangs"
                if b" epochs" in self._output.read_bytes():
                    started = min(started, now)
                if number is not None and now - (begun if from_start else started) >= delay:
                    process.send_signal(number)
                    process.wait(TIMEOUT)
                    sent = True
                time.sleep(0.002)
            ended = time.perf_counter()
        if fresh and not sent:
            # The shortest, or most signals would come after the end.
            self.seconds = min(self.seconds, (started - begun, ended - started), key=sum)
        return Ended(process.returncode, self._output.read_text())

    def _arguments(self, trial: Trial) -> list[str]:
        settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        resume = ["--resume"] if trial.begun else settings
        return ["run", RECIPE, "--out", str(trial.out), *resume]

    def _command(self, trial: Trial) -> subprocess.Popen[bytes]:
        with self._output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "prunus", *self._arguments(trial)],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def finish(self, trial: Trial, ended: Ended | None = None) -> None:
        """Resume a run until its end, and compare it with the undisturbed one."""
        ended = ended or self.watched(trial, Disturbance())
        if ended.code != 0:
            trial.lost.append(f"does not resume ({ended.code}): {ended.text[-2000:]}")
            return
        trial.unequal = differences(trial.out, self.undisturbed)


def differences(first: Path, second: Path) -> list[str]:
    """Return the differences between two runs, except for times."""
    names = [
        {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
        for top in (first, second)
    ]
    found = [f"only one run has {name}" for name in sorted(names[0] ^ names[1])]
    both = sorted(names[0] & names[1])
    differ = [name for name in both if _timeless(first / name) != _timeless(second / name)]
    return found + [f"{name} differs" for name in differ]


def _timeless(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [_without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "summary.json":
        return _without_seconds(json.loads(path.read_text()))
    if path.stem == "previous":
        return None  # differs after a stop within the last epoch
    if path.stem in ("last", "after-dense"):
        return _without_seconds(load_tree(path))
    return path.read_bytes()


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [_without_seconds(item) for item in value]
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), flat.numpy().tobytes()
    return value
