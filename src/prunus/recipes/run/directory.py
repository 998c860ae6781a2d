"""The directory of a run: its files, and a lock so that only one process writes to them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunus._utils.files import report_write_errors, write_atomically
from prunus._utils.locks import is_locked, locked
from prunus._utils.system_info import system_info
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.export.sparse_reader import load_sparse
from prunus.recipes.run.checkpoints import Checkpoints

__all__ = ["FIX_BENCH", "FIX_SUMMARY", "RunDirectory", "read_object", "recipe_digest"]

_SUMMARY = (
    *("recipe", "seed", "metric", "dense", "sparse", "layer_types", "seconds", "bytes"),
    *("parameters", "nonzero", "sparsity", "compression_ratio"),
)
"""Keys that every summary has."""

_IDENTITY: Mapping[str, tuple[Any, str]] = {
    "recipe": (str, "str"),
    "seed": (int, "int"),
    "data": (str | None, "str or None"),
    "dense": (str | None, "str or None"),
    "config": (dict, "dict"),
}
"""The type of each key of the identity of a run, and its name in messages."""

_RECIPE_FILE = "recipe_file"
"""The key of the identity of a run of a recipe that is not built in."""

_FIX_CONFIG = "Restore config.json from a copy, or start again in another --out"
FIX_SUMMARY = "Delete it, and --resume writes it again"
FIX_BENCH = "Delete it, and `prunus bench` writes it again"


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
        config_file: The identity of the run: recipe, seed, data and settings.
        checkpoints: The states to resume from.
        dense_file: The dense network at the end of its training.
        after_dense_file: The random states then, from which another run continues to the same
            bits.
        teacher_outputs_file: The outputs of the dense network for the training data, if the sparse
            one learns from them.
        model_file: The delivered sparse network, an ordinary safetensors file.
        metrics_file: One JSON object per epoch.
        summary_file: The sizes and metrics of the result.
        bench_file: The latencies that ``prunus bench`` measured last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.dense_file = self.checkpoints.folder / "dense.safetensors"
        self.after_dense_file = self.checkpoints.folder / "after-dense.safetensors"
        self.teacher_outputs_file = self.checkpoints.folder / "teacher-outputs.safetensors"
        self.model_file = path / "model.safetensors"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.bench_file = path / "bench.json"
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
            in_use = (
                f"the output directory {self.path} is in use by another run; wait for it or choose "
                "another --out"
            )
            with locked(self._lock, in_use):
                # Checked again, because another run may have ended since the first check.
                self._reject_foreign(resume=resume)
                self._remove_leftovers()
                try:
                    yield
                finally:
                    if not self.config_file.exists():
                        self._lock.unlink(missing_ok=True)
        finally:
            if not self.config_file.exists():
                for directory in reversed(created):
                    with contextlib.suppress(OSError):
                        directory.rmdir()

    @property
    def in_use(self) -> bool:
        """Whether a process is running in this directory."""
        return is_locked(self._lock)

    def _create(self) -> list[Path]:
        """Create the missing directories; return them, the outermost first."""
        innermost = self.checkpoints.folder
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
            self.config_file,
            self.checkpoints.last,
            self.checkpoints.previous,
            self.dense_file,
            self.after_dense_file,
            self.teacher_outputs_file,
            self.model_file,
            self.metrics_file,
            self.summary_file,
            self.bench_file,
        )
        for path in files:
            for leftover in path.parent.glob(f".{path.name}.*"):
                leftover.unlink()

    def _reject_foreign(self, *, resume: bool) -> None:
        if self.config_file.exists() and not resume:
            raise PrunusError(
                f"{self.path} holds a run already; resume it with --resume, or choose another --out"
            )
        own = {self._lock.name, self.checkpoints.folder.name}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own and not entry.name.startswith(f".{self.config_file.name}.")
        )
        if foreign and not self.config_file.exists():
            raise PrunusError(
                f"the output directory {self.path} has other contents than a run (it holds "
                f"{listing(foreign, most=5)}); choose another --out"
            )

    def write_config(self, identity: dict[str, Any]) -> None:
        """Write the identity of the run."""
        self._write_json(self.config_file, identity)

    def read_config(self) -> dict[str, Any]:
        """Return the identity of the run.

        Raises:
            PrunusError: There is no run here.
            CheckpointError: Its config.json is damaged.
        """
        if not self.config_file.is_file():
            raise PrunusError(
                f"there is no run in {self.path}: it has no config.json; pass the directory of a "
                "run"
            )
        identity = read_object(self.config_file, _FIX_CONFIG)
        if problems := list(_identity_problems(identity)):
            raise CheckpointError(
                f"{self.config_file} is damaged: {'; '.join(problems)}. {_FIX_CONFIG}"
            )
        return identity

    def check_config(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Check that the run here is the one to resume, and return its identity.

        Raises:
            CheckpointError: It is another one, and every difference is listed; or the file of its
                recipe has changed.
        """
        own = self.read_config()
        if recipe_digest(own) != recipe_digest(identity) and own["recipe"] == identity["recipe"]:
            raise CheckpointError(
                f"the recipe {own['recipe']} has changed since the run in {self.path} began, so "
                "that it cannot resume to the same result: restore the file, or start again in "
                "another --out"
            )
        saved, requested = _flat(own), _flat(identity)
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
        return own

    @property
    def metric_lines(self) -> int:
        """The number of lines in the file of metrics."""
        return self.metrics_file.read_bytes().count(b"\n") if self.metrics_file.exists() else 0

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with report_write_errors(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, lines: int) -> None:
        """Keep the first lines of the metrics: those before the checkpoint to resume from."""
        content = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        kept = content.splitlines(keepends=True)[:lines]
        write_atomically(self.metrics_file, b"".join(kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        self._write_json(self.summary_file, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None while the run has none.

        Raises:
            CheckpointError: It is damaged.
        """
        if not self.summary_file.exists():
            return None
        summary = read_object(self.summary_file, FIX_SUMMARY)
        missing = [key for key in _SUMMARY if key not in summary]
        if missing:
            raise CheckpointError(
                f"{self.summary_file} is damaged: it lacks {listing(missing)}. {FIX_SUMMARY}"
            )
        return summary

    def write_latencies(self, latencies: dict[str, Any]) -> None:
        """Write the latencies of the delivered network, with date, hardware and versions.

        Earlier ones are replaced.
        """
        date = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"date": date, "environment": system_info(), **latencies}
        self._write_json(self.bench_file, content)

    def read_latencies(self) -> dict[str, Any] | None:
        """Return the latencies of the delivered network, or None if they were not measured.

        Raises:
            CheckpointError: The file is damaged.
        """
        return read_object(self.bench_file, FIX_BENCH) if self.bench_file.exists() else None

    def model_is_whole(self) -> bool:
        """Return whether the file of the delivered network exists and is intact."""
        try:
            load_sparse(self.model_file)
        except PrunusError:
            return False
        return True

    @staticmethod
    def _write_json(path: Path, content: dict[str, Any]) -> None:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _identity_problems(identity: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with each key of the identity of a run."""
    for key, (hint, expected) in _IDENTITY.items():
        if key not in identity:
            yield f"{key} is missing"
        elif not isinstance(identity[key], hint):
            yield f"{key} must be {expected}, but is {identity[key]!r}"
    code = identity.get(_RECIPE_FILE, {})
    keys = {"path": str, "sha256": str, "mode": str, "settings": dict}
    if _RECIPE_FILE in identity and not (
        isinstance(code, dict)
        and code.keys() == keys.keys()
        and all(isinstance(code[key], kind) for key, kind in keys.items())
    ):
        yield f"{_RECIPE_FILE} must have {listing(list(keys))}, but is {code!r}"
    for key in sorted(identity.keys() - _IDENTITY.keys() - {_RECIPE_FILE}):
        yield f"{key} is unknown"


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        fix: What the user may do if it is damaged, for the message.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. {fix}") from error
    if not isinstance(content, dict):
        name = type(content).__name__
        raise CheckpointError(f"{path} is damaged: it holds a {name}, not an object. {fix}")
    return content


def recipe_digest(identity: Mapping[str, Any]) -> str | None:
    """Return the digest of the file of a run's recipe; None for a built-in recipe."""
    code = identity.get(_RECIPE_FILE)
    return None if code is None else str(code["sha256"])


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    config = content.get("config")
    flat = {**content, **(config if isinstance(config, dict) else {}), "config": None}
    flat.pop(_RECIPE_FILE, None)  # its digest is compared, and it may have moved
    return flat
