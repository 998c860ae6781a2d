"""Runs of a study: started as far as their dense networks exist, and recorded as they end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from prunus.errors import PrunusError
from prunus.recipes.recipe import Recipe
from prunus.recipes.run.directory import recipe_digest
from prunus.recipes.run.training import Stopped
from prunus.studies.cells import Cell
from prunus.studies.directory import StudyDirectory
from prunus.studies.executors import Executor, Job
from prunus.studies.plan import run_arguments
from prunus.studies.progress import Failure, StudyProgress, StudyStatus
from prunus.studies.study import Study

__all__ = ["Stopped", "StudyRunner"]

_INTERVAL = 0.1
"""Seconds between two looks at the running processes."""


class StudyRunner:
    """Runs what is missing of a study, each run in a process of its own.

    A run of which a summary exists is recorded and not repeated; one that was interrupted resumes
    from its checkpoint; one that another process still runs, because only ``prunus compare`` was
    killed, is awaited.

    Args:
        study: The study.
        directory: Its directory, claimed by this process.
        executor: Starts the runs.
        progress: Receives progress callbacks.
        data: The value of ``--data``, as it was passed. Default None: the recipe's own data.
        options: Further options of each ``prunus run``. Default: none.
        recipe: The recipe. Default None: the built-in one of the study's name.
        stop: Returns whether to stop: running processes then save their state. Default: never.
        program: The command that the arguments of ``prunus run`` are appended to. Default:
            ``python -m prunus``.
        interval: Seconds between two looks at the running processes.
    """

    def __init__(
        self,
        study: Study,
        directory: StudyDirectory,
        executor: Executor,
        progress: StudyProgress,
        *,
        data: str | None = None,
        options: Sequence[str] = (),
        recipe: Recipe | None = None,
        stop: Callable[[], bool] = lambda: False,
        program: Sequence[str] = (sys.executable, "-m", "prunus"),
        interval: float = _INTERVAL,
    ) -> None:
        self.study = study
        self.failures: list[Failure] = []
        self._directory, self._executor, self._progress = directory, executor, progress
        self._data, self._stop, self._program = data, stop, program
        self._options = options
        self._recipe = recipe
        self._interval = interval
        self._pending = list(study.unfinished)
        self._running: dict[Cell, Job] = {}
        # Runs of processes that this one did not start.
        self._elsewhere: list[Cell] = []
        self._clock = _Clock(study, directory)

    def run(self) -> Study:
        """Run everything that is missing; return the study.

        Returns:
            The study. :attr:`failures` holds the runs that failed.

        Raises:
            Stopped: ``stop`` returned True.
            KeyboardInterrupt: The user interrupted it. In both cases no process is left.
            PrunusError: The record or a log cannot be written.
        """
        try:
            self._check_directories()
            self._directory.write(self.study)
            while self._pending or self._running or self._elsewhere:
                if self._stop():
                    raise Stopped("stopped")
                self._collect()
                self._start()
                self._progress.status(self._status())
                if self._running or self._elsewhere:
                    time.sleep(self._interval)
        finally:
            self._end_all()
        return self.study

    def _check_directories(self) -> None:
        """Check that the runs in the directory are those of the study.

        Raises:
            PrunusError: One has other settings, or the file of its recipe has changed.
        """
        code = None if self._recipe is None else self._recipe.file
        for cell in self.study.cells:
            run = self._directory.run(cell)
            if code is None or not run.config_file.exists():
                continue
            if recipe_digest(run.read_config()) != code.sha256:
                raise PrunusError(
                    f"the recipe {self.study.recipe} has changed since the run of {cell}: restore "
                    "the file, or start another study in another --out"
                )
        for cell in self._pending:
            run = self._directory.run(cell)
            if not run.config_file.exists():
                continue
            settings = {**self.study.settings_of(cell.method), "ratio": cell.ratio}
            identity = run.read_config()
            expected = {"recipe": self.study.recipe, "seed": cell.seed, "config": settings}
            run.check_config({**identity, **expected})

    def _start(self) -> None:
        """Start as many runs as may run at a time."""
        for cell in list(self._pending):
            directory = self._directory.run(cell)
            if directory.read_summary() is not None:
                self._pending.remove(cell)
                self._record(cell)
            elif directory.in_use:
                self._pending.remove(cell)
                self._elsewhere.append(cell)
            elif len(self._running) < self._executor.jobs and self._has_dense(cell):
                self._pending.remove(cell)
                command = [*self._program, "run", *self._arguments(cell), *self._options]
                self._running[cell] = self._executor.start(command, self._directory.log(cell))

    def _has_dense(self, cell: Cell) -> bool:
        """Return whether a run may start: its dense network exists, or no other run trains it."""
        if self._directory.run(cell).dense_file.exists():
            return True
        if self._directory.dense_network(cell, self.study.cells) is not None:
            return True
        active = [*self._running, *self._elsewhere]
        return all(other.seed != cell.seed for other in active)

    @property
    def _argument(self) -> str | None:
        """The argument of the command that means the recipe; None for its name."""
        return None if self._recipe is None else self._recipe.argument

    def _arguments(self, cell: Cell) -> list[str]:
        directory = self._directory.run(cell)
        if directory.config_file.exists():  # with the data and the dense network that it has
            own = run_arguments(self.study, cell, recipe=self._argument)
            return [*own, "--out", str(directory.path), "--resume"]
        arguments = [*run_arguments(self.study, cell, self._data, self._argument)]
        arguments += ["--out", str(directory.path)]
        dense = self._directory.dense_network(cell, self.study.cells)
        return arguments if dense is None else [*arguments, "--dense", str(dense.path.resolve())]

    def _collect(self) -> None:
        """Record the runs that have ended."""
        for cell, job in list(self._running.items()):
            if job.done():
                del self._running[cell]
                self._ended(cell, job)
        for cell in list(self._elsewhere):
            if not self._directory.run(cell).in_use:
                self._elsewhere.remove(cell)
                self._pending.insert(0, cell)

    def _ended(self, cell: Cell, job: Job) -> None:
        directory = self._directory.run(cell)
        if directory.read_summary() is not None:
            self._record(cell)
        elif directory.in_use:
            self._elsewhere.append(cell)
        else:
            self._fail(Failure(cell, job.exit_code(), job.error()))

    def _record(self, cell: Cell) -> None:
        """Record the summary of a finished run."""
        summary = self._directory.run(cell).read_summary()
        assert summary is not None
        date = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self.study = self.study.with_summary(cell, summary, date)
        except PrunusError as error:
            self._fail(Failure(cell, None, str(error)))
            return
        self._directory.write(self.study)
        self._progress.finished(cell, summary, self._status())

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self._progress.failed(failure)

    def _status(self) -> StudyStatus:
        finished = len(self.study.finished)
        running = [*self._running, *self._elsewhere]
        fraction, left = self._clock.estimate(
            self.study, running, [failure.cell for failure in self.failures]
        )
        return StudyStatus(
            finished, len(running), len(self.failures), len(self.study.runs), fraction, left
        )

    def _end_all(self) -> None:
        """Stop the processes that still run, and record those that end complete."""
        for job in self._running.values():
            job.stop()
        try:
            while self._running:
                for cell, job in list(self._running.items()):
                    if job.done():
                        del self._running[cell]
                        with contextlib.suppress(PrunusError):  # the next start records it
                            if self._directory.run(cell).read_summary() is not None:
                                self._record(cell)
                if self._running:
                    time.sleep(self._interval)
        except KeyboardInterrupt:
            for job in self._running.values():
                job.kill()
            raise


class _Clock:
    """The estimate of the time left, from the epochs done since the start."""

    def __init__(self, study: Study, directory: StudyDirectory) -> None:
        self._directory = directory
        self._settings = study.settings
        self._started = time.monotonic()
        self._first: float | None = None

    def estimate(
        self, study: Study, running: Sequence[Cell], failed: Sequence[Cell]
    ) -> tuple[float, float | None]:
        """Return the fraction of epochs done, and the seconds left or None."""
        finished = {run.cell for run in study.finished}
        work = dict(self._work(study))
        done = sum(work[cell] for cell in [*finished, *failed])
        for cell in running:
            done += min(work[cell], self._directory.run(cell).metric_lines)
        total = sum(work.values())
        if self._first is None:
            self._first = done
        gained, spent = done - self._first, time.monotonic() - self._started
        left = spent / gained * (total - done) if gained else None
        return done / total, left

    def _work(self, study: Study) -> Iterator[tuple[Cell, float]]:
        """Yield the number of epochs of each run; the first of a seed also trains the dense one."""
        seeds = set()
        for cell in study.cells:
            dense = 0 if cell.seed in seeds else self._settings["dense_epochs"]
            seeds.add(cell.seed)
            yield cell, self._settings["epochs"] + dense
