"""Time of a training step with prunus, as a multiple of the same step with AdamW alone.

Every variant owns a copy of the model and its optimizer and trains on the same batches; a step is
zero_grad, forward, backward, optimizer step and the additions of the variant. All variants of a
case are interleaved in one process. The ratio is the median over the rounds of (median step of the
variant in the round) / (median step of AdamW in the same round); a drift of the machine cancels.

Whether the C library returns freed memory to the system, and fetches it again page by page in the
next step, depends on other objects on the heap and can double the time of AdamW itself. So by
default freed memory is kept, where the library is glibc. That makes every step as fast as possible
and the ratios reproducible; ``--system-allocator`` leaves the library unchanged.

On some processors PyTorch's square root takes several times as long where many numbers are exactly
0, as the second moments of removed weights are, so that AdamW itself is slower once weights are
removed by any means. ``--fused`` selects AdamW's fused form, which is not affected.

The benchmark also checks that the compared penalties are the same: after the first step, prunus's
closed form and the authors' two backward passes must agree.

Run from the repository's root: ``python -m benchmarks.speed.step_overhead``
"""

from __future__ import annotations

import copy
import ctypes
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measuring import options, save
from prunus import ExponentialRelevance, MagnitudeScore, Pruner, RelevancePenalty, select
from prunus._utils.timing import interleaved, spread
from prunus.penalties.relevance import Apply
from prunus.recipes.tasks.architectures import lenet300, perceptron

LEARNING_RATE = 1e-4  # Low, so that hundreds of steps on a few batches stay ordinary steps.
STRENGTH = 1e-5
ALPHA = 1.0
BATCHES = 8

Step = Callable[[torch.Tensor, torch.Tensor], None]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """Return a step of AdamW alone."""

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def pruned(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    apply: Apply = "gradient",
    sparsity: float = 0.0,
) -> Step:
    """Return the same step with a pruner attached to the optimizer, which keeps it alive."""
    pruner = Pruner(
        model,
        optimizer,
        RelevancePenalty(STRENGTH, ExponentialRelevance(), apply=apply),
        score=MagnitudeScore(),
    )
    pruner.prune(sparsity=sparsity)
    return plain(model, optimizer)


def two_backward_passes(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """Return a step with R = γ · Σ exp(−|∂L/∂w|/α) · w² in the loss, as the authors compute it."""
    weights = [target.parameter for target in select(model).values()]

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        terms = [
            (torch.exp(-g.abs() / ALPHA).detach() * w**2).sum()
            for w, g in zip(weights, gradients, strict=True)
        ]
        (loss + STRENGTH * torch.stack(terms).sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def lobster(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """Return a step followed by LOBSTER's w ← w − λ · w · relu(1 − |∂L/∂w|) for each tensor."""
    weights = [target.parameter for target in select(model).values()]
    inner = plain(model, optimizer)

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        inner(inputs, labels)
        with torch.no_grad():
            for w in weights:
                assert w.grad is not None
                w.sub_(STRENGTH * w * torch.relu(1 - w.grad.abs()))

    return step


BASE, OURS, AUTHORS = "AdamW", "prunus", "two backward passes"

VARIANTS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Step]] = {
    BASE: plain,
    OURS: pruned,
    "prunus, 90 % removed": functools.partial(pruned, sparsity=0.9),
    "prunus, decoupled": functools.partial(pruned, apply="decoupled"),
    AUTHORS: two_backward_passes,
    "LOBSTER-style loop": lobster,
}


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut that skips pixels and pads channels, without weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        self.padding = (0, 0, 0, 0, 0, outputs - inputs)
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)
        return F.relu(self.convolutions(x) + shortcut)


def resnet32() -> nn.Sequential:
    """Return He et al.'s ResNet-32 for CIFAR-10: widths 16-32-64, option A, 464,154 parameters."""
    widths = [16] * 6 + [32] * 5 + [64] * 5
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Block(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Case:
    """Model, batch and number of timed steps.

    Attributes:
        name: Name of the case.
        build: Builds the model.
        parameters: Expected number of parameters.
        shape: Shape of a batch.
        classes: Number of classes of the labels.
        rounds: Number of timed rounds.
        calls: Timed steps per round.
        warm: Untimed steps before them, which load the state into the caches, where it would stay
            without the other variants.
        goal: Upper bound of the ratio of prunus with dense masks.
    """

    name: str
    build: Callable[[], nn.Module]
    parameters: int
    shape: tuple[int, ...]
    classes: int
    rounds: int
    calls: int
    warm: int
    goal: float

    def measure(self, *, rounds: int, seed: int, fused: bool) -> dict[str, Any]:
        """Time all variants; return a figure for each."""
        torch.manual_seed(seed)
        model = self.build()
        count = sum(p.numel() for p in model.parameters())
        assert count == self.parameters, f"{self.name} has {count:,} parameters"
        inputs = torch.randn(BATCHES, *self.shape)
        labels = torch.randint(self.classes, (BATCHES, self.shape[0]))
        batches = list(zip(inputs, labels, strict=True))
        runs, models = {}, {}
        for name, variant in VARIANTS.items():
            models[name] = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(models[name].parameters(), lr=LEARNING_RATE, fused=fused)
            step, feed = variant(models[name], optimizer), itertools.cycle(batches)
            runs[name] = functools.partial(_next, step, feed)
            runs[name]()
        _check_same(models[OURS], models[AUTHORS])
        seconds = interleaved(runs, rounds=rounds, calls=self.calls, warm=self.warm, seed=seed)
        base = np.median(seconds[BASE], axis=1)
        return {
            name: {
                "ratio": float(np.median(np.median(own, axis=1) / base)),
                "ratio_of_medians": float(np.median(own) / np.median(seconds[BASE])),
                **spread(own),
            }
            for name, own in seconds.items()
        }


CASES = [
    Case("LeNet-300-100", lenet300, 266_610, (100, 1, 28, 28), 10, 300, 5, 2, goal=1.10),
    Case("ResNet-32", resnet32, 464_154, (128, 3, 32, 32), 10, 40, 1, 0, goal=1.02),
    Case(
        "MLP 5 x 2048",
        functools.partial(perceptron, *[2048] * 6),
        20_981_760,
        (128, 2048),
        2048,
        40,
        1,
        0,
        goal=1.25,
    ),
]


def keep_freed_memory() -> bool:
    """Configure glibc to keep freed memory; return whether that succeeded."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_threshold = -1, -3
    return mallopt is not None and all(
        mallopt(option, size) == 1
        for option, size in ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25))
    )


def _next(step: Step, feed: itertools.cycle[tuple[torch.Tensor, torch.Tensor]]) -> None:
    step(*next(feed))


def _check_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Check that two models took the same step; Adam magnifies gradients close to 0."""
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), weight, rtol=1e-5, atol=LEARNING_RATE / 10
        )


def _table(case: Case, figures: dict[str, Any]) -> str:
    lines = [f"\n{case.name}, batch {case.shape[0]} (goal for prunus: {case.goal:.2f})"]
    lines.append(f"{'variant':24}{'ratio':>8}{'of medians':>12}{'ms':>10}   quartiles")
    for name, f in figures.items():
        lines.append(
            f"{name:24}{f['ratio']:8.3f}{f['ratio_of_medians']:12.3f}{f['median_ms']:10.3f}"
            f"   {f['quartile_1_ms']:.3f} to {f['quartile_3_ms']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all cases, print a table of each, write the result file."""
    parser = options("Time of a training step with prunus.", "step_overhead")
    parser.add_argument("--system-allocator", action="store_true", help="keep its defaults")
    parser.add_argument("--fused", action="store_true", help="AdamW(..., fused=True)")
    arguments = parser.parse_args()
    kept = not arguments.system_allocator and keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    results = []
    for case in CASES:
        rounds = 2 if arguments.quick else case.rounds
        figures = case.measure(rounds=rounds, seed=arguments.seed, fused=arguments.fused)
        print(_table(case, figures), flush=True)
        results.append(
            {
                "case": case.name,
                "parameters": case.parameters,
                "batch": case.shape[0],
                "rounds": rounds,
                "steps_per_round": case.calls,
                "goal": case.goal,
                "variants": figures,
            }
        )
    save(
        arguments.out,
        arguments.seed,
        {"fused": arguments.fused, "freed_memory_kept": kept, "cases": results},
    )


if __name__ == "__main__":
    main()
