"""The command: flags, exit codes, messages and imports."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from helpers.commands import SHORT, prunus, settings, summary
from prunus.cli.app import app
from prunus.cli.progress import TerminalProgress
from prunus.cli.screen import Screen
from prunus.constraint import Constraint, Mode
from prunus.errors import PeerError
from prunus.methods import methods
from prunus.recipes.registry import RECIPES, find_recipe
from prunus.recipes.run.progress import Epoch, PhaseStart


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_subcommands_and_flags_are_exactly_these() -> None:
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
        "methods": set(),
        "new": {"path"},
        "run": {
            *("recipe", "--data", "--seed", "--out", "--dense", "--resume", "--method", "--set"),
            *("--threads", "--log", "--report"),
        },
        "compare": {
            *("recipe", "--methods", "--method", "--ratios", "--seeds", "--set", "--data", "--out"),
            *("--jobs", "--threads", "--executor", "--executor-option", "--metric", "--format"),
            "--log",
        },
        "inspect": {"path"},
        "sensitivity": {"path", "--sparsities", "--csv", "--plot", "--recipe"},
        "export": {"path", "--to", "--out", "--recipe", "--dtype"},
        "bench": {"path", "--batch", "--threads", "--recipe", "--variants", "--metric"},
        "report": {"paths", "--out", "--figures"},
    }


@pytest.mark.slow
def test_run_completes_on_a_terminal_that_cannot_encode_every_character(tmp_path: Path) -> None:
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


def test_recipes_are_listed_with_summary_and_data() -> None:
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
    assert {"cifar10-resnet20", "cifar10-resnet32"} <= RECIPES.keys()


def test_methods_are_listed_with_summary_and_source() -> None:
    outcome = prunus("methods")
    assert outcome.code == 0
    # The lines of a wrapped row are joined.
    rows: list[list[str]] = []
    for line in outcome.out.splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                rows.append(cells)
            else:
                rows[-1] = [
                    f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)
                ]
    assert rows == [[name, found.summary, found.source] for name, found in methods.items()]


@pytest.mark.parametrize(
    "flag",
    [
        "--help",
        "run --help",
        "compare --help",
        "inspect --help",
        "sensitivity --help",
        "export --help",
        "bench --help",
        "report --help",
        "recipes --help",
        "methods --help",
    ],
)
def test_help_is_printed(flag: str) -> None:
    outcome = prunus(*flag.split())
    assert outcome.code == 0
    command = " ".join(["prunus", *flag.split()[:-1]])
    assert re.search(rf"Usage: .*{command} \[OPTIONS\]", outcome.out)


def test_help_is_printed_without_arguments() -> None:
    outcome = prunus()
    for name in ("Usage: ", "recipes", "methods", "run", "compare", "inspect", "export", "bench"):
        assert name in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("digit", "digits"), ("mnist-lenet-300", "mnist-lenet300"), ("fashion", "fashion-lenet5")],
)
def test_unknown_recipe_suggests_the_nearest_and_lists_all(slip: str, meant: str) -> None:
    prunus("run", slip).refused(
        f"there is no recipe '{slip}'. Did you mean {meant}? The recipes are {', '.join(RECIPES)}"
    )


def test_unknown_recipe_without_near_match_gets_no_suggestion() -> None:
    outcome = prunus("run", "zzzz")
    outcome.refused("there is no recipe 'zzzz'. The recipes are digits")
    assert "did you mean" not in outcome.err.lower()


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_has_a_help_text_in_the_table(name: str) -> None:
    outcome = prunus("recipes", name)
    assert outcome.code == 0
    # The lines of the last column are joined, because the table wraps long ones.
    rows = [line.split("│") for line in outcome.out.splitlines() if line.startswith("│")]
    explained = " ".join(row[-2].strip() for row in rows)
    for row in find_recipe(name).config.rows():
        assert row.help.endswith("."), row.name
        assert row.help in explained, row.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "there is no setting 'epoch'; did you mean "),
        (["--set", "lr=fast"], "lr must be a number, but is 'fast'"),
        (
            ["--set", "score=size"],
            "score must be magnitude, fisher, sensitivity, taylor, movement or random, but is "
            "'size'",
        ),
        (
            ["--method", "papr"],
            "there is no method 'papr'. Did you mean paper? The methods are prunus, paper, ",
        ),
        (["--method", "paper", "--set", "score=taylor", "--set", "apply=loss"], "needs the grad"),
        (["--set", "epochs"], "'epochs' is not of the form key=value"),
        (["--set", "epochs=0"], "epochs must be at least 1, but is 0"),
        (["--set", "floor=nonsense"], "floor must be a number"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", str(2**64)], "--seed must be"),
        (["--data", "elsewhere"], "the recipe digits has embedded data"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_user_error_is_one_message_with_exit_code_two(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    prunus("run", "digits", *arguments, "--out", tmp_path / "run").refused(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "missing argument 'recipe'"),
        (["run", "digits", "--gpu", "3"], "no such option:? '?--gpu"),
        (["run", "digits", "--seed", "one"], "invalid value for '--seed'"),
        (["prune"], "no such command 'prune'"),
        (["inspect"], "missing argument 'path'"),
        (["export", "run"], "missing option '--to'"),
        (["export", "run", "--to", "zip"], "'zip' is not one of 'sparse'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_explained_with_exit_code_two(arguments: list[str], message: str) -> None:
    outcome = prunus(*arguments)
    assert outcome.code == 2
    assert re.search(message, outcome.err.lower())
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["run", "digits", "--epochs", "3"], "epochs"),
        (["run", "digits", "--learning-rate=0.1"], "lr"),
        (["run", "shakespeare-lm", "--vocabulary", "500"], "vocabulary"),
        (["compare", "digits", "--sparsity", "0.9"], "ratio"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_setting_that_is_passed_as_an_option_is_named(arguments: list[str], setting: str) -> None:
    option = arguments[2].partition("=")[0]
    prunus(*arguments).refused(
        f"{option} is no option, but {setting} is a setting: pass --set {setting}=VALUE"
    )


def test_brackets_in_a_directory_are_printed_unchanged(tmp_path: Path) -> None:
    out = tmp_path / "a[bold]b[/]"
    tiny = settings(dense_epochs=1, epochs=1, batch_size=600, floor="none")
    outcome = prunus("run", "digits", *tiny, "--out", out)
    assert outcome.code == 0
    assert f"written to {out}\n" in outcome.out
    again = prunus("run", "digits", *tiny, "--out", out, "--resume")
    assert f"the run in {out} is complete" in again.out
    prunus("run", "digits", "--out", out).refused(str(out))


def test_brackets_in_a_message_are_printed_unchanged() -> None:
    prunus("run", "a[bold]b\\").refused("there is no recipe 'a[bold]b")


@pytest.mark.slow
def test_module_runs_as_the_command(tmp_path: Path) -> None:
    """A whole run and its inspection, each in a separate process."""
    run = python("-m", "prunus", "run", "digits", *SHORT, "--out", str(tmp_path / "run"))
    assert (run.returncode, run.stderr) == (0, "")
    nonzero = f"{summary(tmp_path / 'run')['nonzero']:,}"
    assert nonzero in run.stdout
    inspected = python("-m", "prunus", "inspect", str(tmp_path / "run"))
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert nonzero in inspected.stdout


@pytest.mark.slow
def test_user_error_exits_with_two_and_no_traceback(tmp_path: Path) -> None:
    process = python("-m", "prunus", "inspect", str(tmp_path / "absent"))
    assert process.returncode == 2
    assert process.stderr == (
        f"error: there is no file or directory {tmp_path / 'absent'}: pass the path of an existing "
        "one\n"
    )
    assert process.stdout == ""


def test_lost_process_of_a_group_ends_the_command_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process failed: the error of this one is no user error."""

    def fail(*_: object) -> None:
        raise PeerError("another process of the group did not answer")

    monkeypatch.setattr("prunus.cli.app.app", fail)
    with pytest.raises(PeerError, match="did not answer"):
        prunus("recipes")


@pytest.mark.parametrize(
    ("mode", "metric", "line"),
    [
        ("max", 0.91, "≥ floor 0.9000"),
        ("max", 0.9, "≥ floor 0.9000"),
        ("max", 0.89, "< floor 0.9000"),
        ("min", 0.89, "≤ ceiling 0.9000"),
        ("min", 0.9, "≤ ceiling 0.9000"),
        ("min", 0.91, "> ceiling 0.9000"),
    ],
)
def test_epoch_line_shows_whether_the_metric_meets_the_bound(
    mode: Mode, metric: float, line: str
) -> None:
    output = io.StringIO()
    progress = TerminalProgress(Screen(file=output, width=200))
    progress.begin(PhaseStart("prune", "metric", Constraint(0.9, mode), 2, 1, 0))
    progress.epoch(Epoch("prune", 1, 0.5, 0.5, metric, {}, floor=0.9, sparsity=0.25))
    assert f"validation metric {metric:.4f}  {line}  sparsity 0.2500  " in output.getvalue()


def test_epoch_line_of_the_dense_phase_shows_no_bound() -> None:
    output = io.StringIO()
    progress = TerminalProgress(Screen(file=output, width=200))
    progress.begin(PhaseStart("dense", "metric", None, 2, 1, 0))
    progress.epoch(Epoch("dense", 1, 0.5, 0.5, 0.95, {"perplexity": 3.0}))
    assert "validation metric 0.9500  perplexity 3  0:00:00 left\n" in output.getvalue()


def test_lines_of_short_epochs_are_thinned_and_those_of_long_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines(seconds: float, resumed: int = 0) -> list[int]:
        clock = itertools.count(0.0, seconds)
        monkeypatch.setattr("prunus.cli.progress.time.perf_counter", lambda: next(clock))
        output = io.StringIO()
        progress = TerminalProgress(Screen(file=output, width=200))
        progress.begin(PhaseStart("dense", "metric", None, 100, 1, resumed))
        for epoch in range(resumed + 1, 101):
            progress.epoch(Epoch("dense", epoch, 0.5, 0.5, 0.95, {}))
        return [int(number) for number in re.findall(r"epoch +(\d+)/100", output.getvalue())]

    assert lines(0.01) == [1, *range(5, 101, 5)]
    assert lines(0.01, resumed=48) == [49, *range(50, 101, 5)]
    assert lines(6.0) == list(range(1, 101))
    assert lines(3.0)[:6] == [1, 3, 5, 7, 9, 10]


@pytest.mark.slow
def test_importing_the_library_imports_no_extras() -> None:
    extras = ("typer", "rich", "datasets", "sklearn", "PIL", "pyarrow", "transformers", "lightning")
    process = python(
        "-c", f"import sys, prunus; print([name for name in {extras} if name in sys.modules])"
    )
    assert (process.returncode, process.stdout) == (0, "[]\n"), process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("absent", ["typer", "rich.console"])
def test_missing_extra_is_reported(absent: str) -> None:
    process = python(
        "-c", f"import sys; sys.modules[{absent!r}] = None; from prunus.cli.app import main; main()"
    )
    assert process.returncode != 0
    assert process.stderr.startswith(
        "the prunus command needs the extra 'cli': pip install 'prunus[cli]' ("
    )
    assert "Traceback" not in process.stderr
