"""Command that renders the figures of the pages, so that text and result files agree.

python -m benchmarks.figures          print what belongs between the markers of each page
python -m benchmarks.figures --write  write it there
"""

from __future__ import annotations

import argparse

from benchmarks.figures import pictures
from benchmarks.figures.pages import MARKED, ROOT, render


def main() -> None:
    """Print the figures, or write them to their pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into their pages")
    write = parser.parse_args().write
    if write:
        pictures.write()
    for page, figures in render().items():
        if write:
            page.write_text(MARKED.sub(figures.replace("\\", r"\\"), page.read_text()))
        else:
            print(f"{page.relative_to(ROOT)}:\n\n{figures}")


if __name__ == "__main__":
    main()
