"""Time of a training step with SparseTraining, as a multiple of the dense step.

A perceptron of five layers of 2048 neurons trains on batches of 128 with ``AdamW(fused=True)``. The
dense step is zero_grad, forward, backward and optimizer step without a pruner. It takes turns, in
one process, with the same step of a network of which a pruner has removed weights at random, once
without and once with :class:`prunus.SparseTraining`, which decides by its own timings. The ratio is
the median over the rounds of (median step of the variant in the round) / (that of the dense step).
With one thread, times are those of the processor, in which other processes take no part; with more
threads the machine must be idle.
The pruner has no penalty; ``speed.step_overhead`` measures what it adds.

The parts of a step are timed too: forward and backward pass, and optimizer step, which includes the
pruner's hooks and reads and writes all weights, removed ones too. ``computations_ms`` has each
computation of a sparse layer, alone.

As in ``speed.step_overhead``, freed memory is kept by the C library, so that all gradients of the
dense step are fast, too.

Run from the repository's root: ``python -m benchmarks.speed.sparse_training``
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measuring import options, save
from benchmarks.speed.step_overhead import keep_freed_memory
from prunus import Masks, Pruner, RandomScore, SparseTraining
from prunus._utils.timing import clock_for, interleaved, spread
from prunus.recipes.tasks.architectures import perceptron
from prunus.runtime.linear_training import KeptWeight

WIDTH, LAYERS, BATCH = 2048, 5, 128
GOALS = {0.9: 0.6, 0.95: 0.4, 0.99: 0.25}
BATCHES, CALLS, ROUNDS = 4, 5, 5

DENSE, PRUNED, SPARSE = "dense", "pruned, dense layers", "pruned, sparse layers"


class Trainer:
    """A network and its optimizer, pruned to a sparsity at random places.

    Args:
        sparsity: The fraction of removed weights; 0 for training without a pruner.
        sparse: Whether to train with SparseTraining.
        seed: The seed of weights and data.
    """

    def __init__(self, sparsity: float, sparse: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = perceptron(*[WIDTH] * (LAYERS + 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.pruner: Pruner | None = None
        self.sparse: SparseTraining | None = None
        if sparsity:
            self.pruner = Pruner(self.model, self.optimizer, None, score=RandomScore(seed=seed))
            self.pruner.prune(sparsity=sparsity)
        if sparse:
            assert self.pruner is not None
            self.sparse = SparseTraining(self.pruner)
        inputs = torch.randn(BATCHES, BATCH, 1, WIDTH)
        labels = torch.randint(WIDTH, (BATCHES, BATCH))
        self._batches = itertools.cycle(list(zip(inputs, labels, strict=True)))
        self._clock = clock_for(torch.get_num_threads())
        self.parts: list[tuple[float, float]] = []
        for _ in range(2):
            self.step()  # times the layers, and fills the optimizer's state

    def step(self) -> None:
        """Train one step."""
        inputs, labels = next(self._batches)
        self.optimizer.zero_grad()
        start = self._clock()
        F.cross_entropy(self.model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        middle = self._clock()
        self.optimizer.step()
        self.parts.append((middle - start, self._clock() - middle))

    def figures(self) -> dict[str, Any]:
        """Return the median milliseconds of the parts of all steps, and the sparse layers."""
        passes, update = 1e3 * np.median(np.array(self.parts), axis=0)
        figures: dict[str, Any] = {
            "parts_ms": {"forward and backward": passes, "optimizer step": update}
        }
        if self.sparse is not None:
            figures["sparse_layers"] = list(self.sparse.sparse_layers)
        return figures


def measure(sparsity: float, *, rounds: int, seed: int) -> dict[str, Any]:
    """Time the steps of all variants at a sparsity."""
    trainers = {
        DENSE: Trainer(0.0, False, seed),
        PRUNED: Trainer(sparsity, False, seed),
        SPARSE: Trainer(sparsity, True, seed),
    }
    seconds = interleaved(
        {name: trainer.step for name, trainer in trainers.items()},
        rounds=rounds,
        calls=CALLS,
        warm=1,
        seed=seed,
        clock=clock_for(torch.get_num_threads()),
    )
    medians = {name: np.median(own, axis=1) for name, own in seconds.items()}
    variants = {
        name: {
            "ratio": float(np.median(medians[name] / medians[DENSE])),
            **spread(seconds[name]),
            **trainers[name].figures(),
        }
        for name in trainers
    }
    pruner = trainers[SPARSE].pruner
    assert pruner is not None
    return {"variants": variants, "computations_ms": profile(pruner.masks, rounds=rounds)}


def profile(masks: Masks, *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each computation of a sparse layer, by turns."""
    mask = next(iter(masks.values()))
    kept, weight, bias = KeptWeight(mask), torch.randn(mask.shape) * mask, torch.randn(len(mask))
    x, gradient = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
    kept.read(weight, bias)
    computations: dict[str, Callable[[], object]] = {
        "read the weights": functools.partial(kept.read, weight, bias),
        "outputs": functools.partial(kept.outputs, x),
        "gradient of the inputs": functools.partial(kept.input_gradient, gradient),
        "gradient of the weight": functools.partial(kept.weight_gradient, x, gradient),
        "outputs, dense": functools.partial(F.linear, x, weight, bias),
    }
    seconds = interleaved(
        computations,
        rounds=rounds,
        calls=CALLS,
        warm=1,
        clock=clock_for(torch.get_num_threads()),
    )
    return {name: spread(own)["median_ms"] for name, own in seconds.items()}


def table(threads: int, sparsity: float, figures: dict[str, Any]) -> str:
    """Return the figures of a sparsity as text."""
    lines = [f"\n{sparsity:.0%} removed, threads: {threads} (goal: {GOALS[sparsity]:.2f})"]
    lines.append(f"{'variant':24}{'ratio':>8}{'ms':>10}{'passes':>10}{'update':>10}")
    for name, f in figures["variants"].items():
        passes, update = f["parts_ms"].values()
        lines.append(
            f"{name:24}{f['ratio']:8.3f}{f['median_ms']:10.2f}{passes:10.2f}{update:10.2f}"
        )
    lines += [f"  {name:30}{ms:10.3f}" for name, ms in figures["computations_ms"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure all sparsities with one thread, up to ``--threads``; write the result file."""
    parser = options("Time of a training step with SparseTraining.", "sparse_training")
    arguments = parser.parse_args()
    kept = keep_freed_memory()
    results = []
    for threads in range(1, arguments.threads + 1):
        torch.set_num_threads(threads)
        for sparsity, goal in GOALS.items():
            rounds = 1 if arguments.quick else ROUNDS
            figures = measure(sparsity, rounds=rounds, seed=arguments.seed)
            print(table(threads, sparsity, figures), flush=True)
            results.append({"threads": threads, "sparsity": sparsity, "goal": goal, **figures})
    circumstances = {"width": WIDTH, "layers": LAYERS, "batch": BATCH, "freed_memory_kept": kept}
    save(arguments.out, arguments.seed, {**circumstances, "cases": results})


if __name__ == "__main__":
    main()
