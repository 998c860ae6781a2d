"""The strength tracker, which computes γ of each tensor at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunus._engine.optimizers import Optimizers
from prunus._engine.state_errors import state_error
from prunus._engine.update_probe import UpdateProbe
from prunus._utils.checks import number_problem, raise_problems
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    Strength,
    StrengthStep,
    UpdateStrength,
)
from prunus.selection import Selection

__all__ = ["StrengthTracker"]


_PERIODIC = (AutomaticStrength, UpdateStrength)
"""The strengths that are 0 in all steps but those of their period."""


class StrengthTracker:
    """Computes γ of each tensor, and counts the steps and rates that it depends on.

    Args:
        strength: The strength.
        optimizers: The optimizers, whose parameter groups have the learning rates.
        selection: The prunable tensors.
        interval: The interval to use until validations show one, or None.
        done: Returns whether no more weights will be removed.

    Attributes:
        update_probe: Measures the optimizers' updates; None if the strength does not ask for them.
    """

    def __init__(
        self,
        strength: Strength,
        optimizers: Optimizers,
        selection: Selection,
        interval: int | None,
        done: Callable[[], bool],
    ) -> None:
        self._strength = strength
        self._optimizers = optimizers
        self._selection = selection
        self._expected_interval = interval
        self._done = done
        self._interval: int | None = None
        self._validations = 0
        self._steps_since_pruning = 0
        self._steps_since_validation = 0
        self._peaks: dict[int, float] = {}
        self._gammas: list[tuple[float, int]] = []
        """γ and the number of parameters of each group when ``_by_name`` was computed."""
        self._by_name: dict[str, float] = {}
        self._zeros = dict.fromkeys(selection, 0.0)
        self.update_probe = (
            UpdateProbe(optimizers, selection) if isinstance(strength, UpdateStrength) else None
        )
        self._constant = (
            dict.fromkeys(selection, strength.gamma)
            if isinstance(strength, ConstantStrength)
            else {}
        )

    @property
    def steps_since_pruning(self) -> int:
        """Steps since weights were removed, or since the start."""
        return self._steps_since_pruning

    @property
    def interval(self) -> int | None:
        """Steps between the last two validations, or what is expected of them, or None."""
        return self._expected_interval if self._interval is None else self._interval

    @property
    def period(self) -> int:
        """The penalty acts in one of so many steps."""
        if isinstance(self._strength, UpdateStrength):
            return self._strength.every
        if not isinstance(self._strength, AutomaticStrength) or self.interval is None:
            return 1
        return self._strength.period(self.interval)

    def count_step(self) -> None:
        """Count a step."""
        self._steps_since_pruning += 1
        self._steps_since_validation += 1

    def count_validation(self) -> None:
        """Measure the steps since the last validation."""
        if self._steps_since_validation:  # two validations of the same state are one
            self._interval, self._steps_since_validation = self._steps_since_validation, 0
            self._validations += 1
            self._read_updates()

    def count_pruning(self) -> None:
        """Start to count the steps since weights were removed."""
        if self._steps_since_pruning:
            self._read_updates()
        self._steps_since_pruning = 0

    def _read_updates(self) -> None:
        if self.update_probe is not None:
            self.update_probe.read()

    def values(self) -> Mapping[str, float]:
        """Return γ of each tensor at this step; it may depend on its group's learning rate."""
        if isinstance(self._strength, ConstantStrength):
            return self._constant
        groups = list(self._optimizers.groups())
        rates = [float(group.get("lr", 1.0)) for group in groups]
        peaks = self._peaks
        for number, lr in enumerate(rates):
            if not lr <= peaks.get(number, 0.0):
                peaks[number] = lr
        # Other steps of each interval than of the one before, so that the penalty meets all
        # batches of an epoch whose order is fixed.
        turn = self._steps_since_validation + self._validations
        if type(self._strength) in _PERIODIC and turn % self.period:
            return self._zeros  # most steps, which this takes the least time in
        done = self._done()
        gammas = []
        for number, (group, lr) in enumerate(zip(groups, rates, strict=True)):
            rate = None if self.update_probe is None else self.update_probe.rate(number)
            step = StrengthStep(
                lr=lr,
                peak_lr=peaks.get(number, 0.0),
                number=turn,
                steps_since_pruning=self._steps_since_pruning,
                interval=self.interval,
                done=done,
                mean_update=None if rate is None else rate * lr,
            )
            gammas.append((self._strength.value(step), len(group["params"])))
        if gammas != self._gammas:
            by_parameter = {
                id(parameter): gamma
                for group, (gamma, _) in zip(groups, gammas, strict=True)
                for parameter in group["params"]
            }
            self._gammas = gammas
            self._by_name = {
                name: by_parameter[id(tensor.parameter)] for name, tensor in self._selection.items()
            }
        return self._by_name

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the largest learning rates so far."""
        groups = sum(1 for _ in self._optimizers.groups())
        return {
            "validations": self._validations,
            "steps_since_pruning": self._steps_since_pruning,
            "steps_since_validation": self._steps_since_validation,
            "interval": self._interval or 0,
            # One for each group, also before the first step, because a distributed checkpoint is
            # read in place.
            "peak_lrs": [self._peaks.get(number, 0.0) for number in range(groups)],
            "updates": {} if self.update_probe is None else self.update_probe.state_dict(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: An entry is missing or has a wrong value; every one is named.
        """
        counts = ("validations", "steps_since_pruning", "steps_since_validation", "interval")
        found = state.get("peak_lrs")
        peaks: Sequence[Any] = found if isinstance(found, list | tuple) else ()
        raise_problems(
            *(number_problem(key, state.get(key), whole=True, least=0) for key in counts),
            *(number_problem("peak_lrs", peak, least=0) for peak in peaks),
            None
            if found is peaks
            else f"peak_lrs must be a list of learning rates, but is {found!r}",
            error=state_error,
        )
        if self.update_probe is not None:
            self.update_probe.check(state.get("updates") or {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._validations = int(state["validations"])
        self._steps_since_pruning = int(state["steps_since_pruning"])
        self._steps_since_validation = int(state["steps_since_validation"])
        self._interval = int(state["interval"]) or None
        self._peaks = {number: float(peak) for number, peak in enumerate(state["peak_lrs"])}
        if self.update_probe is not None:
            self.update_probe.load_state_dict(state["updates"])
