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
