"""Records of the timings of :func:`prunus.speed_up` and of the layers that it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunus._utils.digits import format_percent
from prunus._utils.text_table import text_table

__all__ = ["LayerTiming", "SpeedUpReport"]

_MOST_NOTES = 5
"""The most excluded layers that are printed, and the most that stay in float32."""


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
        dtype: The type in which the sparse layer of ``sparse_ms`` multiplies: "float32", "bfloat16"
            or "int8".
        times_ms: The times of the sparse layer in each type that was timed, by its name.
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
    dtype: str = "float32"
    times_ms: Mapping[str, float] = field(default_factory=dict)


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
            largest magnitude of all outputs; with layers in bfloat16 or int8 on the example alone.
        disturbed: Whether the timings of the network, or of a layer, were too much disturbed by
            other processes to decide which one is faster.
        in_float32: Why layers stay in float32 though another type was asked for, by name.
    """

    layers: tuple[LayerTiming, ...]
    excluded: Mapping[str, str]
    dense_ms: float
    sparse_ms: float
    threads: int
    error: float
    disturbed: bool = False
    in_float32: Mapping[str, str] = field(default_factory=dict)

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
                _runs(layer),
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
        floats = [f"{name} stays in float32: {reason}" for name, reason in self.in_float32.items()]
        if len(floats) > _MOST_NOTES:
            floats[_MOST_NOTES:] = [f"{len(floats) - _MOST_NOTES} more layers stay in float32"]
        notes += floats
        if self.disturbed:
            notes.append("other processes disturbed the timings: repeat them on an idle machine")
        return "\n".join([table, *notes])


def _runs(layer: LayerTiming) -> str:
    """Return how a layer runs."""
    if not layer.replaced:
        return "dense"
    return "sparse" if layer.dtype == "float32" else f"sparse, {layer.dtype}"


def _times(dense: float, sparse: float) -> list[str]:
    """Return two times and their quotient; "–" where they were not measured."""
    if not (dense > 0 and sparse > 0):  # NaN too
        return ["–", "–", "–"]
    return [f"{dense:.3g}", f"{sparse:.3g}", f"{dense / sparse:.2f}×"]
