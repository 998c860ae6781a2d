"""Statistics over the seeds: means, spreads, and paired differences between methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Outcome", "PairedDifference", "mean_and_deviation", "paired_difference"]


@dataclass(frozen=True)
class Outcome:
    """The results of one method at one ratio, over the seeds.

    Attributes:
        seeds: The seeds, in ascending order.
        dense: The metric of each seed's dense network.
        values: The metric of each seed's sparse network.
        sparsities: The sparsity of each seed's sparse network.
    """

    seeds: tuple[int, ...]
    dense: tuple[float, ...]
    values: tuple[float, ...]
    sparsities: tuple[float, ...]

    def only(self, seeds: Collection[int]) -> Outcome:
        """Return the results of these seeds alone.

        Args:
            seeds: The seeds to keep.
        """
        places = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        return Outcome(
            tuple(self.seeds[i] for i in places),
            tuple(self.dense[i] for i in places),
            tuple(self.values[i] for i in places),
            tuple(self.sparsities[i] for i in places),
        )

    @property
    def sparsity(self) -> float:
        """The mean sparsity."""
        return statistics.fmean(self.sparsities)

    @property
    def gaps(self) -> list[float]:
        """Each seed's value minus that of its dense network."""
        return [value - dense for value, dense in zip(self.values, self.dense, strict=True)]


@dataclass(frozen=True)
class PairedDifference:
    """By how much one method is better than another: the mean of differences within each seed.

    Attributes:
        mean: The mean difference; positive where the first method is better.
        error: The standard error of the mean.
        seeds: The number of seeds that both methods have.
    """

    mean: float
    error: float
    seeds: int

    @property
    def apart(self) -> bool:
        """Whether the mean differs from 0 by more than two standard errors."""
        return abs(self.mean) > 2 * self.error


def paired_difference(
    first: Outcome, other: Outcome, *, maximized: bool
) -> PairedDifference | None:
    """Return by how much one method is better than another, and the standard error.

    Args:
        first: The results of the method that is better if the difference is positive.
        other: The results of the other method.
        maximized: Whether a larger metric is better.

    Returns:
        The difference over the seeds that both have; None if these are fewer than two.

    Example:
        >>> first = Outcome((0, 1), (9.0, 9.0), (8.0, 7.0), (0.9, 0.9))
        >>> other = Outcome((0, 1), (9.0, 9.0), (7.0, 4.0), (0.9, 0.9))
        >>> paired_difference(first, other, maximized=True)  # differences of 1 and 3
        PairedDifference(mean=2.0, error=1.0, seeds=2)
    """
    others = dict(zip(other.seeds, other.values, strict=True))
    sign = 1 if maximized else -1
    differences = [
        sign * (value - others[seed])
        for seed, value in zip(first.seeds, first.values, strict=True)
        if seed in others
    ]
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return PairedDifference(statistics.fmean(differences), error, len(differences))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation; None for the latter if there is one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
