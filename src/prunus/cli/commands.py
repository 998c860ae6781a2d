"""The subcommands on recipes, methods and files: all but ``run``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prunus.cli.screen import Screen
from prunus.errors import PrunusError

__all__ = ["bench", "export", "inspect", "methods", "new", "recipes", "sensitivity"]

_EXAMPLES = 32
"""The number of random batches to calibrate by without training inputs."""

_Network = Annotated[Path, typer.Argument(help="A safetensors file, or the directory of a run.")]
_Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="The recipe that trained the network. Default: the one that the run names; a Python "
        "file is then run from its own place, if it has not changed since.",
    ),
]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The recipe whose settings to show: a name or a Python file.", show_default=False
        ),
    ] = None,
) -> None:
    """List the recipes, or the settings of one."""
    from prunus.cli.tables import recipes_table, settings_table
    from prunus.recipes.custom.recipes import installed_recipes
    from prunus.recipes.registry import RECIPES, find_recipe

    if name is None:
        found, notes = [*RECIPES.values()], []
        for other, point in installed_recipes().items():
            if other in RECIPES:
                notes.append(
                    f"{point.value} has the name of a built-in recipe, {other}, and is hidden"
                )
                continue
            try:
                found.append(find_recipe(other))
            except PrunusError as error:
                notes.append(str(error))
        screen = Screen()
        screen.print(recipes_table(found))
        for note in notes:
            screen.message(note)
    else:
        Screen().print(settings_table(find_recipe(name)))


def new(
    path: Annotated[Path, typer.Argument(help="The file to write, such as my_recipe.py.")],
) -> None:
    """Write a recipe file to start from, which runs as it is."""
    from prunus.recipes.custom.new import write_recipe

    file, screen = write_recipe(path), Screen()
    screen.message(f"written to {file}")
    screen.message(f"try it: {shlex.join(['prunus', 'run', str(file)])}")


def methods() -> None:
    """List the methods that --method accepts, with their sources."""
    from prunus.cli.tables import methods_table
    from prunus.methods import methods as named

    Screen().print(methods_table(named.values()))


def inspect(path: _Network) -> None:
    """Show shape, non-zero elements and density of every tensor, and the compression ratio."""
    from prunus.cli.tables import densities_facts, densities_table, multiply_adds_facts
    from prunus.export.inspection import tensor_densities
    from prunus.export.paths import model_file
    from prunus.recipes.run.directory import RunDirectory
    from prunus.recipes.run.loading import file_metadata

    file, screen = model_file(path), Screen()
    rows = list(tensor_densities(file))
    # The multiply-adds depend on the graph, which is not in a file.
    directory = RunDirectory(path)
    summary = directory.read_summary() if directory.config_file.is_file() else None
    screen.message(f"{file}: {_kind(file_metadata(file))}, {file.stat().st_size:,} bytes")
    screen.print_unbroken(densities_table(rows))
    screen.message(densities_facts(rows))
    if summary is not None and (counts := summary.get("multiply_adds")):
        screen.message(multiply_adds_facts(counts))


def _kind(metadata: Mapping[str, Any]) -> str:
    """Return what a file holds, as its metadata tell."""
    from prunus.export.sparse_format import COMPACT_KEY, CSR_KEY, RECIPE_KEY

    kind = "a network"
    if COMPACT_KEY in metadata:
        kind = "a compact network, whose dead units are removed and not counted"
    elif CSR_KEY in metadata:
        kind = "the arrays of compressed sparse rows"
    recipe = metadata.get(RECIPE_KEY)
    return f"{kind}, of the recipe {recipe}" if isinstance(recipe, str) else kind


def export(
    path: _Network,
    to: Annotated[
        Literal["sparse", "compact", "onnx", "csr"],
        typer.Option(
            help='Format. "sparse": without zeros; "compact": without dead units; "onnx"; "csr": '
            "compressed sparse rows."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: beside the model, named after the format."),
    ] = None,
    dtype: Annotated[
        Literal["int8"] | None,
        typer.Option(
            help='"int8": weights as 8-bit integers with a scale for each row, in ONNX also '
            "activations, whose scales come from training inputs of the run. Default: as they are.",
        ),
    ] = None,
    recipe: _Recipe = None,
) -> None:
    """Write a network in another format: smaller, or for other runtimes."""
    from prunus.cli.tables import exported_table
    from prunus.export import to_csr, to_sparse
    from prunus.export.paths import model_file

    file, screen = model_file(path), Screen()
    if to == "csr" and dtype is not None:
        raise PrunusError(
            "csr holds weights in their own type: leave out --dtype, or choose --to sparse, compact"
            " or onnx"
        )
    if to == "sparse" or to == "csr":
        exported = to_sparse(file, out, dtype=dtype) if to == "sparse" else to_csr(file, out)
        screen.print(exported_table(exported))
        written = exported.path
    else:
        written = _export_network(file, to, out, dtype, recipe, screen)
    screen.message(f"written to {written}")


def _export_network(
    file: Path,
    to: Literal["compact", "onnx"],
    out: Path | None,
    dtype: Literal["int8"] | None,
    recipe: str | None,
    screen: Screen,
) -> Path:
    from prunus.compaction import compact, save_compact
    from prunus.export import to_onnx
    from prunus.export.paths import output_path
    from prunus.export.sparse_format import COMPACT_KEY, RECIPE_KEY
    from prunus.recipes.run.loading import calibration_inputs, file_metadata, load_trained

    form = to if dtype is None else f"{dtype}.onnx" if to == "onnx" else f"{to}.{dtype}"
    metadata, out = file_metadata(file), output_path(file, out, form)
    if to == "compact" and COMPACT_KEY in metadata:
        raise PrunusError(f"{file} is compact already: export the run that it came from")
    network = load_trained(file, recipe, screen.message)
    model, example = network.model, network.example_inputs(2)
    try:
        small, report = compact(model, example, return_report=True)
    except PrunusError as error:
        if to == "compact":
            raise
        screen.message(f"dead units are kept: {error}")
    else:
        model = small
        before, after = report.parameters_before, report.parameters
        screen.message(f"{before:,} parameters, {after:,} without dead units")
        if to == "compact":
            facts = {RECIPE_KEY: metadata[RECIPE_KEY]}
            save_compact(small, report, out, dtype=dtype, metadata=facts)
            return out
    calibration = None
    if dtype is not None:
        calibration = calibration_inputs(file, recipe)
        if not calibration:
            calibration = [network.example_inputs(2) for _ in range(_EXAMPLES)]
            screen.message(
                "the scales of activations come from the recipe's example inputs, because the file "
                "is not in the directory of its run, or the recipe has no inputs to calibrate by"
            )
    written = to_onnx(model, example, out, dtype=dtype, calibration=calibration)
    batches = "of any size" if written.any_batch else "of two"
    integers = f", {written.int8_weights:,} weights in int8" if dtype is not None else ""
    screen.message(
        f"{written.bytes:,} bytes{integers}, for batches {batches}; in onnxruntime no output "
        f"differs by more than {written.error:.1g} of the largest"
    )
    return out


def bench(
    path: _Network,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch size; may be repeated. Default: 1 and 64."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Number of threads; may be repeated. Default: 1 and torch's number of threads.",
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME;NAME;...",
            help="Variants to time beside the dense network, separated by semicolons. Default: "
            "all that can be built here.",
        ),
    ] = None,
    metric: Annotated[
        bool,
        typer.Option(
            "--metric",
            help="Measure the validation metric of the run's network in bfloat16 and int8 too; "
            "one that is within 0.2 percent may be recommended.",
        ),
    ] = False,
    recipe: _Recipe = None,
) -> None:
    """Time a network dense, compact, sparse, in onnxruntime, compiled, and in bfloat16 and int8.

    For the directory of a run, the timings are written to its bench.json, for `prunus report`.
    """
    from prunus.bench import MatrixLayers
    from prunus.bench import bench as time_network
    from prunus.cli.tables import bench_sizes, bench_table
    from prunus.export.paths import model_file
    from prunus.export.sparse_format import CSR_KEY, RECIPE_KEY
    from prunus.export.sparse_reader import load_sparse
    from prunus.recipes.run.directory import RunDirectory
    from prunus.recipes.run.loading import file_metadata, load_dense, load_trained
    from prunus.recipes.tasks.exportable import ExportableNetwork

    file, screen = model_file(path), Screen()
    named = bool({RECIPE_KEY, CSR_KEY} & file_metadata(file).keys())
    if named:
        network = load_trained(file, recipe, screen.message)
    else:
        matrices = MatrixLayers(load_sparse(file))
        network = ExportableNetwork(matrices, matrices.example)
        screen.message(
            f"{file} does not name its recipe, so each of its matrices is timed by itself. To time "
            "the whole network, call prunus.bench.bench(model, example) in Python"
        )
    validation: dict[str, Any] = {}
    if metric:
        _, task, mode = load_dense(path, recipe, screen.message)
        validation = {
            "evaluate": lambda model: task.validate(model).metric,
            "mode": mode,
            "calibration": task.calibration_inputs(),
        }
    report = time_network(
        network.model,
        network.example_inputs,
        batches=batch or (1, 64),
        threads=threads or (),
        progress=screen.message,
        variants=None if variants is None else [name.strip() for name in variants.split(";")],
        **validation,
    )
    screen.print(bench_table(report))
    screen.message(bench_sizes(report))
    for name, reason in report.excluded.items():
        screen.message(f"{name} excluded: {reason}")
    screen.message(report.recommend(path if named else None))
    directory = RunDirectory(path)
    if directory.config_file.exists():
        directory.write_latencies(report.as_dict())
        screen.message(f"written to {directory.bench_file}")


def sensitivity(
    path: Annotated[Path, typer.Argument(help="The directory of a run.")],
    sparsities: Annotated[
        str, typer.Option(metavar="S,S,...", help="Sparsities of a tensor, from 0 to 1.")
    ] = "0.5,0.7,0.8,0.9,0.95",
    csv: Annotated[
        Path | None, typer.Option(help="File to write as a table with a row for each measurement.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="File to write as a heat map, such as sensitivity.svg or .png."),
    ] = None,
    recipe: _Recipe = None,
) -> None:
    """Measure the dense network of a run on the validation data, with one sparse tensor at a time.

    Nothing is trained. The weights with the smallest magnitudes are set to zero.
    """
    from rich.text import Text

    from prunus.recipes.run.loading import load_dense
    from prunus.sensitivity import sensitivity as measure

    if plot is not None:
        from prunus.report import plot_sensitivity  # before the work, if its extra is missing
        from prunus.report.figures.drawing import check_figure_file, save_figure

        check_figure_file(plot)
    fractions = _numbers("--sparsities", sparsities)
    screen = Screen()
    network, task, _ = load_dense(path, recipe, screen.message)
    found = measure(network, lambda: task.validate(network).metric, fractions)
    screen.print(Text(f"validation {task.metric}: {found}"), soft_wrap=True)
    if csv is not None:
        found.to_csv(csv)
        screen.message(f"written to {csv}")
    if plot is not None:
        save_figure(plot_sensitivity(found, metric=task.metric), plot)
        screen.message(f"written to {plot}")


def _numbers(option: str, text: str) -> list[float]:
    """Return numbers that are separated by commas.

    Raises:
        PrunusError: A part is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PrunusError(
            f"{option} must be numbers separated by commas, such as 0.5,0.9, but is {text!r}"
        ) from error
