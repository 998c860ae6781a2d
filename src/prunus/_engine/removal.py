"""The removal of the weights with the smallest scores, to an exact number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

from prunus._distributed.process_group import CheckEqual, failure_reported
from prunus._distributed.shards import positions
from prunus._engine.kth_smallest import (
    ACCELERATOR_SCORE_CHUNK,
    SCORE_CHUNK,
    ScoreChunk,
    Threshold,
    check_finite,
    kth_smallest,
)
from prunus._utils.chunks import chunks
from prunus._utils.finiteness import is_finite
from prunus.allocation import Allocation, GlobalAllocation, Pool, TensorCounts
from prunus.errors import NonFiniteError, PrunusError, listing
from prunus.masks import Masks, candidates
from prunus.scores import Score, ScoreMemory
from prunus.selection import Selection

__all__ = ["Removal", "Remover", "full_counts", "least_kept"]


class Removal(NamedTuple):
    """What a removal did.

    Attributes:
        tensors: The names of the tensors that lost weights.
        predicted_cost: The rise of the loss that the score predicts; None if it predicts none.
    """

    tensors: list[str]
    predicted_cost: float | None = None


@dataclass(frozen=True, eq=False)
class Remover:
    """Removes weights from masks until an exact number is kept.

    Attributes:
        masks: The masks.
        score: The order of removal, smallest first.
        memory: The score's memory by tensor and by the score's name for it.
        min_density: The fraction of each tensor's prunable weights that stays, whatever their
            scores; rounded up, so that with anything above 0 no layer is emptied.
        seed: Distinguishes this pruning from others, for scores that draw random numbers.
        allocation: The spread of the kept weights over the tensors.
    """

    masks: Masks
    score: Score
    memory: Mapping[str, ScoreMemory]
    min_density: float = 0.0
    seed: int = 0
    allocation: Allocation = field(default_factory=GlobalAllocation)

    @property
    def least(self) -> int:
        """The fewest weights that may be kept in all, given the masks.

        Both ``min_density`` and the allocation set a limit.
        """
        return self.allocation.least(self._counts())

    def _counts(self) -> list[TensorCounts]:
        """Return what the allocation depends on."""
        return [
            replace(full, kept=(kept := self.masks.kept_in(full.name)), least=min(full.least, kept))
            for full in full_counts(self.masks.selection, self.min_density)
        ]

    @torch.no_grad()
    def keep(
        self,
        count: int,
        check_equal: CheckEqual | None = None,
        *,
        final: int | None = None,
    ) -> Removal:
        """Remove the weights with the smallest scores until ``count`` weights are kept.

        Equal scores are removed in order of position: tensors in the model's order, weights row by
        row. If several processes hold the tensors together, all must call this, and the removed
        weights are the same as if one process held all tensors.

        Args:
            count: How many prunable weights to keep in all. Nothing is removed if no more are kept.
            check_equal: Checks that other processes, which have the same model, have the same
                numbers about what is to be removed.
            final: How many weights the schedule keeps in the end; None if that is open.

        Raises:
            PrunusError: ``min_density`` or the allocation does not allow to keep so few, the score
                needs gradients and has not observed any of some tensor, or a custom allocation
                returned pools that cannot be used.
            NonFiniteError: A score or a weight is NaN.
        """
        excess = self.masks.kept - count
        if excess <= 0:
            return Removal([])
        self._check_density(count)
        before = {name: self.masks.kept_in(name) for name in self.masks}
        # Thresholds and cost are found before the first weight is removed, so that an error
        # changes nothing.
        with failure_reported(check_equal, map(_digest_name, self.masks)):
            self._check_observed()
            thresholds = self._thresholds(self._pools(count, final))
        if check_equal is not None:
            check_equal(self._digests(thresholds))
        cost = self._cost(thresholds)
        for threshold, names in thresholds:
            for mask, chunk in self._chunks(names):
                mask.logical_and_(~threshold.below(chunk).view(mask.shape))
        self.masks.recount()
        return Removal(
            [name for name in self.masks if self.masks.kept_in(name) < before[name]], cost
        )

    def _cost(self, thresholds: Iterable[tuple[Threshold, list[str]]]) -> float | None:
        """Return the rise of the loss that the score predicts; None if it predicts none."""
        factor: float | None = getattr(self.score, "loss_per_score", None)
        if factor is None:
            return None
        sums = [
            chunk.scores.where(threshold.below(chunk), 0.0).sum(dtype=torch.float64)
            for threshold, names in thresholds
            for _, chunk in self._chunks(names)
            if chunk.counted
        ]
        total = _sum(sums, next(iter(self.masks.values())).device)
        return factor * float(self.masks.selection.process_group.sum(total[None]))

    def check(self, count: int, *, final: int | None = None) -> None:
        """Check all that :meth:`keep` checks except the values of the scores; change nothing.

        Raises:
            PrunusError: As :meth:`keep`.
        """
        if count < self.masks.kept:
            self._check_density(count)
            self._check_observed()
            self._pools(count, final)

    def _check_density(self, count: int) -> None:
        """Check that ``min_density`` allows to keep so few weights."""
        guarded = sum(tensor.least for tensor in self._counts())
        if count < guarded:
            raise PrunusError(
                f"cannot keep only {count:,} weights: min_density={self.min_density} keeps at "
                f"least {guarded:,} over {len(self.masks)} tensors; lower min_density or the "
                "sparsity"
            )

    @torch.no_grad()
    def choose(self, counts: Mapping[str, int]) -> None:
        """Leave in the masks only those weights of each tensor that have the smallest scores.

        ``min_density`` does not apply. If several processes hold the tensors together, all must
        call this.

        Args:
            counts: How many of each tensor, from 1 to the number that its mask has now; of tensors
                without an entry, none.

        Raises:
            NonFiniteError: A score or a weight is NaN; no mask is changed then.
        """
        thresholds = {name: self._threshold([name], count) for name, count in counts.items()}
        for name in self.masks:
            if name not in thresholds:
                self.masks[name].fill_(False)
        for name, threshold in thresholds.items():
            for mask, chunk in self._chunks([name]):
                mask.copy_(threshold.below(chunk).view(mask.shape))

    def _check_observed(self) -> None:
        """Check that the score has observed a gradient of every tensor, if it uses gradients.

        Raises:
            PrunusError: It has not; every tensor is named.
            NonFiniteError: The reason is that such tensors are NaN or infinite.
        """
        if not self.score.memory_names:
            return
        unobserved = [name for name in self.masks if name not in self.memory]
        diverged = [name for name in unobserved if not is_finite(self.masks.selection[name].weight)]
        if diverged:
            raise NonFiniteError(
                f"the weights of {listing(diverged)} are NaN or infinite, and so were all of their "
                "gradients that could be measured: lower the learning rate, or go back to a "
                "checkpoint"
            )
        if unobserved:
            raise PrunusError(
                f"{type(self.score).__name__} needs the gradient of at least one optimizer step "
                f"before weights are removed, but {listing(unobserved)} had none: train first, "
                "leave tensors without gradients out with select(model, exclude=...), or choose a "
                "score without gradients, such as score=MagnitudeScore()"
            )

    def _pools(self, count: int, final: int | None) -> Sequence[Pool]:
        """Return the allocation's pools.

        Raises:
            PrunusError: They are not what :meth:`Allocation.pools` must return; every problem is
                listed.
        """
        counts = self._counts()
        pools = self.allocation.pools(counts, count, final=final)
        of_tensor = {tensor.name: tensor for tensor in counts}
        names = [name for pool in pools for name in pool.names]
        problems = []
        if sorted(names) != sorted(of_tensor):
            problems.append(
                f"each of {listing(list(of_tensor))} must be in one pool, but the pools have "
                f"{listing(names)}"
            )
        else:
            for pool in pools:
                tensors = [of_tensor[name] for name in pool.names]
                least, most = sum(t.least for t in tensors), sum(t.kept for t in tensors)
                if not least <= pool.keep <= most:
                    problems.append(
                        f"the pool of {listing(pool.names)} must keep {least:,} to {most:,} "
                        f"weights, but keeps {pool.keep:,}"
                    )
        total = sum(pool.keep for pool in pools)
        if total != count:
            problems.append(f"all pools must keep {count:,} weights, but keep {total:,}")
        if problems:
            raise PrunusError(f"{type(self.allocation).__name__}.pools: {'; '.join(problems)}")
        return pools

    def _thresholds(self, pools: Sequence[Pool]) -> list[tuple[Threshold, list[str]]]:
        """Return the thresholds of all pools, with the tensors of each."""
        if len(pools) > 1:  # so that one error names the tensors of all pools
            self._check_finite()
        removable = {tensor.name: tensor.kept - tensor.least for tensor in self._counts()}
        thresholds = []
        for pool in pools:
            excess = sum(self.masks.kept_in(name) for name in pool.names) - pool.keep
            thresholds += self._thresholds_of_pool(pool.names, excess, removable)
        return thresholds

    def _check_finite(self) -> None:
        """Check that no score and no weight is NaN."""
        total = self.masks.selection.process_group.sum
        check_finite(lambda: (chunk for _, chunk in self._chunks(self.masks)), total)

    def _thresholds_of_pool(
        self, names: Sequence[str], excess: int, removable: Mapping[str, int]
    ) -> list[tuple[Threshold, list[str]]]:
        """Return thresholds and their tensors: a common one for all that ``min_density`` allows.

        If the common threshold would leave a tensor below its minimum, that tensor gets a threshold
        of its own, and more is removed from the others. Each round settles at least one tensor.

        Args:
            names: The tensors of the pool.
            excess: How many of their weights to remove.
            removable: How many weights each tensor may lose.
        """
        free, thresholds = list(names), []
        while excess > 0:
            common = self._threshold(free, excess)
            if len(free) == 1:  # the pool keeps its minimum
                thresholds.append((common, free))
                break
            below = dict.fromkeys(free, 0)
            for _, chunk in self._chunks(free):
                if chunk.counted:
                    below[chunk.name] += int(common.below(chunk).sum())
            losses = self.masks.selection.process_group.sum(
                torch.tensor(list(below.values()))
            ).tolist()
            guarded = {
                name: removable[name]
                for name, loss in zip(free, losses, strict=True)
                if loss > removable[name]
            }
            if not guarded:
                thresholds.append((common, free))
                break
            for name, most in guarded.items():
                free.remove(name)
                excess -= most
                if most > 0:
                    thresholds.append((self._threshold([name], most), [name]))
        return thresholds

    def _digests(self, thresholds: Iterable[tuple[Threshold, list[str]]]) -> dict[str, float]:
        """Return, for each tensor, a number that depends on which of its weights are removed."""
        sums = dict.fromkeys(self.masks, 0)
        for threshold, names in thresholds:
            for _, chunk in self._chunks(names):
                removed = chunk.all_positions()[threshold.below(chunk)]
                sums[chunk.name] += int((removed + 1).sum())
        # As far as a float64 holds a whole number exactly.
        return {_digest_name(name): float(total % (1 << 52)) for name, total in sums.items()}

    def _threshold(self, names: Sequence[str], k: int) -> Threshold:
        total = self.masks.selection.process_group.sum
        return kth_smallest(lambda: (chunk for _, chunk in self._chunks(names)), k, total)

    def _chunks(self, names: Iterable[str]) -> Iterator[tuple[torch.Tensor, ScoreChunk]]:
        """Yield each chunk of the masks, as a view to write to, with the scores of its weights."""
        for name in names:
            tensor = self.masks.selection[name]
            weight, mask = tensor.weight, self.masks[name]
            operands = (weight, mask, candidates(tensor, mask))
            memory = self.memory.get(name, {})
            counted = self.masks.selection.counted[name]
            size = SCORE_CHUNK if weight.device.type == "cpu" else ACCELERATOR_SCORE_CHUNK
            for w, m, candidate, *parts in chunks(*operands, *memory.values(), size=size):
                positions_of_chunk = partial(positions, w, weight, tensor.shard)
                uniform = partial(_uniform, positions_of_chunk, (self.seed, _number(name)), w.shape)
                # A local name for the scores would keep them while the next chunk is computed.
                yield (
                    m,
                    ScoreChunk(
                        name,
                        self.score.compute(
                            w, dict(zip(memory, parts, strict=True)), uniform=uniform
                        ).reshape(-1),
                        candidate.reshape(-1),
                        counted,
                        positions_of_chunk,
                        tensor.parameter.numel(),
                        w,
                    ),
                )


def full_counts(selection: Selection, min_density: float) -> list[TensorCounts]:
    """Return what an allocation depends on while all weights are kept."""
    return [
        TensorCounts(
            name=name,
            shape=tuple(tensor.parameter.shape),
            prunable=tensor.prunable,
            kept=tensor.prunable,
            least=least_kept(tensor.prunable, min_density),
        )
        for name, tensor in selection.items()
    ]


def _sum(values: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum, on one device, of float64 numbers on any devices."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([zero, *(value.to(device) for value in values)]).sum()


def _digest_name(name: str) -> str:
    return f"weights of {name} to remove (the sum of their positions)"


def least_kept(prunable: int, min_density: float) -> int:
    """Return how many of a tensor's ``prunable`` weights ``min_density`` keeps.

    Example:
        >>> least_kept(100, 0.07), least_kept(100, 1e-4)
        (7, 1)
    """
    # Slightly less, because 0.07 · 100 is 7.000000000000001 in floating point.
    return math.ceil(min_density * prunable - 1e-9)


def _number(name: str) -> int:
    """Return a number that a name has in every process, unlike ``hash(str)``."""
    return int.from_bytes(name.encode(), "big")


def _uniform(
    positions: Callable[[], torch.Tensor], key: tuple[int, ...], shape: torch.Size, seed: int
) -> torch.Tensor:
    """Return numbers in [0, 1) that depend only on their position in the tensor and the seed.

    The number is the highest 24 bits, the resolution of a float32, of the finalizer of SplitMix64
    over the positions.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = positions() + (hash((seed, *key)) & 0x3FFF_FFFF_FFFF_FFFF)
    state *= _signed(0x9E37_79B9_7F4A_7C15)
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB), (31, 1)):
        # Integers are signed here, so the bits that a shift brings in must be masked.
        state ^= (state >> shift) & ((1 << (64 - shift)) - 1)
        state *= _signed(factor)
    return (((state >> 40) & 0xFF_FFFF).to(torch.float32) / (1 << 24)).view(shape)


def _signed(number: int) -> int:
    """Return the signed integer with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
