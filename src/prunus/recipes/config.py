"""The settings of recipes, each of which ``--set key=value`` may change.

The bounds and the help text of a setting are written once, in its field; the checks, the command
and the table of settings read them from there.
"""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from prunus._utils.checks import number_problem, raise_problems
from prunus._utils.fields import checked, help_of, number, setting, value_problems
from prunus.allocation import Allocation
from prunus.constraint import Constraint, Mode, constraint_problems
from prunus.errors import ArgumentError, CheckpointError, PrunusError, listing, nearest
from prunus.growth import Growth
from prunus.methods import DecayOverEpoch, Method
from prunus.patterns import NM, Pattern
from prunus.penalties.coefficients import Coefficient, ConstantRelevance
from prunus.penalties.formula import Power
from prunus.penalties.relevance import APPLICATIONS, Apply, RelevancePenalty
from prunus.penalties.strengths import AutomaticStrength, Strength, UpdateStrength
from prunus.recipes.method_settings import (
    ALLOCATIONS,
    COEFFICIENTS,
    GROWTHS,
    SCHEDULES,
    SCORES,
    STRENGTHS,
    method_settings,
    named_method,
)
from prunus.recipes.pattern_setting import pattern_of, pattern_setting_problem
from prunus.recipes.setting_marks import Affects, NotWith, OnlyWith
from prunus.recipes.setting_values import (
    SettingRow,
    describe_choices,
    describe_type,
    fits_type,
    parse_value,
)
from prunus.schedules import GradualPruning, IterativePruning, OneShot, Schedule
from prunus.scores import FisherScore, Score

__all__ = ["Config", "setting_meant_by", "unknown_setting"]

_WITH_PENALTY = OnlyWith("penalty", ("relevance", "lobster", "l2", "l1"))
_WITH_GRADIENTS = OnlyWith("penalty", ("relevance", "lobster"))
_WITH_ITERATIVE = OnlyWith("schedule", ("iterative",))
_WITH_GRADUAL = OnlyWith("schedule", ("gradual",))
_WITH_BEGIN = OnlyWith("schedule", ("gradual", "oneshot"))


_OPTIONS = ("data", "dense", "log", "method", "out", "report", "resume", "seed", "threads")
"""The options of ``prunus run`` that a user may take for settings."""

_OTHER_NAMES = {
    other: name
    for name, others in {
        "lr": ("learning_rate", "max_lr"),
        "dense_lr": ("dense_learning_rate",),
        "ratio": ("sparsity", "target_sparsity", "final_sparsity", "amount", "density", "target"),
        "strength": ("gamma", "lambda", "lamda", "regularization", "l2", "weight_penalty"),
        "epochs": ("num_epochs", "max_epochs", "num_train_epochs", "n_epochs"),
        "batch_size": ("batch", "bs", "per_device_train_batch_size", "train_batch_size"),
        "max_grad_norm": ("gradient_clip_val", "clip_grad_norm", "grad_clip", "clip"),
        "accumulation": ("gradient_accumulation_steps", "accumulate_grad_batches"),
        "score": ("criterion", "importance", "saliency", "pruning_method"),
        "allocation": ("scope", "distribution", "sparsity_distribution"),
        "pattern": ("structure", "sparsity_type", "block", "nm"),
        "warmup": ("warmup_ratio", "warmup_steps", "pct_start"),
        "autocast": ("amp", "bf16", "mixed_precision", "precision"),
        "weight_decay": ("wd",),
        "flip": ("horizontal_flip", "hflip"),
        "shift": ("crop", "random_crop", "translate"),
        "width": ("hidden_size", "d_model", "n_embd", "embed_dim"),
        "heads": ("n_head", "num_heads", "num_attention_heads"),
        "layers": ("n_layer", "num_layers", "num_hidden_layers"),
        "length": ("max_length", "seq_len", "sequence_length", "block_size"),
        "vocabulary": ("vocab_size",),
        "beams": ("num_beams", "beam_size"),
    }.items()
    for other in others
}
"""The setting of each name that other tools use for it."""


def _ratio_problem(name: str, value: Any) -> str | None:
    if value == 0 or number_problem(name, value, above=1) is None:
        return None
    return (
        f"{name} must be above 1 (or 0 for no target, with schedule=iterative alone), but is "
        f"{value!r}"
    )


def _strength_problem(name: str, value: Any) -> str | None:
    if value == "auto" or number_problem(name, value, least=0) is None:
        return None
    return f"{name} must be a finite number of at least 0, or auto, but is {value!r}"


def _floor_problem(name: str, value: Any) -> str | None:
    return next(value_problems(Constraint, {name: value}))


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that all recipes share; those of a task are added by its subclass.

    The help text of each field describes it.

    Raises:
        ArgumentError: Values are out of bounds or conflict; every one is listed.
    """

    dense_epochs: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True,
        least=1,
        help="Epochs of ordinary training, which come first and train the dense network.",
    )
    epochs: int = number(whole=True, least=1, help="Epochs of pruning, including recovery.")
    batch_size: Annotated[int, Affects.DENSE_NETWORK] = number(
        whole=True, least=1, help="Examples per batch."
    )
    dense_lr: Annotated[float, Affects.DENSE_NETWORK] = number(
        above=0, help="Peak learning rate of the dense training."
    )
    lr: float = number(above=0, help="Peak learning rate of the pruning epochs.")
    strength: Annotated[float | Literal["auto"], _WITH_PENALTY] = checked(
        "auto",
        by=_strength_problem,
        help='Strength of the penalty, the factor γ; or "auto", with which an irrelevant weight '
        "halves from one validation to the next, and with penalty=l1 every weight shrinks by a "
        "fraction of the mean update.",
    )
    ratio: float = checked(
        by=_ratio_problem,
        help="Compression ratio to reach: all parameters / non-zero parameters; 0 for no target, "
        "which only schedule=iterative accepts.",
    )
    warmup: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.1,
        least=0,
        below=1,
        help="Fraction of the steps over which the learning rate rises; over the others it falls "
        "to 0 along a cosine.",
    )
    max_grad_norm: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.0, least=0, help="Largest norm of all gradients, to which they are clipped; 0 for none."
    )
    autocast: Annotated[bool, Affects.DENSE_NETWORK] = setting(
        False,
        help="Whether to train with matrix products in bfloat16. Weights, gradients and all "
        "measurements stay in float32.",
    )
    distillation: float = number(
        0.0,
        least=0,
        most=1,
        help="Fraction of the loss in the pruning epochs that compares with the predictions of the "
        "dense network instead of the labels; 0 for none. Costs a forward pass of the dense "
        "network.",
    )
    initial_weights: Literal["dense", "random"] = setting(
        "dense",
        help='Weights that pruning starts from: "dense", those of the dense network, or "random", '
        "newly initialized ones.",
    )
    penalty: Literal["relevance", "lobster", "l2", "l1", "none"] = setting(
        "relevance",
        help='Penalty: "relevance", the paper\'s, whose coefficient falls exponentially with the '
        'gradient; "lobster", whose coefficient falls linearly; "l2" and "l1", whose coefficient '
        'is constant; or "none".',
    )
    strength_schedule: Annotated[
        Literal["constant", "lr", "linear"], _WITH_PENALTY, NotWith("strength", "auto")
    ] = setting(
        "lr",
        help='Course of the strength: "constant"; "lr", γ times the learning rate; or "linear", a '
        "decay to 0 over an epoch that restarts at each pruning.",
    )
    alpha: Annotated[float, _WITH_GRADIENTS] = number(
        0.2, above=0, help="Scale of the gradient in the penalty's coefficient."
    )
    relative: Annotated[bool, _WITH_GRADIENTS] = setting(
        True, help="Whether alpha is in multiples of each tensor's mean gradient magnitude."
    )
    smoothing: Annotated[float, _WITH_GRADIENTS] = number(
        0.0,
        least=0,
        below=1,
        help="Weight of the past in the moving average of gradient magnitudes from which "
        '"relevance" and "lobster" compute the coefficient; 0 for the gradient of each step alone.',
    )
    apply: Annotated[Apply, _WITH_PENALTY] = setting(
        "decoupled",
        help='How the penalty is applied: "gradient", added to the gradient before the step; '
        '"loss", as a term in the loss; or "decoupled", by shrinking the weights after the step.',
    )
    schedule: Literal["iterative", "gradual", "oneshot"] = setting(
        "gradual",
        help='Schedule: "iterative", which removes a fraction whenever the floor is '
        'met; "gradual", along a cubic curve to the ratio; or "oneshot", all at once.',
    )
    schedule_begin: Annotated[float, _WITH_BEGIN] = number(
        0.0,
        least=0,
        below=1,
        help='Fraction of the pruning epochs after which "gradual" begins and "oneshot" removes.',
    )
    schedule_end: Annotated[float, _WITH_GRADUAL] = number(
        0.6,
        above=0,
        most=1,
        help='Fraction of the pruning epochs after which "gradual" has reached the ratio.',
    )
    fraction: Annotated[float, _WITH_ITERATIVE] = number(
        0.1,
        least=0,
        below=1,
        help='Fraction of the remaining weights that "iterative" removes each time; 0 to remove as '
        "much as the floor allows.",
    )
    patience: Annotated[int, _WITH_ITERATIVE] = number(
        0,
        whole=True,
        least=0,
        help='Consecutive validations below the floor after which "iterative" stops; 0 for never.',
    )
    floor: float | str | None = checked(
        None,
        by=_floor_problem,
        help="Bound on the validation metric that the delivered network must meet: a number, or "
        'relative to the dense network, such as "dense-0.005", or "dense-0.5%" for 0.5 percent of '
        'its metric ("dense+0.5%" for a loss).',
    )
    score: Literal["magnitude", "fisher", "sensitivity", "taylor", "movement", "random"] = setting(
        "fisher",
        help='Score whose smallest values are removed first: "fisher", the squared weight times '
        'the mean square of its gradient; "magnitude"; "sensitivity", PLATON\'s; "taylor", the '
        'weight times its gradient; "movement", whether training moves it away from zero; or '
        '"random".',
    )
    allocation: Literal["global", "uniform", "erk"] = setting(
        "global",
        help='Spread of the sparsity over the tensors: "global", one threshold for all; "uniform", '
        'the same density in each; or "erk", a higher density in smaller tensors (Erdős–Rényi).',
    )
    growth: Literal["none", "soft", "random", "gradient", "alternating"] = setting(
        "none",
        help='Whether removed weights may return: "none"; "soft", the optimizer also trains them, '
        'and they return when they are large; "random" (SET) and "gradient" (RigL), the smallest '
        "weights are exchanged for random removed ones or those of the largest gradient; or "
        '"alternating" (AC/DC), sparse and dense phases. Not with schedule=iterative.',
    )
    pattern: str | None = checked(
        None,
        by=pattern_setting_problem,
        help='Weights that are removed together: none; "2:4", so that of 4 consecutive inputs at '
        'most 2 stay, or other numbers; "1x4", blocks of 1 output × 4 inputs, or other sizes; '
        '"rows", "columns" or "channels". With n:m the ratio must be one that the pattern allows.',
    )
    biases: bool = setting(True, help="Whether biases may be removed too.")
    norms: bool = setting(
        False, help="Whether the weights of normalization layers may be removed too."
    )
    min_density: float = number(
        0.0, least=0, below=1, help="Smallest fraction of each tensor's weights to keep."
    )

    mode: ClassVar[Mode] = "max"
    """Whether the task's metric is to be maximised ("max") or minimised ("min")."""

    def __post_init__(self) -> None:
        problems = self._field_problems()
        raise_problems(*problems.values(), *self._conflicts(problems.keys()))

    def _field_problems(self) -> dict[str, str]:
        """Return what is wrong with each field by itself."""
        hints, problems = self._hints(), {}
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if check := field.metadata["check"]:
                problem = check.problem(field.name, value)
            else:
                fits = fits_type(value, hint)
                problem = None if fits else _type_problem(field.name, value, hint)
            if problem is not None:
                problems[field.name] = problem
        return problems

    def _conflicts(self, wrong: Collection[str]) -> Iterator[str | None]:
        """Yield the conflicts between settings.

        Args:
            wrong: The names of the settings that are wrong by themselves.
        """
        score_known = not {"score", "apply"} & set(wrong)
        if score_known and SCORES[self.score].memory_names and self.penalty_in_loss:
            yield (
                f"score={self.score} needs the gradient of the loss alone, which "
                f"apply={self.apply} does not provide: choose another apply or score"
            )
        if not {"penalty", "strength", "apply"} & set(wrong):
            yield self._automatic_strength_problem()
        if not {"growth", "schedule", "apply", "penalty"} & set(wrong):
            yield from self._growth_conflicts()
        if not {"growth", "pattern"} & set(wrong):
            yield self._pattern_conflict()
        smoothing_known = not {"smoothing", "apply"} & set(wrong)
        smooths = self.penalty in _WITH_GRADIENTS.values and self.smoothing
        if smoothing_known and smooths and not APPLICATIONS[self.apply].supports_smoothing:
            others = [name for name, way in APPLICATIONS.items() if way.supports_smoothing]
            smoothed = [f"apply={name}" for name in others]
            yield (
                f"smoothing needs {describe_choices(smoothed)}, but is {self.smoothing!r} with "
                f"apply={self.apply}: choose another apply, or smoothing=0"
            )
        if self.ratio == 0 and self.schedule != "iterative":
            yield (
                f"ratio must be above 1 with schedule={self.schedule}, but is {self.ratio!r}; "
                "only schedule=iterative accepts 0, for no target"
            )
        if "floor" not in wrong:
            yield from filter(None, constraint_problems(self.floor, self.mode, None))
        gradual = self.schedule == "gradual"  # the only schedule with an end
        bounds_known = not {"schedule_begin", "schedule_end"} & set(wrong)
        if bounds_known and gradual and self.schedule_begin >= self.schedule_end:
            yield (
                f"schedule_begin must be below schedule_end={self.schedule_end!r}, but is "
                f"{self.schedule_begin!r}"
            )

    def _automatic_strength_problem(self) -> str | None:
        if self.penalty == "none" or self.strength != "auto":
            return None
        automatic = (*_WITH_GRADIENTS.values, "l1")
        if self.apply == "decoupled" and self.penalty in automatic:
            return None
        penalties = [f"penalty={name}" for name in automatic]
        return (
            f"strength=auto needs apply=decoupled and {describe_choices(penalties)}, but is used "
            f"with apply={self.apply} and penalty={self.penalty}: set strength to a number"
        )

    def _growth_conflicts(self) -> Iterator[str]:
        growth = GROWTHS[self.growth]
        if growth is None:
            return
        if not SCHEDULES[self.schedule].supports_growth:
            others = [f"schedule={name}" for name, s in SCHEDULES.items() if s.supports_growth]
            yield (
                f"growth={self.growth} needs {describe_choices(others)}, but has "
                f"schedule={self.schedule}, which relies on removed weights staying removed"
            )
        if growth.trains_removed and self.penalty_in_loss:
            yield (
                f"growth={self.growth} trains removed weights, which apply={self.apply} does not "
                "shrink: choose another apply or growth"
            )

    def _pattern_conflict(self) -> str | None:
        growth, pattern = GROWTHS[self.growth], self.make_pattern()
        if growth is None or pattern is None:
            return None
        if isinstance(pattern, NM) and not growth.exchanges:
            return None
        return (
            f"growth={self.growth} lets weights return singly, which pattern={self.pattern} does "
            "not allow: set growth=none, or growth=soft or growth=alternating with pattern=n:m"
        )

    def with_settings(
        self,
        settings: Iterable[str],
        warn: Callable[[str], None] | None = None,
        *,
        method: Method | None = None,
        warn_of_changes: bool = True,
    ) -> Self:
        """Return this configuration with ``key=value`` settings applied.

        Args:
            settings: The settings.
            warn: Called with a message for each of the settings that has no effect with the others,
                for those that change the method, and for a strength that it lacks. Default: a
                ``UserWarning``.
            method: The method to apply before the settings, which may change its parts. What it
                leaves open stays as it is. Default None.
            warn_of_changes: Whether settings that change the method are worth a message. Default
                True.

        Raises:
            ArgumentError: A key is unknown or a value cannot be used; every one is listed.
        """
        hints = self._hints()
        problems, changes = [], {}
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals:
                problems.append(f"{text!r} is not of the form key=value")
            elif key not in hints:
                problems.append(unknown_setting(key, hints))
            else:
                try:
                    changes[key] = parse_value(value, hints[key])
                except ValueError:
                    problems.append(_type_problem(key, value, hints[key]))
        changed = self
        parts = {} if method is None else method_settings(method)
        try:
            changed = dataclasses.replace(self, **{**parts, **changes})
        except PrunusError as error:
            problems.append(str(error))
        if problems:
            raise ArgumentError("; ".join(problems))
        messages = list(changed._without_effect(changes))
        if method is not None and warn_of_changes:
            messages += self._changed_parts(method, changed)
        if method is not None:
            messages += self._open_strength(method, changed, changes)
        for message in messages:
            if warn is None:
                warnings.warn(message, stacklevel=2)
            else:
                warn(message)
        return changed

    def _without_effect(self, names: Iterable[str]) -> Iterator[str]:
        """Yield why settings have no effect, for those of these names that have none."""
        for name in names:
            for mark in self._marks(name):
                if isinstance(mark, NotWith | OnlyWith):
                    problem = mark.problem(name, getattr(self, mark.setting))
                    if problem is not None:
                        yield problem

    @staticmethod
    def _changed_parts(method: Method, changed: Config) -> Iterator[str]:
        """Yield a message if settings are not those of the method that was applied.

        Args:
            method: The method.
            changed: The settings.
        """
        others = [
            f"{name}={getattr(changed, name)} instead of {value}"
            for name, value in method_settings(method).items()
            if getattr(changed, name) != value and name != "schedule"
        ]
        if others:
            yield f"these settings are not those of the method {method.name}: {listing(others)}"

    def _open_strength(
        self, method: Method, changed: Config, settings: Collection[str]
    ) -> Iterator[str]:
        """Yield a message if the strength of a method is that of the recipe's own penalty.

        Args:
            method: The method that was applied to these settings.
            changed: The result.
            settings: The names of the settings that were passed.
        """
        other_penalty = self.penalty != changed.penalty != "none"
        chosen = "strength" in settings or changed.strength == "auto"
        if method.leaves_strength_open and other_penalty and not chosen:
            yield (
                f"the method {method.name} leaves the strength open: {self.strength!r} is the "
                f"recipe's for penalty={self.penalty}; set another one by --set strength=..."
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], path: Path) -> Self:
        """Return the configuration that :meth:`as_dict` returned.

        Args:
            settings: The settings by name.
            path: The file that they were read from, for the message.

        Raises:
            CheckpointError: Settings are missing, unknown or of another type.
            ArgumentError: Values are out of bounds or conflict.
        """
        hints = cls._hints()
        if settings.keys() != hints.keys():
            raise CheckpointError(
                f"the settings in {path} are those of another version: missing "
                f"{listing(sorted(hints.keys() - settings.keys())) or 'none'}; unknown "
                f"{listing(sorted(settings.keys() - hints.keys())) or 'none'}; start again in "
                "another --out"
            )
        damaged = [
            _type_problem(name, value, hints[name])
            for name, value in settings.items()
            if not fits_type(value, hints[name])
        ]
        if damaged:
            raise CheckpointError(
                f"the settings in {path} are damaged: {'; '.join(damaged)}. Restore the file from "
                "a copy, or start again in another --out"
            )
        return cls(**settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dataclasses.asdict(self)

    def rows(self) -> list[SettingRow]:
        """Return the rows of a table of the settings."""
        hints = self._hints()
        return [
            SettingRow(
                field.name,
                str(getattr(self, field.name)),
                describe_type(hints[field.name]),
                help_of(field),
            )
            for field in dataclasses.fields(self)
        ]

    @classmethod
    def _hints(cls) -> dict[str, Any]:
        """Return the type of each setting by its name."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def _marks(cls, name: str) -> tuple[Any, ...]:
        """Return the marks on the type of a setting."""
        hint = typing.get_type_hints(cls, include_extras=True)[name]
        return getattr(hint, "__metadata__", ())

    def settings_affecting(self, result: Affects) -> dict[str, Any]:
        """Return the settings that a result of the run depends on."""
        return {
            name: value for name, value in self.as_dict().items() if result in self._marks(name)
        }

    @property
    def penalty_in_loss(self) -> bool:
        """Whether there is a penalty that is applied as a term of the loss."""
        return self.penalty != "none" and APPLICATIONS[self.apply].in_loss

    @property
    def method_name(self) -> str | None:
        """The name of the method that these settings are of, or None if they are of none."""
        method = named_method(self.as_dict())
        return None if method is None else method.name

    @property
    def method(self) -> str:
        """The method in short, for tables: penalty, its application, schedule and score.

        Allocation, growth and pattern follow if they are not the usual ones.
        """
        penalty = self.penalty if self.penalty == "none" else f"{self.penalty} ({self.apply})"
        allocation = "" if self.allocation == "global" else f", {self.allocation}"
        growth = "" if self.growth == "none" else f", {self.growth} growth"
        pattern = "" if self.pattern is None else f", {self.pattern}"
        return f"{penalty}, {self.schedule}, {self.score}{allocation}{growth}{pattern}"

    def make_penalty(self, steps_per_epoch: int) -> RelevancePenalty | None:
        """Build the penalty; None with penalty=none."""
        if self.penalty == "none":
            return None
        coefficient_type, power = COEFFICIENTS[self.penalty]
        coefficient: Coefficient
        if issubclass(coefficient_type, ConstantRelevance):
            coefficient, smoothing = coefficient_type(), 0.0  # the same at each step anyway
        else:
            coefficient = coefficient_type(self.alpha, self.relative)
            smoothing = self.smoothing
        return RelevancePenalty(
            self._strength(steps_per_epoch, power),
            coefficient,
            power=power,
            apply=self.apply,
            smoothing=smoothing,
        )

    def _strength(self, steps_per_epoch: int, power: Power) -> Strength:
        if isinstance(self.strength, str):
            return UpdateStrength() if power == 1 else AutomaticStrength()
        strength = STRENGTHS[self.strength_schedule](self.strength)
        if isinstance(strength, DecayOverEpoch):
            return strength.over(steps_per_epoch)
        return strength

    def make_constraint(self, dense_metric: float | None = None) -> Constraint:
        """Build the constraint on the validation metric."""
        return Constraint(self.floor, self.mode, dense_metric)

    def make_schedule(self, *, kept: int, prunable: int, steps: int) -> Schedule:
        """Build the schedule.

        Args:
            kept: The number of prunable weights to keep in the end.
            prunable: The number of prunable weights.
            steps: The number of optimizer steps in the pruning epochs.
        """
        if self.schedule == "iterative":
            target = 1 - kept / prunable if self.ratio else None
            return IterativePruning(
                fraction=self.fraction or None, target=target, patience=self.patience or None
            )
        if self.schedule == "gradual":
            end = max(1, round(self.schedule_end * steps))
            begin = min(end - 1, round(self.schedule_begin * steps))
            # About a hundred removals, whatever the length of the run.
            every = max(1, (end - begin) // 100)
            return GradualPruning(kept=kept, begin=begin, end=end, every=every)
        at = max(1, round(self.schedule_begin * steps))
        return OneShot(sparsity=1 - kept / prunable, at=at)

    def make_growth(self, steps: int) -> Growth | None:
        """Build the growth; None with growth=none.

        Args:
            steps: The number of optimizer steps in the pruning epochs.
        """
        growth = GROWTHS[self.growth]
        return None if growth is None else growth.over(steps)

    def make_score(self) -> Score:
        """Build the score."""
        score = SCORES[self.score]
        if isinstance(score, FisherScore):
            return dataclasses.replace(score, examples=self.examples_per_step)
        return score

    @property
    def examples_per_step(self) -> int:
        """The number of examples whose gradients a step averages."""
        return self.batch_size

    def make_pattern(self) -> Pattern | None:
        """Build the pattern; None without one."""
        return None if self.pattern is None else pattern_of(self.pattern)

    def make_allocation(self) -> Allocation:
        """Build the allocation."""
        return ALLOCATIONS[self.allocation]


def setting_meant_by(name: str, known: Collection[str]) -> str | None:
    """Return the setting for which other tools use a name, if it is known.

    Args:
        name: The name.
        known: The names of the settings that exist.

    Example:
        >>> setting_meant_by("max-epochs", ["lr", "epochs"])
        'epochs'
    """
    meant = _OTHER_NAMES.get(name.lower().replace("-", "_"))
    return meant if meant in known else None


def unknown_setting(name: str, known: Collection[str]) -> str:
    """Return the message for a setting that does not exist, with the one that is probably meant.

    Args:
        name: The unknown name.
        known: The names of the settings that exist.

    Example:
        >>> unknown_setting("learning_rate", ["lr", "epochs"])
        "there is no setting 'learning_rate'; did you mean lr?"
    """
    meant = setting_meant_by(name, known)
    near = nearest(name, known) if meant is None else [meant]
    if name in _OPTIONS:
        hint = f"pass the option --{name} of prunus run"
    else:
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"there is no setting {name!r}; {hint}"


def _type_problem(name: str, value: Any, hint: Any) -> str:
    return f"{name} must be {describe_type(hint)}, but is {value!r}"
