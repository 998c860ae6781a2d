"""The directory of a run: its files, and a lock so that only one process writes to them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prunus._utils.files import (
    link_or_copy,
    load_tree,
    report_write_errors,
    save_tree,
    write_atomically,
)
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.export.sparse_reader import load_sparse

__all__ = ["RunDirectory"]

_SUMMARY = (
    *("recipe", "seed", "metric", "dense", "sparse", "layer_types", "seconds", "bytes"),
    *("parameters", "nonzero", "sparsity", "compression_ratio"),
)
"""Keys that every summary has."""


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
        config: The identity of the run: recipe, seed, data and settings.
        checkpoint: The state to resume from, replaced after every epoch.
        previous: The checkpoint before that, because a crash may damage the newest one.
        dense: The dense network at the end of its training.
        after_dense: The random states then, from which another run continues to the same bits.
        teacher_outputs: The outputs of the dense network for the training data, if the sparse one
            learns from them.
        model: The delivered sparse network, an ordinary safetensors file.
        metrics: One JSON object per epoch.
        summary: The sizes and metrics of the result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoints" / "last.safetensors"
        self.previous = path / "checkpoints" / "previous.safetensors"
        self.dense = path / "checkpoints" / "dense.safetensors"
        self.after_dense = path / "checkpoints" / "after-dense.safetensors"
        self.teacher_outputs = path / "checkpoints" / "teacher-outputs.safetensors"
        self.model = path / "model.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self._lock = path / ".lock"

    @contextlib.contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Lock the directory for this process, and remove it if the run never began.

        Args:
            resume: Whether it must hold a run already; else it must not.

        Raises:
            PrunusError: It is in use, cannot be written, has other contents, or, when resuming,
                holds no run.
        """
        if resume:
            self.read_config()
        if self.path.exists() and not self.path.is_dir():
            raise PrunusError(f"the output directory {self.path} is a file; choose another --out")
        if self.path.exists():
            self._reject_foreign(resume=resume)
        created = self._create()
        try:
            with report_write_errors(self.path):
                lock = self._lock.open("a")
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise PrunusError(
                        f"the output directory {self.path} is in use by another run; wait for it "
                        "or choose another --out"
                    ) from error
                # Checked again, because another run may have ended since the first check.
                self._reject_foreign(resume=resume)
                self._remove_leftovers()
                try:
                    yield
                finally:
                    if not self.config.exists():
                        self._lock.unlink(missing_ok=True)
        finally:
            if not self.config.exists():
                for directory in reversed(created):
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    def _create(self) -> list[Path]:
        """Create the missing directories; return them, the outermost first."""
        innermost = self.checkpoint.parent
        paths = (innermost, *innermost.parents)
        missing = [path for path in paths if not path.exists()][::-1]
        created = []
        try:
            with report_write_errors(self.path):
                for path in missing:
                    path.mkdir(exist_ok=True)
                    created.append(path)
        except PrunusError:
            for path in reversed(created):
                path.rmdir()
            raise
        return created

    def _remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed while they wrote."""
        files = (
            self.config,
            self.checkpoint,
            self.previous,
            self.dense,
            self.after_dense,
            self.teacher_outputs,
            self.model,
            self.metrics,
            self.summary,
        )
        for path in files:
            for leftover in path.parent.glob(f".{path.name}.*"):
                leftover.unlink()

    def _reject_foreign(self, *, resume: bool) -> None:
        if self.config.exists() and not resume:
            raise PrunusError(
                f"{self.path} holds a run already; resume it with --resume, or choose another --out"
            )
        own = {self._lock.name, self.checkpoint.parent.name}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own and not entry.name.startswith(f".{self.config.name}.")
        )
        if foreign and not self.config.exists():
            raise PrunusError(
                f"the output directory {self.path} has other contents than a run (it holds "
                f"{listing(foreign, most=5)}); choose another --out"
            )

    def write_config(self, identity: dict[str, Any]) -> None:
        """Write the identity of the run."""
        self._write_json(self.config, identity)

    def read_config(self) -> dict[str, Any]:
        """Return the identity of the run.

        Raises:
            PrunusError: There is no run here.
            CheckpointError: Its config.json is damaged.
        """
        if not self.config.is_file():
            raise PrunusError(f"there is no run in {self.path}: it has no config.json")
        identity = _read_json(self.config)
        types = {
            "recipe": str,
            "seed": int,
            "data": str | None,
            "dense": str | None,
            "config": dict,
        }
        if set(identity) != set(types) or not all(
            isinstance(identity[key], types[key]) for key in types
        ):
            raise CheckpointError(
                f"{self.config} is damaged: expected the keys {listing(list(types))}, each of its "
                "type"
            )
        return identity

    def check_config(self, identity: dict[str, Any]) -> None:
        """Check that the run here is the one to resume.

        Raises:
            CheckpointError: It is another one; every difference is listed.
        """
        saved, requested = _flat(self.read_config()), _flat(identity)
        differences = [
            f"{key} was {saved.get(key)!r} and is {requested.get(key)!r}"
            for key in sorted({*saved, *requested})
            if saved.get(key) != requested.get(key)
        ]
        if differences:
            raise CheckpointError(
                f"{self.path} holds another run: {listing(differences, most=100)}; resume it with "
                "its own settings, or choose another --out"
            )

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint.exists() or self.previous.exists()

    @property
    def metric_lines(self) -> int:
        """The number of lines in the file of metrics."""
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, and keep the previous one.

        Raises:
            PrunusError: It cannot be written; the two previous ones are intact.
        """
        save_tree(self.checkpoint, state, previous=self.previous)

    def load_checkpoint(self, report: Callable[[str], None]) -> dict[str, Any]:
        """Return the newest checkpoint, or the previous one if the newest is damaged.

        Args:
            report: Receives a message if it is the previous one.

        Raises:
            CheckpointError: There is none, or both are damaged.
        """
        try:
            return load_tree(self.checkpoint)
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            try:
                state = load_tree(self.previous)
            except CheckpointError as other:
                raise CheckpointError(
                    f"{error}; the previous one cannot be used either: {other}"
                ) from other
            report(f"{error}. Resuming from the previous one")
        # Else the damaged one would become the previous one of the next.
        link_or_copy(self.previous, self.checkpoint)
        return state

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with report_write_errors(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, lines: int) -> None:
        """Keep the first lines of the metrics: those before the checkpoint to resume from."""
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        kept = content.splitlines(keepends=True)[:lines]
        write_atomically(self.metrics, b"".join(kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        self._write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None while the run has none.

        Raises:
            CheckpointError: It is damaged.
        """
        if not self.summary.exists():
            return None
        summary = _read_json(self.summary)
        missing = [key for key in _SUMMARY if key not in summary]
        if missing:
            raise CheckpointError(
                f"{self.summary} is damaged: it lacks {listing(missing)}. Delete it, and --resume "
                "writes it again"
            )
        return summary

    def model_is_whole(self) -> bool:
        """Return whether the file of the delivered network exists and is intact."""
        try:
            load_sparse(self.model)
        except PrunusError:
            return False
        return True

    @staticmethod
    def _write_json(path: Path, content: dict[str, Any]) -> None:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        name = type(content).__name__
        raise CheckpointError(f"{path} is damaged: it holds a {name}, not an object")
    return content


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    config = content.get("config")
    return {**content, **(config if isinstance(config, dict) else {}), "config": None}
