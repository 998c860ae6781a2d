"""The application: the subcommands of ``prunus`` and its exit codes.

The exit codes are 0 for success, 2 for user errors (one message, without a traceback), 1 for
internal errors and lost processes of a group (with a traceback) and
for failed runs of a study, 130 after an interruption, and 143
after a request to terminate, once the current step is complete and saved.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from prunus._version import VERSION
from prunus.cli.commands import bench, export, inspect, methods, new, recipes, sensitivity
from prunus.cli.compare import compare
from prunus.cli.report import report
from prunus.cli.run import run
from prunus.cli.screen import discard_output
from prunus.cli.setting_options import CommandWithSettings
from prunus.errors import PeerError, PrunusError

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


for command in (
    recipes,
    methods,
    new,
    run,
    compare,
    inspect,
    sensitivity,
    export,
    bench,
    report,
):
    app.command(cls=CommandWithSettings if command in (run, compare) else None)(command)


def main() -> None:
    """Run the command, and exit with 2 after a user error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Replace characters that the terminal cannot encode instead of failing.
            stream.reconfigure(errors="replace")
    try:
        app()
    except PeerError:  # another process failed: its user needs the traceback
        raise
    except PrunusError as error:
        try:
            Console(stderr=True).print(
                f"[bold red]error:[/bold red] {escape(str(error))}",
                soft_wrap=True,
                highlight=False,
            )
        except OSError:  # the message cannot be shown
            discard_output(sys.stderr)
        sys.exit(2)
