"""The choice between a dense layer and its sparse counterpart, by timing both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunus._utils.timing import PairedTimings, paired_timings
from prunus.runtime.candidates import MAX_DENSITY
from prunus.runtime.replacing import Replacement
from prunus.runtime.report import LayerTiming

__all__ = ["MARGIN", "is_certain", "time_layer", "time_variants"]

_SECONDS = 0.15
"""Seconds of calls per variant in a set of rounds, if 5 to 50 rounds allow it.

A heuristic: more would narrow the medians, but a network has many layers to time.
"""

_MOST_SECONDS = 1.0
"""Seconds of calls per variant after which no further set begins, where the first leaves it open.

A heuristic, as the one above: on an idle machine most layers need a single set.
"""

_PRECISION = 0.05
"""Distance of a ratio's bounds, relative to it, at which two variants count as equally fast.

A heuristic: the cost of the wrong choice is at most that.
"""

MARGIN = 0.97
"""Fraction of the dense layer's time that the sparse layer must stay below.

A heuristic: a gain below 3 % is within what the medians of so few calls differ by.
"""


def time_layer(replacement: Replacement, x: torch.Tensor) -> LayerTiming:
    """Time a layer, with the layers fused into it, against its sparse counterpart.

    Args:
        replacement: The layer.
        x: The layer's input.

    Returns:
        The timings; NaN if the layer is too dense to try, or the input is empty.
    """
    chain = replacement.chain
    layer, weight = chain.layer, chain.layer.weight
    density = float((weight != 0).float().mean()) if weight.numel() else 1.0
    dense_ms = sparse_ms = float("nan")
    replaced = disturbed = False
    if density < MAX_DENSITY and x.numel():

        def dense() -> object:
            y: Any = layer(x)
            for module in chain.fused:
                y = module(y)
            return y

        sparse_layer = replacement.sparse_layer(by_item=False)
        timings = time_variants(
            {"dense": dense, "sparse": lambda: sparse_layer(x)}, threshold=MARGIN
        )
        dense_ms, sparse_ms = (timings.milliseconds(name)["median_ms"] for name in timings.seconds)
        replaced = timings.ratio("sparse") < MARGIN
        disturbed = not is_certain(timings, threshold=MARGIN)
    return LayerTiming(
        name=chain.name,
        layer_type=type(layer).__name__,
        shape=tuple(weight.shape),
        density=density,
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        replaced=replaced,
        fused=chain.fused_names,
        disturbed=disturbed,
    )


def time_variants(
    variants: Mapping[str, Callable[[], object]], *, threshold: float = 1.0
) -> PairedTimings:
    """Return the times of variants, compared with those of the first one.

    Args:
        variants: The calls to time, by name; the dense one first.
        threshold: The ratio to the first one on which the choice depends. Default: equally fast.
    """
    return paired_timings(
        variants,
        reference=next(iter(variants)),
        seconds=len(variants) * _SECONDS,
        most_seconds=len(variants) * _MOST_SECONDS,
        least=5,
        most=50,
        calls=3,
        threads=torch.get_num_threads(),
        is_certain=lambda timings: is_certain(timings, threshold=threshold),
    )


def is_certain(timings: PairedTimings, *, threshold: float = 1.0) -> bool:
    """Return whether the times decide which variants are faster than the first one.

    Args:
        timings: The times.
        threshold: The ratio on which the choice depends. Default: equally fast.
    """
    return all(
        timings.is_certain(name, precision=_PRECISION, threshold=threshold)
        for name in timings.seconds
    )
