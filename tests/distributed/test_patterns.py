"""Patterns of models in several processes, compared with one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from benchmarks.processes import run_in_processes
from helpers.errors import message_of
from helpers.pruners import magnitude_pruner
from prunus import (
    NM,
    Block,
    Channels,
    Columns,
    GradualPruning,
    Heads,
    IterativePruning,
    RandomScore,
    Rows,
    UniformAllocation,
)

pytestmark = pytest.mark.distributed


def network() -> nn.Module:
    """Return layers of which two processes hold halves; of 7 rows one has 4 and one 3."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(10, 12, padding_idx=3), nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 7)
    )
    for parameter in model.parameters():  # many equal weights
        parameter.data.copy_((torch.randn(parameter.shape) * 8).round() / 16)
    return model


def one_process(model: nn.Module) -> nn.Module:
    return model


def fsdp(model: nn.Module) -> nn.Module:
    fully_shard(model)
    return model


def tensor_parallel(model: nn.Module) -> nn.Module:
    """Shard the rows of one layer and the columns of the next."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"1": ColwiseParallel(), "2": RowwiseParallel()})


Wrap = Callable[[nn.Module], nn.Module]

CASES: dict[str, dict[str, Any]] = {
    "2:4": {"pattern": {"1": NM(2, 4), "2": NM(2, 4)}},
    "1x4": {"pattern": Block(1, 4)},
    "rows": {"pattern": Rows(), "allocation": UniformAllocation()},
    "blocks": {"pattern": {"1": Block(4, 5), "2": Block(2, 2), "3": Block(1, 3)}},
    "channels": {"pattern": {"1": Channels()}, "score": RandomScore(3)},
    "minimum": {"pattern": Block(1, 3), "min_density": 0.3},
}

COLUMNS: dict[str, dict[str, Any]] = {
    "columns": {"pattern": {"2": Columns()}},
    "heads": {"pattern": {"1": Heads(4), "2": Heads(4, along="input")}},
    "2:4 by outputs": {"pattern": {"1": NM(2, 4, along="output"), "2": NM(1, 2)}},
}
"""Patterns that fit shards of rows of one layer and of columns of the next."""


def masks_of(wrap: Wrap, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    outcome = {}
    for name, case in cases.items():
        model = wrap(network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        schedule = GradualPruning(sparsity=0.45, begin=0, end=4, every=2)
        pruner = magnitude_pruner(model, optimizer, schedule=schedule, **case)
        for _ in range(4):
            for parameter in model.parameters():
                zeros = torch.zeros(parameter.shape)
                parameter.grad = (
                    distribute_tensor(
                        zeros, parameter.device_mesh, parameter.placements, src_data_rank=None
                    )
                    if isinstance(parameter, DTensor)
                    else zeros
                )
            optimizer.step()
        outcome[name] = {
            key: (p.full_tensor() if isinstance(p, DTensor) else p).detach() != 0
            for key, p in model.named_parameters()
        }
        outcome[name]["counts"] = torch.tensor(
            [pruner.slack, pruner.masks.kept, *(pruner.masks.kept_in(n) for n in pruner.masks)]
        )
        pruner.detach()
    return outcome


def check(outcome: dict[str, dict[str, torch.Tensor]], cases: dict[str, dict[str, Any]]) -> None:
    alone = masks_of(one_process, cases)
    assert outcome.keys() == alone.keys()
    for name, result in outcome.items():
        assert result.keys() == alone[name].keys()
        for key, value in alone[name].items():
            assert torch.equal(result[key], value), f"{name}, {key}"


def test_groups_of_tensor_parallel_models_are_removed_as_in_one_process() -> None:
    cases = {name: CASES[name] for name in ("2:4", "blocks", "channels")} | COLUMNS
    for outcome in run_in_processes(2, masks_of, tensor_parallel, cases):
        check(outcome, cases)


def of_shards_of_rows() -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Return what is removed, and the messages about patterns whose groups are cut."""
    messages = []
    patterns: list[Any] = [Columns(), {"3": Block(3, 1)}, {"1": Block(3, 1), "2": Rows()}]
    for pattern in patterns:
        model = fsdp(network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        build = partial(magnitude_pruner, model, optimizer, pattern=pattern)
        messages.append(message_of(build))
    return masks_of(fsdp, CASES), messages


def test_groups_of_shards_are_removed_as_in_one_process_unless_they_are_cut() -> None:
    (outcome, messages), (other, other_messages) = run_in_processes(2, of_shards_of_rows)
    for result in (outcome, other):
        check(result, CASES)
    assert messages == other_messages
    names = "0.weight (Columns()), 1.weight (Columns()), 2.weight (Columns())"
    assert f"but the shards of {names}, 3.weight (Columns()) cut some: shard these" in messages[0]
    assert messages[2].startswith("groups of weights must be within one shard, but the shards of 1")


PATTERNS: list[Any] = [NM(2, 4), Block(2, 2), {"0": Channels(), "2": Columns()}]


def pruned_by_rows() -> list[dict[str, torch.Tensor]]:
    return [trained(pattern) for pattern in PATTERNS]


def trained(pattern: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    inputs = torch.randn(32, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = slice(None)
    if dist.is_initialized():
        rows = slice(16 * dist.get_rank(), 16 * dist.get_rank() + 16)
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = IterativePruning(fraction=0.2)
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, floor=0.0, pattern=pattern)
    for step in range(9):
        optimizer.zero_grad()
        (model(inputs[rows]) - inputs[rows, :4]).square().mean().backward()
        optimizer.step()
        if step % 3 == 2:
            pruner.step(1.0)
    weights = {name: p.detach().clone() for name, p in pruner.model.named_parameters()}
    pruner.detach()
    return weights


def test_replicas_remove_the_groups_of_one_process() -> None:
    alone = pruned_by_rows()
    for outcome in run_in_processes(2, pruned_by_rows):
        for expected, weights in zip(alone, outcome, strict=True):
            assert sum(int((weight == 0).sum()) for weight in weights.values()) > 50
            for name, value in expected.items():
                assert torch.equal(weights[name] == 0, value == 0)
                torch.testing.assert_close(weights[name], value)
