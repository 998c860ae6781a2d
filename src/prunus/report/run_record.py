"""The record of a run, finished or not: everything in its directory that a report shows."""

from __future__ import annotations

import contextlib
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prunus.bench import BenchReport
from prunus.constraint import Constraint, Mode
from prunus.errors import CheckpointError
from prunus.export.inspection import by_numbers
from prunus.export.report import ExportReport
from prunus.export.sparse_export import to_sparse
from prunus.export.sparse_reader import load_sparse
from prunus.recipes.registry import RECIPES
from prunus.recipes.run.directory import FIX_BENCH, FIX_SUMMARY, RunDirectory, read_object
from prunus.recipes.run.history import read_history
from prunus.recipes.run.progress import Epoch
from prunus.report.content import setting_text

__all__ = ["Outcome", "RunRecord", "read_run"]


@dataclass(frozen=True)
class Outcome:
    """The result of a finished run, from its summary.

    Attributes:
        metric: The name of the metric.
        mode: Whether larger ("max") or smaller ("min") metrics are better.
        dense: The metrics of the dense network: "validation", "test", and others.
        sparse: Those of the sparse network.
        parameters: The number of parameters.
        nonzero: How many of them are not zero.
        sparsity: Removed / prunable weights.
        ratio: All / non-zero parameters.
        layer_types: Prunable and non-zero weights by layer type.
        seconds: Training time by phase.
        dense_bytes: The size of the dense network's file.
        environment: Hardware and versions.
        method: Penalty, schedule and score.
        method_name: The name of the method, if it has one.
        about: Facts on how the metric is computed.
        multiply_adds: Those of one example, of the dense and of the sparse network; None where they
            were not counted.
    """

    metric: str
    mode: Mode
    dense: Mapping[str, float]
    sparse: Mapping[str, float]
    parameters: int
    nonzero: int
    sparsity: float
    ratio: float
    layer_types: Mapping[str, tuple[int, int]]
    seconds: Mapping[str, float]
    dense_bytes: int
    environment: Mapping[str, str]
    method: str
    method_name: str | None
    about: Mapping[str, str]
    multiply_adds: tuple[int, int] | None


@dataclass(frozen=True)
class RunRecord:
    """The record of a run.

    Attributes:
        directory: The files of the run.
        identity: Recipe, seed, data and settings.
        epochs: The history.
        outcome: The result; None while the run is not finished.
        latencies: What ``prunus bench`` measured last; None without.
        latency_facts: Its date, and the hardware and versions.
    """

    directory: RunDirectory
    identity: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    outcome: Outcome | None
    latencies: BenchReport | None
    latency_facts: Mapping[str, str]

    @property
    def title(self) -> str:
        """Recipe and seed."""
        return f"{self.identity['recipe']}, seed {self.identity['seed']}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings."""
        config: Mapping[str, Any] = self.identity["config"]
        return config

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """The recipe's own settings; empty for a built-in recipe of another version."""
        # Not find_recipe: a report imports no code that a directory names.
        if (code := self.identity.get("recipe_file")) is not None:
            return dict(code["settings"])
        recipe = RECIPES.get(self.identity["recipe"])
        return {} if recipe is None else recipe.config.as_dict()

    @property
    def metric(self) -> str:
        """The name of the validation metric."""
        return "metric" if self.outcome is None else self.outcome.metric

    @property
    def mode(self) -> Mode:
        """Whether larger or smaller metrics are better."""
        if self.outcome is not None:
            return self.outcome.mode
        if (code := self.identity.get("recipe_file")) is not None:
            return "min" if code["mode"] == "min" else "max"
        recipe = RECIPES.get(self.identity["recipe"])
        return "max" if recipe is None else recipe.config.mode

    @property
    def floor(self) -> float | None:
        """The floor as a number; None if there is none or it is not known yet."""
        floors = [epoch.floor for epoch in self.epochs if epoch.floor is not None]
        return floors[-1] if floors else None

    @property
    def bound_name(self) -> str:
        """The name of the floor: "ceiling" for a metric to minimize."""
        return Constraint(None, self.mode).bound_name

    @property
    def delivered(self) -> int | None:
        """The place in the history of the state that was delivered; None if it is not there."""
        if self.outcome is None:
            return None
        places = [
            place
            for place, epoch in enumerate(self.epochs)
            if epoch.phase == "prune"
            and math.isclose(epoch.sparsity, self.outcome.sparsity, rel_tol=1e-12)
            and epoch.validation == self.outcome.sparse["validation"]
        ]
        return places[-1] if places else None

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        words = ["prunus", "run", self.identity["recipe"], "--seed", str(self.identity["seed"])]
        for option in ("data", "dense"):
            if (value := self.identity[option]) is not None:
                words += [f"--{option}", value]
        for name, value in self.changed_settings.items():
            words += ["--set", f"{name}={setting_text(value)}"]
        return shlex.join(words)

    @property
    def changed_settings(self) -> dict[str, Any]:
        """The settings that are not the recipe's own."""
        return {
            name: value
            for name, value in self.settings.items()
            if name not in self.defaults or self.defaults[name] != value
        }

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        path = str(self.directory.path)
        return shlex.join(["prunus", "run", self.identity["recipe"], "--out", path, "--resume"])

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The floating-point tensors of the delivered network, or of the newest checkpoint.

        Empty before the first checkpoint; a tied tensor is there once.
        """
        if self.directory.model_file.exists():
            tensors = load_sparse(self.directory.model_file)
        elif self.directory.checkpoints:
            tensors = self.directory.checkpoints.peek().get("model", {})
        else:
            return {}
        seen: dict[object, torch.Tensor] = {}
        weights = {}
        for name in sorted(tensors, key=by_numbers):
            tensor = tensors[name]
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                continue
            # A checkpoint has a copy of a tied matrix for each of its names.
            key = (tensor.shape, float(tensor.sum()))
            tied = tensor.dim() > 1 and key in seen and torch.equal(seen[key], tensor)
            if not tied:
                weights[name] = seen[key] = tensor
        return weights

    @cached_property
    def sparse_file(self) -> ExportReport | None:
        """The sizes of the delivered network as a sparse file; None while there is none."""
        if not self.directory.model_file.exists():
            return None
        with tempfile.TemporaryDirectory() as folder:
            return to_sparse(self.directory.model_file, Path(folder) / "sparse.safetensors")

    @property
    def exported_files(self) -> dict[str, int]:
        """The sizes of the files beside the model that ``prunus export`` writes, by name."""
        own = self.directory.model_file
        return {
            path.name: path.stat().st_size
            for path in sorted(own.parent.glob(f"{own.stem}.*"))
            if path.is_file() and path != own and path.suffix in (".safetensors", ".onnx")
        }

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The settings of the network that a recipe of language published; empty for others."""
        file = self.directory.path / "pretrained" / "config.json"
        return read_object(file, "Restore it from a copy") if file.exists() else {}


def read_run(path: Path) -> RunRecord:
    """Return the record of a run.

    Raises:
        CheckpointError: A file is damaged.
        PrunusError: There is no run at this path.
    """
    directory = RunDirectory(path)
    identity = directory.read_config()
    summary = directory.read_summary()
    latencies, latency_facts = _latencies(directory)
    return RunRecord(
        directory=directory,
        identity=identity,
        epochs=tuple(read_history(directory.metrics_file)),
        outcome=None if summary is None else _outcome(summary, directory.summary_file),
        latencies=latencies,
        latency_facts=latency_facts,
    )


def _latencies(directory: RunDirectory) -> tuple[BenchReport | None, dict[str, str]]:
    """Return the latencies in a run's directory, if there are any, and where they were measured.

    Raises:
        CheckpointError: The file is damaged.
    """
    if (content := directory.read_latencies()) is None:
        return None, {}
    with _reporting_damage(directory.bench_file, FIX_BENCH):
        facts = {"date": content["date"], **content["environment"]}
        return BenchReport.from_dict(content), _texts(facts)


def _outcome(summary: Mapping[str, Any], file: Path) -> Outcome:
    """Return the result in a summary.

    Raises:
        CheckpointError: A value is missing or has another type.
    """
    with _reporting_damage(file, FIX_SUMMARY):
        about = dict(summary["metric"])
        metric, mode = str(about.pop("name")), about.pop("mode")
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", but is {mode!r}')
        outcome = Outcome(
            metric=metric,
            mode=mode,
            dense={str(name): float(value) for name, value in summary["dense"].items()},
            sparse={str(name): float(value) for name, value in summary["sparse"].items()},
            parameters=int(summary["parameters"]),
            nonzero=int(summary["nonzero"]),
            sparsity=float(summary["sparsity"]),
            ratio=float(summary["compression_ratio"]),
            layer_types={
                str(name): (int(counts["prunable"]), int(counts["nonzero"]))
                for name, counts in summary["layer_types"].items()
            },
            seconds={str(name): float(value) for name, value in summary["seconds"].items()},
            dense_bytes=int(summary["bytes"]["dense"]),
            environment=_texts(summary.get("environment", {})),
            method=str(summary.get("method", "")),
            method_name=None if (name := summary.get("method_name")) is None else str(name),
            about=_texts(about),
            multiply_adds=None
            if (counts := summary.get("multiply_adds")) is None
            else (int(counts["dense"]), int(counts["sparse"])),
        )
        for figures in (outcome.dense, outcome.sparse):
            figures["validation"], figures["test"]
    return outcome


@contextlib.contextmanager
def _reporting_damage(file: Path, fix: str) -> Iterator[None]:
    """Raise an error on reading a value of a file as a :class:`~prunus.CheckpointError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{file} is damaged: {reason}. {fix}") from error


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in facts.items()}
