"""Tests of the callback for Lightning: zeros, clipping, optimizers and delivery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from helpers.pruners import coupled_penalty
from helpers.states import states_equal
from integrations.lightning_trainers import (
    CLIPPED,
    Batches,
    Kill,
    KilledError,
    Manual,
    Module,
    first_weight,
    fitted,
    make_trainer,
    pruner_of,
    stateful,
)
from prunus import (
    ExponentialRelevance,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    OneShot,
    PrunusError,
    RelevancePenalty,
    select,
)
from prunus.integrations.lightning import PruningCallback

pytestmark = [
    pytest.mark.frameworks,
    # Lightning's warnings about versions of other packages, and its advice.
    pytest.mark.filterwarnings("ignore:.*(treespec|many workers|not empty)"),
]


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
    pruning = PruningCallback(
        coupled_penalty(1e-3), GradualPruning(sparsity=0.9, end=20, every=5), score=MagnitudeScore()
    )
    watch = Watch(pruning)
    make_trainer(tmp_path, pruning, watch, precision=precision, gradient_clip_val=1.0).fit(module)
    assert watch.checked > 80
    weights = select(module)
    kept = sum(int(t.parameter.count_nonzero()) for t in weights.values())
    assert (kept, weights.prunable) == (36, 360)


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def run(batch: int, accumulate: int) -> Module:
        pruning = PruningCallback(
            coupled_penalty(1e-2, ExponentialRelevance(0.1)),
            OneShot(sparsity=0.5, at=2),
            score=MagnitudeScore(),
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
    module, pruning = Overflowing(), PruningCallback(coupled_penalty(1e-3), score=MagnitudeScore())
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
        make_trainer(
            tmp_path,
            PruningCallback(penalty, score=MagnitudeScore()),
            max_steps=1,
            gradient_clip_val=value,
        ).fit(module)
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
    "penalty", [None, coupled_penalty(0.0)], ids=["by Lightning", "by the pruner"]
)
def test_clipping_equals_lightnings_bit_for_bit(
    tmp_path: Path, penalty: RelevancePenalty | None
) -> None:
    plain, ours = Module(), Module()
    make_trainer(tmp_path, gradient_clip_val=0.05).fit(plain)
    trainer = make_trainer(
        tmp_path, PruningCallback(penalty, score=MagnitudeScore()), gradient_clip_val=0.05
    )
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
    fitted(
        tmp_path,
        PruningCallback(schedule=OneShot(sparsity=0.5), penalty=None, score=MagnitudeScore()),
        **changes,
    )


def test_clipping_overridden_by_the_module_is_kept_with_a_warning(tmp_path: Path) -> None:
    class Clipping(Module):
        def configure_gradient_clipping(self, optimizer: Any, **settings: Any) -> None:
            self.clip_gradients(optimizer, **settings)

    ours, plain = Clipping(), Module()
    with pytest.warns(UserWarning, match=r"Clipping\.configure_gradient_clipping runs before"):
        make_trainer(tmp_path, stateful(), **CLIPPED).fit(ours)
    make_trainer(tmp_path, stateful(), **CLIPPED).fit(plain)
    assert states_equal(ours, plain)  # because it passes the same arguments on


@pytest.mark.parametrize("chosen", [[0, 1], lambda _: True])
def test_one_callback_prunes_the_weights_of_several_optimizers(tmp_path: Path, chosen: Any) -> None:
    module = Manual()
    pruning = PruningCallback(
        schedule=GradualPruning(sparsity=0.75, end=30, every=5),
        metric="val_loss",
        mode="min",
        floor=9.0,
        optimizer=chosen,
        score=MagnitudeScore(),
    )
    watch = Watch(pruning)
    make_trainer(tmp_path, pruning, watch).fit(module)
    weights = select(module)
    zeros = {name: int((t.weight == 0).sum()) for name, t in weights.items()}
    assert sum(zeros.values()) == round(0.75 * weights.prunable)
    assert all(zeros.values())
    assert watch.checked > 40


@pytest.mark.parametrize("chosen", [1, lambda optimizer: "momentum" in optimizer.defaults])
def test_only_weights_of_the_chosen_optimizer_are_pruned(tmp_path: Path, chosen: Any) -> None:
    module = Manual()
    pruning = PruningCallback(
        coupled_penalty(1e-3),
        OneShot(sparsity=0.75, at=5),
        optimizer=chosen,
        score=MagnitudeScore(),
    )
    watch = Watch(pruning)
    make_trainer(tmp_path, pruning, watch).fit(module)
    zeros = [int((p == 0).sum()) for p in module.parameters()]
    assert sum(zeros[:4]) == 0
    assert zeros[4] + zeros[6] == 90
    assert watch.checked > 40


def test_callbacks_of_two_optimizers_remove_their_weights_and_resume(tmp_path: Path) -> None:
    def callbacks() -> list[PruningCallback]:
        schedules = (GradualPruning(sparsity=0.75, end=30, every=5), OneShot(sparsity=0.5))
        return [
            PruningCallback(schedule=schedule, penalty=None, optimizer=i, score=MagnitudeScore())
            for i, schedule in enumerate(schedules)
        ]

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_last=True)

    whole, resumed = Manual(), Manual()
    trainer = make_trainer(tmp_path, *callbacks())
    trainer.fit(whole)
    logged = {name: float(x) for name, x in trainer.callback_metrics.items() if "sparsity" in name}
    # At the last validation, to the nearest weight.
    assert logged == {"sparsity_0": pytest.approx(0.75), "sparsity_1": pytest.approx(0.5)}
    with pytest.raises(KilledError):
        make_trainer(tmp_path, *callbacks(), Kill(30, "batch"), saver()).fit(Manual())
    trainer = make_trainer(tmp_path, *callbacks(), saver())
    trainer.fit(resumed, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert states_equal(whole, resumed)
    for network, sparsity in ((whole.net, 0.75), (whole.other, 0.5)):
        weights = select(network)
        zeros = sum(int((t.parameter == 0).sum()) for t in weights.values())
        assert zeros == round(sparsity * weights.prunable)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            None,
            r"^exactly one optimizer must hold prunable weights\. Optimizers: 0 \(AdamW\), "
            r"1 \(SGD\); "
            r"with prunable weights: 0 \(AdamW\), 1 \(SGD\)\. Choose one with optimizer=0, or "
            r"several with optimizer=\[0, 1\] or a function that returns True for them",
        ),
        (2, r"optimizer=2 is none of .*: 0 \(AdamW\), 1 \(SGD\)"),
        ([0, 2], r"optimizer=\[0, 2\] is none of .*: 0 \(AdamW\), 1 \(SGD\)"),
        (lambda _: False, r"must return True for one of .* but does for none"),
    ],
)
def test_an_ambiguous_choice_of_optimizer_is_rejected(
    tmp_path: Path, chosen: Any, message: str
) -> None:
    with pytest.raises(PrunusError, match=message):
        make_trainer(
            tmp_path, PruningCallback(optimizer=chosen, penalty=None, score=MagnitudeScore())
        ).fit(Manual())


def test_the_only_optimizer_with_selected_weights_is_chosen(tmp_path: Path) -> None:
    module = Manual()
    pruning = PruningCallback(
        schedule=OneShot(sparsity=0.5, at=1),
        selection=lambda m: select(m, include="net.*.weight"),
        penalty=None,
        score=MagnitudeScore(),
    )
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert list(pruner_of(pruning).selection) == ["net.0.weight", "net.2.weight"]


def test_frozen_weights_are_not_selected(tmp_path: Path) -> None:
    module = Module()
    module.get_submodule("net.0").requires_grad_(False)
    pruning = PruningCallback(
        schedule=OneShot(sparsity=0.5, at=1), penalty=None, score=MagnitudeScore()
    )
    make_trainer(tmp_path, pruning, max_epochs=1).fit(module)
    assert list(pruner_of(pruning).selection) == ["net.2.weight"]


def test_a_second_fit_keeps_the_zeros_of_the_first(tmp_path: Path) -> None:
    schedule, module = OneShot(sparsity=0.75, at=2), Module()
    pruning = PruningCallback(schedule=schedule, penalty=None, score=MagnitudeScore())
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
    make_trainer(
        tmp_path,
        PruningCallback(keep_zeros=True, penalty=None, score=MagnitudeScore()),
        max_epochs=1,
    ).fit(module)
    assert not first_weight(module)[:, ::2].any()
    assert first_weight(module)[:, 1::2].all()


def test_a_schedule_without_metric_prunes_to_its_sparsity(tmp_path: Path) -> None:
    pruning = PruningCallback(schedule=OneShot(sparsity=0.5), penalty=None, score=MagnitudeScore())
    module = fitted(tmp_path, pruning, max_epochs=1)
    assert sum(int((p == 0).sum()) for p in module.parameters()) == 180


def test_a_selection_and_its_masks_may_be_objects(tmp_path: Path) -> None:
    module = Module()
    selection = select(module, include="net.0.weight")
    mask = torch.ones(24, 12, dtype=torch.bool)
    mask[::2] = False
    pruning = PruningCallback(
        selection=selection, masks={"net.0.weight": mask}, penalty=None, score=MagnitudeScore()
    )
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
        penalty=None,
        score=MagnitudeScore(),
    )
    make_trainer(tmp_path, pruning, max_epochs=2).fit(Module())
    assert pruner_of(pruning).sparsity == 0.75
