"""Averages of squared gradients, kept positive where weights are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prunus._distributed.shards import local
from prunus._engine.optimizer_state import per_weight_state
from prunus._utils.chunks import chunks
from prunus.selection import PrunableTensor, Selection

__all__ = ["INTERVAL", "LEAST_SIZE", "SecondMoments"]

INTERVAL = 100
"""Steps from one filling to the next. A decay of 0.9 a step leaves 3e-5 of the values."""

LEAST_SIZE = 1 << 12
"""The least number of weights of a tensor whose state is filled; with fewer it saves no time."""

_SAMPLES = 1 << 14
_LEAST_SAMPLES = 16
_LEAST_VALUE = 1e-30
_TOLERANCE = 1e-4
_LEAST_RATIO = 2.0
"""The least quotient of the largest and the smallest square that tells a square from a multiple of
the gradient itself."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some kept weights of a tensor, and the optimizer's state of them before a step."""

    tensor: PrunableTensor
    mask: torch.Tensor
    states: list[tuple[torch.Tensor, torch.Tensor]]


class SecondMoments:
    """Fills an optimizer's averages of squared gradients where weights are removed.

    On the CPU torch's square root of an exact zero takes five times as long as that of another
    number, and that of a subnormal number 25 times. The second moments of removed weights would be
    exact zeros, because their gradients are, and an optimizer that computes their square root would
    take longer the more weights are removed. So they get the mean of the kept weights' instead. The
    step of a removed weight is the quotient of a first moment, which is zero, and this root.

    A second moment is recognized by what a step does to it, not by its name or the optimizer's
    class: v ← a·v + b·g², with one a from 0 to 1 and one b above 0 for all weights, where v is
    nowhere negative and the g² are not all alike. A square that includes more than the gradient,
    such as a weight decay, and a maximum are not filled. Neither are states in bfloat16 and
    float16, whose rounding exceeds the tolerance of the comparison: there the step stays slow.

    Args:
        optimizer: The optimizer.
        selection: The prunable tensors.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, selection: Selection) -> None:
        self._optimizer = optimizer
        self._selection = selection
        self._samples: list[_Sample] = []

    def before_step(self, masks: Mapping[str, torch.Tensor], steps_since_pruning: int) -> None:
        """Record the state of some kept weights, in the first and each hundredth step.

        Args:
            masks: The masks of the tensors that have lost weights.
            steps_since_pruning: The number of steps since the last removal.
        """
        self._samples.clear()
        if steps_since_pruning % INTERVAL:
            return
        for name, mask in masks.items():
            tensor = self._selection[name]
            if mask.numel() < LEAST_SIZE or mask.device.type != "cpu" or tensor.gradient is None:
                continue
            states = [
                (state, _sampled(state, mask))
                for state in per_weight_state(self._optimizer, tensor.parameter)
                if state.shape == mask.shape
            ]
            self._samples.append(_Sample(tensor, mask, states))

    def after_step(self) -> None:
        """Fill the states that the step has updated as a second moment."""
        for sample in self._samples:
            gradient = sample.tensor.gradient
            if gradient is None or gradient.shape != sample.mask.shape:
                continue
            square = _sampled(gradient, sample.mask).square()
            for state, before in sample.states:
                after = _sampled(state, sample.mask)
                decay = _decay_of_average(before, after, square)
                value = float(after.mean()) if decay is not None else 0.0
                if decay is not None and value * decay**INTERVAL > _LEAST_VALUE:
                    for s, m in chunks(state, sample.mask):
                        s.masked_fill_(~m, value)
        self._samples.clear()


def _sampled(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the values of the kept weights among some positions, in float64."""
    stride = -(-mask.numel() // _SAMPLES)
    kept = mask.reshape(-1)[::stride]
    return local(values).reshape(-1)[::stride][kept].double()


def _decay_of_average(
    before: torch.Tensor, after: torch.Tensor, square: torch.Tensor
) -> float | None:
    """Return a if ``after`` is a·before + b·square with 0 ≤ a ≤ 1 and b > 0, else None."""
    if before.numel() < _LEAST_SAMPLES or not _may_be_average(before, after, square):
        return None
    unit = after.mean()  # so that squares of small gradients do not vanish
    operands, target = torch.stack([before, square], dim=1) / unit, (after / unit)[:, None]
    # lstsq fails on NaN and infinity, which come from a gradient, its square, or a mean of zero.
    if not bool(operands.isfinite().all() and target.isfinite().all()):
        return None
    solution = torch.linalg.lstsq(operands, target).solution
    decay, share = solution[:, 0].tolist()
    fitted = (operands @ solution)[:, 0] * unit
    fits = bool(((fitted - after).abs() <= _TOLERANCE * after.abs() + _TOLERANCE**2 * unit).all())
    # Without a contribution of the square it is a tensor that the step has left as it was.
    contributes = share * float(square.mean()) > 10 * _TOLERANCE**2 * float(unit)
    return min(decay, 1.0) if fits and contributes and 0 <= decay <= 1 + _TOLERANCE else None


def _may_be_average(before: torch.Tensor, after: torch.Tensor, square: torch.Tensor) -> bool:
    """Return whether the values are those of an average of squares by their signs and spread."""
    nowhere_negative = (before >= 0).all() and (after >= 0).all()
    # Equal gradients are a multiple of their squares, so that a momentum fits as well.
    distinct = square.max() > _LEAST_RATIO * square.min()
    return bool(nowhere_negative and (after > 0).any() and distinct)
