"""Reference of the contract: the same training by the formulas, in float64 and without prunus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from benchmarks.robustness.contract.cells import KEPT_IN, ROWS, SOFT_UNTIL, STEPS, STRENGTH
from benchmarks.robustness.contract.optimizers import OPTIMIZERS
from prunus.penalties.relevance import Apply


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and targets of every step."""
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(ROWS, 12, generator=draw, dtype=torch.float64)
    return inputs, torch.randn(ROWS, 4, generator=draw, dtype=torch.float64)


def start() -> nn.Sequential:
    """Return the network that every cell and the reference start from."""
    torch.manual_seed(0)
    first, last = nn.Linear(12, 10, bias=False), nn.Linear(10, 4, bias=False)
    model = nn.Sequential(first, nn.Tanh(), last).double()
    for parameter in model.parameters():  # exact in bfloat16, so that all precisions start alike
        parameter.data.copy_(parameter.data.bfloat16().double())
    return model


@dataclass(frozen=True)
class Reference:
    """Result of the training in float64.

    Attributes:
        weights: All weights at the end, concatenated.
        across: The largest distance by which a removed weight's score exceeded the threshold of its
            removal, or a kept one's fell below it. Of magnitudes it is relative to the distance
            travelled in training, of other scores to the norm of all scores.
    """

    weights: torch.Tensor
    across: float


class _Training:
    """Training by the formulas, one process, one batch."""

    def __init__(self, penalty: str, apply: Apply, score: str, growth: str, optimizer: str) -> None:
        self.penalty, self.apply, self.score = penalty, apply, score
        self.dense = growth == "soft"
        """Whether the weights are the dense ones, which the optimizer moves."""
        self.model = start()
        self.inputs, self.targets = batch()
        self.weights = list(self.model.parameters())
        self.masks = [torch.ones_like(weight) for weight in self.weights]
        self.optimizer = OPTIMIZERS[optimizer](self.weights)
        self.searches = optimizer.startswith("LBFGS")
        self.coefficients: list[torch.Tensor] = []
        self.observed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self) -> None:
        """Take one optimizer step, with the penalty and the masks applied."""
        if self.searches:
            self.optimizer.step(self._closure)  # type: ignore[arg-type]
        else:
            self._closure()
            self.optimizer.step()
        with torch.no_grad():
            for weight, c in zip(self.weights, self.coefficients, strict=True):
                if self.penalty != "none" and self.apply == "decoupled":
                    shrink = STRENGTH * c * (1 if self.penalty == "l1" else 2 * weight.abs())
                    weight.sub_(weight.sign() * torch.minimum(shrink, weight.abs()))
            if not self.dense:
                self._mask()

    @torch.no_grad()
    def _mask(self) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

    @torch.no_grad()
    def clear(self, masks: list[torch.Tensor]) -> None:
        """Zero weights and optimizer state outside these masks."""
        for weight, mask in zip(self.weights, masks, strict=True):
            weight.mul_(mask)
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    value *= mask
        if self.searches:  # its memory is of all weights together
            self.optimizer.state.clear()

    def parts(self, kept: torch.Tensor) -> list[torch.Tensor]:
        """Return the masks of all weights as one mask for each tensor."""
        parts = torch.split(kept.double(), [weight.numel() for weight in self.weights])
        return [part.view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]

    @torch.no_grad()
    def exchange(self, kept: torch.Tensor, *, by_gradient: bool) -> tuple[float, float]:
        """Keep these weights alone; return how far the choice is across the thresholds.

        Returns:
            By how much a removed weight is larger than a kept one of its tensor, and by how much
            the gradient of a returned weight is smaller than that of one that did not return,
            relative to the norm of the tensor's gradient.
        """
        stayed, across, behind = [], 0.0, 0.0
        gradients = self.parts(self.observed[-1][1])
        for i, after in enumerate(self.parts(kept)):
            before, size, slope = self.masks[i], self.weights[i].abs(), gradients[i].abs()
            dropped, returned = before > after, after > before
            left = (before > 0) & (after > 0)
            assert dropped.sum() == returned.sum()
            if dropped.any():
                across = max(across, float(size[dropped].max() - size[left].min()))
            still = (before == 0) & (after == 0)
            if by_gradient and returned.any() and still.any():
                gap = slope[still].max() - slope[returned].min()
                behind = max(behind, float(gap / gradients[i].norm()))
            stayed.append(left.double())
            self.masks[i] = after.clone()
        self.clear(stayed)
        return across, behind

    @torch.no_grad()
    def remove(self, kept: torch.Tensor, counts: tuple[int, ...]) -> float:
        """Keep these weights alone; return how far the choice is across the threshold.

        The threshold is the score of the weight of the rank in ``counts``: of all weights, or of
        those of each tensor if there are several.
        """
        present = torch.cat([mask.flatten() for mask in self.masks]).bool()
        if self.dense:
            present.fill_(True)
        scores = self._scores()
        unit = 1.0 if self.score == "magnitude" else float(scores[present].norm())
        scores[~present] = -torch.inf
        sizes = [weight.numel() for weight in self.weights]
        compared = sizes if len(counts) > 1 else [sum(sizes)]
        threshold = torch.cat(
            [
                part.sort(descending=True).values[count - 1].expand(len(part))
                for part, count in zip(torch.split(scores, compared), counts, strict=True)
            ]
        )
        over = torch.where(kept, threshold - scores, scores - threshold) / unit
        self.masks = self.parts(kept)
        if not self.dense:
            self.clear(self.masks)
        return float(over.max())

    def _scores(self) -> torch.Tensor:
        """Return the scores of all weights, from everything observed so far."""
        now = _flat(self.weights)
        gradients = [gradient for _, gradient in self.observed]
        products = [weight * gradient for weight, gradient in self.observed]
        if self.score == "fisher":
            mean = gradients[0].square()
            for count, gradient in enumerate(gradients[1:], start=2):
                share = max(0.5, 1 / count)
                mean = (1 - share) * mean + share * gradient.square()
            return now.square() * mean
        if self.score == "sensitivity":
            average, uncertainty = torch.zeros_like(now), torch.zeros_like(now)
            for product in products:
                average = 0.85 * average + 0.15 * product.abs()
                uncertainty = 0.95 * uncertainty + 0.05 * (product.abs() - average).abs()
            return average * uncertainty
        if self.score == "taylor":
            average = products[0].abs()
            for product in products[1:]:
                average = 0.9 * average + 0.1 * product.abs()
            return average
        return -sum(products, torch.zeros_like(now)) if self.score == "movement" else now.abs()

    def _closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        dense = [weight.detach().clone() for weight in self.weights]
        self._mask()
        loss: torch.Tensor = (self.model(self.inputs) - self.targets).square().mean()
        gradients = torch.autograd.grad(loss, self.weights)
        for weight, values in zip(self.weights, dense, strict=True):
            weight.data.copy_(values)
        self.coefficients = [self._coefficient(gradient) for gradient in gradients]
        self.observed.append((_flat(self.weights), _flat(gradients)))
        term = torch.zeros((), dtype=torch.float64)
        rows = zip(self.weights, gradients, self.coefficients, self.masks, strict=True)
        for weight, gradient, c, mask in rows:
            weight.grad = gradient.clone()
            if self.penalty != "none" and self.apply != "decoupled":
                shrink = weight.sign() if self.penalty == "l1" else 2 * weight
                weight.grad += STRENGTH * c * shrink.detach()
                power = weight.abs() if self.penalty == "l1" else weight.square()
                term = term + (STRENGTH * c * power).sum()
            if not self.dense:
                weight.grad *= mask
        return loss + term if self.apply == "loss" else loss

    def _coefficient(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.penalty == "relevance":
            return torch.exp(-gradient.abs() / (0.5 * gradient.abs().mean()))
        if self.penalty == "lobster":
            return (1 - gradient.abs() / 0.05).clamp(min=0)
        return torch.ones(())


def _flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@cache
def reference(
    penalty: str,
    apply: Apply,
    schedule: str,
    score: str,
    allocation: str,
    growth: str,
    optimizer: str,
    counts: tuple[int, ...],
    kept_by_cell: tuple[bytes, ...],
) -> Reference:
    """Train in float64, one process, one batch, by the formulas.

    Args:
        penalty: A name of ``PENALTIES``.
        apply: How the penalty is applied.
        schedule: A name of ``SCHEDULES``.
        score: A name of ``SCORES``.
        allocation: A name of ``ALLOCATIONS``.
        growth: A name of ``GROWTHS``.
        optimizer: A name of ``OPTIMIZERS``.
        counts: How many weights are kept after each step.
        kept_by_cell: The weights that the cell has kept after each step, a byte for each weight;
            the reference keeps the same. Where rounding put a weight of the cell on the other side
            of the threshold, the two trainings would otherwise diverge; they stay comparable, and
            the distance of such a weight from the threshold is returned.
    """
    training = _Training(penalty, apply, score, growth, optimizer)
    across, behind = 0.0, 0.0
    for step in range(STEPS):
        training.step()
        kept = torch.frombuffer(bytearray(kept_by_cell[step]), dtype=torch.bool)
        before = _flat(training.masks)
        if kept.sum() < before.sum() or training.dense:
            count = counts[step]
            ranks = (count,) if allocation == "global" else KEPT_IN[allocation][count]
            across = max(across, training.remove(kept, ranks))
        elif kept.sum() > before.sum():
            training.clear(training.masks)
            training.masks = training.parts(kept)
        elif not torch.equal(kept.double(), before):
            over, lacking = training.exchange(kept, by_gradient=growth == "gradient")
            across, behind = max(across, over), max(behind, lacking)
        if growth == "soft" and step + 1 == SOFT_UNTIL:
            training.dense = False
            training.clear(training.masks)
    weights = _flat(training.weights)
    if score == "magnitude":
        across /= float((weights - _flat(start().parameters())).norm())
    return Reference(weights, max(across, behind))
