"""The contract: what every combination of method, optimizer, precision and processes must keep.

One registry of what can be combined, a way to run any combination (a cell), and the same training
spelled out in float64 without prunus, against which each cell is held.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.robustness.contract.optimizers import OPTIMIZERS
from prunus import (
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    GradualPruning,
    IterativePruning,
    LinearRelevance,
    OneShot,
    Pruner,
    RelevancePenalty,
    Schedule,
)
from prunus.penalties.relevance import Apply

STEPS, ROWS, STRENGTH = 6, 24, 0.02

Batch = tuple[torch.Tensor, torch.Tensor]

PENALTIES: dict[str, tuple[Coefficient, Any] | None] = {
    "relevance": (ExponentialRelevance(0.5, relative=True), 2),
    "lobster": (LinearRelevance(0.05), 2),
    "l2": (ConstantRelevance(), 2),
    "l1": (ConstantRelevance(), 1),
    "none": None,
}

WAYS: tuple[Apply, ...] = ("gradient", "loss", "decoupled")

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "iterative": lambda: IterativePruning(fraction=0.3),
    "gradual": lambda: GradualPruning(sparsity=0.5, end=4, every=2),
    "oneshot": lambda: OneShot(sparsity=0.4, at=3),
}

KEPT = {
    # Of 160 weights; after steps 1 to 6. Iterative: 0.7 of what is left after steps 2, 4 and 6.
    "iterative": (160, 112, 112, 78, 78, 55),
    # 80 + 80 · (1 − step / 4)³ at steps 2 and 4.
    "gradual": (160, 90, 90, 80, 80, 80),
    "oneshot": (160, 160, 96, 96, 96, 96),
}

PRECISIONS = {
    "float32": 1e-5,
    "float32 scaled": 1e-5,
    "bfloat16": 0.16,
    "autocast bfloat16": 0.05,
    "autocast float16 scaled": 0.01,
}
"""How far from the reference a cell may end, in multiples of the whole way of the training.

Where loss and penalty all but cancel, rounding decides the sign of a weight's gradient, and an
optimizer that divides by the gradient's magnitude makes a full step of it. One such weight of the
160, turned through a whole training, is 2 / √160 = 0.16 of the way: the bound of pure bfloat16."""

ROUGH = {"Muon": 0.01, "Rprop": 0.1, "LBFGS line search": 0.5}
"""The same for optimizers that round to 16 bits themselves (Muon, within its orthogonalization), or
let the last bit decide: by a sign, or whether to go on with a search."""

MAGNIFIED = {"LBFGS": 10.0}
"""How much an optimizer magnifies rounding: LBFGS divides by differences of gradients."""

ACCUMULATIONS = (1, 3)

LAYOUTS = {"one process": 1, "DDP": 2, "FSDP2": 2}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    penalty: str
    apply: Apply
    schedule: str
    optimizer: str
    precision: str
    accumulation: int
    layout: str

    @property
    def unfit(self) -> str:
        """Say why torch or prunus does not offer this; empty if they do."""
        if self.optimizer.startswith("LBFGS"):
            if self.accumulation > 1 or self.precision.startswith("autocast"):
                return "LBFGS makes its gradients itself, without scaler or accumulation"
            if self.precision.endswith("scaled"):
                return "LBFGS makes its gradients itself, without scaler or accumulation"
            if self.layout != "one process":
                return "LBFGS joins all gradients to one vector, which is not for several processes"
        if self.layout == "FSDP2" and self.optimizer in ("Adafactor", "Rprop"):
            return "torch 2.13's own step fails with sharded tensors"
        if self.layout == "FSDP2" and self.apply == "loss" and self.penalty != "none":
            return "refused: the gradients of whole tensors are not there"
        if self.apply == "loss" and self.penalty in ("relevance", "lobster"):
            if self.accumulation > 1:
                return "relevance is then that of each micro-batch, as documented"
            if self.layout == "DDP":
                return "relevance is then that of each process's share, as documented"
        return ""


def methods() -> list[tuple[str, Apply, str]]:
    """Return every penalty in every way with every schedule."""
    return [
        (penalty, apply, schedule)
        for penalty in PENALTIES
        for apply in (WAYS if PENALTIES[penalty] else WAYS[:1])
        for schedule in SCHEDULES
    ]


def product(layout: str) -> Iterator[Cell]:
    """Yield every cell of a layout that torch and prunus offer."""
    for combined in itertools.product(methods(), OPTIMIZERS, PRECISIONS, ACCUMULATIONS):
        method, optimizer, precision, accumulation = combined
        cell = Cell(*method, optimizer, precision, accumulation, layout)
        if not cell.unfit:
            yield cell


def cells(layout: str) -> Iterator[Cell]:
    """Yield every method with every optimizer, and of each every precision and accumulation.

    The full product takes too long for a test (``benchmarks/contract_table.py`` runs it), so each
    pair of method and optimizer meets one of the ten precisions with accumulations, all of which
    each method and each optimizer meet in turn.
    """
    settings = list(itertools.product(PRECISIONS, ACCUMULATIONS))
    for m, method in enumerate(methods()):
        for o, optimizer in enumerate(OPTIMIZERS):
            # A fitting one, if there is one.
            for turn in range(len(settings)):
                precision, accumulation = settings[(m + o + turn) % len(settings)]
                cell = Cell(*method, optimizer, precision, accumulation, layout)
                if not cell.unfit:
                    yield cell
                    break


def batch() -> Batch:
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(ROWS, 12, generator=draw, dtype=torch.float64)
    return inputs, torch.randn(ROWS, 4, generator=draw, dtype=torch.float64)


def start() -> nn.Sequential:
    """Return the network that every cell and the reference start from."""
    torch.manual_seed(0)
    first, last = nn.Linear(12, 10, bias=False), nn.Linear(10, 4, bias=False)
    model = nn.Sequential(first, nn.Tanh(), last).double()
    for parameter in model.parameters():  # which bfloat16 can hold, for all start alike
        parameter.data.copy_(parameter.data.bfloat16().double())
    return model


@dataclass(frozen=True)
class Reference:
    """What training in float64 comes to."""

    weights: torch.Tensor
    """All weights at the end, one after the other."""
    across: float
    """By how much a removed weight's magnitude lay above, or a spared one's below, the threshold
    that the removal's density asks for; the most of all."""


@cache
def reference(
    penalty: str, apply: Apply, schedule: str, optimizer: str, kept_by_cell: tuple[bytes, ...]
) -> Reference:
    """Train in float64, one process, one batch, by the formulas.

    After each step those weights are kept that the cell has kept, a byte for each. Where the cell's
    rounding put a weight on the other side of the threshold, the trainings would else part for
    good; so they stay comparable, and how far over the threshold such a weight lay is returned.
    """
    model, (inputs, targets) = start(), batch()
    weights = list(model.parameters())
    moved = OPTIMIZERS[optimizer](weights)
    masks = [torch.ones_like(weight) for weight in weights]
    coefficients: list[torch.Tensor] = []
    across = 0.0

    def coefficient(gradient: torch.Tensor) -> torch.Tensor:
        if penalty == "relevance":
            return torch.exp(-gradient.abs() / (0.5 * gradient.abs().mean()))
        return (1 - gradient.abs() / 0.05).clamp(min=0) if penalty == "lobster" else torch.ones(())

    def closure() -> torch.Tensor:
        moved.zero_grad()
        loss: torch.Tensor = (model(inputs) - targets).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        coefficients[:] = [coefficient(gradient) for gradient in gradients]
        added = torch.zeros((), dtype=torch.float64)
        for weight, gradient, c, mask in zip(weights, gradients, coefficients, masks, strict=True):
            weight.grad = gradient.clone()
            if penalty != "none" and apply != "decoupled":
                shrink = weight.sign() if penalty == "l1" else 2 * weight
                weight.grad += STRENGTH * c * shrink.detach()
                power = weight.abs() if penalty == "l1" else weight.square()
                added = added + (STRENGTH * c * power).sum()
            weight.grad *= mask
        return loss + added if apply == "loss" else loss

    for step in range(1, STEPS + 1):
        if optimizer.startswith("LBFGS"):
            moved.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            moved.step()
        with torch.no_grad():
            for weight, c in zip(weights, coefficients, strict=True):
                if penalty != "none" and apply == "decoupled":
                    shrink = STRENGTH * c * (1 if penalty == "l1" else 2 * weight.abs())
                    weight.sub_(weight.sign() * torch.minimum(shrink, weight.abs()))
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)
            kept = torch.frombuffer(bytearray(kept_by_cell[step - 1]), dtype=torch.bool)
            if int(kept.sum()) < sum(int(mask.sum()) for mask in masks):
                magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
                line = magnitudes.sort(descending=True).values[KEPT[schedule][step - 1] - 1]
                over = torch.where(kept, line - magnitudes, magnitudes - line)
                across = max(across, float(over.max()))
                own = torch.split(kept, [weight.numel() for weight in weights])
                for weight, mask, chosen in zip(weights, masks, own, strict=True):
                    mask.copy_(chosen.view_as(mask))
                    weight.mul_(mask)
                    for value in moved.state.get(weight, {}).values():
                        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                            value *= mask
                if optimizer.startswith("LBFGS"):  # whose memory is of all weights together
                    moved.state.clear()
    return Reference(torch.cat([weight.detach().flatten() for weight in weights]), across)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def whole_mask(mask: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Join the masks that the processes have of their shares."""
    if not isinstance(parameter, DTensor):
        return mask
    shape, stride = parameter.shape, parameter.stride()
    joined = DTensor.from_local(
        mask, parameter.device_mesh, parameter.placements, shape=shape, stride=stride
    )
    return whole(joined)


def bound(cell: Cell) -> float:
    """Return how far from the reference a cell may end."""
    usual = PRECISIONS[cell.precision] * MAGNIFIED.get(cell.optimizer, 1.0)
    return max(usual, ROUGH.get(cell.optimizer, 0.0))


@dataclass(frozen=True)
class Outcome:
    """What a cell came to; distances are in multiples of the whole way of the training."""

    distance: float
    """How far from the reference it ended."""
    across: float
    """How far on the other side of the reference's threshold one of its removals was."""
    problems: list[str]


def run(cell: Cell) -> Outcome:
    """Train as the cell says, and hold it against the reference."""
    problems: list[str] = []
    model: nn.Module = start().to(torch.bfloat16 if cell.precision == "bfloat16" else torch.float32)
    if cell.layout == "DDP":
        model = DistributedDataParallel(model)
    elif cell.layout == "FSDP2":
        fully_shard(model)
    optimizer = OPTIMIZERS[cell.optimizer](model.parameters())
    made = PENALTIES[cell.penalty]
    with warnings.catch_warnings():
        if cell.precision == "bfloat16":  # what the optimizer rounds is within the bound
            warnings.simplefilter("ignore")
        pruner = Pruner(
            model,
            optimizer,
            made and RelevancePenalty(STRENGTH, made[0], power=made[1], apply=cell.apply),
            SCHEDULES[cell.schedule](),
        )
    weights = list(pruner.model.parameters())
    rank, count = (0, 1) if cell.layout == "one process" else (dist.get_rank(), 2)
    inputs, targets = (part.chunk(count)[rank].to(weights[0].dtype) for part in batch())
    scaled = cell.precision.endswith("scaled")
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
    half = torch.float16 if scaled else torch.bfloat16

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", half, enabled=cell.precision.startswith("autocast")):
            loss: torch.Tensor = (model(x).to(y.dtype) - y).square().mean()
        if cell.apply == "loss" and made:
            loss = loss + pruner.penalty(loss)
        return loss

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    kept_after: list[bytes] = []
    for step in range(1, STEPS + 1):
        if cell.optimizer.startswith("LBFGS"):
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            optimizer.zero_grad()
            parts = list(
                zip(inputs.chunk(cell.accumulation), targets.chunk(cell.accumulation), strict=True)
            )
            for number, (x, y) in enumerate(parts):
                waits = isinstance(model, DistributedDataParallel) and number < len(parts) - 1
                with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                    scaled_loss: Any = scaler.scale(loss_of(x, y) / len(parts))
                    scaled_loss.backward()
            scaler.step(optimizer)
            scaler.update()
        if cell.schedule == "iterative" and step % 2 == 0:
            pruner.step(1.0)
        kept = [
            whole_mask(mask, pruner.selection[name].parameter)
            for name, mask in pruner.masks.items()
        ]
        kept_after.append(torch.cat([mask.flatten() for mask in kept]).numpy().tobytes())
        wanted = KEPT[cell.schedule][step - 1]
        if pruner.masks.kept != wanted:
            problems.append(f"step {step}: {pruner.masks.kept} kept, not {wanted}")
        for name, mask in pruner.masks.items():
            removed = pruner.selection[name].weight[~mask]
            if removed.count_nonzero() or torch.signbit(removed).any():
                problems.append(f"step {step}: removed weights of {name} are not +0.0")
    got = torch.cat([whole(weight).double().flatten() for weight in weights])
    expected = reference(cell.penalty, cell.apply, cell.schedule, cell.optimizer, tuple(kept_after))
    begin = torch.cat([weight.detach().flatten() for weight in start().parameters()])
    apply = (expected.weights - begin).norm()
    distance = float((got - expected.weights).norm() / apply)
    across = float(expected.across / apply)
    if not distance <= bound(cell):
        problems.append(f"{distance:.1e} of the way from the reference")
    if not across <= bound(cell):
        problems.append(f"a removal {across:.1e} of the way across the threshold")
    pruner.detach()
    return Outcome(distance, across, problems)


def check(layout: str, optimizers: list[str] | None = None) -> tuple[int, dict[str, list[str]]]:
    """Run the cells of a layout; return how many there were, and the problems of those with any."""
    chosen = [cell for cell in cells(layout) if optimizers is None or cell.optimizer in optimizers]
    found = {str(cell): run(cell).problems for cell in chosen}
    return len(chosen), {cell: problems for cell, problems in found.items() if problems}
