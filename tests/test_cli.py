"""The command: its flags, its exit codes, its messages, and what it does not import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from helpers.commands import SHORT, prunus, settings, summary
from prunus.cli.app import app
from prunus.recipes.registry import RECIPES, find_recipe


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_subcommands_and_their_flags_are_these() -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands")  # noqa: B009 - of a type that typer keeps to itself
    flags = {
        name: {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for name, command in commands.items()
    }
    assert flags == {
        "recipes": {"name"},
        "run": {"recipe", "--data", "--seed", "--out", "--dense", "--resume", "--set"},
        "inspect": {"path"},
        "export": {"path", "--to", "--out"},
        "bench": {"path", "--batch", "--threads"},
    }


def test_a_terminal_that_cannot_show_every_letter_ends_no_run(tmp_path: Path) -> None:
    chosen = settings(dense_epochs=1, epochs=1, floor=0.1)
    done = python(
        *("-m", "prunus", "run", "digits", *chosen, "--out", str(tmp_path / "run")),
        PYTHONIOENCODING="latin-1",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "? floor 0.1000" in done.stdout
    for encoding, product in (("ascii", "300?64"), ("utf-8", "300×64")):
        shown = python("-m", "prunus", "inspect", str(tmp_path / "run"), PYTHONIOENCODING=encoding)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert product in shown.stdout


def test_every_recipe_is_listed_with_its_summary_and_data() -> None:
    outcome = prunus("recipes")
    assert outcome.code == 0
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in outcome.out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        [name, recipe.summary, recipe.data or "--data FOLDER"] for name, recipe in RECIPES.items()
    ]
    assert {"digits", "mnist-lenet300", "mnist-lenet5", "fashion-lenet5"} <= RECIPES.keys()


@pytest.mark.parametrize(
    "flag",
    ["--help", "run --help", "inspect --help", "export --help", "bench --help", "recipes --help"],
)
def test_help_is_given(flag: str) -> None:
    outcome = prunus(*flag.split())
    assert outcome.code == 0
    command = " ".join(["prunus", *flag.split()[:-1]])
    assert re.search(rf"Usage: .*{command} \[OPTIONS\]", outcome.out)


def test_without_arguments_help_is_given() -> None:
    outcome = prunus()
    for name in ("Usage: ", "recipes", "run", "inspect", "export", "bench"):
        assert name in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("digit", "digits"), ("mnist-lenet-300", "mnist-lenet300"), ("fashion", "fashion-lenet5")],
)
def test_an_unknown_recipe_names_the_nearest_and_all(slip: str, meant: str) -> None:
    prunus("run", slip).refused(
        f"there is no recipe '{slip}'. Did you mean {meant}? The recipes are {', '.join(RECIPES)}"
    )


def test_a_recipe_like_no_other_gets_no_guess() -> None:
    outcome = prunus("run", "zzzz")
    outcome.refused("there is no recipe 'zzzz'. The recipes are digits")
    assert "did you mean" not in outcome.err.lower()


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_is_explained(name: str) -> None:
    outcome = prunus("recipes", name)
    assert outcome.code == 0
    # The last column, whose lines are joined, for the table breaks long ones.
    rows = [line.split("│") for line in outcome.out.splitlines() if line.startswith("│")]
    explained = " ".join(row[-2].strip() for row in rows)
    for setting, _, _, meaning in find_recipe(name).config.rows():
        assert meaning.endswith("."), setting
        assert meaning in explained, setting


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "there is no setting 'epoch'; did you mean "),
        (["--set", "lr=fast"], "lr must be a number, but is 'fast'"),
        (["--set", "score=size"], "score must be magnitude, taylor or random, but is 'size'"),
        (["--set", "epochs"], "'epochs' is not of the form key=value"),
        (["--set", "epochs=0"], "epochs must be at least 1, but is 0"),
        (["--set", "floor=nonsense"], "floor must be a number"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", str(2**64)], "--seed must be"),
        (["--data", "elsewhere"], "the recipe digits has embedded data"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_users_mistake_is_one_message_and_exit_code_two(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    prunus("run", "digits", *arguments, "--out", tmp_path / "run").refused(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "missing argument 'recipe'"),
        (["run", "digits", "--epochs", "3"], "no such option: --epochs"),
        (["run", "digits", "--seed", "one"], "invalid value for '--seed'"),
        (["prune"], "no such command 'prune'"),
        (["inspect"], "missing argument 'path'"),
        (["export", "run"], "missing option '--to'"),
        (["export", "run", "--to", "zip"], "'zip' is not one of 'sparse'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_of_form_is_explained_with_exit_code_two(
    arguments: list[str], message: str
) -> None:
    outcome = prunus(*arguments)
    assert outcome.code == 2
    assert message in outcome.err.lower()
    assert "Traceback" not in outcome.err


def test_brackets_in_a_directory_are_shown_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "a[bold]b[/]"
    tiny = settings(dense_epochs=1, epochs=1, batch_size=600, floor="none")
    outcome = prunus("run", "digits", *tiny, "--out", out)
    assert outcome.code == 0
    assert f"written to {out}\n" in outcome.out
    again = prunus("run", "digits", *tiny, "--out", out, "--resume")
    assert f"the run in {out} is complete" in again.out
    prunus("run", "digits", "--out", out).refused(str(out))


def test_brackets_in_a_message_are_shown_as_they_are() -> None:
    prunus("run", "a[bold]b\\").refused("there is no recipe 'a[bold]b")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """A whole run and its inspection, each in a process of its own."""
    run = python("-m", "prunus", "run", "digits", *SHORT, "--out", str(tmp_path / "run"))
    assert (run.returncode, run.stderr) == (0, "")
    nonzero = f"{summary(tmp_path / 'run')['nonzero']:,}"
    assert nonzero in run.stdout
    inspected = python("-m", "prunus", "inspect", str(tmp_path / "run"))
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert nonzero in inspected.stdout


def test_a_users_mistake_ends_the_process_with_two_and_no_traceback(tmp_path: Path) -> None:
    process = python("-m", "prunus", "inspect", str(tmp_path / "absent"))
    assert process.returncode == 2
    assert process.stderr == f"error: there is no file or directory {tmp_path / 'absent'}\n"
    assert process.stdout == ""


def test_importing_the_library_imports_none_of_the_extras() -> None:
    extras = ("typer", "rich", "datasets", "sklearn", "PIL", "pyarrow", "transformers", "lightning")
    process = python(
        "-c", f"import sys, prunus; print([name for name in {extras} if name in sys.modules])"
    )
    assert (process.returncode, process.stdout) == (0, "[]\n"), process.stderr


@pytest.mark.parametrize("absent", ["typer", "rich.console"])
def test_a_missing_extra_is_named(absent: str) -> None:
    process = python(
        "-c", f"import sys; sys.modules[{absent!r}] = None; from prunus.cli.app import main; main()"
    )
    assert process.returncode != 0
    assert process.stderr.startswith(
        "the prunus command needs the 'cli' extra: pip install 'prunus[cli]' ("
    )
    assert "Traceback" not in process.stderr
