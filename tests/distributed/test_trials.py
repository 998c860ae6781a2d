"""Trial removals of ThresholdSearch in several processes: one decision, one error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.processes import run_in_processes
from helpers.data import noise_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.pruners import magnitude_pruner
from prunus import ThresholdSearch
from prunus._distributed.shards import local

pytestmark = pytest.mark.distributed

INPUTS, TARGETS = noise_batch(64, 12, 4, seed=5, dtype=torch.float64)


def removals(model: Any, *, change: Callable[[float], float] = float) -> dict[str, Any]:
    """Search three times; return how many weights are removed, and the message of an error."""
    network = model.module if isinstance(model, DistributedDataParallel) else model

    def evaluate() -> float:
        return change(float((network(INPUTS) - TARGETS).square().mean()))

    schedule = ThresholdSearch(evaluate=evaluate, patience=1, tolerance=0.1, resolution=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, mode="min", keep_best=False)
    before = [local(p).clone() for p in network.parameters()]
    pruner.step(1.0)
    if change is not float:
        message = message_of(lambda: pruner.step(1.0), Exception)  # type: ignore[arg-type]
        restored = all(map(torch.equal, map(local, network.parameters()), before))
        return {"message": message, "restored": restored, "sparsity": pruner.sparsity}
    removed = [pruner.step(1.0).removed for _ in range(4)]
    return {"removed": removed, "sparsity": pruner.sparsity}


def network() -> nn.Module:
    return tanh_network(12, 30, 4, dtype=torch.float64)


def differ(loss: float) -> float:
    return loss + dist.get_rank()


def fail_in_one(loss: float) -> float:
    if dist.get_rank() == 1:
        raise OSError("no data")
    return loss


def replicas(change: Callable[[float], float] = float) -> dict[str, Any]:
    return removals(DistributedDataParallel(network()), change=change)


def shards(change: Callable[[float], float] = float) -> dict[str, Any]:
    model = network()
    fully_shard(model)
    return removals(model, change=change)


@pytest.mark.parametrize("trained", [replicas, shards])
def test_all_processes_remove_what_one_process_removes(
    trained: Callable[..., dict[str, Any]],
) -> None:
    alone = removals(network())
    assert alone["removed"][0] > 0
    first, second = run_in_processes(2, trained)
    assert first == second == alone


@pytest.mark.parametrize("trained", [replicas, shards])
def test_different_losses_are_rejected_in_all_processes(
    trained: Callable[..., dict[str, Any]],
) -> None:
    first, second = run_in_processes(2, trained, differ)
    assert first == second
    assert "must have the same result of evaluate(), which is" in first["message"]
    assert first["restored"]
    assert first["sparsity"] == 0.0


@pytest.mark.parametrize("trained", [replicas, shards])
def test_an_error_in_one_process_ends_the_trial_in_all(
    trained: Callable[..., dict[str, Any]],
) -> None:
    first, second = run_in_processes(2, trained, fail_in_one)
    assert second["message"] == "no data"
    assert (
        "number of errors in evaluate(), which is 0 on process 0, 1 on process 1"
        in (first["message"])
    )
    for process in (first, second):
        assert process["restored"]
        assert process["sparsity"] == 0.0
