"""The gradient observer, which passes gradients to the score and stores its memory."""

from __future__ import annotations

import torch

from prunus.scores import Score
from prunus.selection import Selection

__all__ = ["GradientObserver"]


class GradientObserver:
    """Passes the gradients of each step to the score, before anything else changes them.

    Args:
        score: The score.
        selection: The prunable tensors.

    Attributes:
        memory: What the score remembers, by tensor.
    """

    def __init__(self, score: Score, selection: Selection) -> None:
        self.memory: dict[str, torch.Tensor] = {}
        self._score = score
        self._tensors = tuple(selection.items())

    @property
    def active(self) -> bool:
        """Whether the score uses gradients."""
        return self._score.uses_gradient

    def observe(self, loss_scale: float | None) -> None:
        """Pass each gradient, divided by the loss scale, to the score."""
        for name, tensor in self._tensors:
            gradient = tensor.gradient
            if gradient is None or gradient.layout is not torch.strided:
                continue
            if loss_scale is not None:
                # In 16 bits a small gradient would become 0.
                wide = torch.promote_types(gradient.dtype, torch.float32)
                gradient = gradient.to(wide) / loss_scale
            memory = self._score.observe(tensor.weight, gradient, self.memory.get(name))
            if memory is not None:
                self.memory[name] = memory
