"""The section of a report about a run: its figures, tables and notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus._utils.digits import format_metrics, format_percent
from prunus._utils.durations import format_duration
from prunus._utils.sizes import compare_sizes
from prunus.constraint import Constraint
from prunus.export.inspection import TensorDensity
from prunus.recipes.run.progress import Epoch
from prunus.report import numbers
from prunus.report.content import KeyFigure, Table, setting_text
from prunus.report.figures.densities import tensor_densities_figure, type_densities_figure
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.heads import heads_figure
from prunus.report.figures.latencies import latencies_figure
from prunus.report.figures.losses import loss_curve
from prunus.report.figures.masks import density_maps, first_layer_images, input_map
from prunus.report.figures.sizes import sizes_figure
from prunus.report.figures.training import removals, returns, training_curve
from prunus.report.run_record import Outcome, RunRecord
from prunus.studies.tables import format_sparsity

__all__ = ["RunSection", "run_section"]

_MOST_ROWS = 400
"""Rows of the table of tensors; a page with all of a large network would be slow."""


@dataclass(frozen=True)
class RunSection:
    """What a page shows of a run.

    Attributes:
        title: Recipe and seed.
        subtitle: The method.
        path: The directory.
        notes: What a reader must know: an unfinished run, missing values.
        key_figures: The numbers at the top.
        metrics: The table of metrics; None while the run is not finished.
        training: The figures of the training.
        training_facts: Sentences on it.
        weights: The figures of what is left.
        tensors: The table of densities; None without weights.
        costs: The figures of size and latency.
        cost_facts: Sentences on them.
        settings: Names and values of the settings.
        command: The command that repeats the run.
        environment: Hardware and versions; empty where they are unknown.
    """

    template: ClassVar[str] = "run.html.jinja"

    title: str
    subtitle: str
    path: str
    notes: Sequence[str]
    key_figures: Sequence[KeyFigure]
    metrics: Table | None
    training: Sequence[Drawing]
    training_facts: Sequence[str]
    weights: Sequence[Drawing]
    tensors: Table | None
    costs: Sequence[Drawing]
    cost_facts: Sequence[str]
    settings: Sequence[tuple[str, str]]
    command: str
    environment: Sequence[tuple[str, str]]

    @property
    def drawings(self) -> list[Drawing]:
        """All figures, in the order of the page."""
        return [*self.training, *self.weights, *self.costs]


def run_section(run: RunRecord) -> RunSection:
    """Return the section about a run."""
    outcome = run.outcome
    tensors = [_counted(name, tensor) for name, tensor in run.weights.items()]
    environment = outcome.environment if outcome else {}
    return RunSection(
        title=run.title,
        subtitle=_subtitle(run),
        path=str(run.directory.path),
        notes=list(_notes(run)),
        key_figures=list(_key_figures(run, tensors)),
        metrics=None if outcome is None else _metrics(outcome),
        training=list(_training(run)),
        training_facts=list(_training_facts(run)),
        weights=list(_weights(run, tensors)),
        tensors=_tensor_table(tensors) if tensors else None,
        costs=list(_costs(run)),
        cost_facts=list(_cost_facts(run)),
        settings=_settings(run),
        command=run.command,
        environment=list(environment.items()),
    )


def _subtitle(run: RunRecord) -> str:
    if run.outcome is None:
        return "not finished"
    name = run.outcome.method_name
    return f"method {name}: {run.outcome.method}" if name else run.outcome.method


def _notes(run: RunRecord) -> Iterator[str]:
    if run.outcome is None:
        yield _progress_note(run)
    for name, values in (
        (f"validation {run.metric}", [epoch.validation for epoch in run.epochs]),
        ("loss", [epoch.loss for epoch in run.epochs]),
        ("validation loss", [epoch.validation_loss for epoch in run.epochs]),
    ):
        missing = [epoch for epoch, value in zip(run.epochs, values, strict=True) if not _ok(value)]
        if missing:
            first = missing[0]
            yield (
                f"The {name} is not a finite number in {_epochs(len(missing))}, first in epoch "
                f"{first.epoch} of the {_phase(first)}: the curve has a gap there."
            )


def _progress_note(run: RunRecord) -> str:
    resume = f"Resume it with: {run.resume_command}"
    if not run.epochs:
        return f"This run is not finished: no epoch is complete yet. {resume}"
    last = run.epochs[-1]
    total = run.settings.get("dense_epochs" if last.phase == "dense" else "epochs")
    of = f" of {total}" if isinstance(total, int) else ""
    return (
        f"This run is not finished: epoch {last.epoch}{of} of the {_phase(last)} is complete, and "
        f"the page shows the state after it. {resume}"
    )


def _phase(epoch: Epoch) -> str:
    return "dense training" if epoch.phase == "dense" else "pruning"


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _ok(value: float) -> bool:
    return math.isfinite(value)


def _key_figures(run: RunRecord, tensors: Sequence[TensorDensity]) -> Iterator[KeyFigure]:
    outcome = run.outcome
    if outcome is None:
        yield from _preliminary_figures(run)
        return
    dense, sparse = outcome.dense["test"], outcome.sparse["test"]
    yield KeyFigure(
        f"test {outcome.metric}",
        numbers.value(sparse),
        f"dense {numbers.value(dense)}, {numbers.change(dense, sparse)}",
    )
    yield KeyFigure(
        "compression ratio",
        f"{outcome.ratio:.1f}×",
        f"{outcome.nonzero:,} of {outcome.parameters:,} parameters are non-zero",
    )
    yield KeyFigure(
        "sparsity", format_sparsity(outcome.sparsity), "of the prunable weights removed"
    )
    if run.floor is not None:
        met = Constraint(run.floor, run.mode).met(outcome.sparse["validation"])
        yield KeyFigure(
            run.bound_name,
            numbers.value(run.floor),
            f"{'met' if met else 'not met'}: validation "
            f"{numbers.value(outcome.sparse['validation'])}",
        )


def _preliminary_figures(run: RunRecord) -> Iterator[KeyFigure]:
    if not run.epochs:
        return
    last = run.epochs[-1]
    yield KeyFigure(
        f"validation {run.metric}",
        numbers.value(last.validation),
        f"after epoch {last.epoch} of the {_phase(last)}",
    )
    yield KeyFigure("sparsity so far", format_sparsity(last.sparsity))
    if run.floor is not None:
        yield KeyFigure(run.bound_name, numbers.value(run.floor))


def _metrics(outcome: Outcome) -> Table:
    """Return the table of the dense and the sparse network's metrics."""
    rows = []
    for name, sparse in outcome.sparse.items():
        split, _, extra = name.partition("_")
        dense = outcome.dense.get(name, math.nan)
        rows.append(
            (
                f"{split} {extra.replace('_', ' ') or outcome.metric}",
                *(text.replace("-", "−") for text in format_metrics([dense, sparse])),
                numbers.change(dense, sparse),
            )
        )
    facts = " ".join(
        f"{name.replace('_', ' ').capitalize()}: {text}." for name, text in outcome.about.items()
    )
    better = "Larger" if outcome.mode == "max" else "Smaller"
    note = f"{better} values of {outcome.metric} are better. Each network read the test split once."
    return Table(("", "dense", "sparse", "change"), rows, f"{note} {facts}".strip())


def _training(run: RunRecord) -> Iterator[Drawing]:
    if run.epochs:
        yield training_curve(run.epochs, run.metric, run.bound_name, run.delivered)
        yield loss_curve(run.epochs)


def _training_facts(run: RunRecord) -> Iterator[str]:
    if places := removals(run.epochs):
        epochs = f"{_epochs(len(places))} of {len(run.epochs)}"
        yield f"Weights were removed in {epochs}."
    if back := returns(run.epochs):
        yield (
            f"The {run.bound_name} was out of reach in {_epochs(len(back))}, after which the "
            "pruner returned to the best state."
        )
    predicted = [epoch.predicted_cost for epoch in run.epochs if epoch.predicted_cost is not None]
    if costs := [cost for cost in predicted if _ok(cost)]:
        yield (
            "The removals were expected to raise the training loss by "
            f"{numbers.significant(sum(costs), 2)} altogether, to second order and without "
            "recovery."
        )
    if run.outcome is not None:
        seconds = run.outcome.seconds
        spent = [
            f"{name} {format_duration(seconds[phase])}"
            for phase, name in (("dense", "dense training"), ("prune", "pruning"))
            if phase in seconds
        ]
        if spent:
            yield f"Time: {', '.join(spent)}."


def _weights(run: RunRecord, tensors: Sequence[TensorDensity]) -> Iterator[Drawing]:
    if run.outcome is not None and len(run.outcome.layer_types) > 1:
        yield type_densities_figure(run.outcome.layer_types)
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    if not any(tensor.nonzero < tensor.numel for tensor in matrices):
        return
    yield tensor_densities_figure(matrices)
    weights = run.weights
    for drawing in (
        input_map(weights),
        first_layer_images(weights),
        density_maps(weights),
        heads_figure(weights, run.architecture),
    ):
        if drawing is not None:
            yield drawing


def _counted(name: str, tensor: torch.Tensor) -> TensorDensity:
    dtype = str(tensor.dtype).removeprefix("torch.")
    nonzero = int(torch.count_nonzero(tensor))
    return TensorDensity(name, tuple(tensor.shape), dtype, tensor.numel(), nonzero)


def _tensor_table(tensors: Sequence[TensorDensity]) -> Table:
    rows = [
        (
            tensor.name,
            "×".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.numel:,}",
            f"{tensor.nonzero:,}",
            format_percent(tensor.density),
        )
        for tensor in tensors[:_MOST_ROWS]
    ]
    more = len(tensors) - len(rows)
    note = f"{more:,} more tensors are listed by prunus inspect." if more else ""
    return Table(("tensor", "shape", "elements", "non-zero", "density"), rows, note)


def _costs(run: RunRecord) -> Iterator[Drawing]:
    if run.outcome is not None and (exported := run.sparse_file) is not None:
        files: dict[str, float] = {
            "sparse, zeros stored": exported.source_bytes,
            "sparse file": exported.bytes,
        }
        files |= {
            name: size
            for name, size in run.exported_files.items()
            if name != "model.sparse.safetensors"
        }
        yield sizes_figure(run.outcome.dense_bytes, files, exported.bound_bytes)
    if run.latencies is not None and run.latencies.rows:
        yield latencies_figure(run.latencies)


def _cost_facts(run: RunRecord) -> Iterator[str]:
    exported = None if run.outcome is None else run.sparse_file
    if exported is not None and exported.bound_bytes:
        quotient = exported.bytes / exported.bound_bytes
        yield f"The sparse file is {quotient:.3f} times the lower bound."
    if run.outcome is not None and run.outcome.multiply_adds is not None:
        dense, sparse = run.outcome.multiply_adds
        fewer = compare_sizes(sparse, dense).replace("smaller", "fewer")
        yield (
            f"An example takes {dense:,} multiply-adds in the dense network, and {sparse:,} with "
            f"the weights that are left: {fewer}."
        )
    if run.latencies is None:
        if run.outcome is not None:
            yield f"Latency was not measured: prunus bench {run.directory.path} measures it."
        return
    facts = run.latency_facts
    where = [facts.get("processor", ""), f"torch {facts.get('torch', '')}", facts["date"][:10]]
    advice = run.latencies.recommend(run.directory.path)
    yield f"Latency: {advice} ({', '.join(filter(None, where))})."
    for name, reason in run.latencies.excluded.items():
        yield f"{name} was not timed: {reason}."


def _settings(run: RunRecord) -> list[tuple[str, str]]:
    """Return names and values of the settings, with the recipe's own where they differ."""
    rows = [("recipe", str(run.identity["recipe"])), ("seed", str(run.identity["seed"]))]
    rows += [
        (name, str(run.identity[name]))
        for name in ("data", "dense")
        if run.identity[name] is not None
    ]
    for name, value in run.settings.items():
        text = setting_text(value)
        if name in run.changed_settings and name in run.defaults:
            text += f" (the recipe's: {setting_text(run.defaults[name])})"
        rows.append((name, text))
    return rows
