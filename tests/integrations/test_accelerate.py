"""Tests of the pruner for accelerate: zeros, skipped steps, resumption and rejections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, TorchDynamoPlugin
from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.models import tanh_network
from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.states import same, states_equal
from prunus import (
    CheckpointError,
    ExponentialRelevance,
    GradualPruning,
    IterativePruning,
    LinearDecayStrength,
    MagnitudeScore,
    OneShot,
    PrunusError,
    RelevancePenalty,
    Selection,
    TaylorScore,
    select,
)
from prunus._utils.files import load_tree
from prunus.integrations.accelerate import AcceleratedPruner
from prunus.integrations.common import STATE_FILE

pytestmark = pytest.mark.frameworks


@pytest.fixture(autouse=True)
def _reset_accelerator() -> Iterator[None]:
    """Reset the accelerator's settings after each test, as they are global to the process."""
    yield
    # Private, but accelerate has no public function that resets its settings.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def dropout_network() -> nn.Sequential:
    return tanh_network(12, 24, 3, dropout=0.1)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def examples(batch: int = 4) -> Any:
    # With a separate generator, as otherwise each epoch would draw from that of the dropout.
    return DataLoader(TensorDataset(*tanh_batch()), batch_size=batch, generator=torch.Generator())


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y)


def first_weight(model: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = model.get_parameter("0.weight").detach()
    return weight


def validated(model: nn.Module) -> float:
    with torch.no_grad():
        return float(loss_of(model, *tanh_batch()))


def stateful() -> dict[str, Any]:
    """Return arguments with which every part of the pruner has a state."""
    return {
        "penalty": coupled_penalty(
            LinearDecayStrength(1e-2, steps=6), ExponentialRelevance(0.1), smoothing=0.9
        ),
        "schedule": IterativePruning(fraction=0.2),
        "floor": 10.0,
        "mode": "min",
        "score": TaylorScore(),
        "max_grad_norm": 0.5,
    }


class Run:
    """A training of four epochs, each with a validation at its end and two checkpoints."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.accelerator = Accelerator(cpu=True, **settings)
        self.bare = dropout_network()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.bare, adamw(self.bare), examples()
        )
        self.pruner = AcceleratedPruner(self.accelerator, self.model, self.optimizer, **stateful())

    def train(self, start: int = 0, stop: int | None = None) -> None:
        """Train on the batches from ``start`` to ``stop``, counted over all epochs."""
        size = len(self.loader)
        for epoch in range(start // size, 4):
            skipped = max(0, start - epoch * size)
            batches = (
                self.accelerator.skip_first_batches(self.loader, skipped)
                if skipped
                else self.loader
            )
            for number, (x, y) in enumerate(batches, start=epoch * size + skipped):
                if number == stop:
                    raise KeyboardInterrupt
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(loss_of(self.model, x, y))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                for name, mask in self.pruner.masks.active().items():
                    weight = self.pruner.selection[name].parameter.detach()
                    assert not weight[~mask].any()
                if number % size == size - 1:
                    self.pruner.step(validated(self.bare))
                if number % 6 == 5:
                    self.accelerator.save_state(str(self.folder / str(number + 1)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"), gradient_accumulation_steps=2)
    run.train()
    return run


@pytest.mark.parametrize(("stop", "last"), [(8, 6), (20, 18), (31, 30), (45, 42)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: Run, stop: int, last: int
) -> None:
    first = Run(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(KeyboardInterrupt):
        first.train(stop=stop)
    second = Run(tmp_path, gradient_accumulation_steps=2)
    second.accelerator.load_state(str(tmp_path / str(last)))
    second.train(start=last)
    assert states_equal(uninterrupted.bare, second.bare)
    kept = [load_tree(run.folder / "48" / STATE_FILE) for run in (uninterrupted, second)]
    assert same(*kept)
    assert kept[0]["steps"] == 24
    assert kept[0]["prunings"] == 4
    assert not list(tmp_path.glob("*/custom_checkpoint*"))  # which would be pickles
    second.pruner.finish()
    assert second.pruner.sparsity == pytest.approx(1 - 0.8**3, abs=0.01)


def test_a_plain_loop_gives_the_same_bits(uninterrupted: Run) -> None:
    model = dropout_network()
    optimizer = adamw(model)
    pruner = magnitude_pruner(model, optimizer, **stateful())
    loader = examples()
    for _ in range(4):
        for number, (x, y) in enumerate(loader):
            torch.autograd.backward(loss_of(model, x, y) / 2)
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        pruner.step(validated(model))
    assert states_equal(model, uninterrupted.bare)


def trained(batch: int, accumulate: int) -> nn.Module:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = dropout_network().eval()  # without dropout, which would be drawn for other batches
    optimizer = adamw(model)
    _, optimizer, loader = accelerator.prepare(model, optimizer, examples(batch=batch))
    pruner = AcceleratedPruner(
        accelerator,
        model,
        optimizer,
        coupled_penalty(1e-2, ExponentialRelevance(0.1)),
        OneShot(sparsity=0.5, at=2),
        score=MagnitudeScore(),
    )
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, x, y))
            optimizer.step()
            optimizer.zero_grad()
    assert pruner.state_dict()["steps"] == 6
    assert pruner.sparsity == 0.5
    return model


def test_accumulation_equals_one_large_batch() -> None:
    torch.testing.assert_close(
        trained(batch=2, accumulate=4).state_dict(), trained(batch=8, accumulate=1).state_dict()
    )


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_a_step_that_the_scaler_skips_is_not_counted(fused: bool) -> None:
    accelerator = Accelerator(cpu=True)
    # On a CPU the accelerator builds no scaler.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model = dropout_network()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    _, optimizer = accelerator.prepare(model, adam)
    pruner = AcceleratedPruner(
        accelerator,
        model,
        optimizer,
        coupled_penalty(1e-2),
        OneShot(sparsity=0.5, at=2),
        score=MagnitudeScore(),
    )
    steps = []
    for value in (1.0, float("inf"), 1.0):
        before = first_weight(model).clone()
        accelerator.backward(loss_of(model, torch.full((4, 12), value), torch.zeros(4, 3)))
        optimizer.step()
        optimizer.zero_grad()
        steps.append(pruner.state_dict()["steps"])
        if value == float("inf"):
            assert torch.equal(before, first_weight(model))
            if not fused:  # a fused optimizer does not report it to the accelerator
                assert accelerator.optimizer_step_was_skipped
    assert steps == [1, 1, 2]
    assert pruner.sparsity == 0.5


def test_relevance_is_measured_on_the_unscaled_gradient() -> None:
    def shrunk(scale: float | None) -> torch.Tensor:
        accelerator = Accelerator(cpu=True)
        if scale is not None:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        model = dropout_network().eval()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-30
        )  # so that the penalty alone moves weights
        _, prepared = accelerator.prepare(model, optimizer)
        penalty = RelevancePenalty(0.5, ExponentialRelevance(1e-2), apply="decoupled")
        AcceleratedPruner(
            accelerator, model, prepared, penalty, max_grad_norm=1e-3, score=MagnitudeScore()
        )
        before = first_weight(model).clone()
        accelerator.backward(loss_of(model, *tanh_batch()))
        prepared.step()
        return first_weight(model) / before

    model = dropout_network().eval()
    loss_of(model, *tanh_batch()).backward()  # type: ignore[no-untyped-call]
    # Twice the strength, times the relevance of the gradient before clipping.
    expected = 1 - 2 * 0.5 * torch.exp(-model.get_parameter("0.weight").grad.abs() / 1e-2)  # type: ignore[union-attr]
    assert expected.min() < 0.9 < expected.max()
    for scale in (None, 2.0**12):
        torch.testing.assert_close(shrunk(scale), expected)


@pytest.mark.filterwarnings("default")  # the compiler warns too
@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "bf16"},
        # The eager backend, as there may be no compiler.
        {"dynamo_plugin": TorchDynamoPlugin(backend="eager")},
    ],
    ids=["bf16", "compiled"],
)
def test_a_model_wrapped_by_the_accelerator_is_pruned_inside(settings: dict[str, Any]) -> None:
    accelerator = Accelerator(cpu=True, **settings)
    bare = dropout_network()
    model, optimizer, loader = accelerator.prepare(bare, adamw(bare), examples())
    pruner = AcceleratedPruner(
        accelerator,
        model,
        optimizer,
        coupled_penalty(1e-2),
        GradualPruning(sparsity=0.8, end=4),
        score=MagnitudeScore(),
    )
    assert pruner.model is bare
    for x, y in loader:
        accelerator.backward(loss_of(model, x, y))
        optimizer.step()
        optimizer.zero_grad()
    kept = sum(int(t.parameter.count_nonzero()) for t in pruner.selection.values())
    assert kept == 360 - round(0.8 * 360)


def only_first(model: nn.Module) -> Selection:
    return select(model, include="0.weight")


@pytest.mark.parametrize("as_object", [True, False], ids=["object", "function"])
def test_a_selection_is_an_object_or_a_function(as_object: bool) -> None:
    accelerator = Accelerator(cpu=True)
    bare = dropout_network()
    model, optimizer = accelerator.prepare(bare, adamw(bare))
    selection = only_first(bare) if as_object else only_first
    mask = torch.ones(24, 12, dtype=torch.bool)
    mask[::2] = False
    pruner = AcceleratedPruner(
        accelerator,
        model,
        optimizer,
        selection=selection,
        masks={"0.weight": mask},
        penalty=None,
        score=MagnitudeScore(),
    )
    assert list(pruner.selection) == ["0.weight"]
    assert torch.equal(first_weight(bare) != 0, mask)


def test_two_pruners_save_separate_files(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    pairs = [
        accelerator.prepare(model, adamw(model)) for model in (dropout_network(), dropout_network())
    ]
    one, other = (
        AcceleratedPruner(accelerator, model, optimizer, None, score=MagnitudeScore())
        for model, optimizer in pairs
    )
    one.prune(sparsity=0.25)
    other.prune(sparsity=0.75)
    accelerator.save_state(str(tmp_path))
    one.prune(sparsity=0.9)
    other.prune(sparsity=0.9)
    accelerator.load_state(str(tmp_path))
    assert (one.sparsity, other.sparsity) == (0.25, 0.75)
    assert (tmp_path / "prunus_1.safetensors").is_file()
    one.detach()
    (tmp_path / STATE_FILE).unlink()
    accelerator.load_state(str(tmp_path))  # the file of the detached pruner is not needed


def test_a_checkpoint_saved_without_the_pruner_is_rejected(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = dropout_network()
    _, optimizer = accelerator.prepare(model, adamw(model))
    accelerator.save_state(str(tmp_path))
    AcceleratedPruner(accelerator, model, optimizer, penalty=None, score=MagnitudeScore())
    with pytest.raises(CheckpointError, match=r"has no prunus\.safetensors: .* without this"):
        accelerator.load_state(str(tmp_path))


def test_weights_of_another_checkpoint_are_rejected(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = dropout_network()
    _, optimizer = accelerator.prepare(model, adamw(model))
    pruner = AcceleratedPruner(accelerator, model, optimizer, penalty=None, score=MagnitudeScore())
    accelerator.save_state(str(tmp_path / "dense"))
    pruner.prune(sparsity=0.5)
    accelerator.save_state(str(tmp_path / "sparse"))
    # As if the process had been killed when it overwrote one with the other.
    (tmp_path / "sparse" / STATE_FILE).replace(tmp_path / "dense" / STATE_FILE)
    accelerator.load_state(str(tmp_path / "dense"))
    torch.autograd.backward(loss_of(model, *tanh_batch()))
    with pytest.raises(CheckpointError, match=r"not saved together with .* not zero in 0\.weight"):
        optimizer.step()


def test_an_optimizer_that_was_not_prepared_is_rejected() -> None:
    accelerator = Accelerator(cpu=True)
    model = dropout_network()
    with pytest.raises(PrunusError, match=r"is a bare AdamW: call .*accelerator\.prepare"):
        AcceleratedPruner(accelerator, model, adamw(model), penalty=None, score=MagnitudeScore())


def test_a_plain_pruner_of_a_prepared_optimizer_is_rejected() -> None:
    model = dropout_network()
    model, optimizer = Accelerator(cpu=True).prepare(model, adamw(model))
    with pytest.raises(PrunusError, match="AcceleratedOptimizer has none: .* AcceleratedPruner"):
        magnitude_pruner(model, optimizer)


def test_an_accelerator_of_another_type_is_rejected() -> None:
    model = dropout_network()
    with pytest.raises(
        PrunusError, match=r"accelerator must be an accelerate\.Accelerator, but is"
    ):
        AcceleratedPruner(model, adamw(model), coupled_penalty(1e-3))  # type: ignore[arg-type]


class DeepSpeedPlugin:
    """A stand-in for accelerate's, which needs DeepSpeed."""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            DistributedType.DEEPSPEED,
            "DeepSpeed trains this model, as DeepSpeedPlugin shows, .*",
        ),
        (DistributedType.MEGATRON_LM, "does not work with Megatron-LM, .*: use Distributed"),
    ],
)
def test_backends_that_train_copies_of_the_weights_are_rejected(
    monkeypatch: pytest.MonkeyPatch, kind: Any, message: str
) -> None:
    accelerator = Accelerator(cpu=True)
    model = dropout_network()
    _, optimizer = accelerator.prepare(model, adamw(model))
    monkeypatch.setattr(accelerator.state, "distributed_type", kind)
    plugin = DeepSpeedPlugin() if kind == DistributedType.DEEPSPEED else None
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    with pytest.raises(PrunusError, match=message):
        AcceleratedPruner(accelerator, model, optimizer, penalty=None, score=MagnitudeScore())
