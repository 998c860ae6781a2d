"""Stand-ins for runs: an executor that writes the files of a run without training."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.recipes.registry import find_recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.studies import Cell, Study, StudyMethod, StudyRun
from prunus.studies.directory import StudyDirectory
from prunus.studies.plan import Request
from prunus.studies.progress import Failure, StudyStatus

DENSE = {0: 0.97, 1: 0.95, 2: 0.96}
"""The test metric of the dense network of each seed."""


def summary(
    seed: int, sparse: float, ratio: float = 10.0, *, dense: float | None = None, mode: str = "max"
) -> dict[str, Any]:
    """Return the summary of a run."""
    test = DENSE[seed] if dense is None else dense
    return {
        "recipe": "digits",
        "seed": seed,
        "metric": {"name": "accuracy", "mode": mode},
        "dense": {"test": test, "test_loss": 0.5},
        "sparse": {"test": sparse, "test_loss": 0.75},
        "sparsity": 1 - 1 / ratio,
        "compression_ratio": ratio,
        "layer_types": {},
        "seconds": {"total": 1.0},
        "bytes": {},
        "parameters": 100,
        "nonzero": 10,
    }


def study(summaries: Mapping[Cell, Mapping[str, Any] | None]) -> Study:
    """Return a study with these runs."""
    labels = dict.fromkeys(cell.method for cell in summaries)
    return Study(
        commands=("prunus compare digits",),
        recipe="digits",
        data="embedded",
        changes=(),
        settings=find_recipe("digits").config.as_dict(),
        threads=1,
        methods={label: StudyMethod(label) for label in labels},
        environment={},
        date="2026-01-01T00:00:00+00:00",
        runs=tuple(
            StudyRun(cell, "prunus run digits", "2026-01-01" if found else None, found)
            for cell, found in summaries.items()
        ),
    )


def request(**values: Any) -> Request:
    """Return a request for a study of the digits."""
    recipe = find_recipe(values.pop("recipe", "digits"))
    return Request(recipe=recipe, **values)


@dataclass
class Recorder:
    """A progress that keeps what it receives."""

    statuses: list[StudyStatus] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def status(self, status: StudyStatus) -> None:
        self.statuses.append(status)

    def finished(self, cell: Cell, summary: Mapping[str, Any], status: StudyStatus) -> None:
        self.cells.append(cell)
        self.statuses.append(status)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


@dataclass
class StubJob:
    """A run that has a dense network at its first look and ends at its third."""

    executor: StubExecutor
    out: Path
    arguments: list[str]
    looks: int = 0
    code: int | None = None
    stopped: bool = False

    def done(self) -> bool:
        self.looks += 1
        if self.stopped:
            self.code = 143
        elif self.looks == 1:
            self._dense()
        elif self.looks == 3:
            self.code = self.executor.end(self)
        return self.code is not None

    def _dense(self) -> None:
        directory = RunDirectory(self.out)
        directory.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        if "--resume" not in self.arguments:
            directory.write_config(self.executor.identity(self.arguments))
        directory.dense_file.touch()

    def exit_code(self) -> int | None:
        return self.code

    def error(self) -> str:
        return "a message"

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


@dataclass
class StubExecutor:
    """An executor whose runs write their files in this process.

    Attributes:
        jobs: The largest number of runs at a time.
        accuracy: Returns the sparse accuracy of a run from its seed.
        failing: Returns whether a run fails, from its directory.
    """

    jobs: int = 1
    accuracy: Callable[[int], float] = lambda seed: DENSE[seed] - 0.01
    failing: Callable[[Path], bool] = lambda _: False
    started: list[StubJob] = field(default_factory=list)
    most: int = 0

    def start(self, command: Sequence[str], log: Path) -> StubJob:
        arguments = list(command)
        job = StubJob(self, Path(option(arguments, "--out")), arguments)
        self.started.append(job)
        self.most = max(self.most, sum(job.code is None for job in self.started))
        return job

    def end(self, job: StubJob) -> int:
        if self.failing(job.out):
            return 2
        seed = int(option(job.arguments, "--seed"))
        ratio = float(job.out.name.rpartition("-")[2])
        RunDirectory(job.out).write_summary(summary(seed, self.accuracy(seed), ratio))
        return 0

    def identity(self, arguments: list[str]) -> dict[str, Any]:
        """Return the identity of a run, as ``prunus run`` builds it."""
        recipe = find_recipe(arguments[arguments.index("run") + 1])
        pairs = itertools.pairwise(arguments)
        settings = [value for flag, value in pairs if flag == "--set"]
        method = recipe.method(option(arguments, "--method"))
        config = recipe.config.with_settings(settings, lambda _: None, method=method)
        return {
            "recipe": recipe.name,
            "seed": int(option(arguments, "--seed")),
            "data": None,
            "dense": option(arguments, "--dense") if "--dense" in arguments else None,
            "config": json.loads(json.dumps(config.as_dict())),
        }


def option(arguments: list[str], name: str) -> str:
    """Return the value of an option."""
    return arguments[arguments.index(name) + 1]


def names(executor: StubExecutor) -> list[str]:
    """Return the names of the directories of the runs that were started."""
    return [job.out.name for job in executor.started]


def directory(path: Path) -> StudyDirectory:
    """Return the directory of a study below a path."""
    return StudyDirectory(path / "study")
