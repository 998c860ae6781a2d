"""The page: a report about runs and studies as one HTML file that refers to no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunus._utils.checks import raise_problems
from prunus._utils.extras import missing_extra
from prunus._utils.files import report_write_errors, write_atomically
from prunus._version import VERSION
from prunus.errors import PrunusError
from prunus.export.paths import path_problem

try:
    import jinja2
    import markupsafe

    from prunus.report.figures.drawing import NARROW, Drawing, inline_svg, save_drawing
    from prunus.report.figures.palette import COLORS
except ImportError as error:
    raise missing_extra("prunus.report", "report", error) from error

from prunus.recipes.run.directory import RunDirectory
from prunus.report.run_record import read_run
from prunus.report.run_section import RunSection, run_section
from prunus.report.study_section import StudySection, study_section
from prunus.report.text import plain_text
from prunus.studies.record import STUDY_FILE

Section = RunSection | StudySection

__all__ = ["MOST_BYTES", "render_page", "write_report"]

MOST_BYTES = 2_000_000
"""The largest page: more would be slow to open and too large to send."""


def write_report(
    paths: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    figures: str | Path | None = None,
) -> Path:
    """Write a report about runs and studies: one HTML page that needs no other file and no network.

    A run or study that is not finished is shown as far as it is.

    Args:
        paths: The directories of runs and studies, or that of one.
        out: The file to write. Default: ``report.html``, in the directory if there is one path,
            else in the current directory.
        figures: A directory to write each figure to, as SVG and PDF files. Default None: only the
            page has them.

    Returns:
        The file.

    Raises:
        ArgumentTypeError: An argument has the wrong type.
        MissingExtraError: The extra "report" is not installed.
        CheckpointError: A file of a run or study is damaged.
        PrunusError: There is no run or study at a path, the page would be too large, or a file
            cannot be written.

    Example:
        >>> import tempfile
        >>> from prunus.recipes.registry import find_recipe
        >>> from prunus.recipes.run.directory import RunDirectory
        >>> path = Path(tempfile.mkdtemp())
        >>> config = find_recipe("digits").config.as_dict()
        >>> identity = {"recipe": "digits", "seed": 0, "data": None, "dense": None}
        >>> RunDirectory(path).write_config({**identity, "config": config})
        >>> page = write_report(path)
        >>> page.name, "not finished" in page.read_text()
        ('report.html', True)
    """
    several: list[str | Path]
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    raise_problems(
        *(path_problem("each of paths", path) for path in several),
        None if out is None else path_problem("out", out),
        None if figures is None else path_problem("figures", figures),
        None if several else "paths must name at least one run or study, but is empty",
    )
    folders = list(dict.fromkeys(map(Path, several)))
    target = _default_file(folders) if out is None else Path(out)
    if target.is_dir():
        raise PrunusError(f"{target} is a directory: pass the path of a file, such as report.html")
    sections = [_section(folder) for folder in folders]
    page = render_page(sections)
    content = page.encode("utf-8", "replace")
    if len(content) > MOST_BYTES:
        raise PrunusError(
            f"the page would have {len(content):,} bytes, and may have {MOST_BYTES:,}: pass fewer "
            f"runs or studies to each page than {len(sections)}"
        )
    if figures is not None:
        _save_figures(sections, Path(figures))
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content)
    return target


def _default_file(paths: Sequence[Path]) -> Path:
    """Return the file to write where the caller chose none."""
    if len(paths) > 1:
        return Path("report.html")
    # A study may be named by its record.
    return (paths[0].parent if paths[0].is_file() else paths[0]) / "report.html"


def _section(path: Path) -> Section:
    """Return the section about a run or study.

    Raises:
        PrunusError: There is neither at the path.
    """
    if path.is_file() or (path / STUDY_FILE).is_file():
        return study_section(path)
    directory = RunDirectory(path)
    if not directory.config_file.is_file():
        raise PrunusError(
            f"there is no run or study in {path}: it has neither {directory.config_file.name} nor "
            f"{STUDY_FILE}; pass the --out of prunus run or prunus compare"
        )
    return run_section(read_run(path))


def render_page(sections: Sequence[Section]) -> str:
    """Return the HTML of a page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prunus.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(
        heading=sections[0].title if len(sections) == 1 else f"{len(sections)} results",
        sections=sections,
        colors=COLORS,
        version=VERSION,
        pictures=_Pictures().pictures,
    )


def _finalize(value: object) -> object:
    """Return a value to print: plain where it is text, which is then escaped."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return plain_text(value)
    return value


class _Pictures:
    """The SVG elements of a page, whose names of elements are unique."""

    def __init__(self) -> None:
        self._number = 0

    def pictures(self, drawing: Drawing) -> list[tuple[str, markupsafe.Markup]]:
        """Return a drawing for narrow and for wide screens, each with its class."""
        return [("narrow", self._svg(drawing, NARROW)), ("wide", self._svg(drawing, drawing.wide))]

    def _svg(self, drawing: Drawing, width: int) -> markupsafe.Markup:
        self._number += 1
        # Escaped by the writer of the XML.
        return markupsafe.Markup(inline_svg(drawing, width, f"f{self._number}-"))


def _save_figures(sections: Sequence[Section], folder: Path) -> None:
    """Write the figures of all sections to files, whose names begin with the section's title."""
    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stems = [re.sub(r"\W+", "-", section.title).strip("-").lower() for section in sections]
    for number, (section, stem) in enumerate(zip(sections, stems, strict=True), 1):
        unique = stem if stems.count(stem) == 1 else f"{stem}-{number}"
        for drawing in section.drawings:
            save_drawing(drawing, folder, unique)
