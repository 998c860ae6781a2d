"""Faults to plant into what trains a sparse network: growth, patterns, optimizers, own recipes.

They are faults that a person might make there, in the interplay of modules, which mutation testing
of single modules does not reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.robustness.planting import PlantedFault

__all__ = ["TRAINING_FAULTS", "TrainingFault"]

_GROWTH = "tests/growth"
_PATTERNS = "tests/patterns"
_OPTIMIZERS = "tests/test_several_optimizers.py"
_SPARSE_TRAINING = "tests/test_sparse_training.py"
_RECIPES = "tests/recipes/custom"
_PRUNER = "tests/test_pruner.py"


@dataclass(frozen=True)
class TrainingFault(PlantedFault):
    """A fault of the training.

    Attributes:
        tests: The tests of which an unmarked, quick one has to fail.
    """

    tests: str


TRAINING_FAULTS: Sequence[TrainingFault] = (
    TrainingFault(
        "the optimizer moves the sparse weights of a soft growth",
        "growth.soft",
        "        del tensors  # the others are hidden again as they were\n        self._show()",
        "        del tensors  # the others are hidden again as they were",
        _GROWTH,
    ),
    TrainingFault(
        "removed weights of a soft growth stay in the network",
        "growth.soft",
        "        clear_all_(weights, list(active.values()))",
        "        del weights",
        _GROWTH,
    ),
    TrainingFault(
        "removed weights of a soft growth start from zero in each step",
        "growth.soft",
        "torch.where(mask, weight, latent)",
        "torch.where(mask, weight, 0 * latent)",
        _GROWTH,
    ),
    TrainingFault(
        "fraction of an exchange rises along the cosine",
        "growth.exchange",
        "self.fraction / 2 * (1 + math.cos(",
        "self.fraction / 2 * (1 - math.cos(",
        _GROWTH,
    ),
    TrainingFault(
        "fraction of an exchange taken of the removed weights",
        "growth.exchange",
        "round(fraction * kept), removed",
        "round(fraction * removed), removed",
        _GROWTH,
    ),
    TrainingFault(
        "weights that an exchange drops are kept",
        "_engine.mask_editor",
        "mask.copy_(stayed | returned[name])",
        "mask.copy_(mask | returned[name])",
        _GROWTH,
    ),
    TrainingFault(
        "weights that return keep their optimizer state",
        "_engine.mask_editor",
        "self._clear(name, stayed)",
        "self._clear(name, stayed | returned[name])",
        _GROWTH,
    ),
    TrainingFault(
        "dense phase one step late",
        "growth.alternating",
        "step % (self.sparse + self.dense) >= self.sparse",
        "step % (self.sparse + self.dense) > self.sparse",
        _GROWTH,
    ),
    TrainingFault(
        "last dense phase does not end",
        "growth.alternating",
        "            self._remove_to_target()\n        super().end()",
        "            pass\n        super().end()",
        _GROWTH,
    ),
    TrainingFault(
        "weights of the best state keep the optimizer state of removed ones",
        "_engine.mask_editor",
        "self.masks.selection[name].parameter, ~returned)",
        "self.masks.selection[name].parameter, returned)",
        _PRUNER,
    ),
    TrainingFault(
        "groups of N:M lose one weight too few",
        "patterns.groupings",
        "in_order.cumsum(-1) <= removable",
        "in_order.cumsum(-1) < removable",
        _PATTERNS,
    ),
    TrainingFault(
        "last group of N:M keeps too few weights",
        "patterns.groupings",
        "[-(-self.n * rest // self.m)]",
        "[self.n * rest // self.m]",
        _PATTERNS,
    ),
    TrainingFault(
        "score of a block averages removed weights too",
        "patterns.groupings",
        "sums.div_(sizes.clamp(min=1))",
        "sums.div_(self.most_removed)",
        _PATTERNS,
    ),
    TrainingFault(
        "groups numbered within their slab",
        "patterns.layout",
        "first = (rows.start + row) // self.grouping.height",
        "first = rows.start // self.grouping.height",
        _PATTERNS,
    ),
    TrainingFault(
        "groups of a chosen block include removed weights",
        "patterns.layout",
        "reshape(kept.shape) & kept",
        "reshape(kept.shape)",
        _PATTERNS,
    ),
    TrainingFault(
        "groups numbered down instead of along",
        "patterns.layout",
        "return (down[:, None] * beside + right).reshape(-1)",
        "return (down[:, None] + beside * right).reshape(-1)",
        _PATTERNS,
    ),
    TrainingFault(
        "a step counts once any optimizer has taken one",
        "_engine.step_hooks",
        "if all(self._waiting):",
        "if any(self._waiting):",
        _OPTIMIZERS,
    ),
    TrainingFault(
        "one of several optimizers revives removed weights",
        "_engine.optimizer_hooks",
        "active = {name: mask for name, mask in active.items() if name in self._parameters}",
        "active = {}",
        _OPTIMIZERS,
    ),
    TrainingFault(
        "the optimizers that wait are not restored",
        "_engine.step_hooks",
        "self._waiting = [int(value) for value in waiting]",
        "self._waiting = [0 for value in waiting]",
        _OPTIMIZERS,
    ),
    TrainingFault(
        "state of a removed weight cleared in the first optimizer",
        "_engine.optimizers",
        "self._by_name[name] = self._optimizers[index]",
        "self._by_name[name] = self._optimizers[0]",
        _OPTIMIZERS,
    ),
    TrainingFault(
        "sparse training ignores weights removed later",
        "runtime.trained_layer",
        "if mask is not self._mask or mask._version != self._version:",
        "if mask is not self._mask:",
        _SPARSE_TRAINING,
    ),
    TrainingFault(
        "sparse training ignores loaded weights",
        "runtime.trained_layer",
        "if not kept.read(layer.weight, layer.bias):",
        "if kept.read(layer.weight, layer.bias) is None:",
        _SPARSE_TRAINING,
    ),
    TrainingFault(
        "sparse training hides gradients of removed weights that are read",
        "runtime.trained_layer",
        "whole_gradient = torch.is_grad_enabled() and self.needs_whole_gradient()",
        "whole_gradient = False",
        _SPARSE_TRAINING,
    ),
    TrainingFault(
        "sparse training under autocast",
        "runtime.trained_layer",
        '        and not torch.is_autocast_enabled("cpu")\n',
        "",
        _SPARSE_TRAINING,
    ),
    TrainingFault(
        "a growth that reads gradients of removed weights is overlooked",
        "pruner",
        "isinstance(self.growth, AlternatingGrowth | RandomGrowth):\n            return True",
        "isinstance(self.growth, AlternatingGrowth | RandomGrowth):\n            return False",
        _SPARSE_TRAINING,
    ),
    TrainingFault(
        "order of a recipe's batches differs in each pass",
        "recipes.custom.batches",
        "            self.seed_generators(seed)\n            batches = iter",
        "            batches = iter",
        _RECIPES,
    ),
    TrainingFault(
        "loss of a recipe averaged over batches of unequal size",
        "recipes.custom.task",
        "self.loss(model, batch).item() * size, items + size",
        "self.loss(model, batch).item(), items + 1",
        _RECIPES,
    ),
    TrainingFault(
        "random numbers of a recipe's metric not fixed",
        "recipes.custom.task",
        "with torch.no_grad(), seeded(0):",
        "with torch.no_grad():",
        _RECIPES,
    ),
    TrainingFault(
        "test figures of a recipe are those of the validation batches",
        "recipes.custom.task",
        "self._evaluate(model, self._loaders.test or self._loaders.validation)",
        "self._evaluate(model, self._loaders.validation)",
        _RECIPES,
    ),
    TrainingFault(
        "a recipe's network validated in training mode",
        "recipes.custom.task",
        "        model.eval()\n        try:",
        "        try:",
        _RECIPES,
    ),
    TrainingFault(
        "a recipe may have fewer batches in an epoch",
        "recipes.custom.task",
        "        if count != self.steps_per_epoch:\n",
        "        if count > self.steps_per_epoch:\n",
        _RECIPES,
    ),
)
"""The faults."""
