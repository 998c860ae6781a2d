"""Process groups of one process, for what is otherwise run by several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from prunus._distributed.process_group import ProcessGroup
from prunus._distributed.shards import Shard


@dataclass(frozen=True)
class PeerGroup(ProcessGroup):
    """A group whose other processes contribute fixed numbers.

    Attributes:
        others: What the other processes add to every sum.
        counted: Whether this process counts its shard, by tensor; all if empty.
    """

    sharded: bool = True
    others: Any = 0
    counted: tuple[bool, ...] = ()

    def sum(self, counts: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = counts + self.others
        return summed

    def shards_counted_here(self, boxes: Sequence[Shard]) -> list[bool]:
        return list(self.counted) or [True] * len(boxes)


@contextlib.contextmanager
def single_process_mesh() -> Iterator[Any]:
    """Start a process group of this process alone and yield its device mesh."""
    from torch.distributed.device_mesh import DeviceMesh

    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield DeviceMesh("cpu", [0])
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def second_of_two_processes() -> Iterator[Any]:
    """Act as the second of two processes and yield their device mesh; nothing is exchanged."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        yield DeviceMesh("cpu", [0, 1])
    finally:
        dist.destroy_process_group()
