"""Tables of a study: a row for each ratio and method, as Markdown, CSV or data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunus._utils.digits import decimals_for
from prunus._utils.text_table import text_table
from prunus.studies.cells import format_ratio
from prunus.studies.statistics import Outcome, PairedDifference, mean_and_deviation

__all__ = ["StudyTable", "TableRow", "format_sparsity", "format_spread"]


@dataclass(frozen=True)
class TableRow:
    """The results of one method at one ratio.

    Attributes:
        ratio: The planned compression ratio.
        method: The label of the method.
        outcome: The results over the seeds.
        lead: By how much the first method is better; None for the first method itself, and where
            fewer than two seeds are shared.
        missed: The compression ratios of the runs that did not reach the planned one.
    """

    ratio: float
    method: str
    outcome: Outcome
    lead: PairedDifference | None
    missed: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyTable:
    """The table of a study.

    ``str()`` of it is the table as text.

    Attributes:
        metric: The metric.
        maximized: Whether a larger value is better.
        first: The label of the method with which the others are compared.
        dense: The metric of each seed's dense network.
        rows: The rows, ordered by ratio and method.
        notes: Remarks for the reader: unfinished runs, and ratios that were not reached.
    """

    metric: str
    maximized: bool
    first: str
    dense: tuple[float, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def decimals(self) -> int:
        """The decimals of the metric, as its spread deserves."""
        groups = [self.dense, *(row.outcome.values for row in self.rows)]
        pairs = [mean_and_deviation(values) for values in groups]
        spreads = [deviation for _, deviation in pairs if deviation is not None]
        return decimals_for(spreads, [mean for mean, _ in pairs])

    @property
    def difference_decimals(self) -> int:
        """The decimals of the paired differences, whose errors may be much smaller."""
        leads = [row.lead for row in self.rows if row.lead is not None]
        own = decimals_for([lead.error for lead in leads], [lead.mean for lead in leads])
        return max(own, self.decimals) if leads else self.decimals

    @property
    def seeds(self) -> int | None:
        """The number of seeds, or None if the rows have different numbers."""
        numbers = {len(self.dense), *(len(row.outcome.seeds) for row in self.rows)}
        return len(self.dense) if len(numbers) == 1 else None

    @property
    def header(self) -> list[str]:
        """The titles of the columns."""
        return [
            *("network", "ratio", *(["seeds"] if self.seeds is None else []), "sparsity"),
            *(f"test {self.metric}", "against dense", f"{self.first} is better by"),
        ]

    @property
    def cells(self) -> list[list[str]]:
        """The cells of every row as text, the dense networks first."""
        seeds = [str(len(self.dense))] if self.seeds is None else []
        dense = ["dense", "1", *seeds, "0", self.spread(self.dense), "", ""]
        return [dense, *map(self._cells, self.rows)]

    @property
    def legend(self) -> str:
        """The meaning of the columns and the mark."""
        if self.seeds == 1:
            return "Values of one seed, which show no spread: pass more --seeds."
        seeds = "the seeds" if self.seeds is None else f"{self.seeds} seeds"
        legend = f"Mean ± standard deviation over {seeds}."
        if all(row.lead is None for row in self.rows):
            return legend
        return (
            f"{legend} Last column: mean of the differences within each seed ± its standard error, "
            f"positive where {self.first} is better; * where it is more than two standard errors "
            "from 0."
        )

    def spread(self, values: Sequence[float], sign: str = "") -> str:
        """Return a mean ± standard deviation with the decimals of the table.

        Args:
            values: A value for each seed.
            sign: "+" to write the sign of a positive mean. Default: "".
        """
        return format_spread(values, self.decimals, sign)

    def __str__(self) -> str:
        return "\n".join([text_table(self.header, self.cells), self.legend, *self.notes])

    def _cells(self, row: TableRow) -> list[str]:
        outcome, lead = row.outcome, row.lead
        ahead = ""
        if lead is not None:
            decimals = self.difference_decimals
            mark = "*" if lead.apart else ""
            ahead = f"{lead.mean:+.{decimals}f} ± {lead.error:.{decimals}f}{mark}"
        return [
            row.method,
            format_ratio(row.ratio),
            *([str(len(outcome.seeds))] if self.seeds is None else []),
            format_sparsity(outcome.sparsity) + ("†" if row.missed else ""),
            self.spread(outcome.values),
            self.spread(outcome.gaps, "+"),
            ahead,
        ]

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.cells]
        return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines) + "\n"

    def to_csv(self) -> str:
        """Return the table as comma-separated values, with all digits of each number."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                *("method", "ratio", "ratio_reached", "seeds", "sparsity"),
                *("metric", "mean", "standard_deviation"),
                *("difference_to_dense", "difference_to_dense_standard_deviation"),
                *("first_method_better_by", "standard_error", "apart"),
            ]
        )
        mean, deviation = mean_and_deviation(self.dense)
        dense = ["dense", 1, True, len(self.dense), 0, self.metric, mean, deviation]
        writer.writerow([*dense, "", "", "", "", ""])
        for row in self.rows:
            outcome, lead = row.outcome, row.lead
            paired = ("", "", "") if lead is None else (lead.mean, lead.error, lead.apart)
            writer.writerow(
                [
                    *(row.method, format_ratio(row.ratio), not row.missed),
                    *(len(outcome.seeds), outcome.sparsity),
                    *(self.metric, *mean_and_deviation(outcome.values)),
                    *(*mean_and_deviation(outcome.gaps), *paired),
                ]
            )
        return file.getvalue()


def format_spread(values: Sequence[float], decimals: int, sign: str = "") -> str:
    """Return a mean and, for several values, their standard deviation as text.

    Args:
        values: The values.
        decimals: The number of decimals.
        sign: "+" to write the sign of a positive mean. Default: "".

    Example:
        >>> format_spread([37.0, 39.0], 2), format_spread([0.5], 1, "+")
        ('38.00 ± 1.41', '+0.5')
    """
    mean, deviation = mean_and_deviation(values)
    spread = "" if deviation is None else f" ± {deviation:.{decimals}f}"
    return f"{mean:{sign}.{decimals}f}{spread}"


def format_sparsity(sparsity: float) -> str:
    """Return a sparsity in percent, with three digits of the density at high sparsities.

    Example:
        >>> format_sparsity(0.9), format_sparsity(0.98333), format_sparsity(0.9967)
        ('90.0%', '98.3%', '99.67%')
        >>> format_sparsity(math.nan)
        'not a number'
    """
    if not math.isfinite(sparsity):
        return "not a number"
    percent = 100 * (1 - sparsity)
    decimals = 1 if percent <= 0 else max(1, 1 - math.floor(math.log10(percent)))
    return f"{sparsity:.{min(decimals, 6)}%}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
