"""Training with growth by its definition: float64, plain loops, without prunus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from helpers.data import tanh_batch
from helpers.models import tanh_network

Optimizers = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizers] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
}

INPUTS, TARGETS = (part.double() for part in tanh_batch())


def network() -> torch.nn.Sequential:
    """Return a network of 12·8 + 8·3 = 120 weights."""
    return tanh_network(12, 8, 3, bias=False, dtype=torch.float64)


@dataclass
class Reference:
    """A training whose weights, masks and optimizer are plain lists.

    Attributes:
        optimizer: Builds the optimizer.
        gradients: The gradients of the last step, before any of them is zeroed.
    """

    optimizer: Optimizers
    gradients: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = network()
        self.weights = [w.detach().clone().requires_grad_() for w in self.model.parameters()]
        self.masks = [torch.ones_like(weight) for weight in self.weights]
        self.update = self.optimizer(self.weights)

    @property
    def sparse(self) -> list[torch.Tensor]:
        """The weights that the forward pass sees."""
        return [w.detach() * m for w, m in zip(self.weights, self.masks, strict=True)]

    @property
    def kept(self) -> int:
        return int(sum(mask.sum() for mask in self.masks))

    def step(self, *, dense: bool = False) -> None:
        """Take a step from the gradient of the sparse weights.

        Args:
            dense: Whether the removed weights are moved too, and keep their values.
        """
        one, two = (weight.requires_grad_() for weight in self.sparse)
        loss = (torch.tanh(INPUTS @ one.T) @ two.T - TARGETS).square().mean()
        self.gradients = list(torch.autograd.grad(loss, [one, two]))
        for weight, gradient, mask in zip(self.weights, self.gradients, self.masks, strict=True):
            weight.grad = gradient.clone() if dense else gradient * mask
        self.update.step()
        if not dense:
            self.zero_removed()

    def zero_removed(self) -> None:
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)

    def largest(self, count: int) -> list[torch.Tensor]:
        """Return masks of the weights with the largest magnitude of all."""
        magnitudes = torch.cat([weight.detach().abs().flatten() for weight in self.weights])
        chosen = torch.zeros_like(magnitudes)
        chosen[magnitudes.argsort(stable=True, descending=True)[:count]] = 1
        parts = torch.split(chosen, [weight.numel() for weight in self.weights])
        return [part.view_as(w) for part, w in zip(parts, self.weights, strict=True)]

    def remove(self, count: int) -> None:
        """Remove weights until ``count`` are kept, for good."""
        self.masks = self.largest(count)
        self.clear(self.masks)

    def clear(self, masks: list[torch.Tensor]) -> None:
        """Zero weights and optimizer state outside these masks."""
        with torch.no_grad():
            for weight, mask in zip(self.weights, masks, strict=True):
                weight.mul_(mask)
                for value in self.update.state.get(weight, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                        value.mul_(mask)

    def exchange(
        self, fraction: float, returning: Callable[[int, int], torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Exchange a fraction of each tensor's kept weights.

        Args:
            fraction: The fraction.
            returning: Returns the positions that return, given the tensor's index and their number.

        Returns:
            The positions that were dropped and that returned, by tensor.
        """
        changes, stayed = [], []
        for index, (weight, mask) in enumerate(zip(self.weights, self.masks, strict=True)):
            kept = [int(i) for i in mask.flatten().nonzero()]
            count = min(round(fraction * len(kept)), mask.numel() - len(kept))
            kept.sort(key=lambda i, w=weight: abs(float(w.detach().flatten()[i])))  # type: ignore[misc]
            dropped = torch.tensor(kept[:count], dtype=torch.int64)
            returned = returning(index, count)
            assert not mask.flatten()[returned].any()
            after = mask.flatten().clone()
            after[dropped] = 0
            stayed.append(after.view_as(mask).clone())
            after[returned] = 1
            self.masks[index] = after.view_as(mask)
            changes.append((dropped, returned))
        self.clear(stayed)
        return changes

    def largest_gradients(self, index: int, count: int) -> torch.Tensor:
        """Return the positions of the removed weights with the largest gradients."""
        removed = [int(i) for i in (self.masks[index] == 0).flatten().nonzero()]
        flat = self.gradients[index].flatten().abs()
        removed.sort(key=lambda i: -float(flat[i]))
        return torch.tensor(removed[:count], dtype=torch.int64)


def cosine(fraction: float, step: int, until: int) -> float:
    return fraction / 2 * (1 + math.cos(math.pi * step / until))
