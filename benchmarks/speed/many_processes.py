"""What pruning costs where several processes hold a model together, measured and on paper.

Weak scaling: the model grows with the number of processes, each of which holds as many weights as
one alone does. Measured are one pruning event, an optimizer's step with and without prunus, and the
bytes that prunus hands to collectives, which must be as many as the formula says. The processes
talk over gloo on one machine; with more processes than cores they wait for each other's turns, so
times beyond that say little of more machines. The table on paper takes the bytes from the formula
and the times from assumptions that stand beside it.

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
from prunus import ExponentialRelevance, Pruner, RelevancePenalty

LAYERS, WIDTH, ROWS = 8, 512, 512
"""Of one process's share: 8 layers of 512 x 512, so 2.1 M weights."""

NUMBER = 8
"""Bytes of a count, and of a mean."""

DIGITS = (1 << 11) + (1 << 11) + (1 << 10)
"""Counters of the three passes over the bits of a float32."""

ASSUMPTIONS: dict[str, Any] = {
    "gpu memory, bytes/s": 3.35e12,
    "share of it that a pass reaches": 0.3,
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
    """Return what one pruning event hands to collectives: it does not grow with the weights.

    Candidates and NaN of each tensor, the digits, what falls in each tensor, what is left in each.
    Each round in which the guard protects a tensor comes on top.
    """
    return NUMBER * (2 * tensors + DIGITS + tensors + tensors)


def tie_bytes(tensors: int, length: int) -> int:
    """Return what comes on top where equal scores part, in a tensor of that many weights.

    How many there are in each tensor, and the digits of their positions in that one.
    """
    bits = length.bit_length()
    digits = [min(11, high) for high in range(bits, 0, -11)]
    return NUMBER * (tensors + sum(1 << digit for digit in digits))


def step_bytes(tensors: int) -> int:
    """Return what a step hands to a collective, with a relative coefficient: one mean a tensor."""
    return NUMBER * tensors


def network(processes: int) -> nn.Module:
    torch.manual_seed(0)
    # So that each process holds as many rows of each layer, whatever their number.
    return nn.Sequential(*(nn.Linear(WIDTH, ROWS * processes, bias=False) for _ in range(LAYERS)))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the bytes handed to all_reduce."""
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
        Pruner(model, optimizer, RelevancePenalty(1e-5, ExponentialRelevance(0.2, relative=True)))
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


def on_paper(weights: float, processes: int) -> dict[str, float]:
    """Work out one pruning event from the assumptions."""
    known, tensors = ASSUMPTIONS, ASSUMPTIONS["tensors"]
    held = weights / processes
    reach = known["gpu memory, bytes/s"] * known["share of it that a pass reaches"]
    passes = known["passes over a process's weights in one event"]
    local = held * passes * known["bytes read or written for each weight and pass"] / reach
    sent = event_bytes(tensors) * 2 * (processes - 1) / processes
    latency = known["seconds until a collective over two processes begins"]
    collectives = 6  # the survey, three digits, what falls, what is left
    rounds = 2 * math.log2(processes) if processes > 1 else 0
    talking = collectives * rounds * latency + sent / known["network, bytes/s for each GPU"]
    return {
        "weights": weights,
        "processes": processes,
        "bytes_sent_by_each": round(sent),
        "seconds_at_the_weights": local,
        "seconds_talking": talking,
        "seconds": local + talking,
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
            # Written by ourselves a moment ago.
            measured.append(torch.load(Path(folder) / "figures.pt", weights_only=False))
        print(measured[-1])
    paper = [on_paper(weights, p) for weights in (1e9, 7e9, 70e9) for p in (1, 8, 64, 1024)]
    for row in paper:
        print(row)
    save(
        arguments.out,
        arguments.seed,
        {"measured": measured, "paper": {"assumptions": ASSUMPTIONS, "events": paper}},
    )


if __name__ == "__main__":
    main()
