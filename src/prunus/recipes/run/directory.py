"""The directory of a run: what lies in it, and that only one process writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prunus._utils.files import keep_as, load_tree, save_tree, write_atomically, writing
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.export.sparse_reader import load_sparse

__all__ = ["RunDirectory"]

_SUMMARY = (
    *("recipe", "seed", "metric", "dense", "sparse", "kinds", "seconds", "bytes"),
    *("parameters", "nonzero", "sparsity", "compression_ratio"),
)
"""What a summary says at least."""


class RunDirectory:
    """A run's files.

    Attributes:
        path: The directory.
        checkpoint: Everything needed to go on, replaced after every epoch.
        previous: The checkpoint before that, for a machine may come back with the newest damaged.
        dense: The dense network at the end of its training.
        after_dense: What else another run needs to go on from there to the same bits.
        lessons: What the dense network makes of the training data, if the sparse one learns that.
        model: The delivered sparse network, an ordinary safetensors file.
        metrics: One JSON object per epoch.
        summary: What the run came to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoints" / "last.safetensors"
        self.previous = path / "checkpoints" / "previous.safetensors"
        self.dense = path / "checkpoints" / "dense.safetensors"
        self.after_dense = path / "checkpoints" / "after-dense.safetensors"
        self.lessons = path / "checkpoints" / "lessons.safetensors"
        self.model = path / "model.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self._lock = path / ".lock"

    @contextlib.contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Hold the directory for this process; leave nothing behind if the run never began.

        Raises:
            PrunusError: It is in use, cannot be written, holds something else, or, when resuming,
                holds no run.
        """
        if resume:
            self.read_config()
        if self.path.exists() and not self.path.is_dir():
            raise PrunusError(f"the output directory {self.path} is a file; choose another --out")
        if self.path.exists():
            self._refuse_foreign(resume=resume)
        made = self._make()
        try:
            with writing(self.path):
                lock = self._lock.open("a")
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise PrunusError(
                        f"the output directory {self.path} is in use by another run; wait for it "
                        "or choose another --out"
                    ) from error
                # Again, for another run may have come and gone since the first look.
                self._refuse_foreign(resume=resume)
                self._remove_leftovers()
                try:
                    yield
                finally:
                    if not self.config.exists():
                        self._lock.unlink(missing_ok=True)
        finally:
            if not self.config.exists():
                for directory in reversed(made):
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    def _make(self) -> list[Path]:
        """Create what is missing of the directory; return what was, the outermost first."""
        wanted = self.checkpoint.parent
        missing = [path for path in (wanted, *wanted.parents) if not path.exists()][::-1]
        made = []
        try:
            with writing(self.path):
                for path in missing:
                    path.mkdir(exist_ok=True)
                    made.append(path)
        except PrunusError:
            for path in reversed(made):
                path.rmdir()
            raise
        return made

    def _remove_leftovers(self) -> None:
        """Remove files that were being written aside when a process was killed."""
        files = (
            self.config,
            self.checkpoint,
            self.previous,
            self.dense,
            self.after_dense,
            self.lessons,
            self.model,
            self.metrics,
            self.summary,
        )
        for path in files:
            for leftover in path.parent.glob(f".{path.name}.*"):
                leftover.unlink()

    def _refuse_foreign(self, *, resume: bool) -> None:
        if self.config.exists() and not resume:
            raise PrunusError(
                f"{self.path} holds a run already; go on with it by --resume, or choose another "
                "--out"
            )
        own = {self._lock.name, self.checkpoint.parent.name}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own and not entry.name.startswith(f".{self.config.name}.")
        )
        if foreign and not self.config.exists():
            raise PrunusError(
                f"the output directory {self.path} is not empty and not a run's (it holds "
                f"{listing(foreign, most=5)}); choose another --out"
            )

    def write_config(self, identity: dict[str, Any]) -> None:
        """Write what the run is."""
        self._write_json(self.config, identity)

    def read_config(self) -> dict[str, Any]:
        """Return what the run here is.

        Raises:
            PrunusError: There is no run here.
            CheckpointError: Its config.json is damaged.
        """
        if not self.config.is_file():
            raise PrunusError(f"there is no run in {self.path}: it has no config.json")
        held = _read_json(self.config)
        kinds = {
            "recipe": str,
            "seed": int,
            "data": str | None,
            "dense": str | None,
            "config": dict,
        }
        if set(held) != set(kinds) or not all(isinstance(held[k], kinds[k]) for k in kinds):
            raise CheckpointError(f"{self.config} is damaged: it does not say what the run is")
        return held

    def check_config(self, identity: dict[str, Any]) -> None:
        """Make sure that the run here is the one that is to be resumed.

        Raises:
            CheckpointError: It is another one; every difference is listed.
        """
        held, wanted = _flat(self.read_config()), _flat(identity)
        differences = [
            f"{key} was {held.get(key)!r} and is {wanted.get(key)!r}"
            for key in sorted({*held, *wanted})
            if held.get(key) != wanted.get(key)
        ]
        if differences:
            raise CheckpointError(
                f"{self.path} holds another run: {listing(differences, most=100)}; resume it with "
                "its own settings, or choose another --out"
            )

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return self.checkpoint.exists() or self.previous.exists()

    @property
    def lines(self) -> int:
        """How many lines of metrics there are."""
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, and keep the one before it.

        Raises:
            PrunusError: It cannot be written; the two before it are still there.
        """
        save_tree(self.checkpoint, state, previous=self.previous)

    def load_checkpoint(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Return the newest checkpoint, or if that is damaged the one before it.

        Args:
            say: Is told if it is the one before.

        Raises:
            CheckpointError: There is no other, or both are damaged.
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
                    f"{error}; nor can the one before it be used: {other}"
                ) from other
            say(f"{error}. Going on from the one before it")
        # Or the damaged one would become the one before the next.
        keep_as(self.previous, self.checkpoint)
        return state

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with writing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_metrics(self, lines: int) -> None:
        """Drop what was written after the checkpoint that is resumed from."""
        held = self.metrics.read_bytes() if self.metrics.exists() else b""
        content = held.splitlines(keepends=True)
        write_atomically(self.metrics, b"".join(content[:lines]))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write what the run came to."""
        self._write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None while the run has none.

        Raises:
            CheckpointError: It is damaged.
        """
        if not self.summary.exists():
            return None
        summary = _read_json(self.summary)
        lacking = [key for key in _SUMMARY if key not in summary]
        if lacking:
            raise CheckpointError(
                f"{self.summary} is damaged: it lacks {listing(lacking)}. Delete it, and --resume "
                "writes it anew"
            )
        return summary

    def delivered(self) -> bool:
        """Say whether the delivered network is there, and whole."""
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
        kind = type(content).__name__
        raise CheckpointError(f"{path} is damaged: it holds a {kind}, not an object")
    return content


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    config = content.get("config")
    return {**content, **(config if isinstance(config, dict) else {}), "config": None}
