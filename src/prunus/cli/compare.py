"""The subcommand ``prunus compare``."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import typer

from prunus._utils.checks import raise_problems
from prunus.cli.screen import Screen
from prunus.cli.termination import termination
from prunus.errors import ArgumentError, PrunusError, unknown_name

if TYPE_CHECKING:
    from prunus.cli.study_progress import TerminalStudyProgress
    from prunus.studies import Cell, Study
    from prunus.studies.directory import StudyDirectory
    from prunus.studies.executors import Executor
    from prunus.studies.plan import Request
    from prunus.studies.progress import Failure, StudyStatus

__all__ = ["compare"]

Format = Literal["table", "markdown", "csv"]

_T = TypeVar("_T", int, float, str)


class _Options(NamedTuple):
    """The options on where runs are started."""

    jobs: int | None
    executor: Literal["local", "slurm"]
    executor_options: list[str]
    log: Literal["tensorboard"] | None

    def build(self, directory: StudyDirectory, study: Study) -> Executor:
        """Return the executor."""
        from prunus.studies.executors import LocalExecutor
        from prunus.studies.queued_executor import slurm_executor

        if self.executor == "local":
            return LocalExecutor(self.jobs or 1, study.threads)
        options = {
            key: value
            for key, _, value in (option.partition("=") for option in self.executor_options)
        }
        jobs = self.jobs or len(study.runs)
        return slurm_executor(directory.submissions, options, jobs=jobs, threads=study.threads)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the options."""
        for option in self.executor_options:
            if self.executor == "local":
                yield (
                    f"--executor-option {option} has no effect with --executor local: leave it "
                    "out, or pass --executor slurm"
                )
            key, equals, _ = option.partition("=")
            if not equals or not key:
                yield f"--executor-option must be KEY=VALUE, but is {option!r}"

    @property
    def arguments(self) -> list[str]:
        """The options as arguments of the command."""
        parts = [] if self.jobs is None else ["--jobs", str(self.jobs)]
        parts += [] if self.executor == "local" else ["--executor", self.executor]
        parts += [p for option in self.executor_options for p in ("--executor-option", option)]
        parts += [] if self.log is None else ["--log", self.log]
        return parts


def compare(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A name from `prunus recipes`, or a Python file. Without one, the table of the "
            "study in --out is printed, and nothing is trained.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Names from `prunus methods`; the others are compared with the first. Default: "
            "prunus,magnitude.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL =] NAME,KEY=VALUE,...",
            help='A method with changes of its settings, such as "prunus,alpha=0.1" or "weak = '
            'prunus,strength=0.001"; may be repeated.',
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(metavar="R,R,...", help="Compression ratios. Default: that of the recipe."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="Seeds, each with a dense network of its own. Default: 0,1,2."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of all methods; may be repeated."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder or Hub name to use instead of the recipe's own data."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the study. One that exists is continued, with its own methods, "
            "ratios, seeds and settings where none are passed. Default: studies/RECIPE."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at a time. Default: 1, or with --executor slurm as many as there are."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each run. Default: 1.")
    ] = None,
    executor: Annotated[
        Literal["local", "slurm"],
        typer.Option(help='Where runs are started: "local", on this machine, or "slurm".'),
    ] = "local",
    executor_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An option of sbatch, such as partition=gpu; may be repeated."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of the table: the recipe's or loss, perplexity. Default: the recipe's."
        ),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="Form of the table.")] = "table",
    log: Annotated[
        Literal["tensorboard"] | None,
        typer.Option(help="Also log every epoch of each run, into tensorboard/ of the run."),
    ] = None,
) -> None:
    """Compare methods: each prunes the same dense networks, at equal budget, over several seeds."""
    screen = Screen(stderr=format_ != "table")  # so that a table can be redirected
    if recipe is None:
        _show(out, metric, format_, screen)
        return
    with termination() as stop:
        from prunus.recipes.registry import find_recipe
        from prunus.recipes.run.tensorboard import summary_writer
        from prunus.studies.directory import StudyDirectory
        from prunus.studies.plan import Request

        problems: list[str] = []
        found = find_recipe(recipe)
        request = Request(
            recipe=found,
            data=data,
            changes=set_ or [],
            methods=[*_split("--methods", methods, str, problems), *(method or [])],
            ratios=_split("--ratios", ratios, float, problems),
            seeds=_split("--seeds", seeds, int, problems),
            threads=threads,
        )
        options = _Options(jobs, executor, executor_option or [], log)
        problems += options.problems()
        if metric is not None and found.metrics and metric not in found.metrics:
            problems.append(unknown_name("metric", metric, found.metrics))
        if log is not None:
            summary_writer()  # found missing now and not by each run
        directory = StudyDirectory(out if out is not None else Path("studies") / found.stem)
        _compare(request, directory, options, problems, metric, format_, screen, stop)


def _show(out: Path | None, metric: str | None, format_: Format, screen: Screen) -> None:
    """Print the table of a study."""
    from prunus.studies import load_study

    if out is None:
        raise PrunusError(
            "prunus compare needs a recipe, or the directory of a study: pass the name of a recipe "
            "to train, or --out to print the table of a study"
        )
    study = load_study(out)
    _print_table(study, metric, format_, screen)
    screen.message(
        f"{len(study.finished)} of {len(study.runs)} runs of {study.recipe} are finished; nothing "
        "was trained"
    )
    if study.unfinished:
        screen.message(f"continue with: {_command(study.recipe, out, [])}")


def _plan(
    request: Request, directory: StudyDirectory, problems: list[str], screen: Screen
) -> Study:
    """Return the study with the requested runs.

    Args:
        request: The request.
        directory: The directory of the study, which may exist.
        problems: What is wrong with the options by themselves.
        screen: Receives messages about settings.

    Raises:
        ArgumentError: The request or the options cannot be used; every problem is listed.
        PrunusError: The study to continue has other settings.
    """
    from prunus.studies.plan import plan_study

    messages: list[str] = []
    try:
        study = plan_study(request, directory.read(), messages.append)
    except ArgumentError as error:
        raise_problems(*problems, str(error))
        raise
    raise_problems(*problems)
    for message in messages:
        screen.message(message)
    return study


def _compare(
    request: Request,
    directory: StudyDirectory,
    options: _Options,
    problems: list[str],
    metric: str | None,
    format_: Format,
    screen: Screen,
    stop: Callable[[], bool],
) -> None:
    from prunus.cli.study_progress import TerminalStudyProgress
    from prunus.studies.plan import plan_study
    from prunus.studies.runner import Stopped, StudyRunner

    study = _plan(request, directory, problems, screen)  # rejected before files change
    _check_metric(study, metric)
    if not study.unfinished:
        _print_table(study, metric, format_, screen)
        screen.message(f"all {len(study.runs)} runs were finished before; nothing was trained")
        return
    executor = options.build(directory, study)
    data = ["--data", request.data] if request.data else []
    command = _command(request.recipe.argument, directory.path, [*data, *options.arguments])
    with directory.claimed():
        study = plan_study(request, directory.read())  # again, now that it cannot change
        _announce(study, options, executor.jobs, screen)
        progress = _CheckedProgress(TerminalStudyProgress(screen), study, metric)
        runner = StudyRunner(
            study,
            directory,
            executor,
            progress,
            data=request.data,
            options=[] if options.log is None else ["--log", options.log],
            recipe=request.recipe,
            stop=stop,
            interval=0.1 if options.executor == "local" else 5.0,
        )
        try:
            study = runner.run()
        except (KeyboardInterrupt, Stopped) as stopped:
            progress.terminal.close()
            done = f"{len(runner.study.finished)} of {len(study.runs)} runs are finished"
            screen.message(f"{str(stopped) or 'interrupted'}: {done}; continue with: {command}")
            raise typer.Exit(143 if isinstance(stopped, Stopped) else 130) from None
        finally:
            progress.terminal.close()
    if study.finished:
        _print_table(study, metric, format_, screen)
    screen.message(f"written to {directory.study_file}")
    if runner.failures:
        _report_failures(runner.failures, directory, command)
        raise typer.Exit(1)


class _CheckedProgress:
    """Progress on the terminal, which rejects an unknown metric once the first run knows them."""

    def __init__(self, terminal: TerminalStudyProgress, study: Study, metric: str | None) -> None:
        self.terminal, self._study, self._metric = terminal, study, metric

    def status(self, status: StudyStatus) -> None:
        self.terminal.status(status)

    def finished(self, cell: Cell, summary: Mapping[str, Any], status: StudyStatus) -> None:
        self.terminal.finished(cell, summary, status)
        self._study = self._study.with_summary(cell, summary, "")
        _check_metric(self._study, self._metric)

    def failed(self, failure: Failure) -> None:
        self.terminal.failed(failure)


def _check_metric(study: Study, metric: str | None) -> None:
    if metric is not None and study.finished and metric not in study.metrics:
        raise ArgumentError(unknown_name("metric", metric, study.metrics))


def _announce(study: Study, options: _Options, jobs: int, screen: Screen) -> None:
    """Print how many runs there are, and how threads are divided."""
    left, cores = len(study.unfinished), os.cpu_count() or 1
    each = "1 thread" if study.threads == 1 else f"{study.threads} threads"
    text = f"{len(study.runs)} runs, of which {len(study.runs) - left} are finished: "
    text += f"{min(jobs, left)} at a time with {each} each"
    if options.executor == "local":
        text += f", on {cores} cores"
        if jobs * study.threads > cores:
            text += "; fewer --jobs or --threads would be faster, because these exceed the cores"
    screen.message(text)


def _print_table(study: Study, metric: str | None, format_: Format, screen: Screen) -> None:
    from prunus.cli.tables import study_table

    table = study.table(metric)
    page = Screen()
    if format_ == "table":
        page.print(study_table(table))
    else:
        text = table.to_markdown() if format_ == "markdown" else table.to_csv()
        page.message(text.removesuffix("\n"))
    for note in (table.legend, *table.notes):
        screen.message(note)


def _report_failures(failures: list[Failure], directory: StudyDirectory, command: str) -> None:
    screen = Screen(stderr=True)
    runs = "1 run failed" if len(failures) == 1 else f"{len(failures)} runs failed"
    screen.message(f"{runs}:")
    for failure in failures:
        screen.message(f"  {failure}; output: {directory.log(failure.cell)}.err")
    screen.message(f"once the reason is fixed, continue with: {command}")


def _command(recipe: str, path: Path, options: list[str]) -> str:
    """Return the command that continues a study."""
    return shlex.join(["prunus", "compare", recipe, "--out", str(path), *options])


_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _split(option: str, text: str | None, kind: type[_T], problems: list[str]) -> list[_T]:
    """Return the values of a list with commas, and add a problem where one is not of the type."""
    values, parts = [], [] if text is None else [part.strip() for part in text.split(",")]
    with contextlib.suppress(ValueError):
        values = [kind(part) for part in parts if part]
    if len(values) < len(parts):
        expected = _PLURALS[kind]
        problems.append(f"{option} must be {expected} with commas between them, but is {text!r}")
    return values
