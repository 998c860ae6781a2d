"""What a user of the command sees: progress, live or as plain lines, and tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from prunus.bench import BenchReport
from prunus.export import ExportReport
from prunus.export.inspection import TensorDensity
from prunus.recipes.registry import Recipe
from prunus.recipes.run.progress import Epoch

__all__ = [
    "Watcher",
    "bench_sizes",
    "bench_table",
    "densities_table",
    "exported_table",
    "kinds_table",
    "recipes_table",
    "settings_table",
    "summary_table",
]

_GIVEN = "--data FOLDER"
"""What a recipe's data are called that the user gives."""


class Watcher:
    """Shows a run as it goes: a live line on a terminal, and a plain line per epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._metric = ""
        self._total = 0
        self._begun = 0.0
        self._done_before = 0

    def begin(self, phase: str, metric: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Start the phase's progress bar."""
        self.close()
        self._metric = metric
        self._total, self._done_before, self._begun = epochs, done, time.perf_counter()
        resumed = f", going on after epoch {done}" if done else ""
        self._console.print(f"[bold]{phase}[/bold]: {epochs} epochs{resumed}")
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}% {task.fields[left]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task(
                phase,
                total=epochs * steps_per_epoch,
                completed=done * steps_per_epoch,
                left="",
            )
            self._live.start()

    def step(self) -> None:
        """Move the bar by one step."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task)

    def epoch(self, epoch: Epoch) -> None:
        """Print the epoch's line."""
        each = (time.perf_counter() - self._begun) / (epoch.epoch - self._done_before)
        left = _duration(each * (self._total - epoch.epoch))
        width = len(str(self._total))
        parts = [
            f"epoch {epoch.epoch:>{width}}/{self._total}",
            f"loss {epoch.loss:.4f}",
            f"validation {self._metric} {epoch.validation:.4f}",
            *(f"{name} {value:.4g}" for name, value in epoch.more.items()),
        ]
        if epoch.phase == "prune":
            if epoch.floor is not None:
                sign = "≥" if epoch.validation >= epoch.floor else "<"
                parts.append(f"{sign} floor {epoch.floor:.4f}")
            parts.append(f"sparsity {epoch.sparsity:.4f}")
        parts.append(f"{left} left")
        self._console.print("  " + "  ".join(parts), highlight=False, soft_wrap=True)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, left=f"{left} left")

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Set the dense network beside the sparse one."""
    table = Table(title=f"{summary['recipe']}, seed {summary['seed']}", title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sparse", justify="right")
    metric = summary["metric"]["name"]
    for split in ("validation", "test"):
        values = (summary["dense"][split], summary["sparse"][split])
        table.add_row(f"{split} {metric}", *(f"{value:.4f}" for value in values))
    parameters, nonzero = summary["parameters"], summary["nonzero"]
    table.add_row("parameters", f"{parameters:,}", f"{parameters:,}")
    table.add_row("non-zero", f"{parameters:,}", f"{nonzero:,}")
    table.add_row("sparsity", "0.0000", f"{summary['sparsity']:.4f}")
    table.add_row("compression ratio", "1.0", f"{summary['compression_ratio']:.1f}")
    sizes, seconds = summary["bytes"], summary["seconds"]
    table.add_row("bytes on disk, zeros stored", f"{sizes['dense']:,}", f"{sizes['sparse']:,}")
    table.add_row("training", _duration(seconds["dense"]), f"+ {_duration(seconds['prune'])}")
    return table


def kinds_table(summary: Mapping[str, Any]) -> Table:
    """List where the remaining weights are, by kind of tensor."""
    table = Table()
    for column in ("where", "prunable", "non-zero", "density"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for kind, counts in summary["kinds"].items():
        prunable, nonzero = counts["prunable"], counts["nonzero"]
        table.add_row(kind, f"{prunable:,}", f"{nonzero:,}", f"{nonzero / prunable:.2%}")
    return table


def densities_table(tensors: Iterable[TensorDensity]) -> Table:
    """List tensors with their densities, and the sum of them."""
    rows = list(tensors)
    table = Table(show_footer=True)
    all_elements, all_nonzero = sum(r.numel for r in rows), sum(r.nonzero for r in rows)
    total = all_nonzero / all_elements if all_elements else 0.0
    ratio = f"ratio {all_elements / all_nonzero:.1f}" if all_nonzero else "all zero"
    table.add_column("tensor", footer="all", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("type")
    table.add_column("elements", justify="right", footer=f"{all_elements:,}")
    table.add_column("non-zero", justify="right", footer=f"{all_nonzero:,}")
    table.add_column("density", justify="right", footer=f"{total:.4%} ({ratio})")
    for row in rows:
        shape = "×".join(map(str, row.shape)) or "scalar"
        table.add_row(
            Text(row.name),
            shape,
            row.dtype,
            f"{row.numel:,}",
            f"{row.nonzero:,}",
            f"{row.density:.4%}",
        )
    return table


def exported_table(exported: ExportReport) -> Table:
    """Show how each tensor lies in a sparse file, and what the whole file takes."""
    table = Table(show_footer=True)
    table.add_column("tensor", footer="the file", overflow="fold")
    table.add_column("stored as", footer=f"{exported.source_bytes / exported.bytes:.1f}× smaller")
    table.add_column("bytes, all elements", justify="right", footer=f"{exported.source_bytes:,}")
    table.add_column("bytes", justify="right", footer=f"{exported.bytes:,}")
    for stored in exported.tensors:
        dense, own = f"{stored.dense_bytes:,}", f"{stored.stored_bytes:,}"
        table.add_row(Text(stored.name), stored.encoding, dense, own)
    if exported.bound_bytes:
        table.caption = (
            f"{exported.bytes / exported.bound_bytes:.3f} times what any file takes at least, "
            f"{exported.bound_bytes:,.0f} bytes, if the zeros lie at random"
        )
    return table


def bench_table(bench: BenchReport) -> Table:
    """Set the variants of a network below each other, medians and how many times faster."""
    table = Table()
    for column in ("batch", "threads", "network", "ms", "quartiles", "faster"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in bench.rows:
        for name, own in row.times.items():
            first = name == "dense"
            table.add_row(
                str(row.batch) if first else "",
                str(row.threads) if first else "",
                name,
                f"{own['median_ms']:.3g}",
                f"{own['quartile_1_ms']:.3g} to {own['quartile_3_ms']:.3g}",
                f"{row.times_faster[name]:.2f}×",
            )
        table.add_section()
    return table


def bench_sizes(bench: BenchReport) -> str:
    """Say how many parameters there are, and what they take on disk."""
    parameters, sizes = bench.parameters, bench.bytes
    compact = f", {parameters['compact']:,} without what is dead" if "compact" in parameters else ""
    bound = ""
    if sizes["bound"]:
        bound = (
            f", which is {sizes['sparse'] / sizes['bound']:.3f} times what any file takes at least "
            "if the zeros lie at random"
        )
    return (
        f"{parameters['dense']:,} parameters{compact}\n"
        f"{sizes['dense']:,.0f} bytes, {sizes['sparse']:,.0f} in a sparse file{bound}"
    )


def recipes_table(recipes: Iterable[Recipe]) -> Table:
    """List recipes."""
    table = Table()
    for column in ("recipe", "what it does", "data"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.summary, recipe.data or _GIVEN)
    return table


def settings_table(recipe: Recipe) -> Table:
    """List the settings of a recipe, and say what data it takes."""
    table = Table()
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("takes", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for row in recipe.config.rows():
        table.add_row(*map(Text, row))
    place = "data: " + " or ".join(filter(None, [recipe.data, recipe.columns and _GIVEN]))
    table.caption = f"{place}, of {recipe.columns}" if recipe.columns else place
    table.caption_justify = "left"
    return table


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
