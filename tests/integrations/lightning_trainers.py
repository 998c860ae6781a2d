"""Small Lightning modules, Trainers and callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.models import tanh_network
from helpers.pruners import coupled_penalty
from prunus import (
    ExponentialRelevance,
    IterativePruning,
    LinearDecayStrength,
    Pruner,
    TaylorScore,
)
from prunus.integrations.lightning import PruningCallback


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


def first_weight(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("net.0.weight").detach()


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
        "penalty": coupled_penalty(
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
