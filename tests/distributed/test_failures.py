"""What goes wrong with several processes ends in one clear message in each of them."""

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

from helpers.processes import together
from prunus import (
    NonFiniteError,
    OneShot,
    PeerError,
    Pruner,
    PrunusError,
    RelevancePenalty,
)
from prunus._distributed.shards import local


def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    fully_shard(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def refusals() -> dict[str, str]:
    said: dict[str, str] = {}
    model, optimizer = sharded()
    rank = dist.get_rank()
    try:
        Pruner(model, optimizer, RelevancePenalty(apply="loss"))
    except PrunusError as error:
        said["loss"] = str(error)
    try:
        RelevancePenalty().bind(model)
    except PrunusError as error:
        said["term"] = str(error)
    flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    try:
        Pruner(flat, torch.optim.SGD(flat.parameters(), lr=0.1))
    except PrunusError as error:
        said["flat"] = str(error)
    pruner = Pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    mask = pruner.masks["0.weight"]
    mask[0] = False
    try:
        print(pruner.sparsity)
    except PrunusError as error:
        said["mask"] = str(error)
    mask[0] = True
    pruner.masks.recount()
    said["sparsity"] = str(pruner.sparsity)
    if rank == 1:
        local(next(model.parameters()))[0, 0] = float("nan")
    try:
        pruner.prune(sparsity=0.5)
    except NonFiniteError as error:
        said["nan"] = str(error)
    if rank == 1:
        local(next(model.parameters()))[0, 0] = 1.0
    pruner.prune(sparsity=0.5)
    if rank == 1:
        local(next(model.parameters())).fill_(1.0)
    try:
        pruner.step(0.5)
    except PrunusError as error:
        said["revived"] = str(error)
    return said


def test_a_fault_in_one_process_raises_the_same_error_in_all() -> None:
    first, second = together(2, refusals)
    assert first == second
    assert first["loss"].startswith('the penalty in the loss, apply="loss", needs the gradients of')
    assert first["term"] == first["loss"]
    assert first["flat"].startswith("FullyShardedDataParallel is sharded by FullyShardedDataPara")
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
from distributed.test_failures import lose
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2,
    timeout=timedelta(seconds=15),
)
lose(rank, folder, sys.argv[3])
"""


def lose(rank: int, folder: str, how: str) -> None:
    model, optimizer = sharded()
    pruner = Pruner(model, optimizer, schedule=OneShot(sparsity=0.5))
    pruner.prune(sparsity=0.25)
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # alive, but it does not call the pruner
    try:
        pruner.prune(sparsity=0.5)
    except PeerError as error:
        (Path(folder) / "said").write_text(str(error))
        os._exit(7)


@pytest.mark.parametrize("how", ["killed", "absent"])
def test_a_process_ends_with_an_error_while_its_peer_is_dead_or_absent(
    tmp_path: Path, how: str
) -> None:
    code = WORKER.format(tests=str(Path(__file__).parent.parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path), how], env=environment
        )
        for rank in range(2)
    ]
    try:
        assert workers[0].wait(timeout=60) == 7
        # It did not wait for the end of the other, which is alive for longer than the guard above.
        assert workers[1].poll() == (-signal.SIGKILL if how == "killed" else None)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = (tmp_path / "said").read_text()
    assert said.startswith(
        "another process did not exchange counts over all parts of the model: perhaps it ended, or "
        "did not call the pruner as this one did"
    )
    assert "Stop all of them and resume from the last checkpoint" in said


def test_parameters_that_deepspeed_has_partitioned_are_refused() -> None:
    partitioned = nn.Linear(4, 4)
    partitioned.weight.ds_id = 0  # type: ignore[attr-defined]
    partitioned.weight.data = torch.empty(0)  # as it leaves them
    optimizer = torch.optim.SGD(partitioned.parameters(), lr=0.1)
    with pytest.raises(PrunusError, match="partitioned by DeepSpeed"):
        Pruner(partitioned, optimizer)
