"""The command ``prunus compare``: its output, its errors, and a study trained in processes."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import prunus, settings
from helpers.runs import timeless
from prunus.recipes.registry import RECIPES
from prunus.studies import Cell, load_study
from prunus.studies.plan import plan_study
from prunus.studies.record import write_study
from studies.stubs import StubExecutor, names, request, summary

TINY = settings(dense_epochs=1, epochs=2, schedule="gradual", floor="none")
"""Seconds instead of minutes."""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a study that is finished but for one seed."""
    found = plan_study(request(methods=["prunus", "l2"], ratios=[10], seeds=[0, 1, 2]))
    for method, values in {"prunus": (0.96, 0.93), "l2": (0.95, 0.9)}.items():
        for seed, value in enumerate(values):
            found = found.with_summary(Cell(method, 10.0, seed), summary(seed, value), "2026-01-01")
    out = tmp_path / "study"
    out.mkdir()
    write_study(out / "study.json", found)
    return out


def test_table_is_printed_without_training(finished: Path) -> None:
    before = (finished / "study.json").read_bytes()
    outcome = prunus("compare", "--out", finished)
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = [line for line in outcome.out.splitlines() if line.strip().startswith("l2 ")]
    cells = ["l2", "10", "90.0%", "0.925 ± 0.035", "-0.035 ± 0.021", "+0.020 ± 0.010"]
    assert row.split() == " ".join(cells).split()
    assert "4 of 6 runs of digits are finished; nothing was trained" in outcome.out
    assert f"continue with: prunus compare digits --out {finished}\n" in outcome.out
    assert (finished / "study.json").read_bytes() == before
    assert sorted(finished.iterdir()) == [finished / "study.json"]


def test_table_can_be_redirected(finished: Path) -> None:
    outcome = prunus("compare", "--out", finished, "--format", "csv")
    assert outcome.code == 0
    assert len(list(csv.DictReader(io.StringIO(outcome.out)))) == 3
    assert "nothing was trained" in outcome.err
    outcome = prunus("compare", "--out", finished, "--format", "markdown", "--metric", "loss")
    assert outcome.out.startswith("| network | ratio | sparsity | test loss | against dense |")


@pytest.mark.parametrize("width", ["80", "160"])
def test_table_fits_the_terminal(
    finished: Path, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.cli.screen import Screen
    from prunus.cli.tables import study_table

    page = io.StringIO()
    Screen(file=page, width=int(width)).print(study_table(load_study(finished).table()))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= int(width)
    assert any("0.925 ± 0.035" in line and "+0.020 ± 0.010" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["digit"], ["there is no recipe 'digit'. Did you mean digits?"]),
        (["digits", "--methods", "prunus,lobstr"], ["no method 'lobstr'. Did you mean lobster?"]),
        (["digits", "--method", "l2,strengt=1"], ["no setting 'strengt'; did you mean strength"]),
        (["digits", "--ratios", "1,0.5"], ["must be above 1, but is 1.0", "above 1, but is 0.5"]),
        (["digits", "--ratios", "ten"], ["--ratios must be numbers with commas", "but is 'ten'"]),
        (["digits", "--seeds", "0,,1"], ["--seeds must be whole numbers with commas between"]),
        (["digits", "--seeds", "0,0"], ["--seeds has 0 more than once"]),
        (["digits", "--methods", "l2,l2"], ["l2 more than once"]),
        (["digits", "--executor-option", "time=3"], ["has no effect with --executor local"]),
        (["digits", "--metric", "acuracy"], ["no metric 'acuracy'. Did you mean accuracy?"]),
        (
            [
                *("digits", "--methods", "lobstr,,l2", "--method", "l2,strengt=1"),
                *("--ratios", "1,ten", "--seeds", "0,x", "--set", "epoch=3", "--data", "there"),
                *("--executor-option", "time=3", "--metric", "acuracy", "--threads", "2"),
            ],
            [
                "--methods must be names with commas",
                "--ratios must be numbers with commas",
                "--seeds must be whole numbers with commas",
                "--executor-option time=3 has no effect",
                "no metric 'acuracy'",
                "embedded data: leave out --data there",
                "no setting 'epoch'; did you mean epochs",
                "l2,strengt=1: there is no setting 'strengt'",
                "no method 'lobstr'",
            ],
        ),
        (
            ["digits", "--methods", "lobstr", "--ratios", "0.5,30", "--seeds", "-1"],
            ["no method 'lobstr'", "must be above 1, but is 0.5", "a seed must be"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_user_error_is_one_message_and_writes_nothing(
    tmp_path: Path, arguments: list[str], messages: list[str]
) -> None:
    prunus("compare", *arguments, "--out", tmp_path / "study").refused(*messages)
    assert list(tmp_path.iterdir()) == []


def test_neither_recipe_nor_study_is_an_error(tmp_path: Path) -> None:
    prunus("compare").refused("prunus compare needs a recipe, or the directory of a study")
    prunus("compare", "--out", tmp_path).refused(f"there is no study in {tmp_path}")


def test_directory_with_other_contents_is_rejected(tmp_path: Path, finished: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    prunus("compare", "digits", "--out", foreign).refused(
        "has other contents than a study (it holds notes.txt)"
    )
    prunus("compare", "digits", "--out", foreign / "notes.txt").refused("is a file")
    prunus("compare", "digits", "--out", foreign / "notes.txt" / "x").refused("cannot write")
    prunus("compare", "shakespeare-lm", "--out", finished).refused(
        "the study has other settings: recipe was 'digits' and is 'shakespeare-lm'"
    )
    prunus("compare", "digits", "--set", "epochs=7", "--out", finished).refused(
        "epochs was 100 and is 7"
    )


def test_unknown_metric_is_rejected_before_anything_runs(finished: Path) -> None:
    for arguments in (["digits"], []):
        prunus("compare", *arguments, "--out", finished, "--metric", "acuracy").refused(
            "there is no metric 'acuracy'. Did you mean accuracy? The metrics are accuracy, loss"
        )
    assert sorted(finished.iterdir()) == [finished / "study.json"]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> StubExecutor:
    """The executor of the command, with stand-ins for the runs."""
    stub = StubExecutor()
    monkeypatch.setattr("prunus.cli.compare._Options.build", lambda *_: stub)
    monkeypatch.setattr("prunus.studies.runner.time.sleep", lambda _: None)
    return stub


def test_unknown_metric_is_rejected_after_the_first_run(
    tmp_path: Path, executor: StubExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a recipe does not know its metrics before a run."""
    open_recipe = dataclasses.replace(RECIPES["digits"], metrics=())
    monkeypatch.setitem(RECIPES, "digits", open_recipe)
    out = tmp_path / "study"
    arguments = ("compare", "digits", "--seeds", "0", "--out", out)
    prunus(*arguments, "--metric", "acuracy").refused("there is no metric 'acuracy'. Did you mean")
    assert len(load_study(out).finished) == 1
    assert prunus(*arguments, "--metric", "loss").code == 0
    assert names(executor) == ["seed0-prunus-25", "seed0-magnitude-25"]


def test_lines_into_a_pipe_are_few(tmp_path: Path, executor: StubExecutor) -> None:
    ratios = ",".join(map(str, range(2, 22)))
    outcome = prunus(
        "compare", "digits", "--ratios", ratios, "--seeds", "0", "--out", tmp_path / "a"
    )
    assert outcome.code == 0
    assert "40 runs, of which 0 are finished: 1 at a time with 1 thread each" in outcome.out
    lines = [line for line in outcome.out.splitlines() if " finished, " in line]
    assert len(lines) == 20
    assert lines[-1].endswith("40 finished, 0 running, 0 left")
    assert f"written to {tmp_path / 'a' / 'study.json'}" in outcome.out
    again = prunus("compare", "digits", "--out", tmp_path / "a")
    assert "all 40 runs were finished before; nothing was trained" in again.out


def test_failures_are_listed_with_the_command_that_continues(
    tmp_path: Path, executor: StubExecutor
) -> None:
    executor.failing = lambda out: "magnitude" in out.name
    out = tmp_path / "study"
    outcome = prunus("compare", "digits", "--seeds", "0,1", "--out", out, "--jobs", "2")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        "2 runs failed:",
        *(
            f"  magnitude, ratio 25, seed {seed} ended with 2: a message; output: "
            f"{out}/logs/seed{seed}-magnitude-25.err"
            for seed in (0, 1)
        ),
        f"once the reason is fixed, continue with: prunus compare digits --out {out} --jobs 2",
    ]
    assert "2 of 4 runs are finished; the table has these alone." in outcome.out


def command(out: Path, *arguments: str) -> list[str]:
    methods = ("--methods", "prunus,magnitude", "--ratios", "5", "--seeds", "0,1")
    chosen = ("compare", "digits", *methods, *TINY, "--jobs", "2", "--out", str(out), *arguments)
    return [sys.executable, "-m", "prunus", *chosen]


def compare(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *arguments), capture_output=True, text=True, check=False, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}


def results(out: Path) -> Any:
    """Return the record without times and dates."""
    content = json.loads((out / "study.json").read_text())
    return timeless(
        {**content, "date": None, "runs": [{**run, "date": None} for run in content["runs"]]}
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    done = compare(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 runs, of which 0 are finished: 2 at a time with 1 thread each, on " in done.stdout
    assert "4 finished, 0 running, 0 left" in done.stdout
    return out


@pytest.mark.slow
def test_small_study(undisturbed: Path) -> None:
    found = load_study(undisturbed)
    assert not found.unfinished
    assert found.missed_ratios == {}
    assert set(found.dense_values()) == {0, 1}  # one dense network for each seed
    assert all(value > 0.8 for value in found.dense_values().values())
    single = found.runs[1]
    assert single.cell == Cell("magnitude", 5.0, 0)
    # The command in the record gives the same run, with a dense network of its own.
    again = undisturbed.parent / "again"
    parts = shlex.split(single.command)
    assert parts[0] == "prunus"
    assert prunus(*parts[1:], "--out", again).code == 0
    written = json.loads((again / "summary.json").read_text())
    assert single.summary is not None
    for key in ("dense", "sparse", "nonzero"):
        assert written[key] == single.summary[key], key


@pytest.mark.slow
def test_study_killed_at_random_ends_with_the_same_record(
    undisturbed: Path, tmp_path: Path
) -> None:
    out, rng = tmp_path / "study", random.Random(4)
    kills = 0
    for _ in range(5):
        group = subprocess.Popen(
            command(out),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            group.wait(timeout=rng.uniform(3.0, 8.0))
        if group.poll() is None:
            os.killpg(group.pid, signal.SIGKILL)
            kills += 1
        group.wait()
    assert kills >= 2
    done = compare(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert results(out) == results(undisturbed)
    assert len(list((out / "runs").glob("*/summary.json"))) == 4


@contextlib.contextmanager
def started(out: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_study_names_the_command_that_continues(
    tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "study"
    with started(out) as process:
        end = time.monotonic() + 120
        while not list(out.glob("runs/*/config.json")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, "")
    assert "0 of 4 runs are finished; continue with: prunus compare digits --out " in printed
    # No process is left, so that the study can be continued at once.
    for lock in out.glob("runs/*/.lock"):
        assert subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode == 0
    assert not load_study(out).finished


@pytest.mark.slow
def test_failed_run_is_reported_and_the_others_go_on(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    (out / "runs").mkdir(parents=True)
    write_study(out / "study.json", load_study(undisturbed))
    content = json.loads((out / "study.json").read_text())
    for run in content["runs"][:2]:
        run.update(summary=None, date=None)
    (out / "study.json").write_text(json.dumps(content))
    (out / "runs" / "seed0-prunus-5").touch()  # no directory can be made there
    done = compare(out)
    assert done.returncode == 1
    assert "1 run failed:" in done.stderr
    assert "prunus, ratio 5, seed 0 ended with 2: the output directory " in done.stderr
    assert "seed0-prunus-5 is a file; choose another --out; output: " in done.stderr
    assert f"continue with: prunus compare digits --out {out} --jobs 2" in done.stderr
    assert len(load_study(out).finished) == 3
    (out / "runs" / "seed0-prunus-5").unlink()
    assert compare(out).returncode == 0
    assert results(out)["runs"] == results(undisturbed)["runs"]
