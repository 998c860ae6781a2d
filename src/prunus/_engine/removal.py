"""The removal of the weights with the smallest scores, to an exact number.

Weights are removed in groups, which the layout of each tensor determines: without a pattern a group
is a single weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

from prunus._distributed.process_group import CheckEqual, failure_reported
from prunus._distributed.shards import positions
from prunus._engine.counts import full_counts
from prunus._engine.kth_smallest import (
    ACCELERATOR_SCORE_CHUNK,
    SCORE_CHUNK,
    ScoreChunk,
    Threshold,
    check_finite,
    kth_smallest,
)
from prunus._utils.finiteness import is_finite
from prunus.allocation import Allocation, GlobalAllocation, Pool, TensorCounts
from prunus.errors import NonFiniteError, PrunusError, listing
from prunus.masks import Masks, candidates
from prunus.patterns.binding import TensorPattern
from prunus.patterns.layout import SINGLE_WEIGHTS, Layout
from prunus.scores import Score, ScoreMemory

__all__ = ["Removal", "Remover"]


class Removal(NamedTuple):
    """What a removal did.

    Attributes:
        tensors: The names of the tensors that lost weights.
        predicted_cost: The rise of the loss that the score predicts; None if it predicts none.
    """

    tensors: list[str]
    predicted_cost: float | None = None


class _Chunk(NamedTuple):
    """A chunk of a tensor's mask.

    Attributes:
        mask: The mask, as a view to write to.
        kept: True where a weight is kept and may be removed.
        layout: The layout of the tensor.
        scores: The scores of the chunk.
    """

    mask: torch.Tensor
    kept: torch.Tensor
    layout: Layout
    scores: ScoreChunk

    def below(self, threshold: Threshold) -> torch.Tensor:
        """Return which weights are below a threshold, of the shape of the mask."""
        return self.layout.spread(threshold.below(self.scores), self.kept)


@dataclass(frozen=True, eq=False)
class Remover:
    """Removes weights from masks until an exact number is kept.

    With groups of several weights, groups are removed in the order of their scores until the next
    one has more weights than are left to remove: never more are removed than asked for, and fewer
    by less than that group has. A tensor that cannot lose its next group without keeping less than
    its minimum loses no further one.

    Attributes:
        masks: The masks.
        score: The order of removal, smallest first.
        memory: The score's memory by tensor and by the score's name for it.
        min_density: The fraction of each tensor's prunable weights that stays, whatever their
            scores; rounded up, so that with anything above 0 no layer is emptied.
        seed: Distinguishes this pruning from others, for scores that draw random numbers.
        allocation: The spread of the kept weights over the tensors.
        patterns: The pattern of each tensor that has one.
    """

    masks: Masks
    score: Score
    memory: Mapping[str, ScoreMemory]
    min_density: float = 0.0
    seed: int = 0
    allocation: Allocation = field(default_factory=GlobalAllocation)
    patterns: Mapping[str, TensorPattern] = field(default_factory=dict)

    @property
    def least(self) -> int:
        """The fewest weights that may be kept in all, given the masks.

        ``min_density``, patterns and the allocation set a limit. Of tensors with groups it is one
        that can be reached without a part of a group.
        """
        counts = self._counts()
        return self.allocation.least([self._in_whole_groups(tensor) for tensor in counts])

    def _in_whole_groups(self, tensor: TensorCounts) -> TensorCounts:
        """Return the counts of a tensor with as many more weights at least as a group may have."""
        rest = self._layout(tensor.name).most_removed - 1
        if not (rest and tensor.least):
            return tensor
        return replace(tensor, least=min(tensor.kept, tensor.least + rest))

    @property
    def slack(self) -> int:
        """By how many weights a removal may fall short, because groups are removed whole."""
        if all(self._layout(name).most_removed == 1 for name in self.masks):
            return 0
        least = self.least
        if least >= self.masks.kept:
            return 0
        pools = self._pools(least, None)
        return sum(max(self._layout(name).most_removed - 1 for name in p.names) for p in pools)

    def beyond_patterns(self) -> dict[str, int]:
        """Return how many weights of each tensor an N:M pattern would still remove, if any."""
        fewest = self._fewest()
        beyond = {name: self.masks.kept_in(name) - count for name, count in fewest.items()}
        return {name: count for name, count in beyond.items() if count}

    def _layout(self, name: str) -> Layout:
        pattern = self.patterns.get(name)
        return SINGLE_WEIGHTS if pattern is None else pattern.layout

    def _counts(self) -> list[TensorCounts]:
        """Return what the allocation depends on."""
        fewest = self._fewest()
        return [
            replace(
                full,
                kept=(kept := self.masks.kept_in(full.name)),
                least=min(max(full.least, fewest.get(full.name, 0)), kept),
            )
            for full in full_counts(self.masks.selection, self.min_density)
        ]

    def _fewest(self) -> dict[str, int]:
        """Return how many weights the patterns never remove, given the masks, where it is any."""
        names = [name for name, tensor in self.patterns.items() if tensor.fewest]
        if not names:
            return {}
        selection, counts = self.masks.selection, []
        for name in names:
            kept = candidates(selection[name], self.masks[name])
            size = self._chunk_size(kept)
            counted = selection.counted[name]
            counts.append(self._layout(name).fewest(kept, size) if counted else 0)
        return dict(
            zip(names, selection.process_group.sum(torch.tensor(counts)).tolist(), strict=True)
        )

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
            for chunk in self._chunks(names):
                chunk.mask.logical_and_(~chunk.below(threshold))
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
            chunk.sum(threshold.below(chunk))
            for threshold, names in thresholds
            for chunk in self._score_chunks(names)
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
            names = {repr(t.pattern): None for t in self.patterns.values() if t.fewest}
            limits = [f"min_density={self.min_density}", *(f"pattern={name}" for name in names)]
            verb, fix = ("keep", "patterns") if names else ("keeps", "min_density")
            raise PrunusError(
                f"cannot keep only {count:,} weights: {listing(limits)} {verb} at "
                f"least {guarded:,} over {len(self.masks)} tensors; lower {fix} or the "
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
            for chunk in self._chunks([name]):
                chunk.mask.copy_(chunk.below(threshold))

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
                f"before weights are removed, but {listing(unobserved)} had none: train first (a "
                "metric from before the training is passed as dense_metric=), leave tensors "
                "without gradients out with select(model, exclude=...), or choose a score without "
                "gradients, such as score=MagnitudeScore()"
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
        counts = {tensor.name: tensor for tensor in self._counts()}
        thresholds = []
        for pool in pools:
            excess = sum(self.masks.kept_in(name) for name in pool.names) - pool.keep
            thresholds += self._thresholds_of_pool(pool.names, excess, counts)
        return thresholds

    def _check_finite(self) -> None:
        """Check that no score and no weight is NaN."""
        total = self.masks.selection.process_group.sum
        check_finite(lambda: self._score_chunks(self.masks), total)

    def _thresholds_of_pool(
        self, names: Sequence[str], excess: int, counts: Mapping[str, TensorCounts]
    ) -> list[tuple[Threshold, list[str]]]:
        """Return thresholds and their tensors: a common one for all that ``min_density`` allows.

        If the common threshold would leave a tensor below its minimum, that tensor gets a threshold
        of its own, and more is removed from the others. Each round settles at least one tensor.

        Args:
            names: The tensors of the pool.
            excess: How many of their weights to remove.
            counts: The counts of each tensor.
        """
        removable = {name: counts[name].kept - counts[name].least for name in names}
        fewest = self._fewest()
        candidates_of = {name: counts[name].kept - fewest.get(name, 0) for name in names}
        free, thresholds = list(names), []
        while free and excess > 0:
            # Whole groups may leave more to remove than the tensors have that are free yet.
            available = removable if len(free) == 1 else candidates_of
            excess = min(excess, sum(available[name] for name in free))
            if excess == 0:
                break
            common = self._threshold(free, excess)
            if len(free) == 1:  # the pool keeps its minimum
                thresholds.append((common, free))
                break
            below = dict.fromkeys(free, 0)
            for chunk in self._score_chunks(free):
                if chunk.counted:
                    below[chunk.name] += chunk.count(common.below(chunk))
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
                if most > 0:
                    own = self._threshold([name], most)
                    thresholds.append((own, [name]))
                    excess -= most - own.shortfall
        return thresholds

    def _digests(self, thresholds: Iterable[tuple[Threshold, list[str]]]) -> dict[str, float]:
        """Return, for each tensor, a number that depends on which of its weights are removed."""
        sums = dict.fromkeys(self.masks, 0)
        for threshold, names in thresholds:
            for chunk in self._score_chunks(names):
                removed = chunk.all_positions()[threshold.below(chunk)]
                sums[chunk.name] += int((removed + 1).sum())
        # As far as a float64 holds a whole number exactly.
        return {_digest_name(name): float(total % (1 << 52)) for name, total in sums.items()}

    def _threshold(self, names: Sequence[str], k: int) -> Threshold:
        total = self.masks.selection.process_group.sum
        return kth_smallest(lambda: self._score_chunks(names), k, total)

    def _score_chunks(self, names: Iterable[str]) -> Iterator[ScoreChunk]:
        return (chunk.scores for chunk in self._chunks(names))

    @staticmethod
    def _chunk_size(tensor: torch.Tensor) -> int:
        return SCORE_CHUNK if tensor.device.type == "cpu" else ACCELERATOR_SCORE_CHUNK

    def _chunks(self, names: Iterable[str]) -> Iterator[_Chunk]:
        """Yield each chunk of the masks with the scores of its groups."""
        for name in names:
            tensor, layout = self.masks.selection[name], self._layout(name)
            weight, mask = tensor.weight, self.masks[name]
            memory = self.memory.get(name, {})
            counted = self.masks.selection.counted[name]
            operands = (weight, mask, candidates(tensor, mask), *memory.values())
            for row, views in layout.chunks(operands, self._chunk_size(weight)):
                w, m, kept, *parts = views
                positions_of_chunk = partial(positions, w, weight, tensor.shard)
                uniform = partial(_uniform, positions_of_chunk, (self.seed, _number(name)), w.shape)
                # A local name for the scores would keep them while the next chunk is computed.
                yield _Chunk(
                    m,
                    kept,
                    layout,
                    ScoreChunk.of_part(
                        name,
                        layout.part(
                            self.score.compute(
                                w, dict(zip(memory, parts, strict=True)), uniform=uniform
                            ),
                            kept,
                            w,
                            weight,
                            tensor.shard,
                            row,
                        ),
                        counted=counted,
                    ),
                )


def _sum(values: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum, on one device, of float64 numbers on any devices."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([zero, *(value.to(device) for value in values)]).sum()


def _digest_name(name: str) -> str:
    return f"weights of {name} to remove (the sum of their positions)"


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
