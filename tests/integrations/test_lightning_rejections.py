"""Tests of the callback for Lightning: arguments and validations that are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning.pytorch")

from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.pruners import coupled_penalty
from integrations.lightning_trainers import (
    Module,
    fitted,
    make_trainer,
    pruner_of,
)
from prunus import (
    FloorNotReachedError,
    IterativePruning,
    MagnitudeScore,
    PrunusError,
)
from prunus.integrations.lightning import PruningCallback

pytestmark = [
    pytest.mark.frameworks,
    # Lightning's warnings about versions of other packages, and its advice.
    pytest.mark.filterwarnings("ignore:.*(treespec|many workers|not empty)"),
]


def test_an_unmet_floor_is_rejected_at_the_end(tmp_path: Path) -> None:
    unmet = PruningCallback(
        schedule=IterativePruning(),
        metric="val_loss",
        floor=1e-9,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    with pytest.raises(FloorNotReachedError, match="met the ceiling 1e-09 .*: raise it"):
        fitted(tmp_path, unmet, max_epochs=1)


def floored(metric: str = "accuracy") -> PruningCallback:
    return PruningCallback(
        schedule=IterativePruning(), metric=metric, floor=0.5, penalty=None, score=MagnitudeScore()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": IterativePruning(), "floor": 1.0},
            r'needs the validation metric: .*metric="\.\.\."',
        ),
        ({"metric": "val_loss"}, 'mode="min"'),
        ({"schedule": coupled_penalty(1e-3)}, "schedule must be a Schedule or None, but is"),
        (
            {"selection": ["*"]},
            r"selection must be a Selection, or a function .* or None, but is \['\*'\]",
        ),
        ({"optimizer": "0"}, "optimizer must be the index of an optimizer, .* but is '0'"),
    ],
)
def test_conflicting_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        PruningCallback(**arguments)


def test_a_metric_that_is_not_logged_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"no metric 'accuracy'; it logged val_loss: "):
        fitted(tmp_path, floored())


def test_a_metric_without_validation_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="there is no validation, so the metric 'accuracy'"):
        fitted(tmp_path, floored(), limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:.*length of `DataLoader`")
def test_a_metric_without_validation_data_is_rejected(tmp_path: Path) -> None:
    class Empty(Module):
        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(*(part[:0] for part in tanh_batch())))

    with pytest.raises(PrunusError, match="no batches to validate on, so the metric 'accuracy' is"):
        make_trainer(tmp_path, floored()).fit(Empty())


@pytest.mark.filterwarnings("ignore:.*length of `DataLoader`")
@pytest.mark.parametrize(("epochs", "trained"), [(2, 2), (6, 2)])
def test_validation_without_batches_is_rejected(tmp_path: Path, epochs: int, trained: int) -> None:
    class Empty(Module):
        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(*(part[:0] for part in tanh_batch())))

    trainer = make_trainer(
        tmp_path, floored(), num_sanity_val_steps=0, check_val_every_n_epoch=2, max_epochs=epochs
    )
    with pytest.raises(PrunusError, match="no batches to validate on"):
        trainer.fit(Empty())
    assert trainer.current_epoch == trained


def test_validation_data_may_be_loaded_after_the_first_epoch(tmp_path: Path) -> None:
    # Without a sanity check Lightning knows no validation data until the first epoch has ended.
    pruning = PruningCallback(
        schedule=IterativePruning(),
        metric="val_loss",
        floor=99.0,
        mode="min",
        penalty=None,
        score=MagnitudeScore(),
    )
    make_trainer(
        tmp_path, pruning, num_sanity_val_steps=0, check_val_every_n_epoch=2, max_epochs=4
    ).fit(Module())
    assert pruner_of(pruning).sparsity > 0


def test_a_strategy_that_shards_the_model_is_rejected(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PruningCallback(penalty=None, score=MagnitudeScore()))
    trainer.strategy.world_size = 2
    with pytest.raises(
        PrunusError, match=r'the strategy is SingleDeviceStrategy: .*strategy="ddp"'
    ):
        trainer.fit(Module())
