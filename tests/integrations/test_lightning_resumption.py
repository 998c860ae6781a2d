"""Tests of the callback for Lightning: checkpoints and resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from helpers.data import tanh_batch
from helpers.pruners import magnitude_pruner
from helpers.states import same, states_equal
from integrations.lightning_trainers import (
    CLIPPED,
    Batches,
    Kill,
    KilledError,
    Module,
    fitted,
    make_trainer,
    parts,
    pruner_of,
    stateful,
)
from prunus import (
    CheckpointError,
    IterativePruning,
    MagnitudeScore,
)
from prunus.integrations.lightning import PruningCallback

pytestmark = [
    pytest.mark.frameworks,
    # Lightning's warnings about versions of other packages, and its advice.
    pytest.mark.filterwarnings("ignore:.*(treespec|many workers|not empty)"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, PruningCallback]:
    pruning = stateful()
    return fitted(tmp_path_factory.mktemp("run"), pruning, **CLIPPED), pruning


def test_a_plain_loop_gives_the_same_bits(uninterrupted: tuple[Module, PruningCallback]) -> None:
    module, pruning = uninterrupted
    plain = Module()
    optimizer = plain.configure_optimizers()
    pruner = magnitude_pruner(plain, optimizer, **parts(), max_grad_norm=0.05)
    for _ in range(4):
        for number, batch in enumerate(Batches()):
            torch.autograd.backward(plain.loss(batch) / 2)
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            pruner.step(float(plain.loss(tanh_batch())))
    pruner.finish()
    assert states_equal(plain, module)
    assert same(pruner.state_dict(), pruner_of(pruning).state_dict())
    assert pruner.sparsity == pytest.approx(1 - 0.8**3, abs=0.01)
    assert pruner.state_dict()["steps"] == 24


SAVES: dict[str, dict[str, Any]] = {
    # Never after an epoch's last step, as Lightning skips the validation when resumed from there.
    "batches": {"every_n_train_steps": 5},
    "validations": {"monitor": "val_loss", "save_on_train_epoch_end": False},
    "epochs": {"save_on_train_epoch_end": True},
}


@pytest.mark.parametrize(("batch", "event"), [(15, "batch"), (24, "validation"), (41, "batch")])
@pytest.mark.parametrize("saves", SAVES)
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path,
    uninterrupted: tuple[Module, PruningCallback],
    saves: str,
    batch: int,
    event: str,
) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path, save_last=True, save_top_k=-1, **SAVES[saves])

    with pytest.raises(KilledError):
        fitted(tmp_path, stateful(), Kill(batch, event), saver(), **CLIPPED)
    module, pruning = Module(), stateful()
    trainer = make_trainer(tmp_path, pruning, saver(), **CLIPPED)
    trainer.fit(module, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert states_equal(module, uninterrupted[0])
    assert same(pruner_of(pruning).state_dict(), pruner_of(uninterrupted[1]).state_dict())


def test_a_resumed_complete_run_delivers_the_same_state(
    tmp_path: Path, uninterrupted: tuple[Module, PruningCallback]
) -> None:
    for ckpt_path in (None, str(tmp_path / "last.ckpt")):
        module, pruning = Module(), stateful()
        saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        make_trainer(tmp_path, pruning, saver, **CLIPPED).fit(module, ckpt_path=ckpt_path)
        assert states_equal(module, uninterrupted[0])
    assert pruner_of(pruning).sparsity == pruner_of(uninterrupted[1]).sparsity


def test_a_checkpoint_of_a_validation_holds_the_measured_weights(tmp_path: Path) -> None:
    saver = ModelCheckpoint(
        tmp_path, "{epoch}-{sparsity:.2f}", "val_loss", save_top_k=-1, save_on_train_epoch_end=False
    )
    pruning = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="val_loss",
        floor=10.0,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    fitted(tmp_path, pruning, saver)
    sparsities = ("0.00", "0.50", "0.75", "0.88")
    names = [f"epoch={i}-sparsity={sparsity}.ckpt" for i, sparsity in enumerate(sparsities)]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == names
    for path, score in saver.best_k_models.items():
        module = Module()
        module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            assert module.loss(tanh_batch()) == score
        zeros = sum(int((p == 0).sum()) for p in module.parameters())
        assert f"sparsity={zeros / 360:.2f}" in path


def test_a_checkpoint_of_the_end_holds_the_measured_weights(tmp_path: Path) -> None:
    # Not saved before the end, because the interval is longer than the training.
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1000)
    pruning = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="val_loss",
        floor=10.0,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    module = Module()
    trainer = make_trainer(tmp_path, pruning, saver, max_epochs=2)
    trainer.fit(module)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    zeros = sum(int((weight == 0).sum()) for weight in saved["state_dict"].values())
    assert zeros == 180  # half of 360; the second validation is passed on afterwards
    assert saved["callbacks"]["PruningCallback"]["pending"] == [
        trainer.callback_metrics["val_loss"]
    ]
    assert pruner_of(pruning).state_dict()["prunings"] == 2


def test_validation_after_training_changes_nothing(tmp_path: Path) -> None:
    pruning, module = stateful(), Module()
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_on_train_epoch_end=False)
    trainer = make_trainer(tmp_path, pruning, saver)
    trainer.fit(module)
    before = pruning.state_dict()
    trainer.validate(module, verbose=False)
    trainer.validate(module, ckpt_path="best", verbose=False, weights_only=True)
    assert same(before, pruning.state_dict())
    # Nor does the next training resume from the state of that checkpoint.
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module)
    assert pruner_of(pruning).state_dict()["steps"] == 12


@pytest.mark.filterwarnings("ignore:.*not resumable")  # the tuner stops within an epoch
def test_a_tuner_that_saves_and_loads_keeps_the_resumed_state(tmp_path: Path) -> None:
    class Tuned(Module):
        lr = 1e-2

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_last=True)

    finder = LearningRateFinder(num_training_steps=3, update_attr=False)
    with pytest.raises(KilledError):
        make_trainer(tmp_path, finder, stateful(), Kill(30, "batch"), saver()).fit(Tuned())
    pruning = stateful()
    trainer = make_trainer(tmp_path, finder, pruning, saver())
    trainer.fit(Tuned(), ckpt_path=str(tmp_path / "last.ckpt"))
    state = pruner_of(pruning).state_dict()
    # Of two epochs and four more, as the tuner resets Lightning's count of epochs.
    assert (state["steps"], state["prunings"]) == (24 + 48, 2 + 4)


class Late(SingleDeviceStrategy):
    """Restores checkpoints after ``on_fit_start``, as strategies that shard the model do."""

    restore_checkpoint_after_setup = True


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_state_that_is_restored_late_is_loaded(
    tmp_path: Path, uninterrupted: tuple[Module, PruningCallback]
) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5)
    with pytest.raises(KilledError):
        fitted(tmp_path, stateful(), Kill(30, "batch"), saver, **CLIPPED)
    module = Module()
    trainer = make_trainer(tmp_path, stateful(), strategy=Late("cpu"), **CLIPPED)
    trainer.fit(module, ckpt_path=str(tmp_path / "last.ckpt"))
    assert states_equal(module, uninterrupted[0])


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_late_checkpoint_saved_without_the_callback_is_rejected(tmp_path: Path) -> None:
    make_trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True), max_epochs=1).fit(Module())
    trainer = make_trainer(tmp_path, stateful(), strategy=Late("cpu"))
    with pytest.raises(CheckpointError, match="was saved without this callback"):
        trainer.fit(Module(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_a_checkpoint_saved_without_the_callback_is_rejected(tmp_path: Path) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_last=True)

    make_trainer(tmp_path, saver(), max_epochs=1).fit(Module())
    trainer = make_trainer(tmp_path, PruningCallback(penalty=None, score=MagnitudeScore()), saver())
    with pytest.raises(CheckpointError, match=r"last\.ckpt has no state of a PruningCallback"):
        trainer.fit(Module(), ckpt_path=str(tmp_path / "last.ckpt"))
