"""The pruner: attaches penalty, masks, score and schedule to an optimizer. It holds all state."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from prunus._distributed.process_group import ProcessGroup, replica_group_of
from prunus._distributed.wrappers import check_wrappers, reshard, unwrap
from prunus._engine.best_state import BestState, no_state
from prunus._engine.optimizer_state import clear_state
from prunus._engine.removal import Remover
from prunus._engine.step_hooks import StepHooks
from prunus._utils.checks import (
    as_number,
    method_problem,
    number_problem,
    problem_of,
    raise_problems,
    type_problem,
)
from prunus.constraint import Constraint, Mode
from prunus.errors import (
    CheckpointError,
    FloorNotReachedError,
    NonFiniteError,
    PrunusError,
    listing,
)
from prunus.masks import Masks, clear_
from prunus.penalties.relevance import PenaltyTerm, RelevancePenalty
from prunus.penalties.strengths import ConstantStrength, as_strength
from prunus.schedules import Schedule
from prunus.scores import MagnitudeScore, Score
from prunus.selection import Selection, as_selection, check_model

__all__ = ["Pruner", "Validation", "wrong_choices"]


@dataclass(frozen=True)
class Validation:
    """What :meth:`Pruner.step` saw and did.

    Attributes:
        metric: The validation metric it was given, or None.
        floor: The floor as a number, or None if there is none.
        met: Whether the metric meets the floor.
        best: Whether the state was kept as the best so far.
        removed: How many weights were removed just now, after the metric was measured.
        sparsity: The sparsity after that.
    """

    metric: float | None
    floor: float | None
    met: bool
    best: bool
    removed: int
    sparsity: float


class Pruner:
    """Makes a model sparse while an ordinary training loop trains it.

    It listens to the optimizer's own step hooks. Before a step it adds the penalty's gradient and
    blanks the gradients of removed weights; after it, removed weights are set to exactly 0.0 again,
    whatever the optimizer did. The model itself is not changed in any other way: same modules, same
    ``state_dict`` keys.

    Args:
        model: Any module. Where several processes train it together give it as they train it:
            within DistributedDataParallel, after ``fully_shard`` or ``parallelize_module``.
        optimizer: Any ``torch.optim`` optimizer that takes dense gradients, or one of your own like
            them, which holds the model's prunable parameters. If it is wrapped around another one
            it must move the weights at each call of its ``step``, for each counts.
        penalty: What shrinks irrelevant weights; None for no penalty.
        schedule: When and how much to remove; None for never (:meth:`prune` does it by hand).
        floor: The validation metric that a delivered model must meet: a number, or relative to the
            dense network, "dense-0.005". Default None: any metric will do.
        mode: "max" (default) if larger metrics are better, "min" if smaller are.
        dense_metric: What "dense" means in a relative floor. Default None: the first metric that
            the pruner is given.
        score: What to remove first. Default: the smallest magnitude.
        selection: Which tensors may be pruned: a :class:`~prunus.Selection`, or a function that
            returns one, given the model. Default: ``select``, the weights of all layers.
        masks: Masks to start from, such as ``Masks.from_zeros(selection)``. Default: those in force
            on the model's parameters from another pruner, else none removed.
        min_density: The share of each tensor's prunable weights that is never removed, rounded up.
            Default 1e-4, so that no layer is emptied.
        keep_best: Whether to keep a copy of the best state for :meth:`finish`. Default True.
        max_grad_norm: Clip the norm of all gradients in the optimizer to this, within the step, by
            the same rule as ``torch.nn.utils.clip_grad_norm_``. Default None: no clipping. Clipping
            before the step makes gradients smaller, so that weights look less relevant than they
            are, unless the coefficient is ``relative``; here relevance is that of the gradients
            before they are clipped.

    Raises:
        PrunusError: An argument is of another kind or out of range, a chosen tensor cannot be
            pruned, is not the model's, or the optimizer does not hold it.
        PeerError: Another process that trains the model did not do as this one did.

    With several processes each builds a pruner, and all must call :meth:`step`, :meth:`prune`,
    :meth:`consider`, :meth:`finish` and :meth:`state_dict` alike. What is removed is then the same
    in all, and the same as if one process held the whole model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(100, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = Pruner(model, optimizer, penalty=RelevancePenalty(strength=1e-4))
        >>> pruner.prune(sparsity=0.9)
        90
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 100)).square().mean().backward()
        ...     optimizer.step()
        >>> int(model.weight.count_nonzero()), pruner.sparsity
        (10, 0.9)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        penalty: RelevancePenalty | None = None,
        schedule: Schedule | None = None,
        *,
        floor: float | str | None = None,
        mode: Mode = "max",
        dense_metric: float | None = None,
        score: Score | None = None,
        selection: Selection | Callable[[nn.Module], Selection] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        min_density: float = 1e-4,
        keep_best: bool = True,
        max_grad_norm: float | None = None,
    ) -> None:
        raise_problems(
            problem_of(check_model, model),
            problem_of(_check_optimizer, optimizer),
            problem_of(Constraint, floor, mode, dense_metric),
            *wrong_choices(penalty, schedule, score, min_density, selection),
            type_problem("masks", masks, Mapping, "masks by name", optional=True),
            # Infinity limits nothing, as in torch's function.
            None
            if isinstance(max_grad_norm, Real) and max_grad_norm == math.inf
            else number_problem("max_grad_norm", max_grad_norm, above=0, optional=True),
        )
        check_wrappers(model)
        if score is not None and score.uses_gradient and penalty and penalty.apply == "loss":
            raise PrunusError(
                f"{type(score).__name__} needs the gradient of the loss alone, but with "
                'apply="loss" the gradient of the optimizer includes the penalty: choose another '
                "apply= or another score"
            )
        self.model: nn.Module = unwrap(model)
        self.optimizer = optimizer
        # A copy, for a schedule keeps count, and one that is used twice would count on.
        self.schedule = Schedule() if schedule is None else copy.deepcopy(schedule)
        self.score: Score = MagnitudeScore() if score is None else score
        self.selection = as_selection(selection, self.model)
        self.min_density = min_density
        self.keep_best = keep_best
        self.max_grad_norm = max_grad_norm
        self._penalty = penalty
        _check_held(self.selection, optimizer)
        self._check_in_model()
        self._process_group = self._find_world(model)
        _check_alone(self)
        _warn_of_rounding(penalty, self.selection)
        self._strength = as_strength(0.0 if penalty is None else penalty.strength)
        self._prunable = self.selection.prunable
        self._constant_strengths = (
            dict.fromkeys(self.selection, self._strength.gamma)
            if isinstance(self._strength, ConstantStrength)
            else {}
        )
        self.constraint = Constraint(floor, mode, dense_metric)
        self._best = BestState()
        self._steps = 0
        self._steps_since_pruning = 0
        self._prunings = 0
        self.masks = Masks.attached(self.selection)
        if masks is not None:
            reshard(self.model)
            self.masks.intersect_(masks)
            self.masks.apply_()
        self._hooks = StepHooks(
            self.model,
            optimizer,
            self.masks,
            penalty,
            self.score,
            max_grad_norm=max_grad_norm,
            strengths=self._strengths,
            stepped=self._count_step,
        )

    def _find_world(self, model: nn.Module) -> ProcessGroup:
        """Return the processes that train the model together."""
        if self._penalty is not None and self._penalty.apply == "loss":
            # To be refused before anything is attached, if the model is sharded.
            PenaltyTerm(self._penalty, self.selection, dict)
        own = self.selection.process_group
        device = next(iter(self.selection.values())).parameter.device
        return own if own.sharded else replica_group_of(model, device)

    def __repr__(self) -> str:
        return (
            f"Pruner({len(self.selection)} tensors, {self.masks.kept:,} of "
            f"{self.selection.prunable:,} weights kept, sparsity {self.sparsity:.4f})"
        )

    @property
    def sparsity(self) -> float:
        """Removed weights / prunable weights."""
        return self.masks.sparsity

    @property
    def done(self) -> bool:
        """Whether the schedule has nothing left to do: time for :meth:`finish`."""
        return self.schedule.done

    @property
    def floor(self) -> float | None:
        """The floor as a number, or None if there is none or the dense metric is not known yet."""
        constraint = self.constraint
        known = constraint.floor is not None and not constraint.needs_dense_metric
        return constraint.bound if known else None

    @property
    def penalty(self) -> PenaltyTerm:
        """The penalty as a term for the loss: ``loss = loss + pruner.penalty(loss)``.

        Raises:
            PrunusError: The pruner has no penalty, or applies it itself, so that a term in the loss
                would apply it twice.
        """
        if self._penalty is None or self._penalty.apply != "loss":
            came = "no penalty" if self._penalty is None else f'apply="{self._penalty.apply}"'
            raise PrunusError(
                'pruner.penalty(loss) needs a pruner with RelevancePenalty(..., apply="loss"), but '
                f"this one has {came}"
            )
        return self._hooks.term(self._penalty)

    def step(self, metric: float | None = None) -> Validation:
        """Tell the pruner of a validation, as one tells ``ReduceLROnPlateau``.

        If the metric meets the floor and the state is the sparsest so far (or as sparse and better)
        it is kept for :meth:`finish`. Then the schedule may remove weights.

        Args:
            metric: The validation metric just measured. Optional for schedules that do not need it.

        Returns:
            What was seen and done.

        Raises:
            NonFiniteError: The metric is NaN or infinite, or scores are NaN.
            PrunusError: The schedule needs a metric and got none, something set removed weights to
                other values, so that the metric is not that of the sparse network, or processes
                have different metrics or weights.
            PeerError: Another process did not answer.
        """
        if metric is None and (self.schedule.needs_metric or self.constraint.floor is not None):
            raise PrunusError(
                f"{type(self.schedule).__name__} with floor={self.constraint.floor!r} needs the "
                "validation metric: call pruner.step(metric)"
            )
        metric = None if metric is None else as_number(_METRIC, metric)
        self._agree_on(metric)
        best = metric is not None and self._consider(metric)
        met = metric is None or self.constraint.met(metric)
        least, before = self._remover().least, self.schedule.state_dict()
        answer = self.schedule.after_validation(
            met=met, prunable=self._prunable, kept=self.masks.kept, least=least
        )
        try:
            removed = 0 if answer is None else self._lower(max(answer, least))
        except PrunusError:
            self.schedule.load_state_dict(before)  # for what it counts as done was not
            raise
        return Validation(metric, self.floor, met, best, removed, self.sparsity)

    def consider(self, metric: float) -> bool:
        """Keep the present state for :meth:`finish` if it is the best so far, and remove nothing.

        :meth:`step` does this by itself. It is for a state that shall be delivered if pruning finds
        no better one, such as the dense network.

        Args:
            metric: The validation metric of the present state.

        Returns:
            Whether the state was kept.

        Raises:
            NonFiniteError: The metric is NaN or infinite.
            PrunusError: Something set removed weights to other values, or processes have different
                metrics.
            PeerError: Another process did not answer.
        """
        metric = as_number(_METRIC, metric)
        self._agree_on(metric)
        return self._consider(metric)

    def _consider(self, metric: float) -> bool:
        self._check_in_model()
        self._check_zeros()
        if not math.isfinite(metric):
            raise NonFiniteError(f"{_METRIC} must be finite, but is {metric}")
        self.constraint = self.constraint.with_dense_metric(metric)
        return (
            self.keep_best
            and self.constraint.met(metric)
            and self._best.offer(self.model, self.masks, metric, self.constraint)
        )

    def prune(self, *, sparsity: float | None = None, kept: int | None = None) -> int:
        """Remove weights now, down to a sparsity or a number of kept prunable weights.

        Returns:
            How many were removed.

        Raises:
            PrunusError: Not exactly one of the two was given, it is out of range, ``min_density``
                forbids it, or processes have different weights.
            NonFiniteError: Scores are NaN.
            PeerError: Another process did not answer.
        """
        if (sparsity is None) == (kept is None):
            raise PrunusError(f"give either sparsity or kept, but got {sparsity=} and {kept=}")
        prunable = self.selection.prunable
        if sparsity is not None:
            raise_problems(number_problem("sparsity", sparsity, least=0, most=1))
            kept = prunable - round(sparsity * prunable)
        assert kept is not None
        raise_problems(number_problem("kept", kept, whole=True, least=0, most=prunable))
        return self._lower(kept)

    def finish(self) -> None:
        """Bring back the sparsest state that met the floor, the best of them by the metric.

        Without any metric given so far, or with ``keep_best=False``, the present state stays.

        Raises:
            FloorNotReachedError: There is a floor and no validation met it.
            PrunusError: Layers of the model were replaced since.
        """
        if self._best.kept is not None:
            self._check_in_model()
            reshard(self.model)
            self._best.restore(self.model, self.masks)
            self._hooks.remainders.clear()  # which were those of other weights
        elif self.constraint.floor is not None and self.keep_best:
            floor = "unknown" if self.floor is None else f"{self.floor:.6g}"
            raise FloorNotReachedError(
                f"no validation met the floor {self.constraint.floor!r} ({floor}): lower the "
                "floor, train longer, or remove less"
            )

    def detach(self) -> None:
        """Stop: leave the optimizer alone and forget the masks. The zeros stay in the weights."""
        self._hooks.remove()
        _attached.get(self.optimizer, WeakSet()).discard(self)
        self.masks.detach()

    def state_dict(self, *, complete: bool | None = None) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain numbers.

        Masks are packed eight weights to a byte. The model and the optimizer are saved by their own
        ``state_dict``, beside this.

        Args:
            complete: Whether to hold a place for everything that may ever be in it, as
                `torch.distributed.checkpoint` needs, which reads a checkpoint into what is there.
                Default: for models that are sharded over processes, all of which must call this
                then. Say True to read a checkpoint of such a model into one that is not sharded.

        Raises:
            PeerError: Another process did not answer.
        """
        complete = self._process_group.sharded if complete is None else complete
        return {
            "masks": self.masks.packed(),
            "steps": self._steps,
            "steps_since_pruning": self._steps_since_pruning,
            "prunings": self._prunings,
            "dense_metric": self.constraint.dense_metric,
            "schedule": self.schedule.state_dict(),
            **self._hooks.state_dict(complete=complete),
            "best": self._best.state_dict(
                self.model, self.masks, complete=complete and self.keep_best
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, and zero the removed weights.

        Raises:
            CheckpointError: The state is not a pruner's or of another model.
        """
        _check_state(state, self._hooks.KEYS)
        self._hooks.check(state)
        self._best.check(state["best"], self.model, self.masks)
        reshard(self.model)
        # All that may be refused comes before the first change.
        schedule = copy.deepcopy(self.schedule)
        try:
            schedule.load_state_dict(state["schedule"])
        except (KeyError, TypeError, ValueError, PrunusError) as error:
            raise CheckpointError(f"this is not the state of this Pruner: {error}") from error
        self.masks.load_packed(state["masks"])
        self.masks.apply_()
        self._steps = int(state["steps"])
        self._steps_since_pruning = int(state["steps_since_pruning"])
        self._prunings = int(state["prunings"])
        self.constraint = replace(self.constraint, dense_metric=state["dense_metric"])
        self.schedule = schedule
        self._hooks.load_state_dict(state)
        self._best.load_state_dict(state["best"], self.model)

    def _agree_on(self, metric: float | None) -> None:
        self._process_group.check_equal(
            {
                "number of validation metrics": float(metric is not None),
                "validation metric": 0.0 if metric is None else metric,
            },
            "call pruner.step(metric) in all of them, with what was measured over all of the data, "
            "or averaged over the processes",
        )

    def _check_in_model(self) -> None:
        """Refuse to work on tensors that are not, or no longer, the model's."""
        if self.selection.process_group.sharded:
            return  # while a layer is gathered, the model shows other tensors than these
        held = {id(parameter) for parameter in self.model.parameters()}
        foreign = [n for n, target in self.selection.items() if id(target.parameter) not in held]
        if foreign:
            raise PrunusError(
                f"the tensors to prune must be the model's own, but {listing(foreign)} are not: "
                "select them from this very model, and if layers were replaced since, build "
                "optimizer and Pruner anew"
            )

    def _check_zeros(self) -> None:
        revived = self.masks.revived()
        self._process_group.check_equal(
            {"number of removed weights that are not zero": float(sum(revived.values()))},
            _UNLIKE,
        )
        if revived:
            counts = [f"{name} ({count:,})" for name, count in revived.items()]
            raise PrunusError(
                f"removed weights are not zero in {listing(counts)}: since the last step of this "
                "pruner's optimizer something else changed them, such as load_state_dict or "
                "another optimizer, which needs a Pruner of its own. Call pruner.masks.apply_() "
                "before you validate, or detach() this pruner"
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PrunusError(
            "a Pruner is tied to its optimizer and cannot be copied or pickled: save "
            "pruner.state_dict(), and load it into a new Pruner of the copied model and optimizer"
        )

    def _count_step(self) -> None:
        self._steps += 1
        self._steps_since_pruning += 1
        answer = self.schedule.after_step(step=self._steps, prunable=self._prunable)
        if answer is not None:
            self._lower(max(answer, self._remover().least))

    def _strengths(self) -> dict[str, float]:
        """Return γ of each tensor at this step; it may follow its group's learning rate."""
        if isinstance(self._strength, ConstantStrength):
            return self._constant_strengths
        gamma = {
            id(parameter): self._strength.value(
                lr=float(group.get("lr", 1.0)), steps_since_pruning=self._steps_since_pruning
            )
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        }
        return {name: gamma[id(target.parameter)] for name, target in self.selection.items()}

    def _remover(self) -> Remover:
        return Remover(
            self.masks, self.score, self._hooks.memory, self.min_density, seed=self._prunings
        )

    def _lower(self, kept: int) -> int:
        """Remove weights until ``kept`` are left; return how many that took."""
        before = self.masks.kept
        self._check_in_model()
        reshard(self.model)
        agree = None
        if self._process_group.group is not None and not self._process_group.sharded:
            agree = partial(self._process_group.check_equal, fix=_UNLIKE)
        for name in self._remover().keep(kept, agree):
            target = self.selection[name]
            clear_(target.weight, self.masks[name])
            if target.gradient is not None:
                clear_(target.gradient, self.masks[name])
            clear_state(self.optimizer, target.parameter, self.masks[name])
        removed = before - self.masks.kept
        if removed:
            self._prunings += 1
            self._steps_since_pruning = 0
        return removed


_METRIC = "the validation metric"

_UNLIKE = (
    "their weights differ, so that they cannot prune alike. Let each start from the same state, "
    "and change weights through the optimizer alone"
)

_attached: MutableMapping[torch.optim.Optimizer, WeakSet[Pruner]] = WeakKeyDictionary()


def _check_alone(pruner: Pruner) -> None:
    """Refuse a second penalty on the same tensors and optimizer: it would count twice."""
    others = _attached.setdefault(pruner.optimizer, WeakSet())
    mine = {id(target.parameter) for target in pruner.selection.values()}
    for other in others:
        theirs = {id(target.parameter) for target in other.selection.values()}
        if pruner._penalty is not None and other._penalty is not None and mine & theirs:
            raise PrunusError(
                "this optimizer has a Pruner with a penalty on these tensors already, and a second "
                "penalty would come on top of it: call detach() on the other one first, or build a "
                "new optimizer if the other one is out of reach"
            )
        if (pruner.max_grad_norm or other.max_grad_norm) is not None:
            raise PrunusError(
                "with max_grad_norm an optimizer may have one Pruner only, for a second one would "
                "see gradients that are clipped already: call detach() on the other one first"
            )
    others.add(pruner)


def wrong_choices(
    penalty: object, schedule: object, score: object, min_density: object, selection: object
) -> Iterator[str | None]:
    """Say what is wrong with what a pruner is given besides model and optimizer."""
    yield type_problem("penalty", penalty, RelevancePenalty, "a RelevancePenalty", optional=True)
    yield type_problem("schedule", schedule, Schedule, "a Schedule", optional=True)
    if score is not None:
        blind = getattr(score, "uses_gradient", None) is False  # and so is never asked to observe
        methods = ["compute"] if blind else ["observe", "compute"]
        yield method_problem("score", score, methods, "a Score", attributes=["uses_gradient"])
    yield number_problem("min_density", min_density, least=0, below=1)
    yield type_problem(
        "selection",
        selection,
        (Selection, Callable),  # type: ignore[arg-type]  # a class to Python, and none to mypy
        "a Selection, or a function that returns one, given the model",
        mend="prunus.select(model, include=...)",
        optional=True,
    )


def _check_optimizer(optimizer: object) -> None:
    raise_problems(
        type_problem("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim optimizer")
    )
    # A wrapper that is one by name only has nothing to hook into: torch asks for these at each step
    # and offers no other way to tell.
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise PrunusError(
            f"optimizer must have torch.optim's step hooks, but {type(optimizer).__name__} has "
            "none: give the one that it is wrapped around, or use what prunus.integrations has for "
            "it, AcceleratedPruner for accelerate"
        )


def _check_state(state: Mapping[str, Any], remembered: Sequence[str]) -> None:
    """Make sure that a state has everything that a pruner's has, of the kinds it should be."""
    counts = ("steps", "steps_since_pruning", "prunings")
    parts = ("masks", "schedule", *remembered, "best")
    raise_problems(type_problem("it", state, Mapping, "a mapping"), error=no_state)
    missing = [key for key in (*parts, *counts, "dense_metric") if key not in state]
    raise_problems(f"it lacks {listing(missing)}" if missing else None, error=no_state)
    raise_problems(
        *(type_problem(key, state[key], Mapping, "a mapping") for key in parts),
        *(number_problem(key, state[key], whole=True, least=0) for key in counts),
        number_problem("dense_metric", state["dense_metric"], optional=True),
        error=no_state,
    )


def _warn_of_rounding(penalty: RelevancePenalty | None, selection: Selection) -> None:
    if penalty is None or penalty.apply == "decoupled":
        return
    short = [name for name, t in selection.items() if t.parameter.element_size() < 4]
    if short:
        warnings.warn(
            f"with apply={penalty.apply!r} the optimizer rounds what the penalty shrinks to the 16 "
            f"bits of {listing(short)}, which may lose all of it: choose apply='decoupled', which "
            "keeps what rounding takes, or train float32 weights under torch.autocast",
            stacklevel=3,
        )


def _check_held(selection: Selection, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, target in selection.items() if id(target.parameter) not in held]
    if missing:
        raise PrunusError(
            f"the optimizer must hold every prunable tensor, but it lacks {listing(missing)}: "
            "build it from this model's parameters, after any .to(device) that replaces them, or "
            "leave these tensors out with select(model, exclude=...)"
        )
