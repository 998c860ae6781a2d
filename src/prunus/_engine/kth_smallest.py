"""The exact k-th smallest score over many tensors, by radix selection.

A floating-point number and the integer of its bits are in the same order (for negative numbers,
once their bits are flipped). So the k-th smallest of any number of scores is found digit by digit,
from the highest: count how often each value of the digit occurs, find the value that contains the
k-th, and repeat within it. Each pass reads one chunk of one tensor at a time, so the extra memory
does not grow with the model and its size is not limited. If several processes hold the tensors
together, each counts in its own shards and only the counts are exchanged: a few thousand numbers,
whatever the size of the model. The threshold is then the same in all of them, and the same as in a
single process.

Weights that are removed together have one score and a size. A rank then counts weights: each score
counts as many times as its group has weights, and groups below the threshold are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from prunus._utils.chunks import bits
from prunus.errors import NonFiniteError
from prunus.patterns.layout import Part

__all__ = [
    "ACCELERATOR_SCORE_CHUNK",
    "SCORE_CHUNK",
    "ScoreChunk",
    "Threshold",
    "check_finite",
    "kth_smallest",
]

SCORE_CHUNK = 1 << 15
"""Scores in a chunk on the CPU: few, because they and their keys are the extra memory."""

ACCELERATOR_SCORE_CHUNK = 1 << 24
"""The same elsewhere, where each chunk costs a launch and a wait."""

_DIGIT = 11
"""Bits per pass: 2,048 counters, which stay in the first-level cache."""


Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums counts over all processes that hold a shard of the tensors."""

_Sized = tuple[torch.Tensor, torch.Tensor | None]
"""Integers, and the number of weights that each stands for; None for one each."""


@dataclass(frozen=True, eq=False)
class ScoreChunk:
    """The scores of a chunk of one tensor.

    Attributes:
        name: The tensor's name.
        scores: A vector of floating-point scores.
        candidates: True where the score takes part; None if all do.
        sizes: How many weights each score stands for, 0 where it takes no part; None for one each.
        counted: Whether this process counts the chunk; False if another one that holds it does.
        positions: Returns the position of each score in the tensor; None if the chunk is the whole
            tensor.
        length: How many scores the whole tensor has; None if the chunk is the whole tensor.
        weights: The weights that the scores belong to; None if they are not to be checked.
    """

    name: str
    scores: torch.Tensor
    candidates: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    counted: bool = True
    positions: Callable[[], torch.Tensor] | None = None
    length: int | None = None
    weights: torch.Tensor | None = None

    @classmethod
    def of_part(cls, name: str, part: Part, *, counted: bool) -> ScoreChunk:
        """Return the scores of a part of a tensor."""
        return cls(
            name,
            part.scores,
            part.candidates,
            part.sizes,
            counted,
            part.positions,
            part.length,
            part.weights,
        )

    def all_positions(self) -> torch.Tensor:
        """Return the position of each score in the tensor."""
        if self.positions is None:
            return torch.arange(len(self.scores), device=self.scores.device)
        return self.positions()

    def count(self, chosen: torch.Tensor) -> int:
        """Return how many weights the scores stand for where ``chosen`` is True."""
        if self.sizes is None:
            return int(torch.count_nonzero(chosen))
        return int(self.sizes[chosen].sum())

    def sum(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the sum of the weights' scores where ``chosen`` is True, in float64."""
        scores = self.scores.where(chosen, 0.0)
        if self.sizes is None:
            return scores.sum(dtype=torch.float64)
        return (scores.double() * self.sizes).sum()


@dataclass(frozen=True)
class Threshold:
    """A threshold that exactly ``k`` weights are below, or somewhat fewer in whole groups.

    Of the scores that equal the k-th smallest, those of earlier tensors are below it, and in one
    tensor those at earlier positions.

    Attributes:
        value: The k-th smallest score.
        key: The same as an integer in the scores' order.
        dtype: The type in which scores are compared.
        tied_below: The tensors whose scores equal to ``value`` are all below the threshold.
        split: The tensor of which only some of these are below it, if there is one.
        position: The last position in ``split`` that is below.
        shortfall: How many weights fewer than ``k`` are below, because groups are whole.
    """

    value: float
    key: int
    dtype: torch.dtype
    tied_below: frozenset[str]
    split: str | None = None
    position: int = -1
    shortfall: int = 0

    def below(self, chunk: ScoreChunk) -> torch.Tensor:
        """Return which scores of a chunk are below the threshold, as a boolean vector."""
        keys = _keys(chunk, self.dtype)
        if chunk.name in self.tied_below:
            return keys <= self.key
        below = keys < self.key
        if chunk.name == self.split:
            tied = keys == self.key
            if bool(tied.any()):
                below |= tied & (chunk.all_positions() <= self.position)
        return below


def kth_smallest(
    scores: Callable[[], Iterable[ScoreChunk]], k: int, total: Total = lambda counts: counts
) -> Threshold:
    """Return the threshold that the ``k`` weights of the smallest scores are below.

    With groups, the order is that of the scores, then of the tensors, then of the positions, and
    below are the first groups in this order, as many as have no more than ``k`` weights in all.

    Args:
        scores: Called once per pass; yields the same chunks in the same order each time. Types may
            be mixed: they are compared in the widest of them, which is exact.
        k: The number of weights below, from 1 to that of all candidates.
        total: Sums counts over all processes that hold the tensors together; the order of names
            must then be the same in each.

    Returns:
        The threshold. It costs one pass to find the type and check for NaN, then one per digit:
        three for float32, two for 16-bit types, six for float64; after the first digit few scores
        remain. If only some of the scores that equal the k-th smallest are below, there is one more
        pass, and one over the split tensor for each 11 bits of its length.

    Raises:
        NonFiniteError: A score or its weight is NaN; every tensor with one is named.
        ValueError: ``k`` is out of range.

    Example:
        >>> vector = torch.tensor([3.0, 1.0, 2.0, 1.0])
        >>> threshold = kth_smallest(lambda: [ScoreChunk("w", vector)], k=1)
        >>> threshold.value, threshold.below(ScoreChunk("w", vector)).tolist()
        (1.0, [False, True, False, False])
    """
    dtype, names, count = _survey(scores, total)
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to the number of candidates, {count:,}, but is {k:,}")
    width = torch.finfo(dtype).bits

    def keys(chunk: ScoreChunk) -> _Sized:
        return _keys(chunk, dtype), chunk.sizes

    # The sign bit is flipped, so that the smallest key is zero.
    prefix, remaining, tied = _descend(scores, keys, k, width, 1 << (width - 1), total)
    key = prefix - (1 << (width - 1))
    value = _value(key, dtype)
    if tied == remaining:
        return Threshold(value, key, dtype, frozenset(names))
    ties = dict.fromkeys(names, 0)
    for name, count in ((c.name, c.count(_keys(c, dtype) == key)) for c in scores() if c.counted):
        ties[name] += count
    tied_below = []
    for name, count in zip(names, total(torch.tensor(list(ties.values()))).tolist(), strict=True):
        if count > remaining:
            break
        remaining -= count
        tied_below.append(name)
    if remaining == 0:
        return Threshold(value, key, dtype, frozenset(tied_below))

    def tied_positions(chunk: ScoreChunk) -> _Sized:
        tied = _keys(chunk, dtype) == key
        return chunk.all_positions()[tied], None if chunk.sizes is None else chunk.sizes[tied]

    def split() -> Iterable[ScoreChunk]:
        return (chunk for chunk in scores() if chunk.name == name)

    lengths = [len(c.scores) if c.length is None else c.length for c in split()]
    bits_of_position = max(lengths).bit_length()
    position, fits, size = _descend(split, tied_positions, remaining, bits_of_position, 0, total)
    # The last group may have more weights than are left of k, and is not below then.
    position, shortfall = (position, 0) if size == fits else (position - 1, fits)
    return Threshold(value, key, dtype, frozenset(tied_below), name, position, shortfall)


def check_finite(
    scores: Callable[[], Iterable[ScoreChunk]], total: Total = lambda counts: counts
) -> None:
    """Check that no score and no weight is NaN, in one pass.

    Args:
        scores: As for :func:`kth_smallest`.
        total: As for :func:`kth_smallest`.

    Raises:
        NonFiniteError: A score or its weight is NaN; every tensor with one is named.
    """
    _survey(scores, total)


def _descend(
    scores: Callable[[], Iterable[ScoreChunk]],
    keys: Callable[[ScoreChunk], _Sized],
    k: int,
    width: int,
    zero: int,
    total: Total,
) -> tuple[int, int, int]:
    """Return the k-th smallest of integers, found digit by digit.

    Args:
        scores: As for :func:`kth_smallest`.
        keys: Returns the integers of a chunk, with their sizes.
        k: The rank, in weights.
        width: How many bits the integers have.
        zero: Added to the integers so that the smallest one possible is zero.
        total: As for :func:`kth_smallest`.

    Returns:
        The integer, with ``zero`` added; how many of the weights equal to it are among the k
        smallest; and how many are equal to it.
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
    scores: Callable[[], Iterable[ScoreChunk]], total: Total
) -> tuple[torch.dtype, list[str], int]:
    """Return the widest type of the scores, the tensors' names, and the candidates' weights.

    Raises:
        NonFiniteError: A score or its weight is NaN; in all processes if one of them has any.
    """
    dtype: torch.dtype | None = None
    counts: dict[str, list[int]] = {}
    # Here and below by map, so that a chunk is freed before the next: two at a time would be the
    # larger part of the extra memory.
    for name, chunk_dtype, count, has_nan in map(_survey_chunk, scores()):
        dtype = chunk_dtype if dtype is None else torch.promote_types(dtype, chunk_dtype)
        of_tensor = counts.setdefault(name, [0, 0])
        of_tensor[0] += count
        of_tensor[1] += has_nan
    sums = total(torch.tensor(list(counts.values()), dtype=torch.int64).reshape(-1, 2))
    broken = [name for name, nans in zip(counts, sums[:, 1].tolist(), strict=True) if nans]
    if broken:
        raise NonFiniteError(
            f"the scores of {', '.join(broken)} contain NaN or belong to weights that are NaN, so "
            "that they have no order; the weights or gradients of these tensors diverged: lower "
            "the learning rate, or go back to a checkpoint"
        )
    return dtype or torch.float32, list(counts), int(sums[:, 0].sum())


def _survey_chunk(chunk: ScoreChunk) -> tuple[str, torch.dtype, int, bool]:
    """Return name and type of a chunk, its candidates' weights, and whether one is NaN."""
    scores, candidates = chunk.scores, chunk.candidates
    count = scores.numel() if candidates is None else chunk.count(candidates)
    count *= chunk.counted
    has_nan = _has_nan(scores, candidates)
    # The score of a weight that is NaN may be a number: a moving average of its past.
    if not has_nan and chunk.weights is not None:
        has_nan = _has_nan(chunk.weights, candidates)
    return chunk.name, scores.dtype, count, has_nan


def _has_nan(values: torch.Tensor, candidates: torch.Tensor | None) -> bool:
    """Return whether the value of a candidate is NaN."""
    # A sum is many times faster than a test of each value, and NaN if any of them is. It may be
    # NaN without that (infinities of both signs), so the test decides.
    if not bool(torch.isnan(values.sum())):
        return False
    nan = torch.isnan(values).reshape(-1)
    return bool((nan if candidates is None else nan & candidates).any())


def _keys(chunk: ScoreChunk, dtype: torch.dtype) -> torch.Tensor:
    """Return integers in the order of the scores, the largest integer for non-candidates."""
    # Adding 0 makes -0.0 equal to +0.0 in bits too. It also copies, so what follows is in place.
    keys = bits(chunk.scores.detach().to(dtype) + 0.0)
    width = torch.iinfo(keys.dtype)
    flip = keys >> (width.bits - 1)
    flip &= width.max
    keys ^= flip
    if chunk.candidates is not None:
        # Arithmetic, because on the CPU it is many times faster than masked_fill_.
        keys.mul_(chunk.candidates)
        keys.add_(chunk.candidates.logical_not(), alpha=width.max)
    return keys


def _histogram(
    scores: Callable[[], Iterable[ScoreChunk]],
    keys: Callable[[ScoreChunk], _Sized],
    high: int,
    low: int,
    prefix: int | None,
    zero: int,
) -> torch.Tensor:
    """Count the weights by bits ``low`` to ``high`` of keys whose higher bits are ``prefix``."""
    largest = (1 << (high - low)) - 1

    def frequencies(chunk: ScoreChunk) -> torch.Tensor:
        chunk_keys, sizes = keys(chunk)
        if prefix is None:
            chunk_keys >>= low
            digits = chunk_keys.add_(zero >> low)
        else:
            inside = (chunk_keys >> high) == prefix - (zero >> high)
            digits = (chunk_keys[inside] >> low) & largest
            sizes = None if sizes is None else sizes[inside]
        if sizes is None:
            return torch.bincount(digits, minlength=largest + 1)
        return sizes.new_zeros(largest + 1).index_add_(0, digits, sizes)

    counts: torch.Tensor | None = None
    for of_chunk in map(frequencies, filter(_is_counted, scores())):
        counts = of_chunk if counts is None else counts.add_(of_chunk.to(counts.device))
    return torch.zeros(largest + 1, dtype=torch.int64) if counts is None else counts


def _is_counted(chunk: ScoreChunk) -> bool:
    return chunk.counted


def _value(key: int, dtype: torch.dtype) -> float:
    """Return the score whose key this is."""
    width = torch.finfo(dtype).bits
    integer = {64: torch.int64, 32: torch.int32, 16: torch.int16}[width]
    pattern = key ^ ((1 << (width - 1)) - 1) if key < 0 else key
    return float(torch.tensor([pattern], dtype=integer).view(dtype).to(torch.float64))
