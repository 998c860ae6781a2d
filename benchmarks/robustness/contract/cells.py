"""Cells of the contract: the combinations of method, optimizer, precision, accumulation, layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.robustness.contract.optimizers import OPTIMIZERS
from prunus import (
    Allocation,
    AlternatingGrowth,
    Coefficient,
    ConstantRelevance,
    ErdosRenyiAllocation,
    ExponentialRelevance,
    FisherScore,
    GlobalAllocation,
    GradientGrowth,
    GradualPruning,
    Growth,
    IterativePruning,
    LinearRelevance,
    MagnitudeScore,
    MovementScore,
    OneShot,
    RandomGrowth,
    Schedule,
    Score,
    SensitivityScore,
    SoftGrowth,
    TaylorScore,
    UniformAllocation,
)
from prunus.penalties.relevance import Apply

STEPS, ROWS, STRENGTH = 6, 24, 0.02

SOFT_UNTIL = 5
"""The step after which removed weights are final with soft growth."""

PENALTIES: dict[str, tuple[Coefficient, Any] | None] = {
    "relevance": (ExponentialRelevance(0.5, relative=True), 2),
    "lobster": (LinearRelevance(0.05), 2),
    "l2": (ConstantRelevance(), 2),
    "l1": (ConstantRelevance(), 1),
    "none": None,
}

APPLICATIONS: tuple[Apply, ...] = ("gradient", "loss", "decoupled")

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "iterative": lambda: IterativePruning(fraction=0.3),
    "gradual": lambda: GradualPruning(sparsity=0.5, end=4, every=2),
    "oneshot": lambda: OneShot(sparsity=0.4, at=3),
}

SCORES: dict[str, Score] = {
    "magnitude": MagnitudeScore(),
    "fisher": FisherScore(smoothing=0.5, every=1),
    "sensitivity": SensitivityScore(),
    "taylor": TaylorScore(),
    "movement": MovementScore(),
}

ALLOCATIONS: dict[str, Allocation] = {
    "global": GlobalAllocation(),
    "uniform": UniformAllocation(),
    "erk": ErdosRenyiAllocation(),
}
GROWTHS: dict[str, tuple[Growth | None, str]] = {
    "none": (None, ""),
    "soft": (SoftGrowth(until=SOFT_UNTIL), "gradual"),
    "random": (RandomGrowth(every=2, fraction=0.3), "oneshot"),
    "gradient": (GradientGrowth(every=2, fraction=0.5, until=8), "oneshot"),
    "alternating": (AlternatingGrowth(sparse=4, dense=1, until=6), "oneshot"),
}
"""Each growth, and the schedule that it is combined with."""

KEPT = {
    # Of 160 weights; after steps 1 to 6. Iterative: 0.7 of what is left after steps 2, 4 and 6.
    "iterative": (160, 112, 112, 78, 78, 55),
    # 80 + 80 · (1 − step / 4)³ at steps 2 and 4.
    "gradual": (160, 90, 90, 80, 80, 80),
    "oneshot": (160, 160, 96, 96, 96, 96),
    # With this growth, whatever the schedule: dense after step 4.
    "alternating": (160, 160, 96, 160, 96, 96),
}

KEPT_IN = {
    # Of the 120 and 40 weights of the two layers, by how many are kept in all. Uniform: three
    # quarters and one quarter; 67.5 and 22.5 are rounded to the first layer's favour.
    "uniform": {160: (120, 40), 90: (68, 22), 80: (60, 20)},
    # In proportion to 12 + 10 and 10 + 4: 68.4 and 43.6 exceed the 40 of the last layer; then 47.7
    # and 30.3, and 33.6 and 21.4.
    "erk": {160: (120, 40), 112: (72, 40), 78: (48, 30), 55: (34, 21)},
}
"""The weights kept in each layer, for the allocations that have a share for each."""

PRECISIONS = {
    "float32": 1e-5,
    "float32 scaled": 1e-5,
    "bfloat16": 0.16,
    "autocast bfloat16": 0.05,
    "autocast float16 scaled": 0.01,
}
"""Allowed distance from the reference at the end, relative to the distance travelled in training.

Where loss and penalty nearly cancel, rounding decides the sign of a weight's gradient, and an
optimizer that divides by the gradient's magnitude takes a full step in that direction. One such
weight of 160, wrong throughout the training, is 2 / √160 = 0.16: the bound of pure bfloat16."""

ROUGH = {"Muon": 0.01, "Rprop": 0.1, "LBFGS line search": 0.5}
"""Minimum of that bound for optimizers that round to 16 bits themselves (Muon, in its
orthogonalization) or depend on single bits: on a sign, or on whether a search continues."""

MAGNIFIED = {"LBFGS": 10.0}
"""Factor by which an optimizer magnifies rounding: LBFGS divides by differences of gradients."""

ACCUMULATIONS = (1, 3)

LAYOUTS = {"one process": 1, "DDP": 2, "FSDP2": 2}


@dataclass(frozen=True)
class Cell:
    """One combination of method, optimizer, precision, accumulation and process layout.

    A method is a penalty, how it is applied, a schedule, a score, an allocation and a growth.
    """

    penalty: str
    apply: Apply
    schedule: str
    score: str
    allocation: str
    growth: str
    optimizer: str
    precision: str
    accumulation: int
    layout: str

    @property
    def kept(self) -> tuple[int, ...]:
        """How many weights are kept after each step."""
        return KEPT.get(self.growth, KEPT[self.schedule])

    @property
    def unsupported(self) -> str:
        """Reason why torch or prunus does not support the cell; empty if they do."""
        if self.optimizer.startswith("LBFGS"):
            if self.accumulation > 1 or self.precision.endswith("scaled"):
                return "LBFGS computes its gradients itself, without scaler or accumulation"
            if self.precision.startswith("autocast"):
                return "LBFGS computes its gradients itself, without autocast"
            if self.layout != "one process":
                return "LBFGS concatenates all gradients, which needs one process"
        if self.layout == "FSDP2" and self.optimizer in ("Adafactor", "Rprop"):
            return "torch 2.13's own step fails on sharded tensors"
        if self.layout == "FSDP2" and self.apply == "loss" and self.penalty != "none":
            return "rejected: gradients of whole tensors are not available"
        if self.apply == "loss" and self.penalty in ("relevance", "lobster"):
            if self.accumulation > 1:
                return "relevance is that of each micro-batch, as documented"
            if self.layout == "DDP":
                return "relevance is that of each process's batch, as documented"
        return ""


Method = tuple[str, Apply, str, str, str, str]
"""The names of penalty, application, schedule, score, allocation and growth."""


def methods() -> list[Method]:
    """Return every penalty with every ``apply=``, and every score, with every schedule.

    The other scores than the magnitude are combined with one penalty, which they must not observe,
    the other allocations than the global one with one penalty and schedule, and each growth too.
    """
    penalized: list[Method] = [
        (penalty, apply, schedule, "magnitude", "global", "none")
        for penalty in PENALTIES
        for apply in (APPLICATIONS if PENALTIES[penalty] else APPLICATIONS[:1])
        for schedule in SCHEDULES
    ]
    scored: list[Method] = [
        ("relevance", "gradient", schedule, score, "global", "none")
        for score in SCORES
        for schedule in SCHEDULES
        if score != "magnitude"
    ]
    allocated: list[Method] = [
        ("none", "gradient", "gradual", "magnitude", "uniform", "none"),
        ("relevance", "gradient", "iterative", "fisher", "erk", "none"),
    ]
    grown: list[Method] = [
        ("l2", "decoupled", schedule, "magnitude", "global", name)
        for name, (growth, schedule) in GROWTHS.items()
        if growth is not None
    ]
    return penalized + scored + allocated + grown


def product(layout: str) -> Iterator[Cell]:
    """Yield every supported cell of a layout."""
    for combined in itertools.product(methods(), OPTIMIZERS, PRECISIONS, ACCUMULATIONS):
        method, optimizer, precision, accumulation = combined
        cell = Cell(*method, optimizer, precision, accumulation, layout)
        if not cell.unsupported:
            yield cell


def cells(layout: str) -> Iterator[Cell]:
    """Yield every pair of method and optimizer once, with rotating precision and accumulation.

    The full product, which ``contract_table.py`` runs, takes too long for a test. Each pair is
    combined with one of the ten settings of precision and accumulation, so that each method and
    each optimizer is combined with all ten.
    """
    settings = list(itertools.product(PRECISIONS, ACCUMULATIONS))
    for m, method in enumerate(methods()):
        for o, optimizer in enumerate(OPTIMIZERS):
            # The next supported setting, if any.
            for turn in range(len(settings)):
                precision, accumulation = settings[(m + o + turn) % len(settings)]
                cell = Cell(*method, optimizer, precision, accumulation, layout)
                if not cell.unsupported:
                    yield cell
                    break


def bound(cell: Cell) -> float:
    """Return the allowed distance of a cell from the reference."""
    usual = PRECISIONS[cell.precision] * MAGNIFIED.get(cell.optimizer, 1.0)
    return max(usual, ROUGH.get(cell.optimizer, 0.0))
