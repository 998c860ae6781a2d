"""Studies as data: their methods, the cells of their plan, and the summaries of finished runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunus.errors import ArgumentError, PrunusError, listing, unknown_name
from prunus.studies.cells import Cell, format_ratio
from prunus.studies.statistics import Outcome, paired_difference
from prunus.studies.tables import StudyTable, TableRow

__all__ = ["Study", "StudyMethod", "StudyRun"]


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study: one of the registry, and changes of it.

    Attributes:
        name: The name of the method in the registry.
        changes: The settings that change it, each as ``key=value``.
        settings: All settings that differ from those of the study, by name. With the study's they
            are the exact settings of the method's runs, except for the ratio.
    """

    name: str
    changes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRun:
    """A run of a study, finished or not.

    Attributes:
        cell: Its method, ratio and seed.
        command: The command that repeats it on its own, with a dense network of the same seed.
        date: The date and time of its end, in UTC; None while it is not finished.
        summary: The content of its summary.json; None while it is not finished. It holds the
            metrics of both networks (``dense`` and ``sparse``, by split), ``sparsity``,
            ``compression_ratio``, ``metric``, ``seconds`` and ``environment``.
    """

    cell: Cell
    command: str
    date: str | None = None
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: methods × ratios × seeds of one recipe, at equal budget.

    For each seed one dense network is trained, and every method starts from a copy of it. The
    fields are those of ``study.json``, where ``runs`` has the fields of :class:`Cell` and
    :class:`StudyRun` in one object.

    Attributes:
        commands: The commands that planned the runs, without options that do not affect results.
        recipe: The name of the recipe.
        data: The source of its data: "embedded", a name on the Hub, or the name of a folder.
        changes: The settings of all methods that differ from the recipe's, each as ``key=value``.
        settings: All settings of the study by name; those that a method sets are in ``methods``.
        threads: The number of threads of each run.
        methods: The methods by label, in the order of the tables.
        environment: Hardware and versions of the machine that wrote the file last.
        date: The date and time of the last change, in UTC.
        runs: Every planned run, ordered by seed, ratio and method.
    """

    commands: tuple[str, ...]
    recipe: str
    data: str
    changes: tuple[str, ...]
    settings: Mapping[str, Any]
    threads: int
    methods: Mapping[str, StudyMethod]
    environment: Mapping[str, Any]
    date: str
    runs: tuple[StudyRun, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every planned run."""
        return tuple(run.cell for run in self.runs)

    @property
    def finished(self) -> tuple[StudyRun, ...]:
        """The runs that have a summary."""
        return tuple(run for run in self.runs if run.summary is not None)

    @property
    def unfinished(self) -> tuple[Cell, ...]:
        """The planned runs without a summary."""
        return tuple(run.cell for run in self.runs if run.summary is None)

    @property
    def ratios(self) -> list[float]:
        """The ratios, in the order of the plan."""
        return list(dict.fromkeys(cell.ratio for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the plan."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def settings_of(self, label: str) -> dict[str, Any]:
        """Return all settings of a method's runs, with the recipe's ratio in place of the cell's.

        Args:
            label: The label of the method.
        """
        return {**self.settings, **self.methods[label].settings}

    def with_summary(self, cell: Cell, summary: Mapping[str, Any], date: str) -> Study:
        """Return the study with the summary of a run.

        Args:
            cell: The cell of the run.
            summary: Its summary.
            date: The date and time of its end, in UTC.

        Raises:
            PrunusError: Its dense network is not that of the seed's other runs.
        """
        self._check_dense(cell, summary)
        runs = tuple(
            dataclasses.replace(run, summary=summary, date=date) if run.cell == cell else run
            for run in self.runs
        )
        return dataclasses.replace(self, runs=runs, date=date)

    def _check_dense(self, cell: Cell, summary: Mapping[str, Any]) -> None:
        for run in self.finished:
            assert run.summary is not None
            known, found = run.summary["dense"]["test"], summary["dense"]["test"]
            # Result files may be rounded to six digits.
            same = math.isclose(known, found, rel_tol=1e-5)
            if run.cell.seed == cell.seed and run.cell != cell and not same:
                raise PrunusError(
                    f"its dense network is not that of the seed's other runs: its test "
                    f"{summary['metric']['name']} is {found!r}, that of {run.cell} is {known!r}. "
                    "Restore the directory of the earlier runs, or start another study in another "
                    "--out"
                )

    @property
    def metric(self) -> str:
        """The name of the recipe's metric.

        Raises:
            PrunusError: No run is finished.
        """
        return str(self._first_summary()["metric"]["name"])

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics of the test split, the recipe's own first.

        Raises:
            PrunusError: No run is finished.
        """
        keys = [key for key in self._first_summary()["sparse"] if key.startswith("test_")]
        return [self.metric, *(key.removeprefix("test_") for key in keys)]

    def maximized(self, metric: str | None = None) -> bool:
        """Return whether a larger value of a metric is better.

        Args:
            metric: One of :attr:`metrics`. Default None: the recipe's own. All others are losses
                or grow with the loss.
        """
        if metric not in (None, self.metric):
            return False
        return bool(self._first_summary()["metric"]["mode"] == "max")

    def outcomes(
        self, metric: str | None = None, *, cells: Iterable[Cell] | None = None
    ) -> dict[tuple[float, str], Outcome]:
        """Return the results of each ratio and method over the seeds.

        Args:
            metric: One of :attr:`metrics`. Default None: the recipe's own.
            cells: The runs to use. Default None: all finished ones.

        Returns:
            The results by ratio and label, in the order of the plan.

        Raises:
            ArgumentError: There is no such metric.
            PrunusError: No run is finished.
        """
        key = self._key(metric)
        chosen = None if cells is None else set(cells)
        gathered: dict[tuple[float, str], list[StudyRun]] = {
            (ratio, label): [] for ratio in self.ratios for label in self.methods
        }
        for run in sorted(self.finished, key=lambda run: run.cell.seed):
            if chosen is None or run.cell in chosen:
                gathered[run.cell.ratio, run.cell.method].append(run)
        return {place: _outcome(runs, key) for place, runs in gathered.items() if runs}

    def dense_values(self, metric: str | None = None) -> dict[int, float]:
        """Return the metric of each seed's dense network on the test split.

        Args:
            metric: One of :attr:`metrics`. Default None: the recipe's own.

        Raises:
            ArgumentError: There is no such metric.
            PrunusError: No run is finished.
        """
        key = self._key(metric)
        values: dict[int, float] = {}
        for run in self.finished:
            assert run.summary is not None
            values.setdefault(run.cell.seed, run.summary["dense"][key])
        return dict(sorted(values.items()))

    def table(self, metric: str | None = None) -> StudyTable:
        """Return the table of the results, which compares the first method with the others.

        Args:
            metric: One of :attr:`metrics`. Default None: the recipe's own.

        Raises:
            ArgumentError: There is no such metric.
            PrunusError: No run is finished.
        """
        outcomes, maximized = self.outcomes(metric), self.maximized(metric)
        first = next(iter(self.methods))
        rows = []
        for (ratio, label), outcome in outcomes.items():
            ours, lead = outcomes.get((ratio, first)), None
            if ours is not None and label != first:
                lead = paired_difference(ours, outcome, maximized=maximized)
            missed = tuple(self.missed_ratios.get((ratio, label), ()))
            rows.append(TableRow(ratio, label, outcome, lead, missed))
        return StudyTable(
            metric=metric or self.metric,
            maximized=maximized,
            first=first,
            dense=tuple(self.dense_values(metric).values()),
            rows=tuple(rows),
            notes=tuple(self._notes(rows)),
        )

    def _notes(self, rows: Iterable[TableRow]) -> Iterator[str]:
        """Yield remarks for the reader of the table."""
        if self.unfinished:
            done, planned = len(self.finished), len(self.runs)
            yield f"{done} of {planned} runs are finished; the table has these alone."
        missed = [
            f"{row.method} at {format_ratio(row.ratio)} "
            f"({', '.join(f'{ratio:.3g}' for ratio in row.missed)})"
            for row in rows
            if row.missed
        ]
        if missed:
            yield (
                f"† The ratio was not reached by {listing(missed)}. These networks are denser, so "
                "that their metrics are not comparable with the others of that ratio."
            )

    def _key(self, metric: str | None) -> str:
        """Return the key of a metric in the figures of a network."""
        if metric is None or metric == self.metric:
            return "test"
        if metric not in self.metrics:
            raise ArgumentError(unknown_name("metric", metric, self.metrics))
        return f"test_{metric}"

    def _first_summary(self) -> Mapping[str, Any]:
        for run in self.runs:
            if run.summary is not None:
                return run.summary
        raise PrunusError(
            f"no run of this study of {self.recipe} is finished, so there are no results: continue "
            f"it with prunus compare {self.recipe}"
        )

    @property
    def missed_ratios(self) -> dict[tuple[float, str], list[float]]:
        """The compression ratios that runs ended with instead of the planned one.

        By ratio and label; those that reached it, up to a hundredth, are left out.
        """
        missed: dict[tuple[float, str], list[float]] = {}
        for run in self.finished:
            assert run.summary is not None
            reached = float(run.summary["compression_ratio"])
            if reached < 0.99 * run.cell.ratio:
                missed.setdefault((run.cell.ratio, run.cell.method), []).append(reached)
        return missed


def _outcome(runs: Sequence[StudyRun], key: str) -> Outcome:
    """Return the results of one method at one ratio."""
    summaries = [run.summary for run in runs if run.summary is not None]
    return Outcome(
        seeds=tuple(run.cell.seed for run in runs),
        dense=tuple(float(summary["dense"][key]) for summary in summaries),
        values=tuple(float(summary["sparse"][key]) for summary in summaries),
        sparsities=tuple(float(summary["sparsity"]) for summary in summaries),
    )
