"""The exact k-th smallest score over many tensors, without joining or sorting them.

A floating-point number and the integer of its bits are in the same order (negative numbers, once
their bits are turned over). So the k-th smallest of any number of scores is found digit by digit,
from the highest: count how often each value of the digit occurs, see in which value the k-th lies,
go on within it. Each pass looks at one piece of one tensor at a time, so the extra memory does not
grow with the model and there is no limit on its size, and only counts would have to travel between
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from prunus.errors import NonFiniteError
from prunus.pieces import bits

__all__ = ["SCORE_PIECE", "Cut", "Piece", "smallest"]

SCORE_PIECE = 1 << 15
"""Elements looked at together: small, because it and the keys made of it are the extra memory."""

_DIGIT = 11
"""Bits per pass: 2,048 counters, which stay in the first-level cache."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Scores of a part of one tensor.

    Attributes:
        name: The tensor's name, for messages.
        scores: A vector of floating-point scores.
        candidates: True where the score takes part; None if all do.
    """

    name: str
    scores: torch.Tensor
    candidates: torch.Tensor | None = None


@dataclass
class Cut:
    """A line through the scores below which exactly ``k`` of them lie.

    It is asked about the same pieces, in the same order, as it was made from; equal scores at the
    line fall below it in order of position until there are ``k``.

    Attributes:
        value: The k-th smallest score.
        key: The same as an integer in the scores' order.
        ties: How many of the scores equal to ``value`` are still to fall below the line.
    """

    value: float
    key: int
    ties: int
    dtype: torch.dtype

    def below(self, piece: Piece) -> torch.Tensor:
        """Say which scores of the next piece lie below the line; a boolean vector."""
        keys = _keys(piece, self.dtype)
        below = keys < self.key
        tied = keys == self.key
        count = int(torch.count_nonzero(tied))
        if count > self.ties:
            tied &= torch.cumsum(tied, 0) <= self.ties
        self.ties -= min(count, self.ties)
        return below | tied


def smallest(scores: Callable[[], Iterable[Piece]], k: int) -> Cut:
    """Find the line below which the ``k`` smallest scores lie.

    Args:
        scores: Called once per pass; yields the same pieces in the same order each time. Types may
            be mixed: they are compared in the widest of them, which is exact.
        k: How many scores shall lie below, from 1 to the number of candidates.

    Returns:
        The cut. Its cost is one pass to learn the type and check for NaN, then one per digit: three
        for float32, two for 16-bit types, six for float64; after the first digit only few scores
        are still in play.

    Raises:
        NonFiniteError: A score is NaN; every tensor with one is named.
        ValueError: ``k`` is out of range.

    Example:
        >>> vector = torch.tensor([3.0, 1.0, 2.0, 1.0])
        >>> cut = smallest(lambda: [Piece("w", vector)], k=1)
        >>> cut.value, cut.below(Piece("w", vector)).tolist()
        (1.0, [False, True, False, False])
    """
    dtype, total = _survey(scores)
    if not 1 <= k <= total:
        raise ValueError(f"k must be from 1 to the number of candidates, {total:,}, but is {k:,}")
    width = torch.finfo(dtype).bits
    prefix, remaining = 0, k
    for high in range(width, 0, -_DIGIT):
        low = max(0, high - _DIGIT)
        histogram = _histogram(scores, dtype, high, low, prefix)
        upto = histogram.cumsum(0)
        digit = int(torch.searchsorted(upto, remaining))
        if digit:
            remaining -= int(upto[digit - 1])
        prefix = (prefix << (high - low)) | digit
    # The highest digit was counted from zero up, so the sign bit is the other way round.
    key = prefix - (1 << (width - 1))
    return Cut(_value(key, dtype), key, remaining, dtype)


def _survey(scores: Callable[[], Iterable[Piece]]) -> tuple[torch.dtype, int]:
    """Return the widest type of the scores and the number of candidates; refuse NaN."""
    dtype: torch.dtype | None = None
    total = 0
    broken: dict[str, None] = {}
    # Here and below by map, so that no piece outlives its turn: two at a time would be the larger
    # part of the extra memory.
    for name, of, count, bad in map(_surveyed, scores()):
        dtype = of if dtype is None else torch.promote_types(dtype, of)
        total += count
        if bad:
            broken[name] = None
    if broken:
        raise NonFiniteError(
            f"the scores of {', '.join(broken)} contain NaN, so nothing can be said of the "
            "smallest; the weights or gradients of these tensors diverged: lower the learning "
            "rate, or go back to a checkpoint"
        )
    return dtype or torch.float32, total


def _surveyed(piece: Piece) -> tuple[str, torch.dtype, int, bool]:
    scores, counted = piece.scores, piece.candidates
    count = scores.numel() if counted is None else int(torch.count_nonzero(counted))
    # A sum is many times faster than a look at each score, and NaN if any of them is. It may be
    # NaN without that (infinities of both signs), so the look decides.
    bad = bool(torch.isnan(scores.sum()))
    if bad:
        broken = torch.isnan(scores)
        bad = bool((broken if counted is None else broken & counted).any())
    return piece.name, scores.dtype, count, bad


def _keys(piece: Piece, dtype: torch.dtype) -> torch.Tensor:
    """Integers in the order of the scores; those that take no part become the largest of all."""
    # Adding 0 makes -0.0 equal to +0.0 in bits too. It also copies, so what follows is in place.
    keys = bits(piece.scores.detach().to(dtype) + 0.0)
    width = torch.iinfo(keys.dtype)
    flip = keys >> (width.bits - 1)
    flip &= width.max
    keys ^= flip
    if piece.candidates is not None:
        # By arithmetic, for on the CPU it is many times faster than masked_fill_.
        keys.mul_(piece.candidates)
        keys.add_(piece.candidates.logical_not(), alpha=width.max)
    return keys


def _histogram(
    scores: Callable[[], Iterable[Piece]], dtype: torch.dtype, high: int, low: int, prefix: int
) -> torch.Tensor:
    """Count bits ``low`` to ``high`` of the keys whose higher bits are ``prefix``."""
    width = torch.finfo(dtype).bits

    def counted(piece: Piece) -> torch.Tensor:
        keys = _keys(piece, dtype)
        if high == width:
            keys >>= low
            digits = keys.add_(1 << (width - low - 1))
        else:
            inside = (keys >> high) == prefix - (1 << (width - high - 1))
            digits = (keys[inside] >> low) & ((1 << (high - low)) - 1)
        return torch.bincount(digits, minlength=1 << (high - low))

    counts: torch.Tensor | None = None
    for found in map(counted, scores()):
        counts = found if counts is None else counts.add_(found.to(counts.device))
    assert counts is not None
    return counts


def _value(key: int, dtype: torch.dtype) -> float:
    width = torch.finfo(dtype).bits
    integer = {64: torch.int64, 32: torch.int32, 16: torch.int16}[width]
    pattern = key ^ ((1 << (width - 1)) - 1) if key < 0 else key
    return float(torch.tensor([pattern], dtype=integer).view(dtype).to(torch.float64))
