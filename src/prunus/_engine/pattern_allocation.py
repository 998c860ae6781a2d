"""The allocation of tensors with N:M patterns, whose final numbers are fixed, beside others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from prunus._engine.counts import least_kept
from prunus.allocation import Allocation, Pool, TensorCounts
from prunus.errors import listing

__all__ = ["PatternAllocation"]


@dataclass(frozen=True)
class PatternAllocation(Allocation):
    """One pool for all tensors with N:M patterns; an allocation for the others.

    With a known final number, the pool approaches its own in step with the whole: when half of all
    removals are done, half of its own are. Otherwise it comes first.

    Attributes:
        inner: The allocation of the other tensors.
        densities: The final density of each tensor with such a pattern, without smaller groups.
        fewest: How many weights each pattern keeps in the end.
    """

    inner: Allocation
    densities: Mapping[str, Fraction]
    fewest: Mapping[str, int]

    def problems(
        self, tensors: Sequence[TensorCounts], *, min_density: float, final: int | None
    ) -> Iterator[str]:
        """Yield why the patterns, or the allocation of the other tensors, are impossible."""
        fixed, others = self._divided(tensors)
        above = [t.name for t in fixed if least_kept(t.prunable, min_density) > self.fewest[t.name]]
        if above:
            yield (
                f"min_density={min_density:g} is above the density of the N:M patterns of "
                f"{listing(above)}: lower min_density"
            )
        yield from self.inner.fixed_problems([t.name for t in fixed])
        rest = None if final is None else final - sum(t.least for t in fixed)
        if final is not None:
            problem = self._final_problem(fixed, others, final)
            if problem is not None:
                yield problem
                return
            assert rest is not None
            rest = max(rest, self._least_of_others(others))
        if others:
            yield from self.inner.problems(others, min_density=min_density, final=rest)

    def _final_problem(
        self, fixed: Sequence[TensorCounts], others: Sequence[TensorCounts], final: int
    ) -> str | None:
        """Return why the final number of a schedule does not complete the patterns, or None."""
        prunable = sum(t.prunable for t in (*fixed, *others))
        # Smaller groups at the end keep a little more, which is not worth an error.
        exact = sum(math.floor(self.densities[t.name] * t.prunable) for t in fixed)
        fewest = exact + self._least_of_others(others)
        most = sum(t.least for t in fixed) + sum(t.prunable for t in others)
        if fewest <= final <= most:
            return None
        bound, count = ("at least", fewest) if final < fewest else ("at most", most)
        return (
            f"the N:M patterns of {listing([t.name for t in fixed])} keep {bound} {count:,} of "
            f"{prunable:,} weights (sparsity {1 - count / prunable:.4g}), but the schedule keeps "
            f"{final:,} (sparsity {1 - final / prunable:.4g}): change the schedule's sparsity, or "
            "the tensors that have the patterns"
        )

    def least(self, tensors: Sequence[TensorCounts]) -> int:
        """Return what is kept with every pattern complete and the others at their least."""
        fixed, others = self._divided(tensors)
        return sum(t.least for t in fixed) + self._least_of_others(others)

    def _least_of_others(self, others: Sequence[TensorCounts]) -> int:
        return self.inner.least(others) if others else 0

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Return the pool of the tensors with patterns, and those of the others."""
        fixed, others = self._divided(tensors)
        prunable = sum(t.prunable for t in tensors)
        complete, kept = sum(t.least for t in fixed), sum(t.kept for t in fixed)
        kept_of_others, least_of_others = sum(t.kept for t in others), self._least_of_others(others)
        progress = Fraction(1)
        if final is not None:
            final = max(final, complete + least_of_others)
            if keep > final:
                progress = Fraction(prunable - keep, prunable - final)
        of_fixed = sum(t.prunable for t in fixed)
        wanted = of_fixed - round(progress * (of_fixed - complete))
        keep_fixed = max(complete, keep - kept_of_others, min(wanted, kept, keep - least_of_others))
        pools = [Pool(tuple(t.name for t in fixed), keep_fixed)]
        if not others:
            return pools
        rest = keep - keep_fixed
        if rest == kept_of_others:
            return [*pools, Pool(tuple(t.name for t in others), rest)]
        final_rest = None if final is None else final - complete
        return [*pools, *self.inner.pools(others, rest, final=final_rest)]

    def _divided(
        self, tensors: Sequence[TensorCounts]
    ) -> tuple[list[TensorCounts], list[TensorCounts]]:
        """Return the tensors with such a pattern, and the others."""
        fixed = [tensor for tensor in tensors if tensor.name in self.densities]
        return fixed, [tensor for tensor in tensors if tensor.name not in self.densities]
