"""The directory of a study: its record, the directories and logs of its runs, and a lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prunus._utils.files import report_write_errors
from prunus._utils.locks import locked
from prunus.errors import PrunusError, listing
from prunus.recipes.run.directory import RunDirectory
from prunus.studies.cells import Cell, format_ratio
from prunus.studies.plan import folder_name
from prunus.studies.record import STUDY_FILE, read_study, write_study
from prunus.studies.study import Study

__all__ = ["StudyDirectory"]


class StudyDirectory:
    """The files of a study.

    Attributes:
        path: The directory.
        study_file: The record.
        logs: The folder of what the runs print.
        submissions: The folder of the files of a job queue.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study_file = path / STUDY_FILE
        self.logs = path / "logs"
        self.submissions = path / "submissions"
        self._runs = path / "runs"
        self._lock = path / ".lock"

    def read(self) -> Study | None:
        """Return the study, or None if there is none yet.

        Raises:
            PrunusError: The directory is a file, or has other contents.
            CheckpointError: The record is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise PrunusError(f"the output directory {self.path} is a file; choose another --out")
        if self.study_file.is_file():
            return read_study(self.study_file)
        foreign = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        foreign = sorted(
            name for name in foreign if name != ".lock" and not name.startswith(f".{STUDY_FILE}.")
        )
        if foreign:
            raise PrunusError(
                f"the output directory {self.path} has other contents than a study (it holds "
                f"{listing(foreign, most=5)}); choose another --out"
            )
        return None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the directory, and lock it for this process.

        Raises:
            PrunusError: It is in use, or cannot be written.
        """
        with report_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        in_use = (
            f"the study in {self.path} is in use by another prunus compare; wait for it or choose "
            "another --out"
        )
        with locked(self._lock, in_use):
            for leftover in self.path.glob(f".{STUDY_FILE}.*"):
                leftover.unlink()
            yield

    def write(self, study: Study) -> None:
        """Write the record."""
        write_study(self.study_file, study)

    def run(self, cell: Cell) -> RunDirectory:
        """Return the directory of a run."""
        return RunDirectory(self._runs / _name(cell))

    def log(self, cell: Cell) -> Path:
        """Return the path of a run's log, to which suffixes are added."""
        return self.logs / _name(cell)

    def dense_network(self, cell: Cell, cells: tuple[Cell, ...]) -> RunDirectory | None:
        """Return a run with the dense network of a cell's seed, or None.

        Args:
            cell: The cell.
            cells: The cells of the study.
        """
        for other in cells:
            if other.seed == cell.seed and other != cell:
                directory = self.run(other)
                # A network without a run is one that was copied here, or damaged.
                if directory.dense_file.is_file() and directory.config_file.is_file():
                    return directory
        return None


def _name(cell: Cell) -> str:
    return f"seed{cell.seed}-{folder_name(cell.method)}-{format_ratio(cell.ratio)}"
