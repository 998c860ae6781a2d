"""The tables that the command prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from prunus._utils.digits import format_metrics, format_percent
from prunus._utils.durations import format_duration
from prunus._utils.sizes import compare_sizes
from prunus.bench import KINDS, BenchReport
from prunus.export import ExportReport
from prunus.export.inspection import TensorDensity
from prunus.methods import Method
from prunus.recipes.recipe import Recipe
from prunus.studies import StudyTable

__all__ = [
    "bench_sizes",
    "bench_table",
    "densities_facts",
    "densities_table",
    "exported_table",
    "layer_types_table",
    "methods_table",
    "multiply_adds_facts",
    "recipes_table",
    "settings_table",
    "study_table",
    "summary_table",
]

_DATA_OPTION = "--data FOLDER"
"""The data of a recipe without default data."""


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return a table of the dense network beside the sparse one."""
    title = f"{summary['recipe']}, seed {summary['seed']}"
    if name := summary.get("method_name"):  # older summaries have none
        title += f", method {name}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sparse", justify="right")
    metric = summary["metric"]["name"]
    tested = "test_split" not in summary["metric"]
    for split in ("validation", "test") if tested else ("validation",):
        values = (summary["dense"][split], summary["sparse"][split])
        table.add_row(f"{split} {metric}", *format_metrics(values))
    parameters, nonzero = summary["parameters"], summary["nonzero"]
    table.add_row("parameters", f"{parameters:,}", f"{parameters:,}")
    table.add_row("non-zero", f"{parameters:,}", f"{nonzero:,}")
    table.add_row("sparsity", "0.0000", f"{summary['sparsity']:.4f}")
    table.add_row("compression ratio", "1.0", f"{summary['compression_ratio']:.1f}")
    if counts := summary.get("multiply_adds"):  # older summaries have none
        values = (counts["dense"], counts["sparse"])
        table.add_row("multiply-adds of an example", *(f"{value:,}" for value in values))
    sizes, seconds = summary["bytes"], summary["seconds"]
    table.add_row("bytes on disk, zeros stored", f"{sizes['dense']:,}", f"{sizes['sparse']:,}")
    table.add_row(
        "training", format_duration(seconds["dense"]), f"+ {format_duration(seconds['prune'])}"
    )
    return table


def layer_types_table(summary: Mapping[str, Any]) -> Table:
    """Return a table of prunable and non-zero weights by layer type."""
    table = Table()
    for column in ("layer type", "prunable", "non-zero", "density"):
        table.add_column(column, justify="left" if column == "layer type" else "right")
    for layer_type, counts in summary["layer_types"].items():
        prunable, nonzero = counts["prunable"], counts["nonzero"]
        table.add_row(layer_type, f"{prunable:,}", f"{nonzero:,}", f"{nonzero / prunable:.2%}")
    return table


def densities_table(tensors: Iterable[TensorDensity]) -> Table:
    """Return a table of tensors with their densities, and the total of the parameters."""
    rows = list(tensors)
    counted = [row for row in rows if row.is_parameter]
    elements, nonzero = sum(r.numel for r in counted), sum(r.nonzero for r in counted)
    types = {row.dtype for row in rows}
    table = Table(
        show_footer=True, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("tensor", footer="parameters", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    if len(types) > 1:
        table.add_column("type")
    table.add_column("elements", justify="right", footer=f"{elements:,}")
    table.add_column("non-zero", justify="right", footer=f"{nonzero:,}")
    total = format_percent(nonzero / elements if elements else 0.0)
    table.add_column("density", justify="right", footer=total)
    for row in rows:
        table.add_row(
            Text(row.name),
            "×".join(map(str, row.shape)) or "scalar",
            *([row.dtype] if len(types) > 1 else []),
            f"{row.numel:,}",
            f"{row.nonzero:,}",
            format_percent(row.density) if row.is_parameter else "buffer",
        )
    return table


def densities_facts(tensors: Iterable[TensorDensity]) -> str:
    """Return the compression ratio of a file's tensors, and what is not counted, in a sentence."""
    rows = list(tensors)
    counted = [row for row in rows if row.is_parameter]
    elements, nonzero = sum(r.numel for r in counted), sum(r.nonzero for r in counted)
    ratio = f"{elements / nonzero:.1f}" if nonzero else "infinite"
    text = f"compression ratio {ratio}: {elements:,} parameters, of which {nonzero:,} are non-zero"
    buffers = sum(row.numel for row in rows) - elements
    return text + (f"; {buffers:,} elements of buffers are not counted" if buffers else "")


def multiply_adds_facts(counts: Mapping[str, int]) -> str:
    """Return the multiply-adds of an example in a sentence."""
    dense, sparse = counts["dense"], counts["sparse"]
    fewer = compare_sizes(sparse, dense).replace("smaller", "fewer")
    return f"multiply-adds of an example: {sparse:,} of {dense:,} ({fewer})"


def exported_table(exported: ExportReport) -> Table:
    """Return a table of the encodings and sizes of tensors in a sparse file, and the total."""
    table = Table(show_footer=True)
    table.add_column("tensor", footer="the file", overflow="fold")
    table.add_column("stored as", footer=compare_sizes(exported.bytes, exported.source_bytes))
    table.add_column("bytes, all elements", justify="right", footer=f"{exported.source_bytes:,}")
    table.add_column("bytes", justify="right", footer=f"{exported.bytes:,}")
    for stored in exported.tensors:
        sizes = (f"{stored.dense_bytes:,}", f"{stored.stored_bytes:,}")
        table.add_row(Text(stored.name), stored.stored_as, *sizes)
    if exported.bound_bytes:
        table.caption = (
            f"{exported.bytes / exported.bound_bytes:.3f} times the lower bound of any file if the "
            f"zeros are at random places, {exported.bound_bytes:,.0f} bytes"
        )
    return table


def _plain_table() -> Table:
    """Return an empty table without lines between columns."""
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def bench_table(bench: BenchReport) -> Table:
    """Return a table of the variants of a network: times, speed-up, difference, and metric."""
    table = _plain_table()
    names = ["network", "ms", "quartiles", "faster", "off by"]
    for column in (*names, *(["metric"] if bench.metrics else [])):
        justify: JustifyMethod = "left" if column == "network" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in bench.rows:
        table.add_row(f"batch {row.batch}, {row.threads} thread{'s' * (row.threads > 1)}")
        for name, times in row.times.items():
            table.add_row(
                f"  {name}",
                f"{times['median_ms']:.3g}",
                f"{times['quartile_1_ms']:.3g} to {times['quartile_3_ms']:.3g}",
                f"{row.times_faster[name]:.2f}×",
                "" if name == "dense" else f"{row.errors[name]:.1g}",
                *([_metric(bench, name)] if bench.metrics else []),
            )
        table.add_section()
    return table


def _metric(bench: BenchReport, name: str) -> str:
    """Return the metric of a variant, which is the dense network's if the outputs are the same."""
    known = "dense" if name == "dense" or KINDS[name].exact else name
    return f"{bench.metrics[known]:.6g}" if known in bench.metrics else ""


def bench_sizes(bench: BenchReport) -> str:
    """Return the numbers of parameters and the sizes on disk, in words."""
    parameters, sizes = bench.parameters, bench.bytes
    compact = f", {parameters['compact']:,} without dead units" if "compact" in parameters else ""
    bound = ""
    if sizes["bound"]:
        bound = (
            f", which is {sizes['sparse'] / sizes['bound']:.3f} times the lower bound of any file "
            "if the zeros are at random places"
        )
    return (
        f"{parameters['dense']:,} parameters{compact}\n"
        f"{sizes['dense']:,.0f} bytes, {sizes['sparse']:,.0f} in a sparse file{bound}"
    )


def recipes_table(recipes: Iterable[Recipe]) -> Table:
    """Return a table of recipes."""
    table = Table()
    for column in ("recipe", "description", "data"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.summary, recipe.data or _DATA_OPTION)
    return table


def methods_table(methods: Iterable[Method]) -> Table:
    """Return a table of methods."""
    table = Table()
    for column in ("method", "description", "source"):
        table.add_column(column, overflow="fold")
    for method in methods:
        table.add_row(method.name, method.summary, method.source)
    return table


def settings_table(recipe: Recipe) -> Table:
    """Return a table of the settings of a recipe, with the data that it accepts."""
    table = Table()
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("accepts", overflow="fold")
    table.add_column("description", overflow="fold")
    for row in recipe.config.rows():
        table.add_row(*map(Text, row))
    place = "data: " + " or ".join(filter(None, [recipe.data, recipe.columns and _DATA_OPTION]))
    table.caption = f"{place}, with {recipe.columns}" if recipe.columns else place
    table.caption_justify = "left"
    return table


def study_table(results: StudyTable) -> Table:
    """Return a table of a study, with a section for each ratio."""
    # Narrow, so that seven columns fit a terminal of 80.
    table = _plain_table()
    for place, title in enumerate(results.header):
        table.add_column(title, justify="right" if place else "left")
    for before, row in itertools.pairwise([None, *results.cells]):
        assert row is not None
        if before is not None and before[1] != row[1]:
            table.add_section()
        table.add_row(*map(Text, row))
    return table
