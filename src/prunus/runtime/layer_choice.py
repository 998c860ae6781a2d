"""The choice between a dense layer and its sparse counterpart, by timing both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from prunus._utils.timing import fitting_rounds, interleaved
from prunus.runtime.candidates import MAX_DENSITY
from prunus.runtime.replacing import Replacement
from prunus.runtime.report import LayerTiming

__all__ = ["median_seconds", "time_layer"]

_SECONDS = 0.05
"""Seconds of timed calls per variant, if 5 to 50 rounds allow it.

A heuristic: more would narrow the medians, but a network has many layers to time.
"""

_MARGIN = 0.97
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
    if density < MAX_DENSITY and x.numel():

        def dense() -> object:
            y: Any = layer(x)
            for module in chain.fused:
                y = module(y)
            return y

        sparse_layer = replacement.sparse_layer(by_item=False)
        medians = median_seconds({"dense": dense, "sparse": lambda: sparse_layer(x)})
        dense_ms, sparse_ms = 1e3 * medians["dense"], 1e3 * medians["sparse"]
    return LayerTiming(
        name=chain.name,
        layer_type=type(layer).__name__,
        shape=tuple(weight.shape),
        density=density,
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        replaced=sparse_ms < _MARGIN * dense_ms,
        fused=chain.fused_names,
    )


def median_seconds(variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of a call of each variant, timed by turns.

    Args:
        variants: The calls to time, by name.
    """
    rounds = fitting_rounds(variants, 2 * _SECONDS, least=5, most=50)
    seconds = interleaved(variants, rounds=rounds, calls=2, warm=1)
    return {name: float(np.median(each)) for name, each in seconds.items()}
