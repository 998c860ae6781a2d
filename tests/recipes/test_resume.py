"""Resumed runs: killed at any moment, any number of times, they end with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.commands import metrics, prunus, settings
from helpers.runs import KilledError, assert_same_run, at_step
from prunus.recipes.recipe import Recipe
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.classification import Classification
from prunus.recipes.tasks.task import Evaluation

# Everything that a checkpoint must store: removals at nearly every step, momentum, a score with
# state, a strength that restarts at each removal, and a floor that chooses the delivered state.
CHOSEN: dict[str, Any] = {
    "dense_epochs": 3,
    "epochs": 5,
    "schedule": "gradual",
    "schedule_end": 0.9,
    "ratio": 30,
    "score": "taylor",
    "strength": 1,
    "strength_schedule": "linear",
    "floor": "dense*0.6",
}
STEPS = 36  # per epoch

# Runs the command once for each number, in a separate process that sends itself a signal after that
# number of optimizer steps (0: never), and prints its exit code and the number of epochs saved.
# The processes are forked after the imports, so that these are done once.
DRIVER = """
import os, pathlib, signal, sys
import sklearn.datasets
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
import prunus.recipes.run.training
from prunus.cli.app import main

number, command = int(sys.argv[2]), sys.argv[3:]
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])

for fatal in map(int, sys.argv[1].split(",")):
    resume = ["--resume"] if (out / "config.json").exists() else []
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(*_):
            global steps
            steps += 1
            if steps == fatal:
                os.kill(os.getpid(), number)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        register_optimizer_step_post_hook(count)
        sys.argv = ["prunus", *command, *resume]
        main()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    metrics = out / "metrics.jsonl"
    print(code, len(metrics.read_text().splitlines()) if metrics.exists() else 0)
"""


def drive(
    fatal: list[int], path: Path, number: signal.Signals = signal.SIGKILL, **chosen: Any
) -> list[tuple[int, int]]:
    """Run the command up to each of these steps; return exit codes and numbers of epochs saved."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", DRIVER, ",".join(map(str, fatal)), str(int(number))),
            *("run", "digits", "--out", str(path), *settings(**chosen)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(int(code), int(lines)) for code, lines in map(str.split, done.stdout.splitlines())]


@pytest.mark.slow
def test_ten_kills_at_random_steps_change_no_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert drive([0], whole, **CHOSEN) == [(0, 8)]
    # Weights are removed in every pruning epoch, so that there are several states to deliver.
    pruning = [line["sparsity"] for line in metrics(whole) if line["phase"] == "prune"]
    assert pruning == sorted(set(pruning))

    # Epochs 0 to 2 are dense, 3 to 7 prune; a kill hits each at least once, and two of them twice.
    draw = random.Random(20)
    epochs = [0, 0, 1, 2, 3, 3, 4, 5, 6, 7]
    within = [draw.randint(1, STEPS) for _ in epochs]
    assert sum(1 < step < STEPS for step in within) >= 8, "most are within an epoch"
    # Each process starts with the epoch in which the previous one was killed.
    fatal = [
        (epoch - before) * STEPS + step
        for before, epoch, step in zip([0, *epochs], epochs, within, strict=False)
    ]
    ends = drive([*fatal, 0], killed, **CHOSEN)
    assert ends == [*((-signal.SIGKILL, epoch) for epoch in epochs), (0, 8)]
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_terminated_run_saves_within_the_epoch_and_loses_no_step(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert drive([0], whole, **CHOSEN) == [(0, 8)]
    draw = random.Random(3)
    steps: list[int] = []
    while sum(steps) < 7 * STEPS:
        steps.append(draw.randint(1, STEPS))
    steps.append(8 * STEPS - sum(steps))  # the very last step, before the validation
    done = [(sum(steps[: i + 1]) - 1) // STEPS for i in range(len(steps))]
    ends = drive([*steps, 0], stopped, signal.SIGTERM, **CHOSEN)
    assert ends == [*((143, epochs) for epochs in done), (0, 8)]
    assert_same_run(stopped, whole)


def test_terminated_run_reports_how_to_resume(tmp_path: Path) -> None:
    def terminate(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    hook = register_optimizer_step_post_hook(terminate)
    try:
        outcome = prunus("run", "digits", *settings(**BRIEF), "--out", tmp_path / "run")
    finally:
        hook.remove()
    assert outcome.code == 143
    assert (
        f"stopped after step 1 of epoch 1 (dense); resume with: prunus run digits --out "
        f"{tmp_path / 'run'} --resume\n"
    ) in outcome.out
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_terminated_before_training_saves_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_recipe(name: str) -> Recipe:
        os.kill(os.getpid(), signal.SIGTERM)
        return RECIPES[name]

    monkeypatch.setattr("prunus.recipes.registry.find_recipe", find_recipe)
    outcome = prunus("run", "digits", *settings(**BRIEF), "--out", tmp_path / "run")
    assert outcome.code == 143
    assert "stopped after step 1 of epoch 1 (dense)" in outcome.out


@pytest.mark.slow
def test_run_terminated_during_validation_stops_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    true_validate = Classification.validate

    def validate(self: Any, model: nn.Module) -> Evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
        return true_validate(self, model)

    monkeypatch.setattr(Classification, "validate", validate)
    for epoch, phase in ((1, "dense"), (2, "dense"), (1, "prune"), (2, "prune"), (3, "prune")):
        resume = ["--resume"] if (stopped / "config.json").exists() else []
        outcome = prunus("run", "digits", *settings(**BRIEF), "--out", stopped, *resume)
        assert outcome.code == 143, outcome.err
        assert (
            f"stopped after epoch {epoch} ({phase}); resume with: prunus run digits" in outcome.out
        )
    monkeypatch.undo()
    assert prunus("run", "digits", *settings(**BRIEF), "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, whole)


BRIEF: dict[str, Any] = {**CHOSEN, "dense_epochs": 2, "epochs": 3, "batch_size": 128}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_kill_around_any_write_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0

    true_call = getattr(os, call)
    calls = fatal = 0

    def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal and not after:
            raise KilledError
        true_call(*arguments)
        if calls == fatal and after:
            raise KilledError

    monkeypatch.setattr(os, call, counted)
    stops = 0
    # Not always the first call, or the run would never advance.
    for number in (2, 3, 2, 4, 2, 3, 2, 3, 1, 2, 1):
        calls, fatal = 0, number
        resume = ["--resume"] if (stopped / "config.json").exists() else []
        try:
            outcome = prunus("run", "digits", *settings(**BRIEF), "--out", stopped, *resume)
        except KilledError:
            stops += 1
        else:
            assert outcome.code == 0, outcome.err
            break
    assert stops >= 5
    monkeypatch.undo()
    done = prunus("run", "digits", *settings(**BRIEF), "--out", stopped, "--resume")
    assert done.code == 0, done.err
    assert_same_run(stopped, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        {"schedule": "iterative", "fraction": 0.5, "ratio": 30},
        {"schedule": "iterative", "fraction": 0.99, "ratio": 0, "patience": 3},
        {"schedule": "oneshot", "schedule_begin": 0.5},
        {"score": "random", "floor": "none"},
        {
            "apply": "loss",
            "penalty": "l1",
            "strength": 1e-4,
            "strength_schedule": "constant",
            "score": "magnitude",
        },
        {"apply": "gradient", "strength_schedule": "lr", "strength": 0.01},
        {"min_density": 0.02, "biases": "false"},
        {"initial_weights": "random", "floor": "none", "shift": 1, "flip": "true"},
    ],
    ids=lambda choice: "-".join(map(str, choice.values())),
)
def test_any_method_resumes_to_the_same_bits(tmp_path: Path, choice: dict[str, Any]) -> None:
    chosen = settings(**{**BRIEF, **choice})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *chosen, "--out", whole).code == 0
    # 9 steps an epoch: killed in the second dense epoch, and then in the second pruning epoch.
    for fatal, resume in ((13, []), (9 + 14, ["--resume"])):
        with at_step(fatal, KilledError), pytest.raises(KilledError):
            prunus("run", "digits", *chosen, "--out", stopped, *resume)
    assert [line["phase"] for line in metrics(stopped)] == ["dense", "dense", "prune"]
    done = prunus("run", "digits", *chosen, "--out", stopped, "--resume")
    assert "prune: 3 epochs, resuming after epoch 1\n" in done.out
    assert done.code == 0
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_run_without_a_whole_epoch_starts_again(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(3, KilledError), pytest.raises(KilledError):
        prunus("run", "digits", *settings(**BRIEF), "--out", stopped)
    done = prunus("run", "digits", *settings(**BRIEF), "--out", stopped, "--resume")
    assert "no epoch was complete yet, so the run starts again\n" in done.out
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_run_that_lost_its_checkpoints_reports_it_and_starts_again(tmp_path: Path) -> None:
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(30, KilledError), pytest.raises(KilledError):
        prunus("run", "digits", *settings(**BRIEF), "--out", lost)
    assert len(metrics(lost)) > 1
    for path in (lost / "checkpoints").iterdir():
        path.unlink()
    done = prunus("run", "digits", *settings(**BRIEF), "--out", lost, "--resume")
    assert "its checkpoints are missing, so the run starts again\n" in done.out
    assert_same_run(lost, whole)


@pytest.mark.slow
def test_interrupted_run_reports_how_to_resume(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(30, KeyboardInterrupt):
        outcome = prunus("run", "digits", *settings(**BRIEF), "--out", stopped)
    assert outcome.code == 130
    hint = f"--out {stopped} --resume"
    assert f"interrupted; resume with: prunus run digits {hint}\n" in outcome.out
    assert prunus("run", "digits", *settings(**BRIEF), *hint.split()).code == 0
    assert_same_run(stopped, whole)
