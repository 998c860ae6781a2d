"""Processes that act as a launcher of several accelerators starts them, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.processes import run_in_processes


def launched(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``work(*arguments)`` in ``count`` processes that torchrun could have started."""
    return run_in_processes(count, _launched, work, arguments, limit=240.0)


def _launched(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    rank, count = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    os.environ |= {"LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return work(*arguments)


def shard_on_cpu() -> None:
    """Let accelerate shard models in this process, which it does on accelerators only."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def backend(*_: Any, **__: Any) -> tuple[str, Any]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend
    PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor, put together from its shards."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
