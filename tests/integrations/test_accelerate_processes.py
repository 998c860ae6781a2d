"""Tests of the pruner for accelerate in two processes, compared with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.utils.data import DataLoader, TensorDataset

from helpers.data import tanh_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.pruners import coupled_penalty
from helpers.states import same
from integrations.processes import launched, shard_on_cpu, whole
from prunus import ExponentialRelevance, FisherScore, IterativePruning
from prunus.integrations.accelerate import AcceleratedPruner
from prunus.integrations.common import STATE_FILE

pytestmark = [pytest.mark.frameworks, pytest.mark.distributed, pytest.mark.slow]


def accelerator(layout: str) -> Accelerator:
    if layout != "fsdp":
        return Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=50
    )
    return Accelerator(cpu=True, fsdp_plugin=plugin)


class Run:
    """A training with a validation and a checkpoint after each epoch."""

    def __init__(self, folder: Path, layout: str, batch: int) -> None:
        self.folder, self.accelerator = folder, accelerator(layout)
        bare = tanh_network(12, 25, 3)
        optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2, weight_decay=0.1)
        examples = DataLoader(TensorDataset(*tanh_batch()), batch_size=batch)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            bare, optimizer, examples
        )
        self.pruner = AcceleratedPruner(
            self.accelerator,
            self.model,
            self.optimizer,
            coupled_penalty(1e-2, ExponentialRelevance(0.1), smoothing=0.9),
            IterativePruning(fraction=0.6),
            floor=0.1,
            mode="min",
            score=FisherScore(smoothing=0.9),
            max_grad_norm=0.5,
        )
        self.nonzero = 0
        self.validations: list[tuple[float, float]] = []

    def loss(self) -> float:
        with torch.no_grad():
            x, y = tanh_batch()
            return float(nn.functional.mse_loss(self.model(x), y))

    def epochs(self, *epochs: int) -> None:
        for epoch in epochs:
            for x, y in self.loader:
                self.accelerator.backward(nn.functional.mse_loss(self.model(x), y))
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.nonzero += sum(self.pruner.masks.revived().values())
            self.validations.append((self.pruner.sparsity, self.loss()))
            self.pruner.step(self.validations[-1][1])
            self.accelerator.save_state(str(self.folder / str(epoch)))

    def outcome(self) -> dict[str, Any]:
        now = {name: whole(p) for name, p in self.pruner.model.named_parameters()}
        self.pruner.finish()
        best = {name: whole(p) for name, p in self.pruner.model.named_parameters()}
        return {
            "now": now,
            "best": best,
            "sharded": self.pruner.selection.process_group.sharded,
            "nonzero": self.nonzero,
            "validations": self.validations,
            "delivered": (self.pruner.sparsity, self.loss()),
        }


def trained(folder: Path, layout: str, batch: int) -> dict[str, Any]:
    run = Run(folder, layout, batch)
    run.epochs(*range(5))
    return run.outcome()


def in_two_processes(folder: str, layout: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Train; resume in the middle; and validate with other metrics in each process."""
    if layout == "fsdp":
        shard_on_cpu()
    uninterrupted = trained(Path(folder), layout, batch=4)
    resumed = Run(Path(folder), layout, batch=4)
    resumed.accelerator.load_state(str(Path(folder) / "2"))
    resumed.epochs(3, 4)
    index = float(resumed.accelerator.process_index)
    message = message_of(lambda: resumed.pruner.step(index))
    return uninterrupted, resumed.outcome(), message


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_prune_as_one_and_resume(tmp_path: Path, layout: str) -> None:
    (tmp_path / "one").mkdir()
    one = trained(tmp_path / "one", "one", batch=8)
    runs = launched(2, in_two_processes, str(tmp_path), layout)
    assert one["delivered"] != one["validations"][-1]
    for run, resumed, message in runs:
        assert run["sharded"] == (layout == "fsdp")
        assert run["nonzero"] == 0
        torch.testing.assert_close(run["validations"], one["validations"], rtol=1e-3, atol=0)
        assert [s for s, _ in run["validations"]] == [s for s, _ in one["validations"]]
        for state in ("now", "best"):
            for name, weights in run[state].items():
                assert torch.equal(weights == 0, one[state][name] == 0), name
                torch.testing.assert_close(weights, one[state][name], rtol=1e-2, atol=1e-4)
            assert same(run[state], resumed[state])
        assert run["delivered"] in run["validations"]
        assert run["delivered"][1] <= 0.1
        assert "the same validation metric, which is 0 on process 0, 1 on process 1" in message
    assert (tmp_path / "2" / STATE_FILE).is_file()
