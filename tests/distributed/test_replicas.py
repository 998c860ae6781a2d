"""Replicas of a model under DistributedDataParallel."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.processes import run_in_processes
from helpers.data import noise_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.pruners import magnitude_pruner
from prunus import (
    AlternatingGrowth,
    ExponentialRelevance,
    GradientGrowth,
    GradualPruning,
    Growth,
    IterativePruning,
    NonFiniteError,
    OneShot,
    PrunusError,
    RandomGrowth,
    RelevancePenalty,
    SoftGrowth,
)
from prunus.penalties.relevance import Apply

pytestmark = pytest.mark.distributed

INPUTS, TARGETS = noise_batch(64, 12, 4, seed=5, dtype=torch.float64)


def small_network() -> nn.Module:
    return tanh_network(12, 30, 4, dtype=torch.float64)


def trained(model: nn.Module, apply: Apply, micro: int, rows: slice) -> dict[str, Any]:
    """Train on some rows of the data, in ``micro`` micro-batches whose gradients are summed."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = magnitude_pruner(
        model,
        optimizer,
        RelevancePenalty(1e-2, ExponentialRelevance(0.3, relative=True), apply=apply),
        IterativePruning(fraction=0.3),
        floor=0.0,
    )
    inputs, targets = INPUTS[rows], TARGETS[rows]
    for step in range(12):
        optimizer.zero_grad()
        batches = list(zip(inputs.chunk(micro), targets.chunk(micro), strict=True))
        for number, (x, y) in enumerate(batches):
            last = number == len(batches) - 1
            wrapped = isinstance(model, DistributedDataParallel)
            averaging = model.no_sync() if wrapped and not last else contextlib.nullcontext()  # type: ignore[operator]
            with averaging:
                loss = (model(x) - y).square().mean()
                if apply == "loss":
                    loss = loss + pruner.penalty(loss)
                (loss / len(batches)).backward()
        optimizer.step()
        if step % 3 == 2:
            pruner.step(1.0)
    return {
        "weights": {n: p.detach().clone() for n, p in pruner.model.named_parameters()},
        "kept": pruner.masks.kept,
        "names": list(pruner.masks),
    }


def trained_as_replica(apply: Apply, micro: int) -> dict[str, Any]:
    rank = dist.get_rank()
    model = DistributedDataParallel(small_network())
    return trained(model, apply, micro, slice(32 * rank, 32 * rank + 32))


def messages_with_replicas() -> dict[str, str]:
    """Make every mistake that replicas allow, some in the second process only."""
    rank = dist.get_rank()
    messages: dict[str, str] = {}
    model = DistributedDataParallel(small_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    messages["metric"] = message_of(lambda: pruner.step(0.9 + rank))
    messages["no metric"] = message_of(lambda: pruner.step(0.5 if rank else None))
    assert pruner.sparsity == 0
    weight = model.module[0].weight.detach()
    weight[0] += rank  # without the optimizer, and in one process only
    messages["weights"] = message_of(lambda: pruner.step(0.5))
    messages["sparsity"] = str(pruner.sparsity)
    weight[0] = float("nan") if rank else 0.0
    kind = NonFiniteError if rank else PrunusError
    messages["nan"] = message_of(lambda: pruner.step(0.5), kind)
    weight[0] = 0.0
    pruner.prune(sparsity=0.5)
    weight[0] = float(rank)
    messages["revived"] = message_of(lambda: pruner.step(0.5))
    return messages


GROWTHS: dict[str, Growth] = {
    "soft": SoftGrowth(until=9, every=2),
    "random growth": RandomGrowth(every=2, fraction=0.4),
    "gradient growth": GradientGrowth(every=2, fraction=0.4, until=11),
    "alternating": AlternatingGrowth(sparse=3, dense=2, until=11),
}


def grown(model: nn.Module, growth: Growth, rows: slice) -> dict[str, Any]:
    """Train on some rows of the data with weights that return."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = GradualPruning(sparsity=0.8, end=6, every=1)
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, growth=growth)
    for _ in range(12):
        optimizer.zero_grad()
        (model(INPUTS[rows]) - TARGETS[rows]).square().mean().backward()
        optimizer.step()
    return {
        "weights": {n: p.detach().clone() for n, p in pruner.model.named_parameters()},
        "masks": {n: mask.clone() for n, mask in pruner.masks.items()},
        "kept": pruner.masks.kept,
    }


def grown_as_replicas() -> tuple[dict[str, Any], str]:
    rank = dist.get_rank()
    outcomes = {}
    for name, growth in GROWTHS.items():
        model = DistributedDataParallel(small_network())
        outcomes[name] = grown(model, growth, slice(32 * rank, 32 * rank + 32))
    model = DistributedDataParallel(small_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, growth=RandomGrowth(every=1))
    pruner.prune(sparsity=0.5)
    weight = model.module[0].weight.detach()
    weight[0] *= 1 + rank * torch.arange(12)  # without the optimizer, and in one process only
    return outcomes, message_of(optimizer.step)


def test_weights_return_alike_in_all_replicas_and_as_in_one_process() -> None:
    for outcomes, message in run_in_processes(2, grown_as_replicas):
        for name, growth in GROWTHS.items():
            alone = grown(small_network(), growth, slice(None))
            assert outcomes[name]["kept"] == alone["kept"] == 96  # a fifth of 480
            for key, mask in alone["masks"].items():
                assert torch.equal(outcomes[name]["masks"][key], mask), name
            for key, expected in alone["weights"].items():
                weight = outcomes[name]["weights"][key]
                torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-12)
        assert message.startswith(
            "all processes must have the same weights of 0.weight to exchange (the sum of their "
            "positions), which is "
        )


def work() -> dict[str, Any]:
    return {
        "gradient": trained_as_replica("gradient", 1),
        "decoupled, accumulated": trained_as_replica("decoupled", 4),
        "loss": trained_as_replica("loss", 1),
        "messages": messages_with_replicas(),
    }


def test_replicas_prune_alike_and_as_one_process_does() -> None:
    first, second = run_in_processes(2, work)
    for name, apply in (("gradient", "gradient"), ("decoupled, accumulated", "decoupled")):
        alone = trained(small_network(), apply, 1, slice(None))  # type: ignore[arg-type]
        for outcome in (first, second):
            assert outcome[name]["names"] == alone["names"] == ["0.weight", "2.weight"]
            assert outcome[name]["kept"] == alone["kept"] == 115  # 480 · 0.7⁴, each time rounded
            for key, expected in alone["weights"].items():
                weight = outcome[name]["weights"][key]
                assert torch.equal(weight == 0, expected == 0)
                torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-12)
    # With apply="loss" each process computes the coefficients from its own loss, and DDP averages
    # the resulting gradients, so that the replicas stay equal.
    for key, weight in first["loss"]["weights"].items():
        assert torch.equal(weight, second["loss"]["weights"][key])
    check_messages(first["messages"])
    check_messages(second["messages"])
    assert first["messages"]["nan"].endswith("alone")
    assert second["messages"]["nan"].startswith("the scores of 0.weight contain NaN")


def check_messages(messages: dict[str, str]) -> None:
    assert messages["metric"].startswith(
        "all processes must have the same validation metric, which is 0.9 on process 0, 1.9 on "
        "process 1: call pruner.step(metric) in all of them"
    )
    assert messages["no metric"].startswith(
        "all processes must have the same number of validation metrics, which is 0 on process "
        "0, 1 on process 1, validation metric, which is 0 on process 0, 0.5 on process 1: call "
        "pruner.step(metric) in all of them"
    )
    assert messages["weights"].startswith(
        "all processes must have the same weights of 0.weight to remove (the sum of their "
        "positions), which is "
    )
    assert "Start all of them from the same state" in messages["weights"]
    assert messages["sparsity"] == "0.0"  # unchanged
    assert messages["revived"].startswith(
        "all processes must have the same number of removed weights that are not zero, which "
        "is 0 on process 0, "
    )
