"""Cost of pruning a sharded model, measured on one machine and estimated for more.

Weak scaling: the model grows with the number of processes, and the number of weights in each is
constant. Measured are one pruning, an optimizer's step with and without prunus, and the bytes that
prunus passes to collectives, which must match the formula. The processes communicate by gloo on one
machine; with more processes than cores they wait for each other, so that these times tell little
about more machines. The estimates take the bytes from the formula and the times from the
assumptions beside them.

Run from the repository's root: ``python -m benchmarks.speed.many_processes``
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

from benchmarks.measuring import options, save
from benchmarks.processes import end_process
from prunus import ExponentialRelevance, MagnitudeScore, Pruner, RelevancePenalty

LAYERS, WIDTH, ROWS = 8, 512, 512
"""Shard of one process: 8 layers of 512 x 512, so 2.1 M weights."""

NUMBER = 8
"""Bytes of a count, and of a mean."""

DIGITS = (1 << 11) + (1 << 11) + (1 << 10)
"""Counters of the three passes over the bits of a float32."""

ASSUMPTIONS: dict[str, Any] = {
    "gpu memory, bytes/s": 3.35e12,
    "fraction of it that a pass reaches": 0.3,
    "bytes read or written for each weight and pass": 14,
    "passes over a process's weights in one event": 7,
    "seconds until a collective over two processes begins": 20e-6,
    "rounds of a collective over p processes": "2 log2(p)",
    "network, bytes/s for each GPU": 5e10,
    "tensors": 290,
}
"""An H100's memory at its data sheet's rate; a latency of networks between hosts; the scores, masks
and keys of a float32 weight; a Transformer of 32 layers."""


def event_bytes(tensors: int) -> int:
    """Return the bytes that one pruning passes to collectives, independent of the weights.

    They are candidates and NaN of each tensor, the digits, and the removed and remaining weights of
    each tensor. Each round in which the guard protects a tensor adds to them.
    """
    return NUMBER * (2 * tensors + DIGITS + tensors + tensors)


def tie_bytes(tensors: int, length: int) -> int:
    """Return the additional bytes where equal scores are split, in a tensor of that many weights.

    They are the number of ties in each tensor, and the digits of their positions in that tensor.
    """
    bits = length.bit_length()
    digits = [min(11, high) for high in range(bits, 0, -11)]
    return NUMBER * (tensors + sum(1 << digit for digit in digits))


def step_bytes(tensors: int) -> int:
    """Return the bytes that a step with a relative coefficient passes: one mean per tensor."""
    return NUMBER * tensors


def network(processes: int) -> nn.Module:
    torch.manual_seed(0)
    # Each process holds ROWS rows of each layer.
    return nn.Sequential(*(nn.Linear(WIDTH, ROWS * processes, bias=False) for _ in range(LAYERS)))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Record the bytes of each call of all_reduce."""
    sent: list[int] = []
    true = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return true(tensor, *args, **kwargs)

    with mock.patch.object(dist, "all_reduce", counting):
        yield sent


def trained(processes: int, with_prunus: bool) -> tuple[Any, Any, Pruner | None]:
    model: Any = network(processes)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    pruner = (
        Pruner(
            model,
            optimizer,
            RelevancePenalty(1e-5, ExponentialRelevance(0.2, relative=True), apply="gradient"),
            score=MagnitudeScore(),
        )
        if with_prunus
        else None
    )
    return model, optimizer, pruner


def work(rank: int, processes: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes
    )
    _, plain, _ = trained(processes, False)
    _, pruned, pruner = trained(processes, True)
    assert pruner is not None
    steps: dict[str, list[float]] = {"plain": [], "prunus": []}
    for _ in range(rounds):
        for name, optimizer in (("plain", plain), ("prunus", pruned)):
            dist.barrier()
            start = time.perf_counter()
            optimizer.step()
            dist.barrier()
            steps[name].append(time.perf_counter() - start)
    events = []
    for number in range(1, 6):
        dist.barrier()
        start = time.perf_counter()
        pruner.prune(sparsity=0.15 * number)
        dist.barrier()
        events.append(time.perf_counter() - start)
    with counted() as sent:
        pruner.prune(sparsity=0.9)
    with counted() as stepped:
        pruned.step()
    if processes > 1:
        least, ties = event_bytes(LAYERS), tie_bytes(LAYERS, WIDTH * ROWS * processes)
        assert sum(sent) in (least, least + ties), (sent, least, ties)
        assert sum(stepped) == step_bytes(LAYERS), stepped
    if rank == 0:
        medians = {name: statistics.median(times) for name, times in steps.items()}
        torch.save(
            {
                "processes": processes,
                "weights": pruner.selection.prunable,
                "event_ms": statistics.median(events) * 1e3,
                "event_bytes": sum(sent),
                "event_collectives": len(sent),
                "step_ms": medians["plain"] * 1e3,
                "step_ms_with_prunus": medians["prunus"] * 1e3,
                "step_ratio": medians["prunus"] / medians["plain"],
                "step_bytes": sum(stepped),
            },
            Path(folder) / "figures.pt",
        )
    dist.barrier()
    dist.destroy_process_group()
    end_process()


def estimate(weights: float, processes: int) -> dict[str, float]:
    """Return the estimate of one pruning from the assumptions."""
    known, tensors = ASSUMPTIONS, ASSUMPTIONS["tensors"]
    shard = weights / processes
    reach = known["gpu memory, bytes/s"] * known["fraction of it that a pass reaches"]
    passes = known["passes over a process's weights in one event"]
    local = shard * passes * known["bytes read or written for each weight and pass"] / reach
    sent = event_bytes(tensors) * 2 * (processes - 1) / processes
    latency = known["seconds until a collective over two processes begins"]
    collectives = 6  # the survey, three digits, what falls, what is left
    rounds = 2 * math.log2(processes) if processes > 1 else 0
    communicating = collectives * rounds * latency + sent / known["network, bytes/s for each GPU"]
    return {
        "weights": weights,
        "processes": processes,
        "bytes_sent_by_each": round(sent),
        "seconds_at_the_weights": local,
        "seconds_communicating": communicating,
        "seconds": local + communicating,
    }


def main() -> None:
    parser = options(__doc__.splitlines()[0], "many_processes")
    parser.set_defaults(threads=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = []
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            rounds = 5 if arguments.quick else 60
            start_processes(  # type: ignore[no-untyped-call]
                work, (processes, folder, rounds), nprocs=processes, start_method="spawn"
            )
            # A pickle written by these processes.
            measured.append(torch.load(Path(folder) / "figures.pt", weights_only=False))
        print(measured[-1])
    estimates = [estimate(weights, p) for weights in (1e9, 7e9, 70e9) for p in (1, 8, 64, 1024)]
    for row in estimates:
        print(row)
    save(
        arguments.out,
        arguments.seed,
        {"measured": measured, "paper": {"assumptions": ASSUMPTIONS, "events": estimates}},
    )


if __name__ == "__main__":
    main()
