"""Tests of the callback for Lightning: zeros, resumption, clipping, delivery and rejections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.models import tanh_network
from helpers.states import same, states_equal
from prunus import (
    CheckpointError,
    ExponentialRelevance,
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    LinearDecayStrength,
    OneShot,
    Pruner,
    PrunusError,
    RelevancePenalty,
    TaylorScore,
    select,
)
from prunus.integrations.lightning import PruningCallback

pytestmark = [
    pytest.mark.frameworks,
    # Lightning's warnings about versions of other packages, and its advice.
    pytest.mark.filterwarnings("ignore:.*(treespec|many workers|not empty)"),
]


class Batches:
    """Batches of the data that resume within an epoch."""

    def __init__(self, batch: int = 4) -> None:
        self.batch, self.done = batch, 0

    def __len__(self) -> int:
        return 48 // self.batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = list(zip(*(torch.split(part, self.batch) for part in tanh_batch()), strict=True))
        self.done = self.done % len(self)
        while self.done < len(self):
            self.done += 1
            yield batches[self.done - 1]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = tanh_network(12, 24, 3)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(
            "val_loss", self.loss(batch), batch_size=1
        )  # a single batch, so that its loss is exact

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)

    def train_dataloader(self) -> Any:
        return Batches()

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*tanh_batch()), batch_size=48)


def first_weight(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("net.0.weight").detach()


class Watch(Callback):
    """Checks after every batch that removed weights are zero."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.checked = pruning, 0

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.pruning.pruner is not None
        for name, mask in self.pruning.pruner.masks.active().items():
            weight = self.pruning.pruner.selection[name].parameter.detach()
            assert not weight[~mask].any()
            self.checked += 1


class KilledError(Exception):
    pass


class Kill(Callback):
    """Interrupts training after a number of batches, or within the next validation."""

    def __init__(self, batch: int, event: str) -> None:
        self.batch, self.event, self.seen = batch, event, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.event == "batch" and self.seen >= self.batch:
            raise KilledError

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.event == "validation" and self.seen >= self.batch:
            raise KilledError


def make_trainer(folder: Path, *callbacks: Callback, **changes: Any) -> Trainer:
    """Return a Trainer of four epochs that each end in a validation."""
    arguments: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**arguments, **changes})


def parts() -> dict[str, Any]:
    """Return a penalty, a schedule and a score that all have a state."""
    return {
        "penalty": RelevancePenalty(
            LinearDecayStrength(1e-2, steps=6), ExponentialRelevance(0.1), smoothing=0.9
        ),
        "schedule": IterativePruning(fraction=0.2),
        "floor": 10.0,
        "mode": "min",
        "score": TaylorScore(),
    }


def stateful() -> PruningCallback:
    return PruningCallback(**parts(), metric="val_loss")


def fitted(folder: Path, pruning: PruningCallback, *more: Callback, **changes: Any) -> Module:
    module = Module()
    make_trainer(folder, pruning, *more, **changes).fit(module)
    return module


def pruner_of(pruning: PruningCallback) -> Pruner:
    assert pruning.pruner is not None
    return pruning.pruner


CLIPPED = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, PruningCallback]:
    pruning = stateful()
    return fitted(tmp_path_factory.mktemp("run"), pruning, **CLIPPED), pruning


def test_a_plain_loop_gives_the_same_bits(uninterrupted: tuple[Module, PruningCallback]) -> None:
    module, pruning = uninterrupted
    plain = Module()
    optimizer = plain.configure_optimizers()
    pruner = Pruner(plain, optimizer, **parts(), max_grad_norm=0.05)
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
        schedule=IterativePruning(fraction=0.5), metric="val_loss", floor=10.0, mode="min"
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


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    ],
    ids=["AdamW", "fused", "SGD"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_removed_weights_stay_zero_after_every_batch(
    tmp_path: Path, make: Any, precision: Any
) -> None:
    module = Module()
    module.configure_optimizers = lambda: make(module.parameters())  # type: ignore[method-assign]
    pruning = PruningCallback(RelevancePenalty(1e-3), GradualPruning(sparsity=0.9, end=20, every=5))
    watch = Watch(pruning)
    make_trainer(tmp_path, pruning, watch, precision=precision, gradient_clip_val=1.0).fit(module)
    assert watch.checked > 80
    weights = select(module)
    kept = sum(int(t.parameter.count_nonzero()) for t in weights.values())
    assert (kept, weights.prunable) == (36, 360)


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def run(batch: int, accumulate: int) -> Module:
        pruning = PruningCallback(
            RelevancePenalty(1e-2, ExponentialRelevance(0.1)), OneShot(sparsity=0.5, at=2)
        )
        module = Module()
        module.train_dataloader = lambda: Batches(batch)  # type: ignore[method-assign]
        make_trainer(tmp_path, pruning, accumulate_grad_batches=accumulate, max_epochs=2).fit(
            module
        )
        assert pruner_of(pruning).state_dict()["steps"] == 12
        assert pruner_of(pruning).sparsity == 0.5
        return module

    torch.testing.assert_close(run(2, 4).state_dict(), run(8, 1).state_dict())


def test_a_step_that_the_scaler_skips_is_not_counted(tmp_path: Path) -> None:
    class Overflowing(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(batch) * (float("inf") if batch_idx in (3, 7) else 1.0)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module, pruning = Overflowing(), PruningCallback(RelevancePenalty(1e-3))
    watch = Watch(pruning)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    make_trainer(
        tmp_path, pruning, watch, plugins=[plugin], max_epochs=1, gradient_clip_val=0.1
    ).fit(module)
    assert pruner_of(pruning).state_dict()["steps"] == 10
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_relevance_is_measured_before_clipping(tmp_path: Path) -> None:
    def shrunk(value: float | None) -> torch.Tensor:
        module = Module()
        before = first_weight(module).clone()
        module.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
            module.parameters(),
            lr=1e-30,  # so that the penalty alone moves the weights
        )
        penalty = RelevancePenalty(0.5, ExponentialRelevance(1e-2), apply="decoupled")
        make_trainer(tmp_path, PruningCallback(penalty), max_steps=1, gradient_clip_val=value).fit(
            module
        )
        return first_weight(module) / before

    module = Module()
    torch.autograd.backward(module.loss(next(iter(Batches()))))
    gradient = module.get_parameter("net.0.weight").grad
    assert gradient is not None
    # Twice the strength, times the relevance of the gradient before clipping.
    expected = 1 - 2 * 0.5 * torch.exp(-gradient.abs() / 1e-2)
    assert expected.min() < 0.9 < expected.max()
    for value in (None, 1e-4):
        torch.testing.assert_close(shrunk(value), expected)


@pytest.mark.parametrize(
    "penalty", [None, RelevancePenalty(0.0)], ids=["by Lightning", "by the pruner"]
)
def test_clipping_equals_lightnings_bit_for_bit(
    tmp_path: Path, penalty: RelevancePenalty | None
) -> None:
    plain, ours = Module(), Module()
    make_trainer(tmp_path, gradient_clip_val=0.05).fit(plain)
    trainer = make_trainer(tmp_path, PruningCallback(penalty), gradient_clip_val=0.05)
    trainer.fit(ours)
    assert states_equal(plain, ours)
    assert trainer.gradient_clip_val == 0.05


def test_the_trainers_clipping_is_restored_after_an_error(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, stateful(), Kill(2, "batch"), gradient_clip_val=0.05)
    with pytest.raises(KilledError):
        trainer.fit(Module())
    assert trainer.gradient_clip_val == 0.05


def test_clipping_by_value_is_rejected_if_gradients_are_read(tmp_path: Path) -> None:
    changes = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value", "max_epochs": 1}
    with pytest.raises(PrunusError, match=r"'value' changes gradients .*gradient_clip_algorithm="):
        fitted(tmp_path, stateful(), **changes)
    fitted(tmp_path, PruningCallback(schedule=OneShot(sparsity=0.5)), **changes)


def test_clipping_overridden_by_the_module_is_kept_with_a_warning(tmp_path: Path) -> None:
    class Clipping(Module):
        def configure_gradient_clipping(self, optimizer: Any, **settings: Any) -> None:
            self.clip_gradients(optimizer, **settings)

    ours, plain = Clipping(), Module()
    with pytest.warns(UserWarning, match=r"Clipping\.configure_gradient_clipping runs before"):
        make_trainer(tmp_path, stateful(), **CLIPPED).fit(ours)
    make_trainer(tmp_path, stateful(), **CLIPPED).fit(plain)
    assert states_equal(ours, plain)  # because it passes the same arguments on


class Manual(Module):
    """Two networks with one optimizer each, in manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.net.parameters(), lr=1e-2),
            torch.optim.SGD(self.other.parameters(), lr=0.1, momentum=0.9),
        ]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer, network in zip(self.optimizers(), (self.net, self.other), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(network(batch[0]), batch[1]))
            optimizer.step()


@pytest.mark.parametrize("chosen", [1, lambda optimizer: "momentum" in optimizer.defaults])
def test_only_weights_of_the_chosen_optimizer_are_pruned(tmp_path: Path, chosen: Any) -> None:
    module = Manual()
    pruning = PruningCallback(
        RelevancePenalty(1e-3), OneShot(sparsity=0.75, at=5), optimizer=chosen
    )
    watch = Watch(pruning)
    make_trainer(tmp_path, pruning, watch).fit(module)
    zeros = [int((p == 0).sum()) for p in module.parameters()]
    assert sum(zeros[:4]) == 0
    assert zeros[4] + zeros[6] == 90
    assert watch.checked > 40


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            None,
            r"one optimizer must hold .* 0 \(AdamW\), 1 \(SGD\) these do: 0 .*, 1 .*optimizer=0",
        ),
        (2, r"optimizer=2 is none of .*: 0 \(AdamW\), 1 \(SGD\)"),
        (lambda _: True, r"must return True for one of .* but does for 0 \(AdamW\), 1 \(SGD\)"),
        (lambda _: False, r"must return True for one of .* but does for none"),
    ],
)
def test_an_ambiguous_choice_of_optimizer_is_rejected(
    tmp_path: Path, chosen: Any, message: str
) -> None:
    with pytest.raises(PrunusError, match=message):
        make_trainer(tmp_path, PruningCallback(optimizer=chosen)).fit(Manual())


def test_the_only_optimizer_with_selected_weights_is_chosen(tmp_path: Path) -> None:
    module = Manual()
    pruning = PruningCallback(
        schedule=OneShot(sparsity=0.5, at=1), selection=lambda m: select(m, include="net.*.weight")
    )
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert list(pruner_of(pruning).selection) == ["net.0.weight", "net.2.weight"]


def test_frozen_weights_are_not_selected(tmp_path: Path) -> None:
    module = Module()
    module.get_submodule("net.0").requires_grad_(False)
    pruning = PruningCallback(schedule=OneShot(sparsity=0.5, at=1))
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert list(pruner_of(pruning).selection) == ["net.2.weight"]


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


def test_a_second_fit_keeps_the_zeros_of_the_first(tmp_path: Path) -> None:
    schedule, module = OneShot(sparsity=0.75, at=2), Module()
    pruning = PruningCallback(schedule=schedule)
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    before = {name: p == 0 for name, p in module.named_parameters()}
    schedule.sparsity = 0.9
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert sum(int(zero.sum()) for zero in before.values()) == 270  # of 360
    after = dict(module.named_parameters())
    assert all(not after[name][zero].any() for name, zero in before.items())
    assert pruner_of(pruning).sparsity == pytest.approx(0.9)


def test_fine_tuning_a_sparse_model_keeps_its_zeros(tmp_path: Path) -> None:
    module = Module()
    first_weight(module)[:, ::2] = 0.0
    make_trainer(tmp_path, PruningCallback(keep_zeros=True), max_epochs=1).fit(module)
    assert not first_weight(module)[:, ::2].any()
    assert first_weight(module)[:, 1::2].all()


def test_a_schedule_without_metric_prunes_to_its_sparsity(tmp_path: Path) -> None:
    pruning = PruningCallback(schedule=OneShot(sparsity=0.5))
    module = fitted(tmp_path, pruning, max_epochs=1)
    assert sum(int((p == 0).sum()) for p in module.parameters()) == 180


def test_an_unmet_floor_is_rejected_at_the_end(tmp_path: Path) -> None:
    unmet = PruningCallback(schedule=IterativePruning(), metric="val_loss", floor=1e-9, mode="min")
    with pytest.raises(FloorNotReachedError, match="no validation met the floor"):
        fitted(tmp_path, unmet, max_epochs=1)


def floored(metric: str = "accuracy") -> PruningCallback:
    return PruningCallback(schedule=IterativePruning(), metric=metric, floor=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": IterativePruning(), "floor": 1.0},
            r'needs the validation metric: .*metric="\.\.\."',
        ),
        ({"metric": "val_loss"}, 'mode="min"'),
        ({"schedule": RelevancePenalty(1e-3)}, "schedule must be a Schedule or None, but is"),
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
        schedule=IterativePruning(), metric="val_loss", floor=99.0, mode="min"
    )
    make_trainer(
        tmp_path, pruning, num_sanity_val_steps=0, check_val_every_n_epoch=2, max_epochs=4
    ).fit(Module())
    assert pruner_of(pruning).sparsity > 0


def test_a_strategy_that_shards_the_model_is_rejected(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PruningCallback())
    trainer.strategy.world_size = 2
    with pytest.raises(
        PrunusError, match=r'the strategy is SingleDeviceStrategy: .*strategy="ddp"'
    ):
        trainer.fit(Module())


class Shared(Module):
    """Logs the mean loss of all processes, or each process's own."""

    def __init__(self, sync: bool) -> None:
        super().__init__()
        self.sync = sync

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        rank = self.trainer.global_rank
        return self.loss([part[2 * rank : 2 * rank + 2] for part in batch])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch) + self.trainer.global_rank
        self.log("val_loss", loss, batch_size=1, sync_dist=self.sync)


class Alike(Callback):
    """Checks that both processes delivered the same sparse network."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning = pruning

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        own = torch.cat([weight.detach().flatten() for weight in pl_module.parameters()])
        assert torch.equal(*trainer.strategy.all_gather(own))
        assert self.pruning.pruner is not None
        assert self.pruning.pruner.sparsity == pytest.approx(1 - 0.6**3, abs=5e-3)


@pytest.mark.filterwarnings("default")
def test_two_processes_prune_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # If it is set Lightning keeps several threads, and those of OpenMP do not survive a fork.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pruning = PruningCallback(
        RelevancePenalty(1e-3, ExponentialRelevance(0.5, relative=True)),
        IterativePruning(fraction=0.4),
        metric="val_loss",
        floor=10.0,
        mode="min",
    )
    changes: dict[str, Any] = {
        "strategy": "ddp_fork",
        "devices": 2,
        "use_distributed_sampler": False,
    }
    # No validation is left to measure the state after the last of four prunings.
    make_trainer(tmp_path, pruning, Alike(pruning), **changes).fit(Shared(sync=True))
    with pytest.raises(ProcessRaisedException, match="all processes must have the same validation"):
        make_trainer(tmp_path, pruning, **changes).fit(Shared(sync=False))


def test_a_checkpoint_saved_without_the_callback_is_rejected(tmp_path: Path) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_last=True)

    make_trainer(tmp_path, saver(), max_epochs=1).fit(Module())
    trainer = make_trainer(tmp_path, PruningCallback(), saver())
    with pytest.raises(CheckpointError, match=r"last\.ckpt has no state of a PruningCallback"):
        trainer.fit(Module(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_a_selection_and_its_masks_may_be_objects(tmp_path: Path) -> None:
    module = Module()
    selection = select(module, include="net.0.weight")
    mask = torch.ones(24, 12, dtype=torch.bool)
    mask[::2] = False
    pruning = PruningCallback(selection=selection, masks={"net.0.weight": mask})
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert pruner_of(pruning).selection is selection
    assert torch.equal(first_weight(module) != 0, mask)


def test_without_keep_best_the_last_state_is_delivered(tmp_path: Path) -> None:
    pruning = PruningCallback(
        schedule=IterativePruning(fraction=0.5),
        metric="val_loss",
        floor=100.0,
        mode="min",
        keep_best=False,
    )
    make_trainer(tmp_path, pruning, max_epochs=2).fit(Module())
    assert pruner_of(pruning).sparsity == 0.75
