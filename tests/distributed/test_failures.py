"""Errors with several processes: one clear message in each of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from benchmarks.processes import run_in_processes
from helpers.errors import message_of
from helpers.pruners import coupled_penalty, magnitude_pruner
from prunus import (
    NonFiniteError,
    OneShot,
    PeerError,
)
from prunus._distributed.shards import local

pytestmark = pytest.mark.distributed


def hang() -> None:
    if dist.get_rank() == 1:
        time.sleep(600)


def test_a_process_that_hangs_is_killed_with_an_error() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"processes \[1\] of 2 did not end within 15 seconds"):
        run_in_processes(2, hang, limit=15.0)
    assert time.monotonic() - begin < 60


def sharded_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    fully_shard(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def messages_with_shards() -> dict[str, str]:
    """Make every mistake that a sharded model allows, some in the second process only."""
    messages: dict[str, str] = {}
    model, optimizer = sharded_model()
    rank = dist.get_rank()
    messages["loss"] = message_of(
        lambda: magnitude_pruner(model, optimizer, coupled_penalty(apply="loss"))
    )
    messages["term"] = message_of(lambda: coupled_penalty().bind(model))
    flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    messages["flat"] = message_of(
        lambda: magnitude_pruner(flat, torch.optim.SGD(flat.parameters(), lr=0.1))
    )
    pruner = magnitude_pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    mask = pruner.masks["0.weight"]
    mask[0] = False
    messages["mask"] = message_of(lambda: pruner.sparsity)
    mask[0] = True
    pruner.masks.recount()
    messages["sparsity"] = str(pruner.sparsity)
    weight = local(next(model.parameters()))
    if rank == 1:
        weight[0, 0] = float("nan")
    messages["nan"] = message_of(lambda: pruner.prune(sparsity=0.5), NonFiniteError)
    if rank == 1:
        weight[0, 0] = 1.0
    pruner.prune(sparsity=0.5)
    if rank == 1:
        weight.fill_(1.0)
    messages["revived"] = message_of(lambda: pruner.step(0.5))
    return messages


def test_an_error_in_one_process_raises_the_same_error_in_all() -> None:
    first, second = run_in_processes(2, messages_with_shards)
    assert first == second
    assert 'apply="loss" needs the gradients of whole tensors' in first["loss"]
    assert first["term"] == first["loss"]
    assert first["flat"].startswith(
        "FullyShardedDataParallel is sharded by FullyShardedDataParallel, whose shards"
    )
    assert 'fsdp=True with fsdp_config={"version": 2} in transformers' in first["flat"]
    assert "call masks.recount() in all of them" in first["mask"]
    assert first["sparsity"] == "0.0"
    assert first["nan"].startswith("the scores of 0.weight contain NaN")
    assert first["revived"].startswith("removed weights are not zero in 0.weight (")


WORKER = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
from distributed.test_failures import prune_without_peer
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2,
    timeout=timedelta(seconds=15),
)
prune_without_peer(rank, folder, sys.argv[3])
"""


def prune_without_peer(rank: int, folder: str, fate: str) -> None:
    """Prune once in both processes, then in the first one only, and save its error."""
    model, optimizer = sharded_model()
    pruner = magnitude_pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    pruner.prune(sparsity=0.25)
    if rank == 1:
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # alive, but it does not call the pruner
    try:
        pruner.prune(sparsity=0.5)
    except PeerError as error:
        (Path(folder) / "message").write_text(str(error))
        os._exit(7)


@pytest.mark.parametrize("fate", ["killed", "absent"])
def test_a_process_ends_with_an_error_while_its_peer_is_dead_or_absent(
    tmp_path: Path, fate: str
) -> None:
    code = WORKER.format(tests=str(Path(__file__).parent.parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path), fate], env=environment
        )
        for rank in range(2)
    ]
    try:
        assert workers[0].wait(timeout=60) == 7
        # It did not wait for the end of its peer, which outlives the guard above.
        assert workers[1].poll() == (-signal.SIGKILL if fate == "killed" else None)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    message = (tmp_path / "message").read_text()
    assert message.startswith(
        "another process did not exchange counts over all shards of the model: it may have ended, "
        "or did not call the pruner as this one did"
    )
    assert "Stop all of them and resume from the last checkpoint" in message
