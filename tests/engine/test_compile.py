"""torch.compile: a pruner costs no graph break and no recompilation, in the model or in the step.

The compiler's own counters are the witness. Its backends here need no compiler of another language:
"eager" runs the captured graph as it is, so that values can be compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters  # private, but what was compiled is counted only there

from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.training import squared_error
from prunus import (
    ExponentialRelevance,
    IterativePruning,
    LearningRateStrength,
    MagnitudeScore,
    Pruner,
    RelevancePenalty,
    TaylorScore,
)
from prunus.penalties.relevance import Apply

WAYS: tuple[Apply, ...] = ("gradient", "loss", "decoupled")
BATCH = noise_batch(32, 12, 4, seed=5)

# The compiler warns of its own matters.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Leave nothing compiled behind."""
    yield
    torch.compiler.reset()


@dataclass(frozen=True)
class Compiled:
    """What the compiler did: functions it compiled, graphs of that, and breaks of graphs."""

    functions: int
    graphs: int
    breaks: int


def compiled_so_far() -> Compiled:
    return Compiled(
        counters["frames"]["ok"],
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
    )


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, apply: Apply) -> Pruner:
    """Attach a pruner that prunes at each call of its ``step`` and remembers all it can."""
    penalty = RelevancePenalty(
        LearningRateStrength(0.1),
        ExponentialRelevance(0.1, relative=True),
        apply=apply,
        smoothing=0.0 if apply == "loss" else 0.9,
    )
    return Pruner(
        model,
        optimizer,
        penalty,
        IterativePruning(fraction=0.3),
        score=MagnitudeScore() if apply == "loss" else TaylorScore(),
        max_grad_norm=1.0,
        floor=-1000000000.0,
    )


@dataclass(frozen=True)
class Trained:
    """A trained model, and what the compiler did after each epoch."""

    model: nn.Module
    pruner: Pruner | None
    compiled: list[Compiled]

    def removed(self) -> torch.Tensor:
        """Return the values at all removed weights."""
        assert self.pruner is not None
        parameters = dict(self.model.named_parameters())
        masks = self.pruner.masks
        return torch.cat([parameters[name].detach()[~mask] for name, mask in masks.items()])

    def assert_close(self, other: Trained, bound: float) -> None:
        """Check that no weight differs by more than ``bound``."""
        for one, another in zip(self.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(one, another, rtol=0, atol=bound)


def train(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    apply: Apply | None,
    forward: Callable[[nn.Module], Any] = lambda model: model,
    compile_step: Callable[[torch.optim.Optimizer], Callable[[], Any]] = lambda optimizer: (
        optimizer.step
    ),
    schedule: bool = True,
) -> Trained:
    """Train for four epochs of three steps, and prune after each unless ``apply`` is None."""
    torch.compiler.reset()  # or what was compiled for one network would serve the next
    counters.clear()
    model: nn.Module = tanh_network(12, 20, 4, dropout=0.2, seed=1)
    called = forward(model)
    optimizer = make(model)
    pruner = None if apply is None else attached(called, optimizer, apply)
    step = compile_step(optimizer)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer) if schedule else None
    compiled = []
    for _ in range(4):
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            loss = squared_error(called, BATCH)
            if pruner is not None and apply == "loss":
                loss = loss + pruner.penalty(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            step()
            if scheduler is not None:
                scheduler.step()
        model.eval()
        with torch.no_grad():
            metric = -float(squared_error(called, BATCH))
        if pruner is not None:
            pruner.step(metric)
        compiled.append(compiled_so_far())
    if pruner is not None:
        assert pruner.sparsity > 0.5
        pruner.finish()
    return Trained(model, pruner, compiled)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def adamw_with_tensor(model: nn.Module) -> torch.optim.Optimizer:
    """Take the learning rate as a tensor, which a compiled step does not take for a constant."""
    return torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))


@pytest.mark.parametrize(
    ("apply", "backend"), [*((apply, "eager") for apply in WAYS), ("gradient", "aot_eager")]
)
def test_a_compiled_model_is_compiled_once_however_often_it_is_pruned(
    apply: Apply, backend: str
) -> None:
    def forward(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend)

    alone = train(sgd, apply=None, forward=forward)
    pruned = train(sgd, apply=apply, forward=forward)
    # One graph to train and one to validate, both made in the first epoch, and never left.
    assert alone.compiled == [Compiled(functions=2, graphs=2, breaks=0)] * 4
    assert pruned.compiled == alone.compiled
    plain = train(sgd, apply=apply)
    pruned.assert_close(plain, 0.0)
    assert torch.equal(pruned.removed(), torch.zeros_like(pruned.removed()))


def as_function(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """Compile a function that takes the step, as PyTorch's own recipe does."""

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    return step


def as_method(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    step: Callable[[], Any] = torch.compile(optimizer.step, backend="eager")
    return step


# Compiled, Adam takes its corrections of bias as tensors, and rounds otherwise, with or without a
# pruner. Weights are below 1 here, where float32 has steps of 6e-8: it comes to a dozen of these.
ROUNDING = 2e-6


@pytest.mark.parametrize(
    ("make", "schedule", "bound", "apply", "compile_step"),
    [
        *((sgd, False, 0.0, apply, as_function) for apply in WAYS),
        (sgd, False, 0.0, "decoupled", as_method),
        (adamw, False, ROUNDING, "gradient", as_function),
        (adamw_with_tensor, True, ROUNDING, "decoupled", as_function),
        (adamw_with_tensor, True, ROUNDING, "gradient", as_method),
    ],
)
def test_a_compiled_step_is_compiled_once_however_often_it_is_pruned(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: bool,
    bound: float,
    apply: Apply,
    compile_step: Callable[[torch.optim.Optimizer], Callable[[], Any]],
) -> None:
    alone = train(make, apply=None, compile_step=compile_step, schedule=schedule)
    pruned = train(make, apply=apply, compile_step=compile_step, schedule=schedule)
    # Nothing is compiled after the first epoch, at whose end and at each later one it was pruned.
    assert len(set(pruned.compiled)) == 1
    # The optimizer's own graphs, of which SGD's momentum takes a second, and no more; PyTorch's
    # step leaves its graph by itself, and the hooks, which are outside of it, add nothing to that.
    assert pruned.compiled[0].graphs == alone.compiled[0].graphs
    assert pruned.compiled[0].breaks <= alone.compiled[0].breaks
    for one, way_of_it in ((alone, None), (pruned, apply)):
        one.assert_close(train(make, apply=way_of_it, schedule=schedule), bound)
    assert torch.equal(pruned.removed(), torch.zeros_like(pruned.removed()))
    assert not torch.signbit(pruned.removed()).any()


def test_a_step_that_must_be_compiled_as_a_whole_names_the_reason() -> None:
    model = tanh_network(12, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, optimizer)
    model(BATCH[0]).sum().backward()
    with pytest.raises(RuntimeError, match="prunus acts around each optimizer step, outside of"):
        torch.compile(optimizer.step, fullgraph=True, backend="eager")()
