"""Records of the timings of :func:`prunus.speed_up` and of the layers that it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LayerTiming", "SpeedUpReport"]


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
        dense_ms: Median milliseconds of a call, including the fused layers; NaN if not timed.
        sparse_ms: The same for the sparse layer.
        replaced: Whether the layer was replaced.
        fused: Names of the following layers whose work the sparse layer does too.
    """

    name: str
    layer_type: str
    shape: tuple[int, ...]
    density: float
    dense_ms: float
    sparse_ms: float
    replaced: bool
    fused: tuple[str, ...]


@dataclass(frozen=True)
class SpeedUpReport:
    """The timings of :func:`prunus.speed_up`, and the layers that it replaced.

    Attributes:
        layers: The timings of every layer of a supported type that the example passed through.
        excluded: Why other layers with many zero weights stay dense, by name.
        dense_ms: Median milliseconds of a call of the original network.
        sparse_ms: The same for the returned network.
        threads: Number of threads used.
        error: Largest difference of an output, relative to the largest magnitude of all outputs.
    """

    layers: tuple[LayerTiming, ...]
    excluded: Mapping[str, str]
    dense_ms: float
    sparse_ms: float
    threads: int
    error: float

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the layers that run sparse."""
        return tuple(layer.name for layer in self.layers if layer.replaced)
