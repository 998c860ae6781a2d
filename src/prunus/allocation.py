"""Allocations: the spread of a sparsity over the tensors.

A schedule decides how many weights to keep in all, a score which weights of a set are removed
first. An allocation divides the tensors into such sets, called pools, and the weights to keep among
the pools. It depends on counts and shapes alone, so that it is the same in all processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from prunus._utils.apportionment import apportion
from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus._utils.fields import checked, validate
from prunus.errors import ArgumentError, PrunusError, listing
from prunus.selection import NamePattern, Selection, matching_tensors

__all__ = [
    "Allocation",
    "ErdosRenyiAllocation",
    "GlobalAllocation",
    "Pool",
    "TargetAllocation",
    "TensorCounts",
    "UniformAllocation",
]


@dataclass(frozen=True, kw_only=True)
class TensorCounts:
    """The numbers of one tensor that an allocation depends on.

    Attributes:
        name: Its name.
        shape: The shape of the whole tensor.
        prunable: How many of its weights may be pruned: all but a padding row.
        kept: How many of them are kept now.
        least: How many of them ``min_density`` and the tensor's pattern keep, or ``kept`` if that
            is less.
    """

    name: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    least: int


@dataclass(frozen=True)
class Pool:
    """Tensors whose weights are compared with each other, so that they have one threshold.

    Attributes:
        names: The names of the tensors.
        keep: How many of their prunable weights to keep in all.
    """

    names: tuple[str, ...]
    keep: int


class Allocation(ABC):
    """The base of every allocation: a custom one defines :meth:`pools`.

    Example:
        >>> class FirstAlone(Allocation):
        ...     def pools(self, tensors, keep, *, final=None):
        ...         first, *others = tensors
        ...         rest = sum(tensor.kept for tensor in others)
        ...         pools = [Pool((first.name,), keep - rest)]
        ...         return pools + [Pool((t.name,), t.kept) for t in others]
        >>> first = TensorCounts(name="a", shape=(2, 4), prunable=8, kept=8, least=0)
        >>> last = TensorCounts(name="b", shape=(4,), prunable=4, kept=4, least=0)
        >>> FirstAlone().pools([first, last], keep=6)
        [Pool(names=('a',), keep=2), Pool(names=('b',), keep=4)]
    """

    def bind(self, model: nn.Module, selection: Selection) -> Allocation:
        """Return the allocation for the tensors of a model. By default it is this one.

        Raises:
            ArgumentError: The allocation does not fit the model.
        """
        return self

    def problems(
        self, tensors: Sequence[TensorCounts], *, min_density: float, final: int | None
    ) -> Iterator[str]:
        """Yield why the allocation is impossible, before training; by default nothing is.

        Args:
            tensors: The tensors, in the model's order, with all their weights.
            min_density: The fraction of each tensor's weights that is never removed.
            final: How many weights the schedule keeps in the end, or None if that is open.
        """
        yield from ()

    def fixed_problems(self, names: Sequence[str]) -> Iterator[str]:
        """Yield why the final numbers of tensors cannot be fixed by patterns; by default nothing.

        The allocation is for the other tensors alone then.

        Args:
            names: The names of the tensors that have N:M patterns.
        """
        yield from ()

    def least(self, tensors: Sequence[TensorCounts]) -> int:
        """Return the fewest weights that can be kept in all. By default ``min_density`` decides."""
        return sum(tensor.least for tensor in tensors)

    @abstractmethod
    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> Sequence[Pool]:
        """Divide the tensors into pools, and the weights to keep among them.

        Each tensor is in exactly one pool. A pool keeps at least the sum of ``least`` of its
        tensors, and at most the sum of ``kept``, because removed weights do not return; all pools
        together keep exactly ``keep``.

        Args:
            tensors: The tensors, in the model's order.
            keep: How many weights to keep in all, fewer than are kept now, and no fewer than
                :meth:`least`.
            final: How many weights the schedule keeps in the end; None if that is open, or if the
                weights are removed by hand.

        Raises:
            PrunusError: The allocation does not allow to keep so few.
        """


@dataclass(frozen=True)
class GlobalAllocation(Allocation):
    """One threshold for all tensors: the smallest scores of all are removed, wherever they are.

    Example:
        >>> first = TensorCounts(name="a", shape=(2, 4), prunable=8, kept=8, least=0)
        >>> last = TensorCounts(name="b", shape=(4,), prunable=4, kept=4, least=0)
        >>> GlobalAllocation().pools([first, last], keep=6)
        [Pool(names=('a', 'b'), keep=6)]
    """

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Return one pool."""
        return [Pool(tuple(tensor.name for tensor in tensors), keep)]


@dataclass(frozen=True)
class UniformAllocation(Allocation):
    """The same density in every tensor, up to rounding.

    A tensor that keeps fewer weights than its share already stays as it is, and one whose minimum
    density is larger keeps that; the others share the rest in proportion to their sizes.

    Example:
        >>> first = TensorCounts(name="a", shape=(2, 4), prunable=8, kept=8, least=0)
        >>> last = TensorCounts(name="b", shape=(4,), prunable=4, kept=4, least=0)
        >>> UniformAllocation().pools([first, last], keep=6)
        [Pool(names=('a',), keep=4), Pool(names=('b',), keep=2)]
    """

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Return a pool for each tensor."""
        return _proportional(tensors, keep, [tensor.prunable for tensor in tensors])


@dataclass(frozen=True)
class ErdosRenyiAllocation(Allocation):
    """A higher density in smaller tensors, as in an Erdős–Rényi random graph between the units.

    The density of a tensor is ε times the sum of its sizes divided by their product, for example

        ε · (fan_out + fan_in + height + width) / (fan_out · fan_in · height · width)

    for a convolution and ε · (fan_out + fan_in) / (fan_out · fan_in) for a matrix, with the same ε
    for all tensors, such that the total is exact. A tensor whose density would exceed 1 stays
    dense, and ε is larger for the others. A vector, such as a bias, has the ratio 1: it stays dense
    until the largest of the other densities is 1 divided by their ratio as well.

    Minimum densities, and tensors that keep fewer weights already, are treated as in
    :class:`UniformAllocation`.

    Args:
        kernel: Whether the sizes of a convolution's kernel count (default), as in RigL, which calls
            this Erdős–Rényi-Kernel (ERK). False for fan_out and fan_in alone, as in SET. A tensor's
            fans are its first two sizes, its kernel has the others.

    Raises:
        ArgumentTypeError: ``kernel`` is not a bool.

    Source: Evci et al., RigL, arXiv 1911.11134, section 3, and its code; the form without kernel
    from Mocanu et al., SET, arXiv 1707.04780.

    Example:
        >>> first = TensorCounts(name="a", shape=(20, 30), prunable=600, kept=600, least=0)
        >>> last = TensorCounts(name="b", shape=(5, 20), prunable=100, kept=100, least=0)
        >>> ErdosRenyiAllocation().pools([first, last], keep=90)  # 30 + 20 to 20 + 5
        [Pool(names=('a',), keep=60), Pool(names=('b',), keep=30)]
    """

    kernel: bool = checked(
        True, by=lambda name, value: type_problem(name, value, bool, "True or False")
    )

    def __post_init__(self) -> None:
        validate(self)

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Return a pool for each tensor."""
        weights = [tensor.prunable * self._ratio(tensor.shape) for tensor in tensors]
        return _proportional(tensors, keep, weights)

    def _ratio(self, shape: tuple[int, ...]) -> Fraction:
        """Return the sum of the sizes that count divided by their product; 1 for a scalar."""
        sizes = shape if self.kernel else shape[:2]
        return Fraction(sum(sizes) or 1, math.prod(sizes))


def _proportional(
    tensors: Sequence[TensorCounts], keep: int, weights: Sequence[Fraction | int]
) -> list[Pool]:
    """Return a pool for each tensor, which keep weights in proportion to these."""
    kept = apportion(keep, weights, [t.least for t in tensors], [t.kept for t in tensors])
    return [Pool((t.name,), count) for t, count in zip(tensors, kept, strict=True)]


@dataclass(frozen=True)
class TargetAllocation(Allocation):
    """Final sparsities of single tensors by pattern; the others share one threshold.

    With a schedule that knows its final number (:class:`GradualPruning`, :class:`OneShot`, or
    another with ``target``), a tensor with a target approaches it in step with the whole: when half
    of all removals are done, half of its own are. With other schedules, and by
    :meth:`Pruner.prune`, targets come first: weights are removed from these tensors alone until all
    have their target. Each has its target up to one weight, so that the total is exact.

    Args:
        targets: Final sparsities, from 0 to 1, by pattern: a glob on tensor or module names, a
            module type, or a predicate, as for :func:`select`. A tied tensor matches by any of its
            names. 0 leaves a tensor dense.

    Raises:
        ArgumentError: A sparsity is out of range, or there is none; every one is listed. The pruner
            raises it for a pattern that matches no selected tensor, for a tensor with several
            targets, for a target below the minimum density, and for targets that do not allow the
            final sparsity of the schedule.
        ArgumentTypeError: Arguments have the wrong type.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10), nn.Linear(10, 5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> allocation = TargetAllocation({"0": 0.8, "2": 0})
        >>> pruner = Pruner(model, optimizer, score=MagnitudeScore(), allocation=allocation)
        >>> pruner.prune(sparsity=0.6)
        210
        >>> {name: int(mask.sum()) for name, mask in pruner.masks.items()}
        {'0.weight': 40, '1.weight': 50, '2.weight': 50}
    """

    targets: Mapping[NamePattern, float]

    def __post_init__(self) -> None:
        expected, fix = "sparsities by pattern", 'TargetAllocation({"0": 0.5})'
        raise_problems(type_problem("targets", self.targets, Mapping, expected, fix=fix))
        if not self.targets:
            raise ArgumentError(f"targets must be {expected}, but is empty: {fix}")
        raise_problems(
            *(
                number_problem(f"the target of {_shown(pattern)}", sparsity, least=0, most=1)
                for pattern, sparsity in self.targets.items()
            )
        )
        object.__setattr__(self, "targets", dict(self.targets))  # later changes have no effect

    def bind(self, model: nn.Module, selection: Selection) -> Allocation:
        """Return the targets by the names of the tensors."""
        matches = matching_tensors(model, selection, "targets", tuple(self.targets))
        found: dict[str, dict[Fraction, NamePattern]] = {}
        for (pattern, sparsity), names in zip(self.targets.items(), matches, strict=True):
            for name in names:
                # As decimal, because 0.9 is meant, which a float is not exactly.
                found.setdefault(name, {}).setdefault(Fraction(str(float(sparsity))), pattern)
        conflicts = [
            f"{name} ({', '.join(f'{float(s):g} by {_shown(p)}' for s, p in by.items())})"
            for name, by in found.items()
            if len(by) > 1
        ]
        if conflicts:
            raise ArgumentError(
                f"every tensor must have at most one target, but several are those of "
                f"{listing(conflicts)}: change the patterns so that only one matches"
            )
        return _TensorTargets({name: next(iter(by)) for name, by in found.items()})

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Raise an error, because patterns have to be bound to a model first."""
        raise PrunusError("TargetAllocation has patterns: call bind(model, selection) first")


@dataclass(frozen=True)
class _TensorTargets(Allocation):
    """Targets by the names of tensors.

    Attributes:
        targets: Final sparsities by name.
    """

    targets: Mapping[str, Fraction]

    def problems(
        self, tensors: Sequence[TensorCounts], *, min_density: float, final: int | None
    ) -> Iterator[str]:
        """Yield targets below ``min_density``, and a final number that the targets do not allow."""
        most = 1 - Fraction(str(float(min_density)))
        above = [f"{name} ({float(s):g})" for name, s in self.targets.items() if s > most]
        if above:
            yield (
                f"with min_density={min_density:g} a target must be at most {float(most):g}, but "
                f"is larger for {listing(above)}: lower the targets or min_density"
            )
        elif final is not None:
            yield from self._final_problems(tensors, final)

    def fixed_problems(self, names: Sequence[str]) -> Iterator[str]:
        """Yield the tensors that have a target and a pattern."""
        both = [name for name in names if name in self.targets]
        if both:
            yield (
                "an N:M pattern determines the final sparsity of a tensor, but there are targets "
                f"for {listing(both)}, too: remove these targets, or the patterns"
            )

    def _final_problems(self, tensors: Sequence[TensorCounts], final: int) -> Iterator[str]:
        prunable = sum(tensor.prunable for tensor in tensors)
        fewest = self.least(tensors)
        most = prunable - math.floor(sum(self._removals(tensors), Fraction(0)))
        if fewest <= final <= most:
            return
        bound, count = ("at least", fewest) if final < fewest else ("at most", most)
        fix = "raise" if final < fewest else "lower"
        yield (
            f"the targets of TargetAllocation keep {bound} {count:,} of {prunable:,} weights "
            f"(sparsity {1 - count / prunable:.4g}), but the schedule keeps {final:,} "
            f"(sparsity {1 - final / prunable:.4g}): {fix} the targets or change the schedule's "
            "sparsity"
        )

    def least(self, tensors: Sequence[TensorCounts]) -> int:
        """Return what is kept with every target reached and the others at their minimum."""
        targeted, others = self._divided(tensors)
        removed = math.ceil(sum(self._removals(targeted), Fraction(0)))
        return sum(t.prunable for t in targeted) - removed + sum(t.least for t in others)

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> list[Pool]:
        """Return a pool for each tensor with a target, and one for all others."""
        fewest = self.least(tensors)
        if keep < fewest:
            raise PrunusError(
                f"cannot keep only {keep:,} weights: the targets of TargetAllocation keep at least "
                f"{fewest:,} over {len(tensors)} tensors; raise the targets or lower the sparsity"
            )
        targeted, others = self._divided(tensors)
        prunable = sum(tensor.prunable for tensor in tensors)
        removed = prunable - keep
        progress = Fraction(1)
        if final is not None and removed < prunable - final:
            progress = Fraction(removed, prunable - final)
        wanted = round(sum(self._removals(targeted, progress), Fraction(0)))
        # What the others cannot lose is removed here, and what they have lost already is not.
        most = removed - sum(t.prunable - t.kept for t in others)
        least = removed - sum(t.prunable - t.least for t in others)
        removals = apportion(
            min(max(wanted, least), most),
            [self.targets[t.name] * t.prunable for t in targeted],
            [t.prunable - t.kept for t in targeted],
            [math.ceil(self._removal(t)) for t in targeted],
        )
        pools = [
            Pool((t.name,), t.prunable - lost) for t, lost in zip(targeted, removals, strict=True)
        ]
        if others:
            rest = keep - sum(pool.keep for pool in pools)
            pools.append(Pool(tuple(t.name for t in others), rest))
        return pools

    def _divided(
        self, tensors: Sequence[TensorCounts]
    ) -> tuple[list[TensorCounts], list[TensorCounts]]:
        """Return the tensors with a target, and the others."""
        targeted = [tensor for tensor in tensors if tensor.name in self.targets]
        return targeted, [tensor for tensor in tensors if tensor.name not in self.targets]

    def _removals(
        self, tensors: Sequence[TensorCounts], progress: Fraction = Fraction(1)
    ) -> list[Fraction]:
        """Return how many weights each tensor with a target loses in all, not rounded."""
        targeted, _ = self._divided(tensors)
        return [self._removal(tensor, progress) for tensor in targeted]

    def _removal(self, tensor: TensorCounts, progress: Fraction = Fraction(1)) -> Fraction:
        """Return how many weights a tensor loses in all, not rounded and within its bounds."""
        exact = progress * self.targets[tensor.name] * tensor.prunable
        most = Fraction(tensor.prunable - tensor.least)
        return max(min(exact, most), Fraction(tensor.prunable - tensor.kept))


def _shown(pattern: Any) -> str:
    return pattern.__name__ if isinstance(pattern, type) else repr(pattern)
