"""Time of a training step with prunus, as a multiple of the same step with AdamW alone.

Every variant owns a copy of the model and its optimizer and trains on the same batches; a step is
zero_grad, forward, backward, optimizer step and the additions of the variant. All variants of a
case are interleaved in one process. The ratio is the median over the rounds of (mean step of the
variant in the round) / (mean step of AdamW in the same round); a drift of the machine cancels. It
is the mean within a round, because the Fisher score reads the gradient of every fourth step only
and the default penalty acts in every fifth, so that a median would not include their time; the
steps of a round are a multiple of both.

Each case is measured with AdamW as it is by default, and with ``AdamW(fused=True)``, whose step is
shorter, so that the same additions are a larger part of it.

Whether the C library returns freed memory to the system, and fetches it again page by page in the
next step, depends on other objects on the heap and can double the time of AdamW itself. So by
default freed memory is kept, where the library is glibc. That makes every step as fast as possible
and the ratios reproducible; ``--system-allocator`` leaves the library unchanged.

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measuring import options, save
from prunus import (
    ExponentialRelevance,
    FisherScore,
    GradualPruning,
    MagnitudeScore,
    Pruner,
    RelevancePenalty,
    Score,
    select,
)
from prunus._utils.timing import interleaved, spread
from prunus.penalties.relevance import Apply
from prunus.recipes.registry import find_recipe
from prunus.recipes.tasks.architectures import lenet300, perceptron
from prunus.recipes.tasks.language_model import LanguageModelConfig, gpt2
from prunus.recipes.tasks.residual_networks import cifar_resnet

LEARNING_RATE = 1e-4  # Low, so that hundreds of steps on a few batches stay ordinary steps.
STRENGTH = 1e-5
ALPHA = 1.0
BATCHES = 8
CALLS = 20

_MAGNITUDE = MagnitudeScore()

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
    penalty: RelevancePenalty | None = None,
    score: Score = _MAGNITUDE,
    sparsity: float = 0.0,
    apply: Apply = "gradient",
) -> Step:
    """Return the same step with a pruner attached to the optimizer, which keeps it alive."""
    # The schedule tells the automatic strength its interval, and removes nothing here.
    schedule = GradualPruning(sparsity=0.9, begin=10**8, end=10**8 + 2000)
    penalty = penalty or RelevancePenalty(STRENGTH, ExponentialRelevance(), apply=apply)
    pruner = Pruner(model, optimizer, penalty, schedule, score=score)
    inner, removals = plain(model, optimizer), [sparsity]

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        inner(inputs, labels)
        while removals:  # after the first step, because the score needs a gradient
            pruner.prune(sparsity=removals.pop())

    return step


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

Variant = Callable[[nn.Module, torch.optim.Optimizer], Step]

_default = functools.partial(pruned, penalty=RelevancePenalty(), score=FisherScore())

MAIN_VARIANTS: dict[str, Variant] = {
    BASE: plain,
    "default method": _default,
    "default method, 90 % removed": functools.partial(_default, sparsity=0.9),
}
"""What is measured with either form of AdamW."""

VARIANTS: dict[str, Variant] = {
    **MAIN_VARIANTS,
    OURS: pruned,
    "prunus, 90 % removed": functools.partial(pruned, sparsity=0.9),
    "prunus, decoupled": functools.partial(pruned, apply="decoupled"),
    AUTHORS: two_backward_passes,
    "LOBSTER-style loop": lobster,
}


class Decoder(nn.Module):
    """The GPT-2 of the recipe shakespeare-lm, without dropout, so that variants are comparable."""

    def __init__(self) -> None:
        super().__init__()
        config = find_recipe("shakespeare-lm").config
        assert isinstance(config, LanguageModelConfig)
        # Without dropout in the pruning epochs, too, because that may not exceed the other one.
        still = replace(config, dropout=0.0, pruning_dropout=0.0)
        self.network = gpt2(still, bos_token_id=0, eos_token_id=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position, of shape (n, vocabulary, length)."""
        logits: torch.Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits.transpose(1, 2)


@dataclass(frozen=True)
class Case:
    """Model, batch and number of timed steps.

    Attributes:
        name: Name of the case.
        build: Builds the model.
        parameters: Expected number of parameters.
        shape: Shape of a batch.
        classes: Number of classes of the labels.
        rounds: Number of timed rounds, each of ``CALLS`` steps of every variant.
        warm: Untimed steps before them, which load the state into the caches, where it would stay
            without the other variants.
        goal: Upper bound of the ratio of the default method before anything is removed.
        tokens: Whether inputs are tokens, each with a label, and not numbers.
    """

    name: str
    build: Callable[[], nn.Module]
    parameters: int
    shape: tuple[int, ...]
    classes: int
    rounds: int
    warm: int
    goal: float
    tokens: bool = False

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Draw inputs and labels."""
        if self.tokens:
            inputs = torch.randint(self.classes, (BATCHES, *self.shape))
            labels = torch.randint(self.classes, (BATCHES, *self.shape))
        else:
            inputs = torch.randn(BATCHES, *self.shape)
            labels = torch.randint(self.classes, (BATCHES, self.shape[0]))
        return list(zip(inputs, labels, strict=True))

    def measure(self, *, rounds: int, seed: int, fused: bool) -> dict[str, Any]:
        """Time all variants, with the fused AdamW the main ones; return a figure for each."""
        torch.manual_seed(seed)
        model = self.build()
        count = sum(p.numel() for p in model.parameters())
        assert count == self.parameters, f"{self.name} has {count:,} parameters"
        batches = self.batches()
        runs, models = {}, {}
        for name, variant in (MAIN_VARIANTS if fused else VARIANTS).items():
            models[name] = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(models[name].parameters(), lr=LEARNING_RATE, fused=fused)
            step, feed = variant(models[name], optimizer), itertools.cycle(batches)
            runs[name] = functools.partial(_next, step, feed)
            runs[name]()
        if not fused:
            _check_same(models[OURS], models[AUTHORS])
        seconds = interleaved(runs, rounds=rounds, calls=CALLS, warm=self.warm, seed=seed)
        base = np.mean(seconds[BASE], axis=1)
        return {
            name: {"ratio": float(np.median(np.mean(own, axis=1) / base)), **spread(own)}
            for name, own in seconds.items()
        }


CASES = [
    Case("LeNet-300-100", lenet300, 266_610, (100, 1, 28, 28), 10, 150, 2, goal=1.15),
    Case(
        "MLP 5 x 2048",
        functools.partial(perceptron, *[2048] * 6),
        20_981_760,
        (128, 2048),
        2048,
        3,
        0,
        goal=1.25,
    ),
    Case(
        "ResNet-32",
        functools.partial(cifar_resnet, 32),
        464_154,
        (128, 3, 32, 32),
        10,
        2,
        0,
        goal=1.02,
    ),
    Case("GPT-2", Decoder, 937_728, (8, 128), 1000, 4, 1, goal=1.05, tokens=True),
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


def _table(case: Case, figures: dict[str, Any], *, fused: bool) -> str:
    optimizer = "AdamW(fused=True)" if fused else "AdamW"
    lines = [f"\n{case.name}, batch {case.shape[0]}, {optimizer} (goal: {case.goal:.2f})"]
    lines.append(f"{'variant':32}{'ratio':>8}{'ms':>10}   quartiles")
    for name, f in figures.items():
        lines.append(
            f"{name:32}{f['ratio']:8.3f}{f['median_ms']:10.3f}"
            f"   {f['quartile_1_ms']:.3f} to {f['quartile_3_ms']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all cases, print a table of each, write the result file."""
    parser = options("Time of a training step with prunus.", "step_overhead")
    parser.add_argument("--system-allocator", action="store_true", help="keep its defaults")
    arguments = parser.parse_args()
    kept = not arguments.system_allocator and keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    results = []
    for case, fused in itertools.product(CASES, (False, True)):
        rounds = 1 if arguments.quick else case.rounds
        figures = case.measure(rounds=rounds, seed=arguments.seed, fused=fused)
        print(_table(case, figures, fused=fused), flush=True)
        results.append(
            {
                "case": case.name,
                "fused": fused,
                "parameters": case.parameters,
                "batch": case.shape[0],
                "rounds": rounds,
                "steps_per_round": CALLS,
                "goal": case.goal,
                "variants": figures,
            }
        )
    save(arguments.out, arguments.seed, {"freed_memory_kept": kept, "cases": results})


if __name__ == "__main__":
    main()
