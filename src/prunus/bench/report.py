"""The timings of a network and its variants, and what they recommend."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from prunus._utils.text_table import text_table
from prunus.bench.kinds import KINDS

__all__ = ["BenchReport", "BenchRow"]

_MIN_SPEEDUP = 1.05
"""The least speed-up over the dense network at which a variant is recommended."""

_TIMES = ("median_ms", "quartile_1_ms", "quartile_3_ms")
"""The keys of the times of a variant."""


@dataclass(frozen=True)
class BenchRow:
    """Timings of one batch size with one number of threads.

    Attributes:
        batch: Number of items in the batch.
        threads: Number of threads.
        times: By variant, "dense" first: the median and the quartiles in milliseconds, of processor
            time where one thread is used, in which other processes take no part. Those of
            other variants are the median and the quartiles of the quotients of their time and the
            dense network's in the same round, times the median of that.
        errors: By variant: the largest difference of an output from the dense network's, relative
            to the largest magnitude. In bfloat16 and int8 it is not limited.
        replaced: Names of the layers that are sparse in the variant "sparse".
        disturbed: The variants whose speed-up is uncertain by more than a tenth, also after several
            repetitions, because other processes use the machine.
    """

    batch: int
    threads: int
    times: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float]
    replaced: tuple[str, ...]
    disturbed: tuple[str, ...] = ()

    @property
    def times_faster(self) -> dict[str, float]:
        """The median time of the dense network divided by that of each variant."""
        dense = self.times["dense"]["median_ms"]
        return {name: dense / time["median_ms"] for name, time in self.times.items()}


@dataclass(frozen=True)
class BenchReport:
    """Latency and size of a network and its faster variants.

    ``str()`` of it is a table with a row for each variant, and the recommendation.

    Attributes:
        rows: The timings.
        excluded: By variant: why it was not timed. A variant that is neither here nor in a row has
            no sparse layer that is faster for that row's batch.
        parameters: Number of parameters of "dense" and, if there is one, of "compact".
        metrics: By variant: the validation metric, if it was measured: of the dense network and of
            those that compute in bfloat16 or int8.
        below_floor: The variants whose metric does not meet the floor.
        bytes: Size of the tensors: "dense", as a "sparse" file, and the lower bound for any file
            ("bound") if the positions of the zeros are random.
    """

    rows: tuple[BenchRow, ...]
    excluded: Mapping[str, str]
    parameters: Mapping[str, int]
    bytes: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    below_floor: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries and lists, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the report that :meth:`as_dict` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is not one.
        """
        rows = [
            BenchRow(
                batch=int(row["batch"]),
                threads=int(row["threads"]),
                times={
                    str(name): {key: float(times[key]) for key in _TIMES}
                    for name, times in row["times"].items()
                },
                errors={str(name): float(error) for name, error in row["errors"].items()},
                replaced=tuple(map(str, row["replaced"])),
                disturbed=tuple(map(str, row["disturbed"])),
            )
            for row in content["rows"]
        ]
        for row in rows:
            if not row.times["dense"]["median_ms"] > 0:
                raise ValueError("the time of the dense network must be above 0")
        return cls(
            tuple(rows),
            {str(name): str(reason) for name, reason in content["excluded"].items()},
            {str(name): int(count) for name, count in content["parameters"].items()},
            {str(name): float(size) for name, size in content["bytes"].items()},
            {str(name): float(metric) for name, metric in content["metrics"].items()},
            tuple(map(str, content["below_floor"])),
        )

    def __str__(self) -> str:
        rows = [
            [name, str(row.batch), str(row.threads), f"{times['median_ms']:.3g}", f"{faster:.2f}×"]
            for row in self.rows
            for (name, times), faster in zip(
                row.times.items(), row.times_faster.values(), strict=True
            )
        ]
        table = text_table(["network", "batch", "threads", "ms", "faster"], rows)
        excluded = [f"{name} excluded: {reason}" for name, reason in self.excluded.items()]
        return "\n".join([table, *excluded, self.recommendation])

    @property
    def recommendation(self) -> str:
        """The variant to use and its speed-up, in one line, with the call in Python."""
        return self.recommend()

    def recommend(self, run: str | Path | None = None) -> str:
        """Return the variant to use and its speed-up, in one line.

        Args:
            run: The run, or the file of one, that was timed: the line then names the subcommand
                that writes the variant, if there is one. Default None: the calls in Python.
        """
        speedups = self._speedups()
        mean = {name: statistics.geometric_mean(values) for name, values in speedups.items()}
        usable = {name: mean[name] for name in mean if self._is_usable(name)}
        best = max(usable, key=lambda name: usable[name], default=None)
        if best is None or usable[best] < _MIN_SPEEDUP:
            advice = "keep the dense network, for nothing is faster here; prune further, or try "
            advice += "larger batches"
            reached = 1.0
        else:
            call = KINDS[best].advice if run is None else _command(best, run)
            factor = _factor(speedups[best])
            advice, reached = f"use {call}: {factor} as fast as the dense network", usable[best]
        open_question = max(set(mean) - set(usable), key=lambda name: mean[name], default=None)
        if (
            open_question is not None
            and open_question not in self.below_floor
            and mean[open_question] > max(reached, _MIN_SPEEDUP)
        ):
            errors = [row.errors[open_question] for row in self.rows if open_question in row.errors]
            advice += (
                f"; {KINDS[open_question].advice} is {_factor(speedups[open_question])} as fast, "
                f"with outputs off by {max(errors):.2g} of the largest: measure its metric"
            )
        return f"{advice}{self._disturbance}"

    def _speedups(self) -> dict[str, list[float]]:
        """Return the speed-ups of each variant over the rows."""
        return {
            # Absent from a row, it has no faster layer there: speed_up returns the network.
            name: [row.times_faster.get(name, 1.0) for row in self.rows]
            for name in KINDS
            if name not in self.excluded and any(name in row.times for row in self.rows)
        }

    def _is_usable(self, name: str) -> bool:
        """Return whether a variant has the outputs, or the metric, of the dense network."""
        return KINDS[name].exact or (name in self.metrics and name not in self.below_floor)

    @property
    def _disturbance(self) -> str:
        """Return what to add to a recommendation from disturbed timings."""
        if not any(row.disturbed for row in self.rows):
            return ""
        return "; other processes disturbed the timings, so repeat them on an idle machine"


def _command(variant: str, run: str | Path) -> str:
    """Return how to build a variant of a run's network: by a subcommand, if there is one."""
    if variant == "compact":
        return shlex.join(["prunus", "export", str(run), "--to", "compact"])
    if variant == "onnxruntime":
        return f"{shlex.join(['prunus', 'export', str(run), '--to', 'onnx'])} and onnxruntime"
    return f"{KINDS[variant].advice} in Python"


def _factor(speedups: Sequence[float]) -> str:
    """Return the range of speed-ups, in words."""
    low, high = (f"{bound(speedups):.1f}×" for bound in (min, max))
    return low if low == high else f"{low} to {high}"
