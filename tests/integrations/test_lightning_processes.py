"""Tests of the callback for Lightning in two processes, compared with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch")

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from helpers.data import tanh_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.pruners import coupled_penalty
from helpers.states import same
from integrations.lightning_trainers import Kill, KilledError, Module, make_trainer, pruner_of
from integrations.processes import launched, whole
from prunus import ExponentialRelevance, FisherScore, IterativePruning
from prunus.integrations.lightning import PruningCallback

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(treespec|many workers|not empty)"),
]

CEILING = 0.05


class Shared(Module):
    """Trains on this process's half of each batch, and logs the mean loss or each process's own."""

    def __init__(self, layout: str, *, sync: bool = True) -> None:
        super().__init__()
        self.net = tanh_network(12, 25, 3)
        self.layout, self.sync = layout, sync

    def configure_model(self) -> None:
        if self.layout == "fsdp":
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def own_part(self, batch: Any) -> Any:
        rank, count = self.trainer.global_rank, self.trainer.world_size
        return [part.chunk(count)[rank] for part in batch]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(self.own_part(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(self.own_part(batch))
        if not self.sync:
            loss = loss + self.trainer.global_rank
        self.log("val_loss", loss, batch_size=1, sync_dist=self.sync)


def pruning() -> PruningCallback:
    return PruningCallback(
        coupled_penalty(1e-2, ExponentialRelevance(0.1), smoothing=0.9),
        IterativePruning(fraction=0.75),
        metric="val_loss",
        floor=CEILING,
        mode="min",
        score=FisherScore(smoothing=0.9),
    )


class Watch(Callback):
    """Counts removed weights that are not zero, and records each validation."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.nonzero = pruning, 0
        self.validations: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.nonzero += sum(pruner_of(self.pruning).masks.revived().values())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics
            self.validations.append((float(logged["sparsity"]), float(logged["val_loss"])))


def trained(folder: Path, layout: str, *callbacks: Callback, resume: Any = None) -> dict[str, Any]:
    callback, module = pruning(), Shared(layout)
    watch = Watch(callback)
    changes: dict[str, Any] = {"max_epochs": 4, "gradient_clip_val": 0.5}
    if layout != "one":
        changes |= {"devices": 2, "strategy": strategy(layout), "use_distributed_sampler": False}
    trainer = make_trainer(folder, callback, watch, *callbacks, **changes)
    trainer.fit(module, ckpt_path=resume, weights_only=None if resume is None else True)
    with torch.no_grad():
        loss = float(module.loss(tanh_batch()))
    return {
        "weights": {name: whole(p) for name, p in module.named_parameters()},
        "sharded": pruner_of(callback).selection.process_group.sharded,
        "nonzero": watch.nonzero,
        "validations": watch.validations,
        "delivered": (pruner_of(callback).sparsity, loss),
    }


def strategy(layout: str) -> Any:
    if layout == "fsdp":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return "ddp"


def in_two_processes(folder: str, layout: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Train; resume; and validate with other metrics in each process."""
    uninterrupted = trained(Path(folder), layout)
    saver = ModelCheckpoint(folder, save_last=True)
    with pytest.raises(KilledError):
        trained(Path(folder), layout, Kill(40, "batch"), saver)
    resumed = trained(Path(folder), layout, resume=str(Path(folder) / "last.ckpt"))
    changes: dict[str, Any] = {"devices": 2, "strategy": strategy(layout)}
    trainer = make_trainer(Path(folder), pruning(), use_distributed_sampler=False, **changes)
    return uninterrupted, resumed, message_of(lambda: trainer.fit(Shared(layout, sync=False)))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_prune_as_one_and_resume(tmp_path: Path, layout: str) -> None:
    one = trained(tmp_path / "one", "one")
    assert one["validations"][-1][1] > CEILING  # so that not the last state is delivered
    for run, resumed, message in launched(2, in_two_processes, str(tmp_path), layout):
        assert run["sharded"] == (layout == "fsdp")
        assert run["nonzero"] == 0
        torch.testing.assert_close(run["validations"], one["validations"], rtol=1e-3, atol=0)
        for name, weights in run["weights"].items():
            assert torch.equal(weights == 0, one["weights"][name] == 0), name
            torch.testing.assert_close(weights, one["weights"][name], rtol=1e-2, atol=1e-4)
        assert run["delivered"][0] == one["delivered"][0]
        assert run["delivered"] == pytest.approx(run["validations"][-2], rel=1e-5)
        assert run["delivered"][1] <= CEILING
        assert same(run["weights"], resumed["weights"])
        assert "the same validation metric, which is " in message
