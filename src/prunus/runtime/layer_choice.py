"""The choice between a dense layer and its sparse counterparts, by timing all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from prunus._utils.timing import PairedTimings, paired_timings
from prunus.runtime.candidates import MAX_DENSITY
from prunus.runtime.replacing import Replacement
from prunus.runtime.report import LayerTiming

__all__ = ["MARGIN", "TimedLayer", "is_certain", "time_layer", "time_variants"]

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
"""Fraction of the dense layer's time that the sparse layer must stay below, and of that of the
sparse layer in float32 that one in another type must.

A heuristic: a gain below 3 % is within what the medians of so few calls differ by.
"""


@dataclass(frozen=True)
class TimedLayer:
    """The times of a layer and of its sparse counterparts.

    Attributes:
        replacements: The layer and how it may be replaced, by the name of the type.
        density: Fraction of its weights that are not zero.
        timings: The times, of "dense" and by type; None if the layer is too dense to try, or the
            input is empty.
    """

    replacements: Mapping[str, Replacement]
    density: float
    timings: PairedTimings | None

    def fastest(self, excluded: Collection[str] = ()) -> str | None:
        """Return the type of the fastest counterpart; None if the dense layer is.

        Each type in the order of ``replacements`` must be clearly faster than those before it.

        Args:
            excluded: Types that are left out.
        """
        best, least = None, MARGIN
        for name in self.replacements if self.timings is not None else ():
            assert self.timings is not None
            if name not in excluded and self.timings.ratio(name) < least:
                best, least = name, MARGIN * self.timings.ratio(name)
        return best

    def timing(self, replaced_by: str | None) -> LayerTiming:
        """Return the times for a report.

        Args:
            replaced_by: The type of the counterpart that replaces the layer; None if none does.
        """
        names = list(self.replacements)
        chain = self.replacements[names[0]].chain
        times = dict.fromkeys(["dense", *names], float("nan"))
        if self.timings is not None:
            times = {name: self.timings.milliseconds(name)["median_ms"] for name in times}
        dense_ms = times.pop("dense")
        dtype = replaced_by or self.fastest() or min(times, key=lambda name: times[name])
        return LayerTiming(
            name=chain.name,
            layer_type=type(chain.layer).__name__,
            shape=tuple(chain.layer.weight.shape),
            density=self.density,
            dense_ms=dense_ms,
            sparse_ms=times[dtype],
            replaced=replaced_by is not None,
            fused=chain.fused_names,
            disturbed=self.timings is not None and not is_certain(self.timings, threshold=MARGIN),
            dtype=dtype,
            times_ms=times,
        )


def time_layer(replacements: Sequence[Replacement], x: torch.Tensor) -> TimedLayer:
    """Time a layer, with the layers fused into it, against its sparse counterparts.

    Args:
        replacements: The layer in each type to try, the most precise one first.
        x: The layer's input.
    """
    chain = replacements[0].chain
    layer, weight = chain.layer, chain.layer.weight
    density = float((weight != 0).float().mean()) if weight.numel() else 1.0
    by_type = {each.precision.name: each for each in replacements}
    timings = None
    if density < MAX_DENSITY and x.numel():

        def dense() -> object:
            y: Any = layer(x)
            for module in chain.fused:
                y = module(y)
            return y

        variants: dict[str, Callable[[], object]] = {"dense": dense}
        for name, each in by_type.items():
            variants[name] = partial(each.sparse_layer(by_item=False), x)
        timings = time_variants(variants, threshold=MARGIN)
    return TimedLayer(by_type, density, timings)


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
