"""Removing the weights with the smallest scores over all tensors, exactly as many as asked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from prunus._distributed.shards import positions
from prunus._engine.kth_smallest import (
    ACCELERATOR_SCORE_PIECE,
    SCORE_PIECE,
    Cut,
    Piece,
    kth_smallest,
)
from prunus._utils.chunks import chunks
from prunus.errors import PrunusError
from prunus.masks import Masks, candidates
from prunus.scores import Score

__all__ = ["Remover", "least_kept"]


@dataclass(frozen=True, eq=False)
class Remover:
    """Lowers masks to a number of kept weights.

    Attributes:
        masks: The masks to lower.
        score: What decides which weights go first.
        memory: The score's memory per tensor.
        min_density: The share of each tensor's prunable weights that stays, whatever their scores;
            rounded up, so anything above 0 keeps a layer from being emptied.
        seed: Distinguishes this pruning from others, for scores that draw numbers.
    """

    masks: Masks
    score: Score
    memory: Mapping[str, torch.Tensor]
    min_density: float = 0.0
    seed: int = 0

    @property
    def least(self) -> int:
        """The fewest weights that the guard lets be kept in all, as things stand."""
        return sum(self._least(name) for name in self.masks)

    def _least(self, name: str) -> int:
        guarded = least_kept(self.masks.selection[name].prunable, self.min_density)
        return min(self.masks.kept_in(name), guarded)

    @torch.no_grad()
    def keep(
        self, count: int, agree: Callable[[Mapping[str, float]], None] | None = None
    ) -> list[str]:
        """Lower the masks until ``count`` weights are kept, smallest scores first.

        Equal scores fall in order of position: tensors in the model's order, weights row by row.
        Where several processes hold the tensors together, all have to call this, and the weights
        that fall are those that would fall if one process held them all.

        Args:
            count: How many prunable weights to keep in all. Nothing happens if no more are kept.
            agree: Makes sure that other processes, which have the same model, have the same numbers
                of what is about to fall.

        Returns:
            The names of the tensors that lost weights.

        Raises:
            PrunusError: The guard forbids keeping so few.
            NonFiniteError: A score is NaN.
        """
        excess = self.masks.kept - count
        if excess <= 0:
            return []
        if count < self.least:
            raise PrunusError(
                f"cannot keep only {count:,} weights: min_density={self.min_density} keeps at "
                f"least {self.least:,} over {len(self.masks)} tensors; lower min_density or the "
                "target"
            )
        before = {name: self.masks.kept_in(name) for name in self.masks}
        # Every line is drawn before the first weight falls, so that an error leaves all as it was.
        try:
            cuts = self._cuts(excess)
        except PrunusError:
            if agree is not None:
                with contextlib.suppress(PrunusError):  # the others are not to wait for this one
                    agree({_digest(name): math.nan for name in self.masks})
            raise
        if agree is not None:
            agree(self._digests(cuts))
        for cut, names in cuts:
            for kept, piece in self._walk(names):
                kept.logical_and_(~cut.below(piece).view(kept.shape))
        self.masks.recount()
        return [name for name in self.masks if self.masks.kept_in(name) < before[name]]

    def _cuts(self, excess: int) -> list[tuple[Cut, list[str]]]:
        """Find the line to cut along and for which tensors: one for all that the guard leaves free.

        Where the common line would leave a tensor below its minimum, that tensor gets a line of its
        own, and the others make up for it. Each round settles at least one tensor.
        """
        free, cuts = list(self.masks), []
        while excess > 0:
            common = self._cut(free, excess)
            falling = dict.fromkeys(free, 0)
            for _, piece in self._walk(free):
                if piece.counted:
                    falling[piece.name] += int(common.below(piece).sum())
            sums = self.masks.selection.process_group.sum(
                torch.tensor(list(falling.values()))
            ).tolist()
            spares = [self.masks.kept_in(name) - self._least(name) for name in free]
            short = {
                name: spare
                for name, falls, spare in zip(free, sums, spares, strict=True)
                if falls > spare
            }
            if not short:
                cuts.append((common, free))
                break
            for name, spare in short.items():
                free.remove(name)
                excess -= spare
                if spare > 0:
                    cuts.append((self._cut([name], spare), [name]))
        return cuts

    def _digests(self, cuts: Iterable[tuple[Cut, list[str]]]) -> dict[str, float]:
        """Return a number for each tensor that tells which of its weights are about to fall."""
        sums = dict.fromkeys(self.masks, 0)
        for cut, names in cuts:
            for _, piece in self._walk(names):
                fallen = piece.places()[cut.below(piece)]
                sums[piece.name] += int((fallen + 1).sum())
        # As far as a float64 holds a whole number exactly.
        return {_digest(name): float(total % (1 << 52)) for name, total in sums.items()}

    def _cut(self, names: Sequence[str], k: int) -> Cut:
        total = self.masks.selection.process_group.sum
        return kth_smallest(lambda: (piece for _, piece in self._walk(names)), k, total)

    def _walk(self, names: Iterable[str]) -> Iterator[tuple[torch.Tensor, Piece]]:
        """Yield each part of the masks, as a view to write to, with the scores of its weights."""
        for name in names:
            target = self.masks.selection[name]
            weight, mask = target.weight, self.masks[name]
            operands = [weight, mask, candidates(target, mask)]
            if name in self.memory:
                operands.append(self.memory[name])
            counted = self.masks.selection.counted[name]
            size = SCORE_PIECE if weight.device.type == "cpu" else ACCELERATOR_SCORE_PIECE
            for w, kept, candidate, *memory in chunks(*operands, size=size):
                places = partial(positions, w, weight, target.shard)
                draw = partial(_uniform, places, (self.seed, _number(name)), w.shape)
                # Without a name for the scores here, which would keep them past their turn.
                yield (
                    kept,
                    Piece(
                        name,
                        self.score.compute(w, memory[0] if memory else None, uniform=draw).reshape(
                            -1
                        ),
                        candidate.reshape(-1),
                        counted,
                        places,
                        target.parameter.numel(),
                    ),
                )


def _digest(name: str) -> str:
    return f"weights of {name} to remove (the sum of their positions)"


def least_kept(prunable: int, min_density: float) -> int:
    """Return how many of a tensor's ``prunable`` weights the guard keeps.

    Example:
        >>> least_kept(100, 0.07), least_kept(100, 1e-4)
        (7, 1)
    """
    # Less a hair: 0.07 · 100 is 7.000000000000001 in floating point.
    return math.ceil(min_density * prunable - 1e-9)


def _number(name: str) -> int:
    """Turn a name into the same number in every process, which ``hash(str)`` is not."""
    return int.from_bytes(name.encode(), "big")


def _uniform(
    places: Callable[[], torch.Tensor], key: tuple[int, ...], shape: torch.Size, seed: int
) -> torch.Tensor:
    """Return numbers in [0, 1) that depend on nothing but their place in the tensor and the seed.

    The finalizer of SplitMix64 over the places (Steele, Lea, Flood, OOPSLA 2014), of which the
    highest 24 bits make the number: as many as a float32 can tell apart.
    """
    state = places() + (hash((seed, *key)) & 0x3FFF_FFFF_FFFF_FFFF)
    state *= _signed(0x9E37_79B9_7F4A_7C15)
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB), (31, 1)):
        # Integers here are signed, so that the bits which a shift brings in must be masked off.
        state ^= (state >> shift) & ((1 << (64 - shift)) - 1)
        state *= _signed(factor)
    return (((state >> 40) & 0xFF_FFFF).to(torch.float32) / (1 << 24)).view(shape)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
