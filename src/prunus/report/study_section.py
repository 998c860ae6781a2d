"""The section of a report about a study: its figure, tables and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from prunus.errors import listing
from prunus.report.content import KeyFigure, Table, setting_text
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.study_curves import study_curves
from prunus.studies import Study, load_study
from prunus.studies.cells import format_ratio

__all__ = ["StudySection", "study_section"]


@dataclass(frozen=True)
class StudySection:
    """What a page shows of a study.

    Attributes:
        title: The recipe.
        subtitle: The extent of the study.
        path: The record.
        notes: What a reader must know: unfinished runs.
        key_figures: Empty: the tables have the numbers.
        drawings: The figures, one for each metric.
        results: The tables, one for each metric, with their headings.
        methods: The table of the settings of each method.
        settings: Names and values of the settings that the methods share.
        commands: The commands that planned the runs.
        environment: Hardware, versions and date.
    """

    template: ClassVar[str] = "study.html.jinja"

    title: str
    subtitle: str
    path: str
    notes: Sequence[str]
    key_figures: Sequence[KeyFigure]
    drawings: Sequence[Drawing]
    results: Sequence[tuple[str, Table]]
    methods: Table
    settings: Sequence[tuple[str, str]]
    commands: Sequence[str]
    environment: Sequence[tuple[str, str]]


def study_section(path: Path) -> StudySection:
    """Return the section about a study.

    Args:
        path: The directory of a study, or its record.

    Raises:
        CheckpointError: The record is damaged.
    """
    study = load_study(path)
    metrics = study.metrics if study.finished else []
    tables = [study.table(metric) for metric in metrics]
    return StudySection(
        title=f"{study.recipe}: comparison of methods",
        subtitle=_extent(study),
        path=str(path),
        notes=list(_notes(study)),
        key_figures=(),
        drawings=[study_curves(table) for table in tables[:1]],
        results=[
            (f"Test {table.metric}", Table(table.header, table.cells, table.legend))
            for table in tables
        ],
        methods=_methods(study),
        settings=[(name, setting_text(value)) for name, value in study.settings.items()],
        commands=study.commands,
        environment=[
            ("data", study.data),
            *((name, str(value)) for name, value in study.environment.items()),
            ("threads of each run", str(study.threads)),
            ("last change", study.date),
        ],
    )


def _extent(study: Study) -> str:
    parts = {
        "method": list(study.methods),
        "ratio": list(map(format_ratio, study.ratios)),
        "seed": list(map(str, study.seeds)),
    }
    texts = [
        f"{name}{'s' * (len(values) > 1)} {listing(values, most=6)}"
        for name, values in parts.items()
    ]
    return f"study: {'; '.join(texts)}"


def _notes(study: Study) -> Iterator[str]:
    if not study.finished:
        yield (
            f"This study is not finished: none of its {len(study.runs)} runs is. Continue it with "
            f"prunus compare {study.recipe}"
        )
    else:
        yield from study.table().notes


def _methods(study: Study) -> Table:
    rows = []
    for label, method in study.methods.items():
        settings = ", ".join(
            f"{name}={setting_text(value)}" for name, value in method.settings.items()
        )
        rows.append((label, method.name, settings or "those of the study"))
    return Table(("label", "method", "settings"), rows, numeric=False)
