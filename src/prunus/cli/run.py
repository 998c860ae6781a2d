"""The subcommand ``prunus run``."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from prunus.cli.screen import Screen
from prunus.cli.termination import termination
from prunus.errors import ArgumentError, PrunusError

if TYPE_CHECKING:
    from prunus.recipes.config import Config
    from prunus.recipes.recipe import Recipe
    from prunus.recipes.run.directory import RunDirectory

__all__ = ["run"]


class _Arguments(NamedTuple):
    """The arguments of a run, of which a resumed run restores those that are None."""

    data: str | None
    seed: int | None
    dense: str | None


class _Options(NamedTuple):
    """The options of a run that its settings do not record.

    Attributes:
        threads: The number of threads, or None.
        log: What epochs are logged for, or None.
        report: Whether to write a page about the run at the end.
    """

    threads: int | None
    log: Literal["tensorboard"] | None
    report: bool

    @property
    def arguments(self) -> list[str]:
        """The options as arguments of the command."""
        parts = [] if self.threads is None else ["--threads", str(self.threads)]
        parts += [] if self.log is None else ["--log", self.log]
        return parts + ["--report"] * self.report

    def threads_of(self, recipe: Recipe) -> int | None:
        """Return the number of threads of a recipe's run, or None for torch's own."""
        if self.threads is not None or "OMP_NUM_THREADS" in os.environ:
            return self.threads
        return recipe.threads


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set torch's number of threads, unless None, and restore it at the end."""
    import torch

    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def run(
    recipe: Annotated[
        str,
        typer.Argument(help="A name from `prunus recipes`, or the path of a Python file."),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="A folder or Hub name to use instead of the recipe's own data."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of weights, data order and validation split. Default: 0."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write to. Default: a new directory in runs/."),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Directory of another run with this recipe and seed, whose dense network to use "
            "instead of training one."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in --out, with its own settings."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="A name from `prunus methods`: penalty, score, allocation and growth to use "
            "instead of the recipe's. What the method leaves open, such as the strength of l2, "
            "stays the recipe's, and so does the schedule unless the method has a growth. --set "
            "may change any of it."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of threads. Default: that of the environment variable OMP_NUM_THREADS, "
            "else the recipe's, which is 1 for a small network, else torch's own.",
        ),
    ] = None,
    log: Annotated[
        Literal["tensorboard"] | None,
        typer.Option(help="Also log every epoch, into tensorboard/ of the run."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write a page about the run at the end: prunus report."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
) -> None:
    """Train a recipe: first a dense network, then a sparse one."""
    # From the start, because imports and data loading before the first step are slow.
    with termination() as stop:
        arguments = _Arguments(data, seed, None if dense is None else str(dense))
        options = _Options(threads, log, report)
        _run(recipe, arguments, out, method, set_ or [], options, resume=resume, stop=stop)


def _run(
    name: str,
    arguments: _Arguments,
    out: Path | None,
    method: str | None,
    settings: list[str],
    options: _Options,
    *,
    resume: bool,
    stop: Callable[[], bool],
) -> None:
    from prunus.recipes.registry import find_recipe
    from prunus.recipes.run.directory import RunDirectory

    recipe, seed = find_recipe(name), arguments.seed
    named = None if method is None else recipe.method(method)
    if seed is not None and not 0 <= seed < 2**63:
        raise ArgumentError(f"--seed must be at least 0 and below 2**63, but is {seed}")
    if resume and out is None:
        raise PrunusError("--resume needs --out: pass the directory of the run to resume")
    directory = RunDirectory(out if out is not None else _new_directory(recipe, seed or 0))
    config = recipe.config
    if resume:
        config, arguments = _restore(recipe, directory, arguments)
    screen = Screen()
    config = config.with_settings(settings, screen.message, method=named)
    with _threads(options.threads_of(recipe)):
        _train(recipe, config, directory, arguments, options, screen, resume=resume, stop=stop)


def _restore(
    recipe: Recipe, directory: RunDirectory, arguments: _Arguments
) -> tuple[Config, _Arguments]:
    """Return the settings of the run in a directory, and its arguments where none are passed."""
    identity = directory.read_config()
    if identity["recipe"] != recipe.name:
        raise PrunusError(
            f"{directory.path} holds a run of the recipe {identity['recipe']}, not {recipe.name}: "
            f"resume it with prunus run {identity['recipe']} --out ... --resume"
        )
    config = type(recipe.config).from_dict(identity["config"], directory.config_file)
    restored = _Arguments(
        *(identity[name] if value is None else value for name, value in arguments._asdict().items())
    )
    return config, restored


def _train(
    recipe: Recipe,
    config: Config,
    directory: RunDirectory,
    arguments: _Arguments,
    options: _Options,
    screen: Screen,
    *,
    resume: bool,
    stop: Callable[[], bool],
) -> None:
    from prunus.cli.progress import TerminalProgress
    from prunus.cli.tables import layer_types_table, summary_table
    from prunus.recipes.run.progress import Progress, ProgressGroup
    from prunus.recipes.run.tensorboard import TensorBoardLog
    from prunus.recipes.run.training import Stopped
    from prunus.recipes.run.training import run as run_recipe

    if options.report:
        from prunus.report import write_report  # before the training, in case its extra is missing
    board = None if options.log is None else TensorBoardLog(directory)
    terminal = TerminalProgress(screen)
    progress: Progress = terminal if board is None else ProgressGroup((terminal, board))
    try:
        summary = run_recipe(
            recipe,
            config,
            directory,
            progress,
            data=arguments.data,
            seed=arguments.seed or 0,
            dense=arguments.dense,
            resume=resume,
            stop=stop,
        )
        if board is not None:
            board.write_history_once(summary["metric"]["name"])
    except (KeyboardInterrupt, Stopped) as stopped:
        terminal.close()
        if directory.config_file.exists():
            reason = str(stopped) or "interrupted"
            words = ["prunus", "run", recipe.argument, "--out", str(directory.path), "--resume"]
            command = shlex.join([*words, *options.arguments])
            screen.message(f"{reason}; resume with: {command}")
        raise typer.Exit(143 if isinstance(stopped, Stopped) else 130) from None
    finally:
        terminal.close()
        if board is not None:
            board.close()
    screen.print(summary_table(summary))
    if len(summary["layer_types"]) > 1:
        screen.print(layer_types_table(summary))
    screen.message(f"written to {directory.path}")
    if board is not None:
        screen.message(f"for its curves: tensorboard --logdir {shlex.quote(str(board.folder))}")
    if options.report:
        page = write_report(directory.path)
        screen.message(f"a page about it, to open in a browser: {page}")
    else:
        screen.message(f"for a page about it: prunus report {shlex.quote(str(directory.path))}")


def _new_directory(recipe: Recipe, seed: int) -> Path:
    """Return the first directory in runs/ for a recipe and seed that does not exist yet."""

    def names() -> Iterator[str]:
        yield f"{recipe.stem}-seed{seed}"
        number = 2
        while True:
            yield f"{recipe.stem}-seed{seed}-{number}"
            number += 1

    paths = (Path("runs") / name for name in names())
    return next(path for path in paths if not path.exists())
