"""The colours of the figures, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BLUE", "COLORS", "GRID", "INK", "MUTED", "ORANGE", "PICTURE", "SERIES", "Color"]


class Color(NamedTuple):
    """A colour that depends on the theme of the page.

    Attributes:
        name: Its name as a variable of the style sheet.
        light: The colour on a light page, and in the files for papers.
        dark: The colour on a dark page.
    """

    name: str
    light: str
    dark: str


INK = Color("ink", "#1c2024", "#e8eaed")
MUTED = Color("muted", "#5d666f", "#9aa4ae")
GRID = Color("grid", "#e2e6ea", "#333a42")

# After Okabe and Ito (2008), "Color Universal Design": distinct also with a colour vision
# deficiency. Lighter on a dark page.
BLUE = Color("blue", "#0069a8", "#5bb4ec")
ORANGE = Color("orange", "#c2500a", "#f0964f")
GREEN = Color("green", "#00785a", "#3fc79d")
PURPLE = Color("purple", "#9d4383", "#dd95c4")
GOLD = Color("gold", "#8a6a00", "#e2c044")
SKY = Color("sky", "#3f8fc0", "#9fd3f5")

SERIES = (BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY)
"""The colours of lines that are compared, in their order."""

COLORS = (INK, MUTED, GRID, *SERIES)

PICTURE: Mapping[str, tuple[float, float, float]] = {
    "positive": (0.16, 0.50, 0.78),
    "negative": (0.84, 0.42, 0.13),
}
"""Colours of pixels as red, green and blue: of a brightness that both themes show."""
