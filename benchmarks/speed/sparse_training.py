"""Time of a training step with SparseTraining, as a multiple of the dense step.

A perceptron of five layers of 2048 neurons trains on batches of 128, and the GPT-2 of the recipe
``shakespeare-lm`` on batches of 8 x 128 tokens, both with ``AdamW(fused=True)``. The dense step is
zero_grad, forward, backward and optimizer step without a pruner. It takes turns, in one process,
with the same step of a network of which a pruner has removed weights at random, once without and
once with :class:`prunus.SparseTraining`, which decides by its own timings. The ratio is the median
over the rounds of (median step of the variant in the round) / (that of the dense step). With one
thread, times are those of the processor, in which other processes take no part; with more threads
the machine must be idle. The pruner has no penalty; ``speed.step_overhead`` measures what it adds.

The parts of a step are timed too: forward and backward pass, and optimizer step, which includes the
pruner's hooks and reads and writes all weights, removed ones too. ``computations_ms`` has each
computation of a sparse layer, alone, for every shape of matrix that the pruner has pruned.

The layers of GPT-2 that are not ``nn.Linear`` stay dense: its projections are ``Conv1D`` of
transformers. ``gpt2, linear layers`` is the same network with linear layers in their place.

As in ``speed.step_overhead``, freed memory is kept by the C library, so that all gradients of the
dense step are fast, too.

Run from the repository's root: ``python -m benchmarks.speed.sparse_training``
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measuring import options, save
from benchmarks.speed.step_overhead import keep_freed_memory
from prunus import Pruner, RandomScore, SparseTraining
from prunus._utils.timing import clock_for, interleaved, spread
from prunus.recipes.registry import find_recipe
from prunus.recipes.tasks.architectures import perceptron
from prunus.recipes.tasks.language import choose_attention
from prunus.recipes.tasks.language_model import gpt2
from prunus.runtime.linear_training import KeptWeight

WIDTH, LAYERS, BATCH = 2048, 5, 128
BATCHES, CALLS, ROUNDS = 4, 5, 5

DENSE, PRUNED, SPARSE = "dense", "pruned, dense layers", "pruned, sparse layers"


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        build: Returns the network with random weights.
        batch: Returns a random batch.
        loss: Returns the loss of the network on a batch.
        rows: The number of rows that a linear layer receives for a batch.
        goals: The ratios to reach, by the fraction of removed weights; None for no goal.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], torch.Tensor]
    rows: int
    goals: Mapping[float, float | None]


def _classification_loss(model: Any, batch: Any) -> torch.Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


LANGUAGE: Any = find_recipe("shakespeare-lm").config


def _gpt2() -> nn.Module:
    model = gpt2(LANGUAGE, 0, 0)
    choose_attention(model, LANGUAGE)
    return model


def _gpt2_of_linear_layers() -> nn.Module:
    """Return the GPT-2 with a linear layer in place of every Conv1D, which stores its transpose."""
    model = _gpt2()
    for name, module in [*model.named_modules()]:
        if type(module).__name__ == "Conv1D":
            weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
            linear = nn.Linear(*weight.shape)
            linear.load_state_dict({"weight": weight.detach().T, "bias": bias.detach()})
            model.set_submodule(name, linear)
    return model


def _language_loss(model: Any, tokens: Any) -> torch.Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _language_model(build: Callable[[], nn.Module]) -> Network:
    return Network(
        build,
        lambda: torch.randint(LANGUAGE.vocabulary, (LANGUAGE.batch_size, LANGUAGE.length + 1)),
        _language_loss,
        LANGUAGE.batch_size * LANGUAGE.length,
        {0.95: None},
    )


NETWORKS: Mapping[str, Network] = {
    f"perceptron {LAYERS} x {WIDTH}": Network(
        lambda: perceptron(*[WIDTH] * (LAYERS + 1)),
        lambda: (torch.randn(BATCH, 1, WIDTH), torch.randint(WIDTH, (BATCH,))),
        _classification_loss,
        BATCH,
        {0.9: 0.6, 0.95: 0.4, 0.99: 0.25},
    ),
    "gpt2": _language_model(_gpt2),
    "gpt2, linear layers": _language_model(_gpt2_of_linear_layers),
}


class Trainer:
    """A network and its optimizer, pruned to a sparsity at random places.

    Args:
        network: The network.
        sparsity: The fraction of removed weights; 0 for training without a pruner.
        sparse: Whether to train with SparseTraining.
        seed: The seed of weights and data.
    """

    def __init__(self, network: Network, sparsity: float, sparse: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.network, self.model = network, network.build()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.pruner: Pruner | None = None
        self.sparse: SparseTraining | None = None
        if sparsity:
            self.pruner = Pruner(self.model, self.optimizer, None, score=RandomScore(seed=seed))
            self.pruner.prune(sparsity=sparsity)
        if sparse:
            assert self.pruner is not None
            self.sparse = SparseTraining(self.pruner)
        self._batches = itertools.cycle([network.batch() for _ in range(BATCHES)])
        self._clock = clock_for(torch.get_num_threads())
        self.parts: list[tuple[float, float]] = []
        for _ in range(2):
            self.step()  # times the layers, and fills the optimizer's state

    def step(self) -> None:
        """Train one step."""
        batch = next(self._batches)
        self.optimizer.zero_grad()
        start = self._clock()
        self.network.loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
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


def measure(network: Network, sparsity: float, *, rounds: int, seed: int) -> dict[str, Any]:
    """Time the steps of all variants of a network at a sparsity."""
    trainers = {
        DENSE: Trainer(network, 0.0, False, seed),
        PRUNED: Trainer(network, sparsity, False, seed),
        SPARSE: Trainer(network, sparsity, True, seed),
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
    masks = {f"{len(mask)} x {mask.shape[1]}": mask for mask in pruner.masks.values()}
    computations = {
        shape: profile(mask, network.rows, rounds=rounds) for shape, mask in masks.items()
    }
    return {"variants": variants, "computations_ms": computations}


def profile(mask: torch.Tensor, rows: int, *, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each computation of a sparse layer, by turns."""
    kept, weight, bias = KeptWeight(mask), torch.randn(mask.shape) * mask, torch.randn(len(mask))
    x, gradient = torch.randn(rows, mask.shape[1]), torch.randn(rows, mask.shape[0])
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


def table(case: dict[str, Any]) -> str:
    """Return the figures of a case as text."""
    goal = "" if case["goal"] is None else f" (goal: {case['goal']:.2f})"
    removed = f"{case['sparsity']:.0%} removed"
    lines = [f"\n{case['network']}, {removed}, threads: {case['threads']}{goal}"]
    lines.append(f"{'variant':24}{'ratio':>8}{'ms':>10}{'passes':>10}{'update':>10}")
    for name, f in case["variants"].items():
        passes, update = f["parts_ms"].values()
        lines.append(
            f"{name:24}{f['ratio']:8.3f}{f['median_ms']:10.2f}{passes:10.2f}{update:10.2f}"
        )
    for shape, computations in case["computations_ms"].items():
        lines += [f"  {shape:14}{name:30}{ms:10.3f}" for name, ms in computations.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure all sparsities with one thread, up to ``--threads``; write the result file."""
    parser = options("Time of a training step with SparseTraining.", "sparse_training")
    parser.add_argument(
        "--network", action="append", choices=NETWORKS, help="may be repeated; default: all"
    )
    arguments = parser.parse_args()
    kept = keep_freed_memory()
    results = []
    for threads in range(1, arguments.threads + 1):
        torch.set_num_threads(threads)
        for name in arguments.network or NETWORKS:
            for sparsity, goal in NETWORKS[name].goals.items():
                rounds = 1 if arguments.quick else ROUNDS
                figures = measure(NETWORKS[name], sparsity, rounds=rounds, seed=arguments.seed)
                case = {"network": name, "threads": threads, "sparsity": sparsity, "goal": goal}
                results.append({**case, **figures})
                print(table(results[-1]), flush=True)
    circumstances = {"width": WIDTH, "layers": LAYERS, "batch": BATCH, "freed_memory_kept": kept}
    save(arguments.out, arguments.seed, {**circumstances, "cases": results})


if __name__ == "__main__":
    main()
