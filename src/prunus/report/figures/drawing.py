"""Drawings: figures as SVG in a page, and as files for papers."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

from prunus._utils.files import write_atomically
from prunus.errors import PrunusError
from prunus.report.figures.palette import COLORS, GRID, INK, MUTED, SERIES
from prunus.report.text import plain_text

__all__ = [
    "FULL",
    "HALF",
    "NARROW",
    "Drawing",
    "check_figure_file",
    "inline_svg",
    "save_drawing",
    "save_figure",
    "styled",
]

NARROW, HALF, FULL = 350, 520, 1060
"""Widths in CSS pixels: on a telephone, in a column of two, and across the page."""

_STYLE: Mapping[Any, Any] = {
    "axes.edgecolor": MUTED.light,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED.light,
    "axes.labelsize": 12,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=[color.light for color in SERIES]),
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK.light,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 12,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # as publishers demand: characters that can be searched and copied
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "prunus",  # else names of elements would differ each time
    "text.color": INK.light,
    "text.parse_math": False,  # a name with dollar signs is no formula
    "text.usetex": False,
    "xtick.color": MUTED.light,
    "xtick.labelsize": 12,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": MUTED.light,
    "ytick.labelsize": 12,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}

_LARGEST = 1.2
"""The factor up to which a figure grows with the screen."""

_NAMESPACE = re.compile(r"\{[^}]*\}")
_FONT = re.compile(r"font: (?:(bold|\d+) )?([\d.]+px)[^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_VARIABLES = {color.light: f"var(--{color.name})" for color in COLORS}
_COLOR = re.compile("|".join(_VARIABLES))


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn at several widths.

    Attributes:
        name: A short name of lower-case letters and hyphens, for files.
        title: The heading above it.
        alt: What it shows, for a reader who cannot see it.
        draw: Draws it at a width in CSS pixels, each of which is a point in the figure.
        caption: How to read it, if that is not obvious.
        wide: The width on a large screen.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[int], Figure]
    caption: str = ""
    wide: int = HALF


def inline_svg(drawing: Drawing, width: int, prefix: str) -> str:
    """Return a drawing as an SVG element whose colours are variables of the page.

    Args:
        drawing: The drawing.
        width: Its width in CSS pixels.
        prefix: Begins the names of its elements, which must be unique in a page.
    """
    root = ElementTree.fromstring(_render(drawing, width, "svg"))
    names = _referenced_names(root)
    for element in root.iter():
        _clean(element, names, prefix)
    for child in [child for child in root if child.tag in ("metadata", "defs") and not len(child)]:
        root.remove(child)
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    natural = float(root.attrib["viewBox"].split()[2])
    root.set("style", f"max-width: {_LARGEST * natural:.0f}px")
    root.set("role", "img")
    root.set("aria-label", plain_text(drawing.alt))
    return ElementTree.tostring(root, encoding="unicode")


def save_drawing(
    drawing: Drawing, folder: Path, stem: str, suffixes: Sequence[str] = ("svg", "pdf")
) -> list[Path]:
    """Write a drawing as SVG and PDF files, in the colours of a light page.

    Args:
        drawing: The drawing.
        folder: The folder of the files.
        stem: Begins their names.
        suffixes: The formats. Default: SVG and PDF.

    Raises:
        PrunusError: A file cannot be written.
    """
    written = []
    for suffix in suffixes:
        path = folder / f"{stem}-{drawing.name}.{suffix}"
        write_atomically(path, _render(drawing, drawing.wide, suffix))
        written.append(path)
    return written


def check_figure_file(path: Path) -> None:
    """Check that :func:`save_figure` can write a file.

    Raises:
        PrunusError: Its suffix names another format.
    """
    if path.suffix[1:].lower() not in _METADATA:
        raise PrunusError(
            f"{path} must end with .{', .'.join(_METADATA)}, which names the format of the figure"
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, PDF or PNG, by the file's suffix.

    Raises:
        PrunusError: The suffix names another format, or the file cannot be written.
    """
    check_figure_file(path)
    with styled():
        write_atomically(path, _content(figure, path.suffix[1:].lower()))


def _render(drawing: Drawing, width: int, suffix: str) -> bytes:
    """Return the content of a file with a drawing; equal drawings have equal bytes."""
    with styled():
        return _content(drawing.draw(width), suffix)


_METADATA: Mapping[str, Mapping[str, None]] = {
    "svg": {"Date": None, "Creator": None, "Type": None, "Format": None},
    "pdf": {"CreationDate": None},
    "png": {},
}
"""What is left out of a file of each format, because it would differ each time."""


def _content(figure: Figure, suffix: str) -> bytes:
    """Return the content of a file with a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, metadata=dict(_METADATA[suffix]))
    return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Set the style of the figures, whatever the user's own settings of matplotlib are."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # The page's font may have characters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _referenced_names(root: ElementTree.Element) -> set[str]:
    """Return the names of elements that other elements refer to."""
    names = set()
    for element in root.iter():
        for key, text in element.attrib.items():
            names.update(_REFERENCE.findall(text))
            if key.endswith("href") and text.startswith("#"):
                names.add(text[1:])
    return names


def _clean(element: ElementTree.Element, names: set[str], prefix: str) -> None:
    """Remove what a page does not need, and make names unique in it."""
    element.tag = _NAMESPACE.sub("", element.tag)
    if element.tag == "style":  # it would apply to the whole page
        element.clear()
        element.tag = "g"
    attributes = {}
    for key, text in element.attrib.items():
        key = _NAMESPACE.sub("", key)
        if key == "id":
            if text not in names:
                continue
            text = prefix + text
        elif key == "href" and text.startswith("#"):
            text = f"#{prefix}{text[1:]}"
        else:
            text = _REFERENCE.sub(rf"url(#{prefix}\1)", text)
        if key == "style":
            text = _COLOR.sub(lambda match: _VARIABLES[match[0]], text)
            text = _FONT.sub(_font_size, text)
        attributes[key] = text
    element.attrib.clear()
    element.attrib.update(attributes)


def _font_size(match: re.Match[str]) -> str:
    """Return the size and weight of a font, and leave the family to the page."""
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}{weight}"
