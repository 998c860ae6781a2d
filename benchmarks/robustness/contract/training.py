"""Training of a cell of the contract by prunus, and its comparison with the reference."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.robustness.contract.cells import (
    ALLOCATIONS,
    GROWTHS,
    KEPT_IN,
    PENALTIES,
    SCHEDULES,
    SCORES,
    STEPS,
    STRENGTH,
    Cell,
    bound,
    cells,
)
from benchmarks.robustness.contract.optimizers import OPTIMIZERS
from benchmarks.robustness.contract.reference import batch, reference, start
from prunus import Pruner, RelevancePenalty


@dataclass(frozen=True)
class Outcome:
    """Result of a cell.

    Attributes:
        distance: Distance from the reference at the end, relative to the distance travelled in
            training.
        across: Largest distance of a removal on the other side of the reference's threshold,
            relative to the same, or to the norm of all scores that are no magnitudes.
        problems: Every promise that was broken.
    """

    distance: float
    across: float
    problems: list[str]


class _Training:
    """Training of one cell: the model in its precision and layout, the optimizer, the pruner."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.model = _model(cell)
        self.optimizer = OPTIMIZERS[cell.optimizer](self.model.parameters())
        self.pruner = _pruner(cell, self.model, self.optimizer)
        self.weights = list(self.pruner.model.parameters())
        rank, count = (0, 1) if cell.layout == "one process" else (dist.get_rank(), 2)
        dtype = self.weights[0].dtype
        self.inputs, self.targets = (part.chunk(count)[rank].to(dtype) for part in batch())
        scaled = cell.precision.endswith("scaled")
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        self.half = torch.float16 if scaled else torch.bfloat16
        self.kept: list[bytes] = []
        self.problems: list[str] = []

    def step(self, number: int) -> None:
        """Take the optimizer step of this number, counted from 1."""
        if self.cell.optimizer.startswith("LBFGS"):
            self.optimizer.step(self._closure)  # type: ignore[arg-type]
        else:
            self._accumulate()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.cell.schedule == "iterative" and number % 2 == 0:
            self.pruner.step(1.0)

    def check(self, number: int) -> None:
        """Record the masks, and check the number of kept weights and the exact zeros."""
        masks = [
            _whole_mask(mask, self.pruner.selection[name].parameter)
            for name, mask in self.pruner.masks.items()
        ]
        self.kept.append(torch.cat([mask.flatten() for mask in masks]).numpy().tobytes())
        expected = self.cell.kept[number - 1]
        if self.pruner.masks.kept != expected:
            self.problems.append(f"step {number}: {self.pruner.masks.kept} kept, not {expected}")
        if self.cell.allocation in KEPT_IN:
            kept = tuple(int(mask.sum()) for mask in masks)
            shares = KEPT_IN[self.cell.allocation][expected]
            if kept != shares:
                self.problems.append(f"step {number}: {kept} kept in the layers, not {shares}")
        for name, mask in self.pruner.masks.items():
            removed = self.pruner.selection[name].weight[~mask]
            if removed.count_nonzero() or torch.signbit(removed).any():
                self.problems.append(f"step {number}: removed weights of {name} are not +0.0")

    def _accumulate(self) -> None:
        """Compute the gradients of all micro-batches."""
        self.optimizer.zero_grad()
        count = self.cell.accumulation
        parts = list(zip(self.inputs.chunk(count), self.targets.chunk(count), strict=True))
        for number, (x, y) in enumerate(parts):
            more = isinstance(self.model, DistributedDataParallel) and number < len(parts) - 1
            with self.model.no_sync() if more else contextlib.nullcontext():  # type: ignore[operator]
                loss: Any = self.scaler.scale(self._loss(x, y) / len(parts))
                loss.backward()

    def _closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self._loss(self.inputs, self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        enabled = self.cell.precision.startswith("autocast")
        with torch.autocast("cpu", self.half, enabled=enabled):
            loss: torch.Tensor = (self.model(x).to(y.dtype) - y).square().mean()
        if self.cell.apply == "loss" and PENALTIES[self.cell.penalty]:
            loss = loss + self.pruner.penalty(loss)
        return loss


def run(cell: Cell) -> Outcome:
    """Train a cell and compare it with the reference."""
    training = _Training(cell)
    for number in range(1, STEPS + 1):
        training.step(number)
        training.check(number)
    problems = training.problems
    reached = torch.cat([_whole(weight).double().flatten() for weight in training.weights])
    kept = tuple(training.kept)
    method = cell.penalty, cell.apply, cell.schedule, cell.score, cell.allocation, cell.growth
    expected = reference(*method, cell.optimizer, cell.kept, kept)
    begin = torch.cat([weight.detach().flatten() for weight in start().parameters()])
    travelled = (expected.weights - begin).norm()
    distance = float((reached - expected.weights).norm() / travelled)
    across = expected.across
    if not distance <= bound(cell):
        problems.append(f"{distance:.1e} from the reference, relative to the distance travelled")
    if not across <= bound(cell):
        problems.append(f"a removal is {across:.1e} across the threshold, relatively")
    training.pruner.detach()
    return Outcome(distance, across, problems)


def check(layout: str, optimizers: list[str] | None = None) -> tuple[int, dict[str, list[str]]]:
    """Run the cells of a layout; return their number, and the problems of those with any."""
    chosen = [cell for cell in cells(layout) if optimizers is None or cell.optimizer in optimizers]
    found = {str(cell): run(cell).problems for cell in chosen}
    return len(chosen), {cell: problems for cell, problems in found.items() if problems}


def _model(cell: Cell) -> nn.Module:
    model: nn.Module = start().to(torch.bfloat16 if cell.precision == "bfloat16" else torch.float32)
    if cell.layout == "DDP":
        return DistributedDataParallel(model)
    if cell.layout == "FSDP2":
        fully_shard(model)
    return model


def _pruner(cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer) -> Pruner:
    penalty = PENALTIES[cell.penalty]
    with warnings.catch_warnings():
        if cell.precision == "bfloat16":  # the bound includes what the optimizer rounds
            warnings.simplefilter("ignore")
        return Pruner(
            model,
            optimizer,
            penalty and RelevancePenalty(STRENGTH, penalty[0], power=penalty[1], apply=cell.apply),
            SCHEDULES[cell.schedule](),
            score=SCORES[cell.score],
            allocation=ALLOCATIONS[cell.allocation],
            growth=GROWTHS[cell.growth][0],
        )


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, gathered from the rows of all processes if it is sharded."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.clone()
    # Not by full_tensor(), in which a process of this test crashed once: native code, on the CPU.
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, tensor.to_local())
    return torch.cat(parts)


def _whole_mask(mask: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Gather the mask of a tensor from the shards of all processes."""
    if not isinstance(parameter, DTensor):
        return mask
    shape, stride = parameter.shape, parameter.stride()
    gathered = DTensor.from_local(
        mask, parameter.device_mesh, parameter.placements, shape=shape, stride=stride
    )
    return _whole(gathered)
