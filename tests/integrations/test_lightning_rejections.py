"""Tests of the callback for Lightning: arguments and validations that are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.pruners import coupled_penalty
from integrations.lightning_trainers import (
    Manual,
    Module,
    fitted,
    make_trainer,
    pruner_of,
)
from prunus import (
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
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
    with pytest.raises(FloorNotReachedError, match="met the ceiling 1e-09: .*; raise the"):
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


class Averaging(WeightAveraging):
    pass


@pytest.mark.parametrize(
    "make", [WeightAveraging, Averaging, lambda: StochasticWeightAveraging(swa_lrs=1e-2)]
)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_callbacks_that_average_weights_are_rejected(
    tmp_path: Path, make: Any, first: bool
) -> None:
    pruning = PruningCallback(schedule=OneShot(sparsity=0.5), penalty=None, score=MagnitudeScore())
    averaging: Callback = make()
    callbacks = (averaging, pruning) if first else (pruning, averaging)
    name = type(averaging).__name__
    message = f"PruningCallback does not work beside {name}: .*Remove {name} .*or average in"
    trainer = make_trainer(tmp_path, *callbacks)
    with pytest.raises(PrunusError, match=message):
        trainer.fit(Module())
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    "arguments",
    [{"metric": "val_loss", "mode": "min"}, {"metric": "val_loss", "mode": "min", "floor": 9.0}],
    ids=["metric", "floor"],
)
def test_several_callbacks_that_would_restore_states_are_rejected(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    def of(optimizer: int, **arguments: Any) -> PruningCallback:
        return PruningCallback(
            schedule=OneShot(sparsity=0.5),
            penalty=None,
            optimizer=optimizer,
            score=MagnitudeScore(),
            **arguments,
        )

    for first, second in (({}, arguments), (arguments, {})):
        trainer = make_trainer(tmp_path, of(0, **first), of(1, **second))
        with pytest.raises(
            PrunusError, match=r"has 2 PruningCallbacks, of which 1 .*keep one PruningCallback, or"
        ):
            trainer.fit(Manual())
        assert trainer.global_step == 0


# The pruner itself warns at the end.
@pytest.mark.filterwarnings("ignore:.*but the training ended at step")
@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (GradualPruning(sparsity=0.5, end=14), 14),
        (GradualPruning(sparsity=0.5, total_steps=36), 18),
        (OneShot(sparsity=0.5, at=14), 14),
    ],
)
def test_a_removal_after_the_end_of_the_training_causes_a_warning(
    tmp_path: Path, schedule: Any, last: int
) -> None:
    def train(**changes: Any) -> None:
        pruning = PruningCallback(schedule=schedule, penalty=None, score=MagnitudeScore())
        fitted(tmp_path, pruning, accumulate_grad_batches=2, **changes)

    message = f"weights at optimizer step {last}, but the training ends after step 12, .*at= of"
    with pytest.warns(UserWarning, match=message):
        train(max_epochs=2)  # of six steps each
    train(max_steps=last, max_epochs=-1)  # without a warning, which would be an error


@pytest.mark.filterwarnings("ignore:.*but the training ended at step")
def test_the_steps_of_an_earlier_training_do_not_count(tmp_path: Path) -> None:
    pruning = PruningCallback(
        schedule=OneShot(sparsity=0.5, at=14), penalty=None, score=MagnitudeScore()
    )
    module = Module()
    trainer = make_trainer(tmp_path, pruning, max_epochs=2)  # of twelve steps each
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 3
    with pytest.warns(UserWarning, match="step 14, but the training ends after step 12"):
        trainer.fit(module)


def test_a_strategy_that_shards_the_model_is_rejected(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PruningCallback(penalty=None, score=MagnitudeScore()))
    trainer.strategy.world_size = 2
    with pytest.raises(
        PrunusError, match=r'the strategy is SingleDeviceStrategy: .*strategy="ddp"'
    ):
        trainer.fit(Module())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FSDPStrategy",
            r"the strategy is FSDPStrategy: .*ModelParallelStrategy\(\) with",
        ),
        (
            "DeepSpeedStrategy",
            "DeepSpeed trains this model, as DeepSpeedStrategy shows, ",
        ),
    ],
)
def test_strategies_that_hide_the_weights_are_rejected(
    tmp_path: Path, name: str, message: str
) -> None:
    # Stand-ins, as these need a GPU and DeepSpeed.
    strategy = type(name, (SingleDeviceStrategy,), {})("cpu")
    callback = PruningCallback(penalty=None, score=MagnitudeScore())
    with pytest.raises(PrunusError, match=message):
        make_trainer(tmp_path, callback, strategy=strategy).fit(Module())
    assert callback.pruner is None
