"""Picture of the architecture, drawn from the imports of ``src/prunus``.

The layers are those of ``pyproject.toml``, which ``lint-imports`` checks. An arrow is drawn where a
package imports another one, unless a longer chain of arrows already leads there.

Run from the repository's root: ``make architecture``
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH, ROW, BOX, TOP = 920, 78, 34, 16
FRONT = ("__main__", "cli", "report", "bench", "integrations", "recipes")

STYLE = """
  text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
  rect { stroke-width: 1.2; rx: 6px; }
  .public { fill: #dbeafe; stroke: #2563eb; }
  .front { fill: #dcfce7; stroke: #16a34a; }
  .machinery { fill: #f1f5f9; stroke: #64748b; }
  path { fill: none; stroke: #94a3b8; stroke-width: 1.2; }
  marker path { fill: #94a3b8; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .public { fill: #1e3a5f; stroke: #60a5fa; }
    .front { fill: #14432a; stroke: #4ade80; }
    .machinery { fill: #2a313c; stroke: #8b98a9; }
    path { stroke: #6b7787; }
    marker path { fill: #6b7787; }
  }
"""


def layers() -> list[list[str]]:
    """Return the packages of each layer, the highest layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (packages,) = (contract["layers"] for contract in contracts if contract["id"] == "packages")
    return [layer.split(" | ") for layer in packages]


def imports(packages: list[str]) -> dict[str, set[str]]:
    """Return the packages that each package imports."""
    graph = grimp.build_graph("prunus", cache_dir=None)
    for package in packages:
        graph.squash_module(f"prunus.{package}")
    return {
        package: {
            name.removeprefix("prunus.")
            for name in graph.find_modules_directly_imported_by(f"prunus.{package}")
        }
        - {package}
        for package in packages
    }


def reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the edges of an acyclic graph without those that a longer way replaces."""

    def reachable(start: str) -> set[str]:
        return set().union(*({end} | reachable(end) for end in edges[start]))

    return {
        start: {end for end in ends if not any(end in reachable(other) for other in ends - {end})}
        for start, ends in edges.items()
    }


def draw() -> str:
    """Return the picture as SVG."""
    rows = layers()
    boxes: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        widths = [26 + 8.5 * len(package) for package in row]
        gap = (WIDTH - sum(widths)) / (len(row) + 1)
        left = gap
        for package, width in zip(row, widths, strict=True):
            boxes[package] = (left, TOP + ROW * number, width)
            left += width + gap
    arrows = [
        _arrow(boxes[start], boxes[end])
        for start, ends in reduced(imports(list(boxes))).items()
        for end in sorted(ends)
    ]
    shapes = [_box(package, *place) for package, place in boxes.items()]
    height = 2 * TOP + ROW * (len(rows) - 1) + BOX
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            "<title>The packages of prunus and their imports</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
            *arrows,
            *shapes,
            "</svg>\n",
        ]
    )


def _box(package: str, left: float, top: float, width: float) -> str:
    style = "machinery" if package.startswith("_") and package != "__main__" else "public"
    style = "front" if package in FRONT else style
    return (
        f'<rect class="{style}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BOX}"/>'
        f'<text x="{left + width / 2:.1f}" y="{top + 22}" text-anchor="middle">'
        f"{escape(package)}</text>"
    )


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    """Return a curve from the bottom of one box to the top of another."""
    x, y = start[0] + start[2] / 2, start[1] + BOX
    to_x, to_y = end[0] + end[2] / 2, end[1]
    bend = (to_y - y) / 2
    return (
        f'<path d="M{x:.1f},{y} C{x:.1f},{y + bend:.1f} {to_x:.1f},{to_y - bend:.1f} '
        f'{to_x:.1f},{to_y}" marker-end="url(#tip)"/>'
    )


def main() -> None:
    """Write the picture, or check that it is up to date."""
    parser = argparse.ArgumentParser(description="Draw the packages of prunus and their imports.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if it is out of date")
    name = PICTURE.relative_to(ROOT)
    if not parser.parse_args().check:
        PICTURE.write_text(draw(), encoding="utf-8")
        print(f"written to {name}")
    elif PICTURE.read_text(encoding="utf-8") != draw():
        sys.exit(f"{name} is out of date: run `make architecture`")


if __name__ == "__main__":
    main()
