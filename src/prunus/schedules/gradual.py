"""Gradual pruning: removals every few steps along a curve, to an exact number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prunus._utils.checks import either_problem, number_problem
from prunus._utils.fields import number, setting
from prunus.schedules.base import Schedule, hundredth, kept_at, removal_interval

__all__ = ["GradualPruning"]


_END = 0.5
"""The default end of :class:`GradualPruning`, as a fraction of the training."""


@dataclass(kw_only=True)
class GradualPruning(Schedule):
    """Raises the sparsity along a polynomial, steep at first, to an exact number of kept weights.

    With f running from 0 at step ``begin`` to 1 at step ``end``, and n prunable weights,

        kept = final + (n − final) · (1 − f)^power.

    Pass the length of the training, as for ``torch.optim.lr_scheduler.OneCycleLR``: either
    ``total_steps``, or ``epochs`` and ``steps_per_epoch``. ``begin`` and ``end`` are fractions of
    it then. Or pass ``end`` alone, as a number of steps. All steps are optimizer steps: those of an
    epoch are the batches divided by the batches that are accumulated.

    Args:
        sparsity: Final fraction of removed weights. Either this or ``kept``.
        kept: Final number of kept prunable weights. Either this or ``sparsity``.
        total_steps: The number of optimizer steps in the whole training, counted from the pruner's
            first. Default None.
        epochs: The number of epochs in the whole training. Default None.
        steps_per_epoch: The number of optimizer steps in an epoch. Default None.
        end: When the final number is reached: a fraction of the training, above 0 and at most 1,
            by default 0.5, so that the other half is left to recover; or without a length of the
            training the step, counted from the pruner's first.
        begin: When the curve begins, in the same unit as ``end``; the first weights are removed
            ``every`` steps later. Default 0.
        every: Steps from one removal to the next. Default None: 100, and at most a hundredth of
            the training if its length is known.
        power: Default 3, the cubic schedule.

    Raises:
        ArgumentError: An argument is out of range, or the length is passed twice or in part.

    Source: Zhu and Gupta, arXiv 1710.01878, equation 1.

    Example:
        >>> schedule = GradualPruning(sparsity=0.9, epochs=10, steps_per_epoch=20)
        >>> [schedule.after_step(step=s, prunable=1000) for s in (49, 50, 100)]
        [None, 212, 100]
        >>> schedule = GradualPruning(sparsity=0.9, begin=0, end=100, every=50)
        >>> [schedule.after_step(step=s, prunable=1000) for s in (49, 50, 100)]
        [None, 212, 100]
    """

    sparsity: float | None = number(None, above=0, below=1, optional=True)
    kept: int | None = number(None, whole=True, least=1, optional=True)
    total_steps: int | None = number(None, whole=True, least=1, optional=True)
    epochs: int | None = number(None, whole=True, least=1, optional=True)
    steps_per_epoch: int | None = number(None, whole=True, least=1, optional=True)
    end: float | None = setting(None)
    begin: float = setting(0)
    every: int | None = number(None, whole=True, least=1, optional=True)
    power: float = number(3.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._step = 0
        total, begin, end = self._length, self.begin, self.end
        if total is None:
            assert end is not None, "checked by _problems"
            self._begin, self._end = int(begin), int(end)
        else:
            # At least a step apart, however few steps there are.
            self._begin = min(round(begin * total), total - 1)
            self._end = max(self._begin + 1, round((_END if end is None else end) * total))
        self._every = self.every or (100 if total is None else hundredth(total))

    @property
    def _length(self) -> int | None:
        """The number of steps in the whole training, or None if it is not known."""
        if self.epochs is not None and self.steps_per_epoch is not None:
            return self.epochs * self.steps_per_epoch
        return self.total_steps

    def _problems(self) -> Iterator[str | None]:
        yield either_problem(sparsity=self.sparsity, kept=self.kept)
        lengths = {
            "total_steps": self.total_steps,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
        }
        passed = [name for name, value in lengths.items() if value is not None]
        if passed not in ([], ["total_steps"], ["epochs", "steps_per_epoch"]):
            found = " and ".join(f"{name}={lengths[name]!r}" for name in passed)
            yield (
                "pass the length of the training as either total_steps, or epochs and "
                f"steps_per_epoch, but got {found}"
            )
        elif passed:
            yield from self._fraction_problems()
        elif self.end is None:
            yield (
                "pass total_steps, or epochs and steps_per_epoch, or the step end, but got none of "
                "them"
            )
        else:
            yield from self._step_problems()

    def _fraction_problems(self) -> Iterator[str | None]:
        """Yield what is wrong with ``begin`` and ``end`` as fractions of the training."""
        end = _END if self.end is None else self.end
        problems = (
            number_problem("end", end, above=0, most=1),
            number_problem("begin", self.begin, least=0, below=1),
        )
        if not any(problems):
            problems = (number_problem("begin", self.begin, least=0, below=end), None)
        for problem in problems:
            if problem is not None:
                fix = "" if ": pass " in problem else ": divide steps by those of the training"
                yield f"as a fraction of the training, {problem}{fix}"

    def _step_problems(self) -> Iterator[str | None]:
        """Yield what is wrong with ``begin`` and ``end`` as numbers of steps."""
        problems = (
            number_problem("end", self.end, whole=True, least=1),
            number_problem("begin", self.begin, whole=True, least=0),
        )
        if not any(problems):
            problems = (number_problem("begin", self.begin, least=0, below=self.end), None)
        fractions = [v for v in (self.begin, self.end) if isinstance(v, float) and 0 < v <= 1]
        for problem in problems:
            fix = "; fractions of the training need total_steps, too" if fractions else ""
            yield None if problem is None else problem + fix

    @property
    def done(self) -> bool:
        """Whether the final number has been reached; the network has yet to recover then."""
        return self._step >= self._end

    @property
    def interval(self) -> int:
        """The steps of an epoch, or a quarter of those in which it removes."""
        return self.steps_per_epoch or removal_interval(self._end - self._begin)

    @property
    def last_step(self) -> int:
        """The step at which the final number is reached."""
        return self._end

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Follow the polynomial."""
        self._step = step
        due = (step - self._begin) % self._every == 0 or step == self._end
        if not (due and self._begin <= step <= self._end):
            return None
        final = self.final_kept(prunable)
        left: float = (self._end - step) / (self._end - self._begin)
        return round(final + max(0, prunable - final) * float(left**self.power))

    def final_kept(self, prunable: int) -> int:
        """Return ``kept``, or the number that ``sparsity`` keeps."""
        return self.kept if self.kept is not None else kept_at(prunable, self.sparsity or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the last step seen."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._step = int(state["step"])
