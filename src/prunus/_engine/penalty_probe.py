"""The penalty probe, which measures what the penalty does, in a step after each validation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from prunus._engine.optimizers import Optimizers
from prunus._engine.state_errors import state_error
from prunus._utils.checks import number_problem, raise_problems
from prunus.penalties.application import TensorStep
from prunus.penalties.coefficients import ConstantRelevance
from prunus.penalties.relevance import RelevancePenalty
from prunus.penalties.strengths import AutomaticStrength
from prunus.selection import Selection
from prunus.validation import PenaltyReport

__all__ = ["PenaltyProbe"]

_KEYS = ("coefficients", "irrelevant", "weights", "shrinkage", "decay")
"""Sums over the weights: their coefficients, how many are irrelevant, how many there are, and the
fractions by which the penalty and the optimizer's weight decay shrink them in the step."""

_NEARLY_CONSTANT = 0.95
"""The mean coefficient above which the penalty is called plain L2."""

_NEGLIGIBLE = 0.1
"""The fraction of the weight decay below which the penalty is called negligible."""


class PenaltyProbe:
    """Measures the irrelevance coefficients, once after each validation.

    It measures the first step that the penalty acts in, with several optimizers the first step of
    each.

    The sums stay on the devices until the next validation, so that no step waits for one.

    Args:
        penalty: The penalty.
        optimizers: The optimizers, whose weight decay is reported beside.
        selection: The prunable tensors.
    """

    def __init__(
        self,
        penalty: RelevancePenalty,
        optimizers: Optimizers,
        selection: Selection,
    ) -> None:
        self._penalty = penalty
        self._optimizers = optimizers
        self._selection = selection
        self._due = self._all()
        # By the optimizer's index and the device.
        self._sums: dict[tuple[int, torch.device], dict[str, torch.Tensor | float]] = {}
        self._groups: Mapping[int, dict[str, Any]] = {}
        self._warned = False

    def _all(self) -> set[int]:
        """Return the indices of the optimizers whose steps are to be measured."""
        return set() if self._penalty.application.in_loss else set(range(len(self._optimizers)))

    def is_due(self, index: int) -> bool:
        """Return whether the present step of an optimizer is to be measured."""
        return index in self._due

    def begin(self, index: int) -> None:
        """Forget an earlier call of the closure, or a step that was skipped.

        Args:
            index: The optimizer's.
        """
        self._drop(index)
        groups = self._optimizers[index].param_groups
        self._groups = {id(p): group for group in groups for p in group["params"]}

    def _drop(self, index: int) -> None:
        self._sums = {key: sums for key, sums in self._sums.items() if key[0] != index}

    def measure(self, index: int, step: TensorStep, mask: torch.Tensor | None) -> None:
        """Add a tensor to the sums.

        Args:
            index: The optimizer's.
            step: The tensor in the step.
            mask: True where a weight is kept, None if all are; unlike the mask of the step also
                with a growth that trains removed weights.
        """
        tensor = step.tensor
        if not self._selection.counted[tensor.name]:
            return
        c = self._penalty.formula.coefficients(
            step.basis,
            tensor.local_padding_row,
            step.basis_scale,
            weight=step.weight,
            mean=step.basis_mean,
        ).float()
        measured = mask
        if step.measurable is not None:
            # Counts nothing where the norm of the gradients overflowed.
            c = torch.where(step.measurable.to(c.device), c, 0.0)
            measured = step.measurable.to(c.device).expand_as(c)
            measured = measured if mask is None else measured & mask
        if measured is not None:
            c.mul_(measured)
        group = self._groups[id(tensor.parameter)]
        lr = float(group.get("lr", 1.0))
        weights = c.numel() if measured is None else measured.sum()
        rate = 1.0 if self._penalty.apply == "decoupled" else lr
        values = {
            "coefficients": c.sum(dtype=torch.float64),
            "irrelevant": (c > 0.5).sum(),
            "weights": weights,
            "shrinkage": weights * (2 * step.strength * rate),
            "decay": weights * (float(group.get("weight_decay", 0.0)) * lr),
        }
        sums = self._sums.setdefault((index, c.device), {})
        for key, value in values.items():
            sums[key] = sums.get(key, 0.0) + value

    def end(self, index: int) -> None:
        """End the measurement of an optimizer, once it has taken the step."""
        if index in self._due:
            self._due -= {key[0] for key in self._sums if key[0] == index}

    def report(self, period: int) -> PenaltyReport | None:
        """Return what was measured since the last report, and measure the next step.

        If several processes hold the tensors together, all must call this.

        Args:
            period: The penalty acts in one of so many steps.
        """
        if self._penalty.application.in_loss:
            return None
        local = torch.tensor(list(self._totals().values()), dtype=torch.float64)
        sums = dict(zip(_KEYS, self._selection.process_group.sum(local).tolist(), strict=True))
        self._sums, self._due = {}, self._all()
        weights = sums["weights"]
        if not weights:
            return None
        return PenaltyReport(
            mean_coefficient=sums["coefficients"] / weights,
            irrelevant=sums["irrelevant"] / weights,
            shrink=sums["shrinkage"] / weights / period if self._penalty.power == 2 else None,
            weight_decay=sums["decay"] / weights,
        )

    def _totals(self) -> dict[str, float]:
        """Return the sums over all optimizers and devices, as numbers."""
        return {key: float(sum(float(s[key]) for s in self._sums.values())) for key in _KEYS}

    def warn_once(self, report: PenaltyReport) -> None:
        """Warn if the penalty cannot make a difference between weights, unless it did before."""
        problem = None if self._warned else self._problem(report)
        if problem is not None:
            self._warned = True
            warnings.warn(problem, stacklevel=4)

    def _problem(self, report: PenaltyReport) -> str | None:
        coefficient = self._penalty.coefficient
        # With a constant coefficient L2 is meant, and a relative one adapts to the gradients.
        selective = not isinstance(coefficient, ConstantRelevance) and not coefficient.relative
        if selective and report.mean_coefficient > _NEARLY_CONSTANT:
            return (
                "the penalty is nearly plain L2: the irrelevance coefficients are "
                f"{report.mean_coefficient:.3f} on average, because the gradients are small beside "
                "alpha. Choose a smaller alpha, best in multiples of the mean gradient: "
                "ExponentialRelevance(0.2, relative=True)"
            )
        shrink, decay = report.shrink, report.weight_decay
        # Adaptive optimizers scale a penalty that is added to the gradient by any factor, and an
        # automatic strength is meant to be as small as it is.
        chosen = not isinstance(self._penalty.strength, AutomaticStrength)
        if (
            chosen
            and self._penalty.apply == "decoupled"
            and shrink is not None
            and 0 < shrink < _NEGLIGIBLE * decay
        ):
            return (
                "the penalty is too weak to matter: in a step it shrinks an irrelevant weight by "
                f"{shrink:.1e} of its size, and the optimizer's weight decay shrinks every weight "
                f"by {decay:.1e}. Choose a strength about {_rounded_up(decay / shrink)} times as "
                "large, or leave strength out to have it found"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of a measured step that was not reported yet, as numbers.

        None for a model that is sharded over processes, each of which has its own sums: after a
        resumption another step is measured.
        """
        if self._due or not self._sums or self._selection.process_group.sharded:
            return {}
        return self._totals()

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: A value is missing, unknown or no number; every one is named.
        """
        keys = dict.fromkeys((*_KEYS, *state)) if state else ()
        raise_problems(
            *(number_problem(f"{key} of the penalty", state.get(key), least=0) for key in keys),
            error=state_error,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        sums: dict[str, torch.Tensor | float] = {key: float(state[key]) for key in state}
        self._sums = {(0, torch.device("cpu")): sums} if sums else {}
        self._due = set() if state else self._all()


def _rounded_up(factor: float) -> int:
    """Return a factor with one digit.

    Example:
        >>> _rounded_up(42.0), _rounded_up(500.0)
        (50, 500)
    """
    unit = 10.0 ** math.floor(math.log10(factor))
    return round(math.ceil(factor / unit) * unit)
