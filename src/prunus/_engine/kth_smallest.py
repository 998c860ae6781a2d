"""The exact k-th smallest score over many tensors, without joining or sorting them.

A floating-point number and the integer of its bits are in the same order (negative numbers, once
their bits are turned over). So the k-th smallest of any number of scores is found digit by digit,
from the highest: count how often each value of the digit occurs, see in which value the k-th lies,
go on within it. Each pass looks at one piece of one tensor at a time, so the extra memory does not
grow with the model and there is no limit on its size. Where several processes hold the tensors
together, each counts in its own parts and only the counts travel: a few thousand numbers, whatever
the size of the model, and the line is the same in all of them, and the one that a single process
would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from prunus._utils.chunks import bits
from prunus.errors import NonFiniteError

__all__ = ["ACCELERATOR_SCORE_PIECE", "SCORE_PIECE", "Cut", "Piece", "kth_smallest"]

SCORE_PIECE = 1 << 15
"""Elements looked at together: small, because it and the keys made of it are the extra memory."""

ACCELERATOR_SCORE_PIECE = 1 << 24
"""The same where each look has to be launched, and waited for."""

_DIGIT = 11
"""Bits per pass: 2,048 counters, which stay in the first-level cache."""


Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums counts over all processes that hold a part of the tensors."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Scores of a part of one tensor.

    Attributes:
        name: The tensor's name.
        scores: A vector of floating-point scores.
        candidates: True where the score takes part; None if all do.
        counted: Whether this process counts the piece; False where another one that holds it does.
        positions: Says where in the tensor each score is; None if the piece is the whole tensor.
        length: How many weights the whole tensor has; None if the piece is that.
    """

    name: str
    scores: torch.Tensor
    candidates: torch.Tensor | None = None
    counted: bool = True
    positions: Callable[[], torch.Tensor] | None = None
    length: int | None = None

    def places(self) -> torch.Tensor:
        """Return where in the tensor each score is."""
        if self.positions is None:
            return torch.arange(len(self.scores), device=self.scores.device)
        return self.positions()


@dataclass(frozen=True)
class Cut:
    """A line through the scores below which exactly ``k`` of them lie.

    Of the scores that equal the k-th smallest those of earlier tensors lie below it, and in one
    tensor those of earlier positions.

    Attributes:
        value: The k-th smallest score.
        key: The same as an integer in the scores' order.
        dtype: The type in which scores are compared.
        before: The tensors whose scores equal to ``value`` all lie below the line.
        last: The tensor of which only some of them do, if there is one.
        position: The last position in it that does.
    """

    value: float
    key: int
    dtype: torch.dtype
    before: frozenset[str]
    last: str | None = None
    position: int = -1

    def below(self, piece: Piece) -> torch.Tensor:
        """Say which scores of a piece lie below the line; a boolean vector."""
        keys = _keys(piece, self.dtype)
        if piece.name in self.before:
            return keys <= self.key
        below = keys < self.key
        if piece.name == self.last:
            tied = keys == self.key
            if bool(tied.any()):
                below |= tied & (piece.places() <= self.position)
        return below


def kth_smallest(
    scores: Callable[[], Iterable[Piece]], k: int, total: Total = lambda counts: counts
) -> Cut:
    """Find the line below which the ``k`` smallest scores lie.

    Args:
        scores: Called once per pass; yields the same pieces in the same order each time. Types may
            be mixed: they are compared in the widest of them, which is exact.
        k: How many scores shall lie below, from 1 to the number of candidates.
        total: Where several processes hold the tensors together, sums counts over all of them; the
            names must then come in the same order in each.

    Returns:
        The cut. Its cost is one pass to learn the type and check for NaN, then one per digit: three
        for float32, two for 16-bit types, six for float64; after the first digit only few scores
        are still in play. If of several scores that equal the k-th smallest only some lie below, it
        is one pass more, and one over the tensor where they part for each 11 bits of its length.

    Raises:
        NonFiniteError: A score is NaN; every tensor with one is named.
        ValueError: ``k`` is out of range.

    Example:
        >>> vector = torch.tensor([3.0, 1.0, 2.0, 1.0])
        >>> cut = kth_smallest(lambda: [Piece("w", vector)], k=1)
        >>> cut.value, cut.below(Piece("w", vector)).tolist()
        (1.0, [False, True, False, False])
    """
    dtype, names, count = _survey(scores, total)
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to the number of candidates, {count:,}, but is {k:,}")
    width = torch.finfo(dtype).bits

    def keys(piece: Piece) -> torch.Tensor:
        return _keys(piece, dtype)

    # The sign bit is turned over, so that all keys count from zero up.
    prefix, remaining, tied = _descend(scores, keys, k, width, 1 << (width - 1), total)
    key = prefix - (1 << (width - 1))
    value = _value(key, dtype)
    if tied == remaining:
        return Cut(value, key, dtype, frozenset(names))
    ties = dict.fromkeys(names, 0)
    for name, found in ((p.name, _count(_keys(p, dtype) == key)) for p in scores() if p.counted):
        ties[name] += found
    before = []
    for name, found in zip(names, total(torch.tensor(list(ties.values()))).tolist(), strict=True):
        if found > remaining:
            break
        remaining -= found
        before.append(name)
    if remaining == 0:
        return Cut(value, key, dtype, frozenset(before))

    def places(piece: Piece) -> torch.Tensor:
        return piece.places()[_keys(piece, dtype) == key]

    def within() -> Iterable[Piece]:
        return (piece for piece in scores() if piece.name == name)

    lengths = [len(p.scores) if p.length is None else p.length for p in within()]
    position, _, _ = _descend(within, places, remaining, max(lengths).bit_length(), 0, total)
    return Cut(value, key, dtype, frozenset(before), name, position)


def _descend(
    scores: Callable[[], Iterable[Piece]],
    keys: Callable[[Piece], torch.Tensor],
    k: int,
    width: int,
    zero: int,
    total: Total,
) -> tuple[int, int, int]:
    """Find the k-th smallest of integers, digit by digit.

    Args:
        scores: As for :func:`kth_smallest`.
        keys: Makes the integers of a piece.
        k: Which.
        width: How many bits they have.
        zero: What is added to them so that they count from zero up.
        total: As for :func:`kth_smallest`.

    Returns:
        It, with ``zero`` added; how many of those equal to it are among the k smallest; and how
        many there are.
    """
    prefix, remaining, equal = 0, k, 0
    for high in range(width, 0, -_DIGIT):
        low = max(0, high - _DIGIT)
        histogram = total(
            _histogram(scores, keys, high, low, prefix if high < width else None, zero)
        )
        upto = histogram.cumsum(0)
        digit = int(torch.searchsorted(upto, remaining))
        if digit:
            remaining -= int(upto[digit - 1])
        equal = int(histogram[digit])
        prefix = (prefix << (high - low)) | digit
    return prefix, remaining, equal


def _survey(
    scores: Callable[[], Iterable[Piece]], total: Total
) -> tuple[torch.dtype, list[str], int]:
    """Return the widest type of the scores, the tensors' names, and the number of candidates.

    Refuses NaN, in all processes if one of them has any.
    """
    dtype: torch.dtype | None = None
    counts: dict[str, list[int]] = {}
    # Here and below by map, so that no piece outlives its turn: two at a time would be the larger
    # part of the extra memory.
    for name, of, count, bad in map(_surveyed, scores()):
        dtype = of if dtype is None else torch.promote_types(dtype, of)
        held = counts.setdefault(name, [0, 0])
        held[0] += count
        held[1] += bad
    sums = total(torch.tensor(list(counts.values()), dtype=torch.int64).reshape(-1, 2))
    broken = [name for name, bad in zip(counts, sums[:, 1].tolist(), strict=True) if bad]
    if broken:
        raise NonFiniteError(
            f"the scores of {', '.join(broken)} contain NaN, so nothing can be said of the "
            "smallest; the weights or gradients of these tensors diverged: lower the learning "
            "rate, or go back to a checkpoint"
        )
    return dtype or torch.float32, list(counts), int(sums[:, 0].sum())


def _surveyed(piece: Piece) -> tuple[str, torch.dtype, int, bool]:
    scores, taking_part = piece.scores, piece.candidates
    count = scores.numel() if taking_part is None else int(torch.count_nonzero(taking_part))
    count *= piece.counted
    # A sum is many times faster than a look at each score, and NaN if any of them is. It may be
    # NaN without that (infinities of both signs), so the look decides.
    bad = bool(torch.isnan(scores.sum()))
    if bad:
        broken = torch.isnan(scores)
        bad = bool((broken if taking_part is None else broken & taking_part).any())
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
    scores: Callable[[], Iterable[Piece]],
    keys: Callable[[Piece], torch.Tensor],
    high: int,
    low: int,
    prefix: int | None,
    zero: int,
) -> torch.Tensor:
    """Count bits ``low`` to ``high`` of the keys; of those whose higher bits are ``prefix``."""
    digits_of = (1 << (high - low)) - 1

    def frequencies(piece: Piece) -> torch.Tensor:
        own = keys(piece)
        if prefix is None:
            own >>= low
            digits = own.add_(zero >> low)
        else:
            inside = (own >> high) == prefix - (zero >> high)
            digits = (own[inside] >> low) & digits_of
        return torch.bincount(digits, minlength=digits_of + 1)

    counts: torch.Tensor | None = None
    for found in map(frequencies, filter(_is_counted, scores())):
        counts = found if counts is None else counts.add_(found.to(counts.device))
    return torch.zeros(digits_of + 1, dtype=torch.int64) if counts is None else counts


def _is_counted(piece: Piece) -> bool:
    return piece.counted


def _count(where: torch.Tensor) -> int:
    return int(torch.count_nonzero(where))


def _value(key: int, dtype: torch.dtype) -> float:
    width = torch.finfo(dtype).bits
    integer = {64: torch.int64, 32: torch.int32, 16: torch.int16}[width]
    pattern = key ^ ((1 << (width - 1)) - 1) if key < 0 else key
    return float(torch.tensor([pattern], dtype=integer).view(dtype).to(torch.float64))
