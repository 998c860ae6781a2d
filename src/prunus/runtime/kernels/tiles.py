"""Sizes of vectors, and shapes of tiles and pooling windows, for which kernels are compiled."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LANES", "Pool", "Tile"]

LANES = 16
"""Floats of most vectors: a cache line, and a register of AVX-512; AVX2 needs two registers."""


@dataclass(frozen=True)
class Tile:
    """The part of an output row that is computed in registers.

    Attributes:
        lanes: Floats of a vector.
        across: Vectors of a line.
        down: Lines.
    """

    lanes: int
    across: int
    down: int = 1

    @property
    def width(self) -> int:
        """Floats of a line."""
        return self.lanes * self.across

    @property
    def vectors(self) -> int:
        """Vectors of the tile."""
        return self.across * self.down


@dataclass(frozen=True)
class Pool:
    """A max pooling of the images that a convolution computes.

    Attributes:
        height: Lines of a window.
        width: Floats of a line of a window.
        down: Lines from window to window.
        across: Floats from window to window, 1 or 2.
        lanes: Windows beside each other that are computed at once.
    """

    height: int
    width: int
    down: int
    across: int
    lanes: int
