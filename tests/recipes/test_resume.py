"""A run that was killed, at any moment and however often, ends as one that was never stopped."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.commands import contents, metrics, prunus, settings, summary
from prunus._utils.files import load_tree
from prunus.recipes.registry import RECIPES, Recipe
from prunus.recipes.tasks.classification import Classification
from prunus.recipes.tasks.task import Evaluation

# Removals at nearly every step, momentum, a score with a memory, a strength that starts again at
# each removal, and a floor that decides which state is delivered: all that a checkpoint must hold.
CHOSEN: dict[str, Any] = {
    "dense_epochs": 3,
    "epochs": 5,
    "schedule": "gradual",
    "schedule_end": 0.9,
    "ratio": 30,
    "score": "taylor",
    "strength": 1,
    "strength_schedule": "linear",
    "floor": "dense-0.3",
}
STEPS = 36  # per epoch

# Runs the command once for every number given, each time in a process of its own that sends itself
# a signal after so many optimizer steps (0: never), and prints how it ended and how many epochs it
# saved.
# They are forked off before anything but imports has been done, which saves importing it all again.
DRIVER = """
import os, pathlib, signal, sys
import sklearn.datasets
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
import prunus.recipes.run.training
from prunus.cli.app import main

deed, command = int(sys.argv[2]), sys.argv[3:]
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])

for deadly in map(int, sys.argv[1].split(",")):
    resume = ["--resume"] if (out / "config.json").exists() else []
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(*_):
            global steps
            steps += 1
            if steps == deadly:
                os.kill(os.getpid(), deed)

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
    deadly: list[int], path: Path, deed: signal.Signals = signal.SIGKILL, **chosen: Any
) -> list[tuple[int, int]]:
    """Run the command until each of these steps; return exit codes and numbers of epochs saved."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", DRIVER, ",".join(map(str, deadly)), str(int(deed))),
            *("run", "digits", "--out", str(path), *settings(**chosen)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(int(code), int(lines)) for code, lines in map(str.split, done.stdout.splitlines())]


def timeless(value: Any) -> Any:
    """Leave out what depends on the clock, and make tensors comparable."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1)
        return (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
    return value


def assert_same_run(one: Path, other: Path) -> None:
    assert contents(one).keys() == contents(other).keys()
    assert timeless(metrics(one)) == timeless(metrics(other))
    assert timeless(summary(one)) == timeless(summary(other))
    last = "checkpoints/last.safetensors"
    assert timeless(load_tree(one / last)) == timeless(load_tree(other / last))
    for name in ("checkpoints/dense.safetensors", "model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_ten_kills_at_random_steps_change_no_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert drive([0], whole, **CHOSEN) == [(0, 8)]
    # There is something to lose: removals all along, and a choice of states to deliver.
    pruning = [line["sparsity"] for line in metrics(whole) if line["phase"] == "prune"]
    assert pruning == sorted(set(pruning))

    # Epochs 0 to 2 are dense, 3 to 7 prune; each is killed at least once, two of them twice.
    draw = random.Random(20)
    epochs = [0, 0, 1, 2, 3, 3, 4, 5, 6, 7]
    within = [draw.randint(1, STEPS) for _ in epochs]
    assert sum(1 < step < STEPS for step in within) >= 8, "most in the midst of an epoch"
    # A process begins with the epoch in which the one before it was killed.
    deadly = [
        (epoch - before) * STEPS + step
        for before, epoch, step in zip([0, *epochs], epochs, within, strict=False)
    ]
    ends = drive([*deadly, 0], killed, **CHOSEN)
    assert ends == [*((-signal.SIGKILL, epoch) for epoch in epochs), (0, 8)]
    assert_same_run(killed, whole)


def test_a_run_asked_to_terminate_saves_within_the_epoch_and_loses_no_step(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert drive([0], whole, **CHOSEN) == [(0, 8)]
    draw = random.Random(3)
    steps: list[int] = []
    while sum(steps) < 7 * STEPS:
        steps.append(draw.randint(1, STEPS))
    steps.append(8 * STEPS - sum(steps))  # the last step of all, before it is measured
    done = [(sum(steps[: i + 1]) - 1) // STEPS for i in range(len(steps))]
    ends = drive([*steps, 0], stopped, signal.SIGTERM, **CHOSEN)
    assert ends == [*((143, epochs) for epochs in done), (0, 8)]
    assert_same_run(stopped, whole)


def test_a_run_asked_to_terminate_says_how_to_go_on(tmp_path: Path) -> None:
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


def test_a_run_asked_to_terminate_before_it_has_begun_saves_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_recipe(name: str) -> Recipe:
        os.kill(os.getpid(), signal.SIGTERM)
        return RECIPES[name]

    monkeypatch.setattr("prunus.recipes.registry.find_recipe", find_recipe)
    outcome = prunus("run", "digits", *settings(**BRIEF), "--out", tmp_path / "run")
    assert outcome.code == 143
    assert "stopped after step 1 of epoch 1 (dense)" in outcome.out


def test_a_run_asked_to_terminate_while_it_validates_stops_after_that(
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


class KilledError(BaseException):
    """Stands for a kill: nothing catches it but what would also run on any exception."""


@contextlib.contextmanager
def at_step(number: int, error: type[BaseException]) -> Iterator[None]:
    """Raise an error right after an optimizer step, counted from now on."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            raise error

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


BRIEF: dict[str, Any] = {**CHOSEN, "dense_epochs": 2, "epochs": 3, "batch_size": 128}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_stop_around_any_write_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0

    true_call = getattr(os, call)
    calls = deadly = 0

    def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == deadly and not after:
            raise KilledError
        true_call(*arguments)
        if calls == deadly and after:
            raise KilledError

    monkeypatch.setattr(os, call, counted)
    stops = 0
    # Never the first call alone, or nothing would ever get done.
    for number in (2, 3, 2, 4, 2, 3, 2, 3, 1, 2, 1):
        calls, deadly = 0, number
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
        {"apply": "gradient", "strength_schedule": "lr"},
        {"min_density": 0.02, "biases": "false"},
        {"initial_weights": "random", "floor": "none", "shift": 1},
    ],
    ids=lambda choice: "-".join(map(str, choice.values())),
)
def test_every_kind_of_run_goes_on_to_the_same_bits(tmp_path: Path, choice: dict[str, Any]) -> None:
    chosen = settings(**{**BRIEF, **choice})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *chosen, "--out", whole).code == 0
    # 9 steps an epoch: stopped in the second dense epoch, and then in the second of pruning.
    for deadly, resume in ((13, []), (9 + 14, ["--resume"])):
        with at_step(deadly, KilledError), pytest.raises(KilledError):
            prunus("run", "digits", *chosen, "--out", stopped, *resume)
    assert [line["phase"] for line in metrics(stopped)] == ["dense", "dense", "prune"]
    done = prunus("run", "digits", *chosen, "--out", stopped, "--resume")
    assert "prune: 3 epochs, resuming after epoch 1\n" in done.out
    assert done.code == 0
    assert_same_run(stopped, whole)


def test_a_run_without_a_whole_epoch_begins_anew(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(3, KilledError), pytest.raises(KilledError):
        prunus("run", "digits", *settings(**BRIEF), "--out", stopped)
    done = prunus("run", "digits", *settings(**BRIEF), "--out", stopped, "--resume")
    assert "no epoch was complete yet, so the run starts again\n" in done.out
    assert_same_run(stopped, whole)


def test_a_run_that_lost_its_checkpoints_says_so(tmp_path: Path) -> None:
    whole, robbed = tmp_path / "whole", tmp_path / "robbed"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(30, KilledError), pytest.raises(KilledError):
        prunus("run", "digits", *settings(**BRIEF), "--out", robbed)
    assert len(metrics(robbed)) > 1
    for path in (robbed / "checkpoints").iterdir():
        path.unlink()
    done = prunus("run", "digits", *settings(**BRIEF), "--out", robbed, "--resume")
    assert "its checkpoints are missing, so the run starts again\n" in done.out
    assert_same_run(robbed, whole)


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", "digits", *settings(**BRIEF), "--out", whole).code == 0
    with at_step(30, KeyboardInterrupt):
        outcome = prunus("run", "digits", *settings(**BRIEF), "--out", stopped)
    assert outcome.code == 130
    hint = f"--out {stopped} --resume"
    assert f"interrupted; resume with: prunus run digits {hint}\n" in outcome.out
    assert prunus("run", "digits", *settings(**BRIEF), *hint.split()).code == 0
    assert_same_run(stopped, whole)
