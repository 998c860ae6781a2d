"""The settings that all recipes share, each of which ``--set key=value`` may change."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Union

from prunus.constraint import Constraint, Mode
from prunus.errors import CheckpointError, PrunusError, listing, nearest
from prunus.penalties.coefficients import (
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.relevance import Apply, RelevancePenalty
from prunus.penalties.strengths import (
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    Strength,
)
from prunus.schedules import GradualPruning, IterativePruning, OneShot, Schedule
from prunus.scores import MagnitudeScore, RandomScore, Score, TaylorScore

__all__ = ["Config"]

_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)
"""An argument's line in a docstring, and those that go on from it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a recipe trains and prunes.

    Args:
        dense_epochs: Epochs of ordinary training first, of the network that the sparse one is
            compared with.
        epochs: Epochs of pruning, recovery included.
        batch_size: Examples per step.
        dense_lr: Peak learning rate of the dense training.
        lr: Peak learning rate of the pruning.
        warmup: The share of the steps over which the learning rate rises; it falls along a cosine
            to 0 in the rest.
        distillation: The share of the pruning's loss that asks for the dense network's predictions
            instead of the right ones; 0 for none. It costs a forward pass of the dense network.
        start: What pruning starts from: "dense", the trained network, or "fresh", new random
            weights that are pruned while they learn.
        max_grad_norm: What the norm of all gradients is clipped to; 0 for no clipping.
        autocast: Whether to train with matrix products in bfloat16. Weights, gradients and what is
            made of them stay in float32, and so does all measuring.
        penalty: "relevance" for the paper's, whose coefficient falls exponentially with the
            gradient; "lobster", linearly; "l2" and "l1", not at all; or "none".
        strength: The factor γ of the penalty.
        strength_follows: "lr" for γ times the learning rate, "linear" for a fall to 0 over an
            epoch, started again at each pruning, "constant".
        alpha: The scale of the gradient in the coefficient.
        relative: Whether alpha is in multiples of each tensor's mean gradient magnitude.
        smoothing: The weight of the past in the average of gradient magnitudes that the coefficient
            of "relevance" and "lobster" sees; 0 for the gradient of each step alone.
        apply: How the penalty is applied: "gradient", added to it before the step; "loss", as a
            term in it; or "decoupled", by shrinking the weights after the step.
        schedule: "iterative" for the paper's, which removes a fraction whenever the floor is met;
            "gradual", along a cubic curve to the ratio; or "oneshot", all at once.
        ratio: The compression ratio to reach: all parameters / non-zero ones; 0 for no target,
            which only the iterative schedule knows.
        begin: The share of the pruning epochs at which the gradual schedule begins.
        end: The share at which it reaches the ratio.
        fraction: What the iterative schedule removes each time, of what is left.
        patience: Validations below the floor after which the iterative schedule stops; 0 for never.
        floor: The validation metric that the delivered network must meet, such as "dense-0.005".
        score: What is removed first: the smallest by "magnitude", by "taylor", which is the weight
            times its gradient, or "random" ones.
        biases: Whether biases may be removed too.
        norms: Whether the weights of normalization layers may be removed too.
        min_density: The share of each tensor that stays.

    Raises:
        PrunusError: A value is out of range.
    """

    dense_epochs: int
    epochs: int
    batch_size: int
    dense_lr: float
    lr: float
    strength: float
    ratio: float
    warmup: float = 0.1
    max_grad_norm: float = 0.0
    autocast: bool = False
    distillation: float = 0.0
    start: Literal["dense", "fresh"] = "dense"
    penalty: Literal["relevance", "lobster", "l2", "l1", "none"] = "relevance"
    strength_follows: Literal["constant", "lr", "linear"] = "lr"
    alpha: float = 0.1
    relative: bool = True
    smoothing: float = 0.0
    apply: Apply = "decoupled"
    schedule: Literal["iterative", "gradual", "oneshot"] = "gradual"
    begin: float = 0.0
    end: float = 0.6
    fraction: float = 0.1
    patience: int = 0
    floor: float | str | None = None
    score: Literal["magnitude", "taylor", "random"] = "magnitude"
    biases: bool = True
    norms: bool = False
    min_density: float = 0.0

    mode: ClassVar[Mode] = "max"
    """Whether the recipe's metric is to be maximised ("max") or minimised ("min")."""

    after_dense: ClassVar[tuple[str, ...]] = ()
    """A task's own settings that its dense network does not depend on: of measuring and pruning."""

    of_lessons: ClassVar[tuple[str, ...]] = ()
    """Those among them on which it depends what the dense network makes of the training data."""

    def __post_init__(self) -> None:
        problems: list[str] = []

        def check(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                problems.append(f"{name} must be {wanted}, but is {getattr(self, name)!r}")

        self._check(check)
        if self.score == "taylor" and self.apply == "loss" and self.penalty != "none":
            problems.append(
                "score=taylor needs the gradient of the loss alone, which apply=loss does not "
                "give: choose another apply or score"
            )
        # What the parts check themselves, before anything is trained.
        named = {problem.partition(" ")[0] for problem in problems}
        parts: tuple[Callable[[], object], ...] = (
            lambda: self.make_strength(steps_per_epoch=1),
            self.make_coefficient,
            lambda: self.make_penalty(steps_per_epoch=1),
            self.make_constraint,
            lambda: self.make_schedule(kept=1, prunable=2, steps=1000),
        )
        for part in parts:
            try:
                part()
            except PrunusError as error:
                if str(error).partition(" ")[0] not in named:
                    problems.append(str(error))
            except (ValueError, OverflowError):
                if not problems:  # else it cannot work with what was named already, such as NaN
                    raise
        if problems:
            raise PrunusError("; ".join(dict.fromkeys(problems)))

    def _check(self, check: Callable[[bool, str, str], None]) -> None:
        """Check the ranges of the settings; a task's own settings come on top."""
        for name in ("dense_epochs", "epochs", "batch_size"):
            check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("dense_lr", "lr"):
            check(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        for name in ("warmup", "min_density", "smoothing"):
            check(0 <= getattr(self, name) < 1, name, "from 0 to below 1")
        check(0 <= self.distillation <= 1, "distillation", "from 0 to 1")
        check(0 <= self.begin < self.end, "begin", "from 0 to below end")
        check(0 < self.end <= 1, "end", "above 0 and at most 1")
        check(self.patience >= 0, "patience", "0 or above")
        check(0 <= self.max_grad_norm < math.inf, "max_grad_norm", "0 or above and finite")
        check(
            1 < self.ratio < math.inf or (self.ratio == 0 and self.schedule == "iterative"),
            "ratio",
            "above 1 (or 0, with the iterative schedule alone, for no target)",
        )

    def changed(self, settings: Iterable[str]) -> Self:
        """Return this configuration with ``key=value`` settings applied.

        Raises:
            PrunusError: A key is unknown or a value has the wrong form; every one is listed.
        """
        hints = self._hints()
        problems, changes = [], {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                problems.append(f"{setting!r} is not of the form key=value")
            elif key not in hints:
                near = nearest(key, hints)
                problems.append(
                    f"there is no setting {key!r}; "
                    + (f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(hints)}")
                )
            else:
                try:
                    changes[key] = _parse(text, hints[key])
                except ValueError:
                    problems.append(f"{key} must be {_describe(hints[key])}, but is {text!r}")
        changed = self
        try:
            changed = dataclasses.replace(self, **changes)
        except PrunusError as error:
            problems.append(str(error))
        if problems:
            raise PrunusError("; ".join(problems))
        return changed

    @classmethod
    def restored(cls, settings: Mapping[str, Any], path: Path) -> Self:
        """Return the configuration that :meth:`as_dict` gave.

        Args:
            settings: The settings.
            path: Where they are from, for the message.

        Raises:
            CheckpointError: It is not one, or one of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(settings) != names:
            raise CheckpointError(
                f"the settings in {path} are those of another version: missing "
                f"{listing(sorted(names - set(settings))) or 'none'}; unknown "
                f"{listing(sorted(set(settings) - names)) or 'none'}"
            )
        hints = cls._hints()
        damaged = [
            f"{name} must be {_describe(hints[name])}, but is {value!r}"
            for name, value in settings.items()
            if not _fits(value, hints[name])
        ]
        if damaged:
            raise CheckpointError(f"the settings in {path} are damaged: {'; '.join(damaged)}")
        return cls(**settings)

    def described(self) -> list[tuple[str, str, str, str]]:
        """Return each setting's name, its value, what it takes, and what it means."""
        hints = self._hints()
        meanings = {
            name: " ".join(meaning.replace("``", "").split())
            for kind in reversed(type(self).mro())
            # Some versions of Python take the indentation away by themselves.
            for name, meaning in _ARGUMENT.findall(inspect.cleandoc(kind.__doc__ or ""))
        }
        return [
            (name, str(value), _describe(hints[name]), meanings.get(name, ""))
            for name, value in self.as_dict().items()
        ]

    @classmethod
    def _hints(cls) -> dict[str, Any]:
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def of_dense(self) -> dict[str, Any]:
        """Return the settings that the dense network's training depends on."""
        own = {field.name for field in dataclasses.fields(Config)}
        shared = {
            "dense_epochs",
            "batch_size",
            "dense_lr",
            "warmup",
            "max_grad_norm",
            "autocast",
        }
        return {
            name: value
            for name, value in self.as_dict().items()
            if name in shared or name not in own.union(self.after_dense)
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)

    @property
    def method(self) -> str:
        """Name the method for tables: penalty, way, schedule and score."""
        penalty = self.penalty if self.penalty == "none" else f"{self.penalty} ({self.apply})"
        return f"{penalty}, {self.schedule}, {self.score}"

    def make_penalty(self, steps_per_epoch: int) -> RelevancePenalty | None:
        """Build the penalty, or None if there shall be none."""
        if self.penalty == "none":
            return None
        coefficient = self.make_coefficient()
        return RelevancePenalty(
            self.make_strength(steps_per_epoch),
            coefficient,
            power=1 if self.penalty == "l1" else 2,
            apply=self.apply,
            # A constant coefficient needs no average to be the same at each step.
            smoothing=0.0 if isinstance(coefficient, ConstantRelevance) else self.smoothing,
        )

    def make_strength(self, steps_per_epoch: int) -> Strength:
        """Build the strength."""
        if self.strength_follows == "linear":
            return LinearDecayStrength(self.strength, steps_per_epoch)
        strengths: Mapping[str, type[ConstantStrength | LearningRateStrength]] = {
            "constant": ConstantStrength,
            "lr": LearningRateStrength,
        }
        return strengths[self.strength_follows](self.strength)

    def make_coefficient(self) -> Coefficient:
        """Build the irrelevance coefficient."""
        coefficients: Mapping[str, Coefficient] = {
            "relevance": ExponentialRelevance(self.alpha, self.relative),
            "lobster": LinearRelevance(self.alpha, self.relative),
        }
        return coefficients.get(self.penalty, ConstantRelevance())

    def make_constraint(self, dense_metric: float | None = None) -> Constraint:
        """Build the constraint on the validation metric."""
        return Constraint(self.floor, self.mode, dense_metric)

    def make_schedule(self, *, kept: int, prunable: int, steps: int) -> Schedule:
        """Build the schedule.

        Args:
            kept: How many prunable weights the ratio leaves.
            prunable: How many there are.
            steps: How many optimizer steps the pruning epochs have.
        """
        if self.schedule == "iterative":
            target = 1 - kept / prunable if self.ratio else None
            patience = self.patience or None
            return IterativePruning(fraction=self.fraction, target=target, patience=patience)
        if self.schedule == "gradual":
            end = max(1, round(self.end * steps))
            begin = min(end - 1, round(self.begin * steps))
            # About a hundred removals, whatever the length of the run.
            every = max(1, (end - begin) // 100)
            return GradualPruning(kept=kept, begin=begin, end=end, every=every)
        return OneShot(sparsity=1 - kept / prunable, at=max(1, round(self.begin * steps)))

    def make_score(self) -> Score:
        """Build the score."""
        scores: Mapping[str, Score] = {
            "magnitude": MagnitudeScore(),
            "taylor": TaylorScore(),
            "random": RandomScore(),
        }
        return scores[self.score]


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _parse(text: str, hint: Any) -> Any:
    """Read ``text`` as the first of the types in ``hint`` that it fits."""
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            if text in typing.get_args(option):
                return text
        elif option is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif option is type(None):
            if text.lower() == "none":
                return None
        elif option is str:
            if text.lower() != "none":
                return text
        else:
            try:
                return option(text)
            except ValueError:
                continue
    raise ValueError(text)


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value that was read back is of a type in ``hint``."""
    return any(
        value in typing.get_args(option)
        if typing.get_origin(option) is Literal
        # A float that is whole may have been written by hand; and bool is an int to Python.
        else type(value) in ((int, float) if option is float else (option,))
        for option in _options(hint)
    )


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    parts = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            parts += [str(value) for value in typing.get_args(option)]
        else:
            parts.append("none" if option is type(None) else words[option])
    return ", ".join(parts[:-1]) + (" or " if len(parts) > 1 else "") + parts[-1]
