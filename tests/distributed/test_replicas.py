"""DistributedDataParallel: each process has the whole model and a share of the data."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.processes import together
from prunus import (
    ExponentialRelevance,
    IterativePruning,
    NonFiniteError,
    OneShot,
    Pruner,
    PrunusError,
    RelevancePenalty,
)
from prunus.penalties.relevance import Apply

INPUTS, TARGETS = noise_batch(64, 12, 4, seed=5, dtype=torch.float64)


def small_network() -> nn.Module:
    return tanh_network(12, 30, 4, dtype=torch.float64)


def trained(model: nn.Module, apply: Apply, micro: int, share: slice) -> dict[str, Any]:
    """Train on this process's share of the data, in ``micro`` parts whose gradients add up."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = Pruner(
        model,
        optimizer,
        RelevancePenalty(1e-2, ExponentialRelevance(0.3, relative=True), apply=apply),
        IterativePruning(fraction=0.3),
        floor=0.0,
    )
    inputs, targets = INPUTS[share], TARGETS[share]
    for step in range(12):
        optimizer.zero_grad()
        parts = list(zip(inputs.chunk(micro), targets.chunk(micro), strict=True))
        for number, (x, y) in enumerate(parts):
            last = number == len(parts) - 1
            wrapped = isinstance(model, DistributedDataParallel)
            waiting = model.no_sync() if wrapped and not last else contextlib.nullcontext()  # type: ignore[operator]
            with waiting:
                loss = (model(x) - y).square().mean()
                if apply == "loss":
                    loss = loss + pruner.penalty(loss)
                (loss / len(parts)).backward()
        optimizer.step()
        if step % 3 == 2:
            pruner.step(1.0)
    return {
        "weights": {n: p.detach().clone() for n, p in pruner.model.named_parameters()},
        "kept": pruner.masks.kept,
        "names": list(pruner.masks),
    }


def on_two(apply: Apply, micro: int) -> dict[str, Any]:
    rank = dist.get_rank()
    return trained(
        DistributedDataParallel(small_network()), apply, micro, slice(32 * rank, 32 * rank + 32)
    )


def refusals() -> dict[str, str]:
    rank, said = dist.get_rank(), {}
    model = DistributedDataParallel(small_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    with contextlib.suppress(PrunusError):
        pruner.step(0.9 + rank)
        said["metric"] = "accepted"
    try:
        pruner.step(0.5 if rank else None)
    except PrunusError as error:
        said["metric"] = str(error)
    assert pruner.sparsity == 0
    with torch.no_grad():  # behind the optimizer's back, and in one process only
        model.module[0].weight[0] += rank
    try:
        pruner.step(0.5)
    except PrunusError as error:
        said["weights"] = str(error)
    said["left"] = str(pruner.sparsity)
    weight = model.module[0].weight.detach()
    with torch.no_grad():
        weight[0] = float("nan") if rank else 0.0
    try:
        pruner.step(0.5)
    except PrunusError as error:
        said["nan"] = "NaN" if isinstance(error, NonFiniteError) else str(error)[-5:]
    with torch.no_grad():
        weight[0] = 0.0
    pruner.prune(sparsity=0.5)
    with torch.no_grad():
        weight[0] = float(rank)
    try:
        pruner.step(0.5)
    except PrunusError as error:
        said["revived"] = str(error)
    return said


def work() -> dict[str, Any]:
    return {
        "gradient": on_two("gradient", 1),
        "decoupled, accumulated": on_two("decoupled", 4),
        "loss": on_two("loss", 1),
        "said": refusals(),
    }


def test_replicas_prune_alike_and_as_one_process_does() -> None:
    first, second = together(2, work)
    for name, apply in (("gradient", "gradient"), ("decoupled, accumulated", "decoupled")):
        alone = trained(small_network(), apply, 1, slice(None))  # type: ignore[arg-type]
        for outcome in (first, second):
            assert outcome[name]["names"] == alone["names"] == ["0.weight", "2.weight"]
            assert outcome[name]["kept"] == alone["kept"] == 115  # 480 · 0.7⁴, each time rounded
            for key, value in alone["weights"].items():
                got = outcome[name]["weights"][key]
                assert torch.equal(got == 0, value == 0)
                torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-12)
    # Within the loss the coefficients are those of each process's own loss, and DDP averages what
    # they make; all the same the processes stay alike.
    for key, value in first["loss"]["weights"].items():
        assert torch.equal(value, second["loss"]["weights"][key])
    for outcome in (first, second):
        assert outcome["said"]["metric"].startswith(
            "all processes must have the same number of validation metrics, which is 0 on process "
            "0, 1 on process 1, validation metric, which is 0 on process 0, 0.5 on process 1: call "
            "pruner.step(metric) in all of them"
        )
        assert outcome["said"]["weights"].startswith(
            "all processes must have the same weights of 0.weight to remove (the sum of their "
            "positions), which is "
        )
        assert "Let each start from the same state" in outcome["said"]["weights"]
        assert outcome["said"]["left"] == "0.0"  # all as it was
        assert outcome["said"]["nan"].endswith("NaN" if outcome is second else "alone")
        assert outcome["said"]["revived"].startswith(
            "all processes must have the same number of removed weights that are not zero, which "
            "is 0 on process 0, "
        )
