"""Time of a training step with prunus, as a multiple of the same step with AdamW alone.

Every variant owns a copy of the model and its optimizer and trains on the same batches; a step is
zero_grad, forward, backward, optimizer step and the additions of the variant. All variants of a
case are interleaved in one process. The ratio is the median over the rounds of (mean step of the
variant in the round) / (mean step of AdamW in the same round); a drift of the machine cancels. It
is the mean within a round, because the Fisher score reads the gradient of every fourth step only
and the default penalty acts in every fifth, so that a median would not include their time; the
steps of a round are a multiple of both.

Each case is measured with AdamW as it is by default, and with ``AdamW(fused=True)``, whose step is
shorter, so that the same additions are a larger part of it. The variants are AdamW alone and the
default method, before and after 90 % of the weights are removed; with ``--all`` also the paper's
penalty in several forms, beside the default AdamW. The whole takes 12 minutes, with ``--all``
20: each case has as many rounds as fit into its time. The result file is written after each case,
and ``--resume`` measures those that it lacks.

Whether the C library returns freed memory to the system, and fetches it again page by page in the
next step, depends on other objects on the heap and can double the time of AdamW itself. So by
default freed memory is kept, where the library is glibc. That makes every step as fast as possible
and the ratios reproducible; ``--system-allocator`` leaves the library unchanged.

With one thread a step is timed in processor time, so that other processes disturb it less.

With ``--all`` the benchmark also checks that the compared penalties are the same: after the first
step, prunus's closed form and the authors' two backward passes must agree.

Run from the repository's root: ``python -m benchmarks.speed.step_overhead``
"""

from __future__ import annotations

import copy
import ctypes
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
from prunus._utils.system_info import system_info
from prunus._utils.timing import clock_for, fitting_rounds, interleaved, spread
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
DENSE, REMOVED = "default method", "default method, 90 % removed"

Variant = Callable[[nn.Module, torch.optim.Optimizer], Step]

_default = functools.partial(pruned, penalty=RelevancePenalty(), score=FisherScore())

MAIN_VARIANTS: dict[str, Variant] = {
    BASE: plain,
    DENSE: _default,
    REMOVED: functools.partial(_default, sparsity=0.9),
}
"""What is measured by default."""

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
    """Model, batch and time.

    Attributes:
        name: Name of the case.
        build: Builds the model.
        parameters: Expected number of parameters.
        shape: Shape of a batch.
        classes: Number of classes of the labels.
        seconds: Approximate time of the rounds of three variants with one form of AdamW. In a round
            every variant takes ``CALLS`` timed steps.
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
    seconds: float
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

    def measure(self, *, quick: bool, every: bool, seed: int, fused: bool) -> dict[str, Any]:
        """Time variants, and return a figure for each.

        Args:
            quick: Whether to time one round only.
            every: Whether to time all variants, not the main ones only.
            seed: The seed of model, batches and orders.
            fused: Whether the optimizer is the fused AdamW.
        """
        torch.manual_seed(seed)
        model = self.build()
        count = sum(p.numel() for p in model.parameters())
        assert count == self.parameters, f"{self.name} has {count:,} parameters"
        batches = self.batches()
        runs, models = {}, {}
        for name, variant in (VARIANTS if every else MAIN_VARIANTS).items():
            models[name] = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(models[name].parameters(), lr=LEARNING_RATE, fused=fused)
            step, feed = variant(models[name], optimizer), itertools.cycle(batches)
            runs[name] = functools.partial(_next, step, feed)
            runs[name]()
        if every:
            _check_same(models[OURS], models[AUTHORS])
        seconds = self.seconds * len(runs) / len(MAIN_VARIANTS) / (CALLS + self.warm)
        rounds = 1 if quick else fitting_rounds(runs, seconds, least=2, most=1000)
        clock = clock_for(torch.get_num_threads())
        timed = interleaved(
            runs, rounds=rounds, calls=CALLS, warm=self.warm, seed=seed, clock=clock
        )
        means = {name: np.mean(own, axis=1) for name, own in timed.items()}
        figures = {
            name: {**_quartiles(means[name] / means[BASE], "ratio"), **spread(own)}
            for name, own in timed.items()
        }
        figures[REMOVED].update(_quartiles(means[REMOVED] / means[DENSE], "ratio_to_dense"))
        return {"rounds": rounds, "variants": figures}


CASES = [
    Case("LeNet-300-100", lenet300, 266_610, (100, 1, 28, 28), 10, 30, 2, goal=1.15),
    Case(
        "MLP 5 x 2048",
        functools.partial(perceptron, *[2048] * 6),
        20_981_760,
        (128, 2048),
        2048,
        90,
        0,
        goal=1.25,
    ),
    Case(
        "ResNet-32",
        functools.partial(cifar_resnet, 32),
        464_154,
        (128, 3, 32, 32),
        10,
        120,
        0,
        goal=1.02,
    ),
    Case("GPT-2", Decoder, 937_728, (8, 128), 1000, 70, 1, goal=1.05, tokens=True),
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


def _quartiles(ratios: npt.NDArray[np.float64], name: str) -> dict[str, float]:
    """Return the median of a ratio over the rounds, by its name, and the quartiles."""
    quartile, median, third = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return {name: median, f"{name}_quartile_1": quartile, f"{name}_quartile_3": third}


def _table(case: Case, figures: dict[str, Any], *, fused: bool) -> str:
    optimizer = "AdamW(fused=True)" if fused else "AdamW"
    lines = [f"\n{case.name}, batch {case.shape[0]}, {optimizer} (goal: {case.goal:.2f})"]
    lines.append(f"{'variant':32}{'ratio':>8}   {'quartiles':16}{'ms':>10}   quartiles")
    for name, f in figures.items():
        lines.append(
            f"{name:32}{f['ratio']:8.3f}   {f['ratio_quartile_1']:.3f} to "
            f"{f['ratio_quartile_3']:.3f}{f['median_ms']:12.3f}"
            f"   {f['quartile_1_ms']:.3f} to {f['quartile_3_ms']:.3f}"
        )
    removed = figures[REMOVED]
    lines.append(
        f"{REMOVED}, in steps of the {DENSE}: {removed['ratio_to_dense']:.3f}, quartiles "
        f"{removed['ratio_to_dense_quartile_1']:.3f} to {removed['ratio_to_dense_quartile_3']:.3f}"
    )
    return "\n".join(lines)


def _measured(out: Path, expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cases of a result file, if it has the expected settings and machine.

    Raises:
        SystemExit: It has others.
    """
    if not out.exists():
        return []
    record = json.loads(out.read_text())
    differing = [key for key, value in expected.items() if record.get(key) != value]
    if differing:
        raise SystemExit(
            f"--resume needs a result file with the same settings, but {out.name} has another "
            f"{', '.join(differing)}: leave out --resume, or pass another --out"
        )
    cases: list[dict[str, Any]] = record["cases"]
    return cases


def main() -> None:
    """Measure all cases, print a table of each, write the result file."""
    parser = options("Time of a training step with prunus.", "step_overhead")
    parser.add_argument("--system-allocator", action="store_true", help="keep its defaults")
    parser.add_argument("--all", action="store_true", help="time the paper's penalty, too")
    parser.add_argument("--resume", action="store_true", help="keep the cases that --out has")
    arguments = parser.parse_args()
    kept = not arguments.system_allocator and keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    settings = {"freed_memory_kept": kept, "all": arguments.all, "quick": arguments.quick}
    expected = {"seed": arguments.seed, "environment": system_info(), **settings}
    results = _measured(arguments.out, expected) if arguments.resume else []
    known = {(result["case"], result["fused"]) for result in results}
    for case, fused in itertools.product(CASES, (False, True)):
        if (case.name, fused) in known:
            continue
        measured = case.measure(
            quick=arguments.quick,
            every=arguments.all and not fused,
            seed=arguments.seed,
            fused=fused,
        )
        print(_table(case, measured["variants"], fused=fused), flush=True)
        results.append(
            {
                "case": case.name,
                "fused": fused,
                "parameters": case.parameters,
                "batch": case.shape[0],
                "steps_per_round": CALLS,
                "goal": case.goal,
                **measured,
            }
        )
        save(arguments.out, arguments.seed, {**settings, "cases": results})


if __name__ == "__main__":
    main()
