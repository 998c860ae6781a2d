"""The subcommand ``prunus report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.screen import Screen

__all__ = ["report"]


def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Directories of runs and studies, finished or not.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: report.html, in the directory if there is one path."
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Directory to write each figure to, as SVG and PDF, for papers."),
    ] = None,
) -> None:
    """Write one HTML page about runs and studies, which needs no other file and no network."""
    from prunus.report import write_report

    screen = Screen()
    written = write_report(paths, out, figures=figures)
    screen.message(f"written to {written}")
    if figures is not None:
        screen.message(f"figures written to {figures}")
