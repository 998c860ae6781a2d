"""Records of the timings of :func:`prunus.speed_up` and of the layers that it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunus._utils.digits import format_percent
from prunus._utils.text_table import text_table

__all__ = ["LayerTiming", "SpeedUpReport"]

_MOST_NOTES = 5
"""The most excluded layers that are printed."""


@dataclass(frozen=True)
class LayerTiming:
    """The timings of one layer, and whether it was replaced.

    Attributes:
        name: Name in the model. A projection of an attention is named after the attention, followed
            by a dot and "inputs" (query, key and value in one layer), "query", "key", "value" or
            "out".
        layer_type: Name of the layer's class.
        shape: Shape of its weight.
        density: Fraction of its weights that are not zero.
        dense_ms: Median milliseconds of a call, including the fused layers; NaN if not timed. Of
            processor time if torch uses one thread, in which other processes take no part.
        sparse_ms: The same for the sparse layer: ``dense_ms`` times the median of the quotients of
            both over rounds in which they took turns.
        replaced: Whether the layer was replaced.
        fused: Names of the following layers whose work the sparse layer does too.
        disturbed: Whether the timings differed so much, also after several repetitions, that it is
            open which layer is faster: other processes use the machine.
    """

    name: str
    layer_type: str
    shape: tuple[int, ...]
    density: float
    dense_ms: float
    sparse_ms: float
    replaced: bool
    fused: tuple[str, ...]
    disturbed: bool = False


@dataclass(frozen=True)
class SpeedUpReport:
    """The timings of :func:`prunus.speed_up`, and the layers that it replaced.

    ``str()`` of it is a table with a row for each layer.

    Attributes:
        layers: The timings of every layer of a supported type that the example passed through.
        excluded: Why other layers with many zero weights stay dense, by name.
        dense_ms: Median milliseconds of a call of the original network, as for a layer.
        sparse_ms: The same for the returned network, as for a layer.
        threads: Number of threads used.
        error: Largest difference of an output, on the example or on random inputs, relative to the
            largest magnitude of all outputs.
        disturbed: Whether the timings of the network, or of a layer, were too much disturbed by
            other processes to decide which one is faster.
    """

    layers: tuple[LayerTiming, ...]
    excluded: Mapping[str, str]
    dense_ms: float
    sparse_ms: float
    threads: int
    error: float
    disturbed: bool = False

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the layers that run sparse."""
        return tuple(layer.name for layer in self.layers if layer.replaced)

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.layer_type,
                format_percent(layer.density),
                *_times(layer.dense_ms, layer.sparse_ms),
                "sparse" if layer.replaced else "dense",
            ]
            for layer in self.layers
        ]
        table = text_table(
            ["layer", "type", "density", "dense ms", "sparse ms", "faster", "runs"],
            rows,
            footer=["network", "", "", *_times(self.dense_ms, self.sparse_ms), ""],
            text_columns=2,
        )
        notes = [f"{name} stays dense: {reason}" for name, reason in self.excluded.items()]
        if len(notes) > _MOST_NOTES:
            notes[_MOST_NOTES:] = [f"{len(notes) - _MOST_NOTES} more layers with zeros stay dense"]
        if self.disturbed:
            notes.append("other processes disturbed the timings: repeat them on an idle machine")
        return "\n".join([table, *notes])


def _times(dense: float, sparse: float) -> list[str]:
    """Return two times and their quotient; "–" where they were not measured."""
    if not (dense > 0 and sparse > 0):  # NaN too
        return ["–", "–", "–"]
    return [f"{dense:.3g}", f"{sparse:.3g}", f"{dense / sparse:.2f}×"]
