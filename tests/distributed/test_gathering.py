"""Tests of whole tensors that are gathered from shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from benchmarks.processes import run_in_processes
from prunus._distributed.shards import gathered, local

pytestmark = pytest.mark.distributed


def gathered_trees() -> tuple[Any, Any, bool]:
    """Gather a tree with a tied tensor, and one of which the second process has no row."""
    mesh = init_device_mesh("cpu", (2,))

    def sharded(value: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)

    tensor = sharded(torch.arange(6.0).view(3, 2))
    tied = DTensor.from_local(local(tensor), mesh, [Shard(0)], shape=tensor.shape, stride=(2, 1))
    row = sharded(torch.tensor([[True, False]]))
    tree = {"a": tensor, "b": [tied, {"row": row}], "own": (torch.ones(1), 3, None)}
    rank = dist.get_rank()
    first = gathered(tree, keep=rank == 0)
    shared = rank > 0 or first["a"].data_ptr() == first["b"][0].data_ptr()
    return first, gathered(tree, keep=rank == 1), shared


def test_the_process_that_keeps_a_tree_gets_whole_tensors_and_tied_ones_once() -> None:
    (kept, dropped, shared), (dropped_too, kept_too, _) = run_in_processes(
        2, gathered_trees, limit=120.0
    )
    assert shared
    for whole in (kept, kept_too):
        for tensor in (whole["a"], whole["b"][0]):
            assert type(tensor) is torch.Tensor
            torch.testing.assert_close(tensor, torch.arange(6.0).view(3, 2))
        assert whole["b"][1]["row"].tolist() == [[True, False]]
        assert whole["own"] == (torch.ones(1), 3, None)
    for rest in (dropped, dropped_too):
        assert rest == {"a": None, "b": [None, {"row": None}], "own": (torch.ones(1), 3, None)}
