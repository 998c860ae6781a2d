"""The command ``prunus``: ``recipes``, ``run``, ``inspect``, ``export`` and ``bench``.

It exits with 0 when all went well, 2 after a mistake of the user's (one message, no traceback), 1
after a failure of its own, 130 when interrupted, and 143 when it was asked to terminate, has
finished the step at hand and saved.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from prunus._version import VERSION
from prunus.errors import PrunusError

try:
    import typer
    from rich.console import Console
except ImportError as error:  # pragma: no cover - shown to users who installed the bare library
    print(
        f"the prunus command needs the 'cli' extra: pip install 'prunus[cli]' ({error})",
        file=sys.stderr,
    )
    sys.exit(2)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train PyTorch networks into sparse ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Train PyTorch networks into sparse ones."""
    if version:
        print(VERSION)
        raise typer.Exit


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show the settings of this one.", show_default=False)
    ] = None,
) -> None:
    """List the recipes, or the settings of one."""
    from prunus.cli.terminal import recipes_table, settings_table
    from prunus.recipes.registry import RECIPES, find_recipe

    table = recipes_table(RECIPES.values()) if name is None else settings_table(find_recipe(name))
    _Screen().print(table)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A name from `prunus recipes`.")],
    data: Annotated[
        str | None,
        typer.Option(help="A folder or Hub name to take the data from, in place of the recipe's."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of weights, data order and validation split. Default: 0."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where everything is written. Default: a new directory in runs/."),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="The directory of another run of this recipe and seed, to take its dense network."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run that --out holds, by its own settings."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
) -> None:
    """Train a recipe: first dense, then sparse."""
    # From the first moment, for what is slow comes before the first step: imports and data.
    with _termination() as stop:
        _run(recipe, data, seed, out, dense, resume, set_ or [], stop)


def _run(
    recipe: str,
    data: str | None,
    seed: int | None,
    out: Path | None,
    dense: Path | None,
    resume: bool,
    settings: list[str],
    stop: Callable[[], bool],
) -> None:
    from prunus.cli.terminal import Watcher, kinds_table, summary_table
    from prunus.recipes.registry import find_recipe
    from prunus.recipes.run.directory import RunDirectory
    from prunus.recipes.run.training import Stopped
    from prunus.recipes.run.training import run as run_recipe

    chosen = find_recipe(recipe)
    if seed is not None and not 0 <= seed < 2**63:
        raise PrunusError(f"--seed must be 0 or above and below 2**63, but is {seed}")
    if resume and out is None:
        raise PrunusError("--resume needs --out: which run shall go on?")
    directory = RunDirectory(out if out is not None else _fresh(Path("runs"), recipe, seed or 0))
    config = chosen.config
    if resume:
        held = directory.read_config()
        if held["recipe"] != recipe:
            raise PrunusError(
                f"{directory.path} holds a run of the recipe {held['recipe']}, not {recipe}: "
                f"prunus run {held['recipe']} --out ... --resume goes on with it"
            )
        config = type(config).from_dict(held["config"], directory.config)
        seed = held["seed"] if seed is None else seed
        data = held["data"] if data is None else data
        dense = Path(held["dense"]) if dense is None and held["dense"] else dense
    config = config.with_settings(settings)
    console = _Screen()
    watcher = Watcher(console)
    try:
        summary = run_recipe(
            chosen,
            config,
            directory,
            watcher,
            data=data,
            seed=seed or 0,
            dense=None if dense is None else str(dense),
            resume=resume,
            stop=stop,
        )
    except (KeyboardInterrupt, Stopped) as ended:
        watcher.close()
        if directory.config.exists():
            where = shlex.quote(str(directory.path))
            how = str(ended) or "interrupted"
            watcher.say(f"{how}; prunus run {recipe} --out {where} --resume goes on")
        raise typer.Exit(143 if isinstance(ended, Stopped) else 130) from None
    finally:
        watcher.close()
    console.print(summary_table(summary))
    if len(summary["kinds"]) > 1:
        console.print(kinds_table(summary))
    watcher.say(f"written to {directory.path}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A safetensors file, or the directory of a run.")],
) -> None:
    """Show shape, non-zero elements and density of every tensor."""
    from prunus.cli.terminal import densities_table
    from prunus.export.inspection import tensor_densities
    from prunus.export.paths import model_file

    file = model_file(path)
    console = _Screen()
    table = densities_table(tensor_densities(file))
    _say(console, str(file))
    console.print(table)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A safetensors file, or the directory of a run.")],
    to: Annotated[
        Literal["sparse", "compact", "onnx", "csr"],
        typer.Option(
            help="The form: a file without zeros; a smaller network without what is dead; that for "
            "ONNX runtimes; compressed sparse rows."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write. Default: beside the model, by the form's name."),
    ] = None,
) -> None:
    """Write a network in another form: smaller, or for other runtimes."""
    from prunus.cli.terminal import exported_table
    from prunus.export import to_csr, to_sparse
    from prunus.export.paths import model_file

    file, console = model_file(path), _Screen()
    if to == "sparse" or to == "csr":
        exported = (to_sparse if to == "sparse" else to_csr)(file, out)
        console.print(exported_table(exported))
        written = exported.path
    else:
        written = _export_network(file, to, out, console)
    _say(console, f"written to {written}")


def _export_network(
    file: Path, to: Literal["compact", "onnx"], out: Path | None, console: _Screen
) -> Path:
    from prunus.compaction import compact, save_compact
    from prunus.export import to_onnx
    from prunus.export.paths import output_path
    from prunus.recipes.run.loading import file_metadata, load_trained

    said, out = file_metadata(file), output_path(file, out, to)
    if to == "compact" and "compact" in said:
        raise PrunusError(f"{file} is compact already: export the run that it came from")
    network = load_trained(file)
    model, example = network.model, network.example_inputs(2)
    try:
        small, report = compact(model, example, return_report=True)
    except PrunusError as refusal:
        if to == "compact":
            raise
        _say(console, f"{refusal}: what is dead stays")
    else:
        model = small
        before, after = report.parameters_before, report.parameters
        _say(console, f"{before:,} parameters, {after:,} without what is dead")
        if to == "compact":
            save_compact(small, report, out, metadata={"recipe": said["recipe"]})
            return out
    written = to_onnx(model, example, out)
    batches = "of any size" if written.any_batch else "of two"
    _say(
        console,
        f"{written.bytes:,} bytes, for batches {batches}; in onnxruntime no output is off by more "
        f"than {written.error:.1g} of the largest",
    )
    return out


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(help="A safetensors file, or the directory of a run.")],
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Inputs at a time; may be repeated. Default: 1 and 64."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="To compute with; may be repeated. Default: 1 and all."),
    ] = None,
) -> None:
    """Time a network dense, compact, with sparse layers and in onnxruntime."""
    from prunus.bench import MatrixLayers
    from prunus.bench import bench as time_network
    from prunus.cli.terminal import bench_sizes, bench_table
    from prunus.export.paths import model_file
    from prunus.export.sparse_reader import load_sparse
    from prunus.recipes.run.loading import file_metadata, load_trained
    from prunus.recipes.tasks.exportable import ExportableNetwork

    file, console = model_file(path), _Screen()
    said = file_metadata(file)
    if not {"recipe", "csr"} & said.keys():
        matrices = MatrixLayers(load_sparse(file))
        network = ExportableNetwork(matrices, matrices.example)
        _say(
            console,
            f"{file} does not say of which network it is: its matrices are timed by themselves",
        )
    else:
        network = load_trained(file)
    done = time_network(
        network.model,
        network.example_inputs,
        batches=batch or (1, 64),
        threads=threads or (),
        progress=lambda message: _say(console, message),
    )
    console.print(bench_table(done))
    _say(console, bench_sizes(done))
    for name, reason in done.excluded.items():
        _say(console, f"{name} excluded: {reason}")
    _say(console, done.recommendation)


def _say(console: _Screen, message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)


class _Screen(Console):
    """Shows things, and tells the user if that fails, as it does for a log on a full disk."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            _give_up(sys.stdout)
            raise PrunusError(
                f"cannot write to the standard output: {error.strerror or error}. What was written "
                "before is untouched; make room or send the output elsewhere, and go on with a run "
                "by --resume"
            ) from error


def _give_up(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, or it would fail again when Python ends."""
    with contextlib.suppress(OSError):  # it may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; a second one kills as ever."""
    came = threading.Event()

    def note(*_: object) -> None:
        came.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _fresh(parent: Path, recipe: str, seed: int) -> Path:
    """Return the first directory of its kind that does not exist yet."""

    def names() -> Iterator[str]:
        yield f"{recipe}-seed{seed}"
        number = 2
        while True:
            yield f"{recipe}-seed{seed}-{number}"
            number += 1

    return next(parent / name for name in names() if not (parent / name).exists())


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where a letter cannot be shown another is, rather than that a run ends for it.
            stream.reconfigure(errors="replace")
    try:
        app()
    except PrunusError as error:
        try:
            Console(stderr=True).print(
                f"[bold red]error:[/bold red] {_escaped(error)}", soft_wrap=True, highlight=False
            )
        except OSError:  # nothing can be said
            _give_up(sys.stderr)
        sys.exit(2)


def _escaped(error: PrunusError) -> str:
    from rich.markup import escape

    return escape(str(error))
