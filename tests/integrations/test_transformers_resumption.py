"""Tests of the callback for the Trainer: checkpoints and resumption."""

from __future__ import annotations

import functools
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import (
    TrainerCallback,
)

from helpers.pruners import coupled_penalty
from helpers.states import same, states_equal
from integrations.transformers_trainers import (
    Interrupt,
    Stop,
    make_trainer,
    stateful,
)
from prunus import (
    CheckpointError,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
    select,
)
from prunus._utils.files import load_tree
from prunus.integrations.transformers import STATE_FILE, PruningCallback

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = make_trainer(tmp_path_factory.mktemp("uninterrupted"), stateful())
    trainer.train()
    return trainer


# Drawn once. "save" kills after the Trainer has written its files and before the callback has.
_DRAW = random.Random(20261122)
KILLS = [(_DRAW.randint(5, 23), event) for event in ("step", "evaluate", "save")]


@pytest.mark.parametrize(("step", "event"), KILLS)
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Any, step: int, event: str
) -> None:
    program = Path(__file__).with_name("transformers_trainers.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(step), event],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    trainer = make_trainer(tmp_path, pruning := stateful())
    trainer.train(resume_from_checkpoint=True)
    assert states_equal(trainer.model, uninterrupted.model)
    last = f"checkpoint-{trainer.state.global_step}/{STATE_FILE}"
    resumed, expected = (
        load_tree(tmp_path / last),
        load_tree(Path(uninterrupted.args.output_dir) / last),
    )
    assert same(resumed, expected)
    # The last checkpoint holds what the last evaluation measured, before the sixth removal.
    assert (resumed["pruner"]["prunings"], len(resumed["pending"])) == (5, 1)
    assert pruning.pruner is not None
    assert pruning.pruner.state_dict()["prunings"] == 6


def test_resuming_from_another_directory_needs_its_name(tmp_path: Path, uninterrupted: Any) -> None:
    checkpoint = Path(uninterrupted.args.output_dir) / "checkpoint-20"
    with pytest.raises(CheckpointError, match="resume_from="):
        make_trainer(tmp_path, stateful()).train(resume_from_checkpoint=str(checkpoint))
    callback = stateful(resume_from=checkpoint)
    trainer = make_trainer(tmp_path, callback)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert states_equal(trainer.model, uninterrupted.model)


def test_a_checkpoint_of_another_step_is_rejected(tmp_path: Path, uninterrupted: Any) -> None:
    source = Path(uninterrupted.args.output_dir)
    callback = stateful(resume_from=source / "checkpoint-24")
    with pytest.raises(CheckpointError, match="resumed at step 20.* is of step 24"):
        make_trainer(tmp_path, callback).train(resume_from_checkpoint=str(source / "checkpoint-20"))


def test_a_checkpoint_saved_without_the_callback_is_rejected(tmp_path: Path) -> None:
    make_trainer(tmp_path, Stop(4)).train()
    with pytest.raises(
        CheckpointError, match=r"has no prunus\.safetensors.*it was saved without this callback"
    ):
        make_trainer(tmp_path, PruningCallback(penalty=None, score=MagnitudeScore())).train(
            resume_from_checkpoint=True
        )


@pytest.mark.parametrize("start", [False, True], ids=["", "eval_on_start"])
def test_resuming_the_same_trainer_equals_the_uninterrupted_one(
    tmp_path: Path, start: bool
) -> None:
    def build(folder: str, *more: TrainerCallback) -> tuple[Any, PruningCallback]:
        schedule = (
            IterativePruning(fraction=0.2)
            if start
            else GradualPruning(sparsity=0.9, end=20, every=1)
        )
        pruning = PruningCallback(
            coupled_penalty(1e-2),
            schedule,
            metric="loss",
            floor=10.0 if start else None,
            mode="min",
            score=MagnitudeScore(),
        )
        return make_trainer(tmp_path / folder, pruning, *more, eval_on_start=start), pruning

    whole, _ = build("whole")
    whole.train()
    stopped, pruning = build("stopped", Interrupt(11))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert pruning.pruner is not None
    before = pruning.pruner.sparsity
    stopped.evaluate()  # which is not counted
    assert pruning.pruner.sparsity == before
    stopped.train(resume_from_checkpoint=True)
    assert states_equal(whole.model, stopped.model)


def test_the_state_of_another_run_is_rejected(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 7)):
        trainer = make_trainer(tmp_path / folder, stateful(), max_steps=8, seed=seed)
        trainer.train()
    resumed = make_trainer(tmp_path / "b", stateful())
    with pytest.raises(CheckpointError, match=r"is of another run .* not zero in .*resume_from="):
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))


def test_several_callbacks_remove_their_weights_and_resume(tmp_path: Path) -> None:
    def callbacks() -> list[PruningCallback]:
        schedules = (GradualPruning(sparsity=0.75, end=12, every=3), OneShot(sparsity=0.5))
        return [
            PruningCallback(
                schedule=schedule,
                penalty=None,
                selection=functools.partial(select, include=f"transformer.h.{i}.*"),
                score=MagnitudeScore(),
            )
            for i, schedule in enumerate(schedules)
        ]

    changes = {"max_grad_norm": 0.0, "max_steps": 12}
    whole = make_trainer(tmp_path / "whole", *callbacks(), **changes)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "stopped", Interrupt(6), *callbacks(), **changes).train()
    resumed = make_trainer(tmp_path / "stopped", *callbacks(), **changes)
    resumed.train(resume_from_checkpoint=True)
    assert states_equal(whole.model, resumed.model)
    for i, sparsity in enumerate((0.75, 0.5)):
        weights = select(whole.model, include=f"transformer.h.{i}.*")
        zeros = sum(int((t.parameter == 0).sum()) for t in weights.values())
        assert zeros == round(sparsity * weights.prunable)
    names = [f"eval_{name}_{i}" for i in (0, 1) for name in ("sparsity", "kept", "removed")]
    logged, again = (
        [
            [entry[name] for name in names]
            for entry in trainer.state.log_history
            if names[0] in entry
        ]
        for trainer in (whole, resumed)
    )
    assert logged == again
    half = round(0.5 * weights.prunable)
    assert [row[3:] for row in logged] == [[0.0, 2 * half, half], [0.5, half, 0], [0.5, half, 0]]


class SaveTwice(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = True


def test_saving_twice_at_one_step_leaves_one_state(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, stateful(), SaveTwice())
    trainer.train()
    assert load_tree(tmp_path / "checkpoint-24" / STATE_FILE)["step"] == 24
    assert not list(tmp_path.glob(".checkpoint-*"))
