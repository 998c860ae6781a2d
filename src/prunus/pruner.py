"""Pruner: attaches penalty, masks, score and schedule to an optimizer; saves and loads state."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import nn

from prunus._distributed.process_group import CheckEqual, ProcessGroup, replica_group_of
from prunus._distributed.wrappers import check_wrappers, deepspeed_problem, reshard, unwrap
from prunus._engine.best_state import BestState
from prunus._engine.default_method import (
    DEFAULT_ALLOCATION,
    DEFAULT_SCORE,
    PenaltyChoice,
    with_defaults,
)
from prunus._engine.finish_notice import FinishNotice
from prunus._engine.growth_state import check_growth_state, growth_state, load_growth_state
from prunus._engine.mask_editor import Editor
from prunus._engine.optimizers import Optimizers, as_list, optimizer_problems
from prunus._engine.preconditions import (
    argument_problems,
    bound_allocation,
    check_growth,
    check_in_model,
    check_patterns,
    check_penalty,
    check_sole_pruner,
    check_state,
    grad_norm_problem,
    missing_metric_problem,
    warn_of_rounding,
)
from prunus._engine.removal import Remover
from prunus._engine.state_errors import state_error
from prunus._engine.step_hooks import StepHooks
from prunus._engine.step_monitor import StepMonitor
from prunus._engine.step_state import COUNT_KEYS, TENSOR_KEYS
from prunus._engine.strength_tracker import StrengthTracker
from prunus._engine.trial import restored
from prunus._utils.checks import (
    as_number,
    either_problem,
    number_problem,
    raise_problems,
    type_problem,
)
from prunus.allocation import Allocation
from prunus.constraint import Constraint, Mode, constraint_problems
from prunus.errors import (
    FloorNotReachedError,
    NonFiniteError,
    PrunusError,
    listing,
)
from prunus.growth import AlternatingGrowth, Growth, NoGrowth, RandomGrowth
from prunus.history import History
from prunus.masks import Masks
from prunus.patterns.binding import PatternChoice, bind, descriptions
from prunus.penalties.loss_application import LossApplication, PenaltyTerm
from prunus.penalties.strengths import as_strength
from prunus.schedules import PruningStatus, Restore, Schedule
from prunus.scores import Score
from prunus.selection import Selection, as_selection, model_problem
from prunus.validation import PenaltyReport, Validation

__all__ = ["Pruner"]


class Pruner:
    """Makes a model sparse while an ordinary training loop trains it.

    It works through the optimizers' own step hooks. Before a step it adds the penalty's gradient
    and zeroes the gradients of removed weights; after it, removed weights are set to exactly 0.0
    again, whatever the optimizer did, unless ``growth`` lets them return. The model is not changed
    in any other way: same modules, same ``state_dict`` keys.

    Args:
        model: Any module. If several processes train it together, the module that they train:
            within DistributedDataParallel, after ``fully_shard`` or ``parallelize_module``.
        optimizer: Any ``torch.optim`` optimizer that accepts dense gradients, or a custom one like
            them, that holds the model's prunable parameters. If it is wrapped around another one it
            must move the weights at each call of its ``step``, because each call counts as a step.
            Several optimizers, such as Muon for matrices and AdamW for the rest, are passed as a
            list. Each acts on its own tensors, and a step counts once every one has taken at least
            one, so that weights are removed after the last of them.
        penalty: The penalty that shrinks irrelevant weights; None for no penalty. Default "auto":
            ``RelevancePenalty()``, which finds its strength, if the schedule removes weights.
        schedule: When and how much to remove. Default None: with a floor ``IterativePruning()``,
            which removes as much as the floor allows; without one nothing is removed, except by
            :meth:`prune`. ``Schedule()`` removes nothing in any case.
        floor: The validation metric that a delivered model must meet: a number, in the metric's
            unit, or relative to the dense network: "dense-0.5%" is 0.5 percent of the dense metric
            below it, "dense-0.005" is 0.005 below it, in the metric's unit. With ``mode="min"``,
            "dense+2%". Default None: any metric meets it.
        mode: "max" (default) if larger metrics are better, "min" if smaller are.
        dense_metric: The metric that "dense" stands for in a relative floor. Default None: the
            first metric that the pruner receives.
        score: The order of removal, smallest first. Default: ``FisherScore()``, the estimated
            effect on the loss. ``MagnitudeScore()`` is the paper's.
        allocation: The spread of the sparsity over the tensors. Default: ``GlobalAllocation()``,
            one threshold for all.
        selection: Which tensors may be pruned: a :class:`~prunus.Selection`, or a function that
            returns one, given the model. Default: ``select``, the weights of all layers.
        masks: Masks to start from, such as ``Masks.from_zeros(selection)``. Default: those that
            another pruner has attached to the model's parameters, else full ones.
        min_density: The fraction of each tensor's prunable weights that is never removed, rounded
            up. Default 1e-4, so that no layer is emptied.
        keep_best: Whether to keep a copy of the best state for :meth:`finish`. Default True.
        max_grad_norm: Maximum norm of all gradients of an optimizer, to which they are clipped
            within its step by the rule of ``torch.nn.utils.clip_grad_norm_``. Default None: no
            clipping. Clipping before the step makes gradients smaller, so that weights look less
            relevant than they are, unless the coefficient is ``relative``; here relevance is
            computed from the gradients before they are clipped.
        growth: The rule by which removed weights may return, such as :class:`~prunus.SoftGrowth`.
            Default None: removed weights stay removed. Schedules that rely on that,
            IterativePruning (the default with a floor) and ThresholdSearch, do not accept a growth.
        pattern: Which weights are removed together: a :class:`~prunus.patterns.Pattern`, such as
            ``Block(1, 4)``, of every tensor of two dimensions or more; or patterns by name pattern,
            as for :func:`~prunus.select`, where other tensors have none. Groups are removed in the
            order of their mean scores, and never more weights than asked for. Default None: single
            weights.

    Raises:
        ArgumentError: An argument is out of range, or the allocation does not fit the model or the
            schedule; every problem is listed.
        ArgumentTypeError: Arguments have the wrong type, and no other is out of range.
        PrunusError: A selected tensor cannot be pruned, is not the model's, or the optimizer does
            not hold it.
        PeerError: Another process that trains the model did not make the same calls.

    With several processes each builds a pruner, and all must make the same calls of :meth:`step`,
    :meth:`prune`, :meth:`consider`, :meth:`finish` and :meth:`state_dict`. The removed weights are
    then the same in all, and the same as if one process held the whole model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(20, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> pruner = Pruner(model, optimizer, floor=0.5, mode="min")
        >>> for _ in range(40):
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         x = torch.randn(64, 20)
        ...         loss = (model(x)[:, 0] - x[:, 0]).square().mean()  # depends on one input only
        ...         loss.backward()
        ...         optimizer.step()
        ...     validation = pruner.step(loss.item())
        >>> pruner.finish()
        >>> pruner.masks["weight"].nonzero().tolist()
        [[0, 0]]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        penalty: PenaltyChoice = "auto",
        schedule: Schedule | None = None,
        *,
        floor: float | str | None = None,
        mode: Mode = "max",
        dense_metric: float | None = None,
        score: Score = DEFAULT_SCORE,
        allocation: Allocation = DEFAULT_ALLOCATION,
        selection: Selection | Callable[[nn.Module], Selection] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        min_density: float = 1e-4,
        keep_best: bool = True,
        max_grad_norm: float | None = None,
        growth: Growth | None = None,
        pattern: PatternChoice = None,
    ) -> None:
        raise_problems(deepspeed_problem(model, *as_list(optimizer)), error=PrunusError)
        raise_problems(
            model_problem(model),
            *optimizer_problems(optimizer),
            *constraint_problems(floor, mode, dense_metric),
            *argument_problems(
                penalty, schedule, score, allocation, growth, pattern, min_density, selection
            ),
            type_problem("masks", masks, Mapping, "masks by name", optional=True),
            grad_norm_problem(max_grad_norm),
        )
        check_wrappers(model)
        self.model: nn.Module = unwrap(model)
        # With a penalty of the caller's choice, it may be all that is wanted.
        self._without_plan = schedule is None and floor is None and penalty == "auto"
        penalty, self.schedule = with_defaults(penalty, schedule, floor)
        check_growth(growth, penalty, self.schedule, pattern)
        self.score: Score = score
        self.allocation: Allocation = allocation
        self.selection = as_selection(selection, self.model)
        self.min_density = min_density
        self.keep_best = keep_best
        self.max_grad_norm = max_grad_norm
        self.growth = growth
        self.constraint = Constraint(floor, mode, dense_metric)
        dense_metric = self.constraint.dense_metric
        if dense_metric is not None and (wide := self.constraint.wide_problem(dense_metric)):
            warnings.warn(wide, stacklevel=2)
        self._penalty = penalty
        self.optimizers = Optimizers(as_list(optimizer), self.selection)
        check_in_model(self.selection, self.model)
        check_penalty(penalty, score, self.selection)
        if pattern is not None:
            reshard(self.model)  # while a layer is gathered its tensors are other ones
        self.pattern: PatternChoice = pattern
        self._patterns = bind(pattern, self.model, self.selection)
        self._allocation = bound_allocation(
            self.allocation, self.model, self.selection, min_density, self.schedule, self._patterns
        )
        self._process_group = _process_group_of(model, self.selection)
        self._register()
        warn_of_rounding(penalty, self.selection)
        self._prunable = self.selection.prunable
        self._strengths = StrengthTracker(
            as_strength(0.0 if penalty is None else penalty.strength),
            self.optimizers,
            self.selection,
            self.schedule.interval,
            lambda: self.schedule.done,
        )
        self._best = BestState()
        self._history: list[Validation] = []
        self._notice = FinishNotice(self)
        self._validations = 0
        self._best_metric: float | None = None
        self._steps = 0
        self._prunings = 0
        self._last_metric: float | None = None
        self._predicted_cost: float | None = None
        self._unmeasured_removal = False
        """Whether weights were removed since the last validation, other than by it."""
        self._relative_at: tuple[int, bool] | None = None
        """A number of steps, and whether a relative penalty acts in the next one."""
        self.masks = Masks.attached(self.selection)
        if masks is not None:
            reshard(self.model)
            self.masks.intersect_(masks)
            self.masks.apply_()
        self._editor = Editor(
            self.masks,
            self.optimizers,
            remover=self._remover,
            remainders=self._remainders,
            final=lambda: self._final,
            removed=self._count_removal,
            check_equal=self._check_equal_replicas(),
        )
        self._monitor = StepMonitor(self.optimizers, self.selection)
        make_rule = NoGrowth if growth is None else growth.rule
        self._growth = make_rule(self._editor, lambda: self._steps)
        self._hooks = StepHooks(
            self.model,
            self.optimizers,
            self.masks,
            penalty,
            self.score,
            self._growth,
            max_grad_norm=max_grad_norm,
            strengths=self._strengths.values,
            update_probe=self._strengths.update_probe,
            steps_since_pruning=lambda: self._strengths.steps_since_pruning,
            optimizer_stepped=self._monitor.count_step,
            stepped=self._count_step,
        )

    def _register(self) -> None:
        """Add this pruner to those of its optimizers, if they go together."""
        registered = [_pruners.setdefault(optimizer, WeakSet()) for optimizer in self.optimizers]
        others = {id(pruner): pruner for pruners in registered for pruner in pruners}.values()
        check_sole_pruner(
            self.selection,
            self._penalty,
            self.max_grad_norm,
            self.growth,
            ((p.selection, p._penalty, p.max_grad_norm, p.growth) for p in others),
        )
        for pruners in registered:
            pruners.add(self)

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
    def slack(self) -> int:
        """By how many weights the next removal may fall short of what it is asked for.

        Groups of a pattern are removed whole; 0 if weights are removed singly. If the model is
        sharded all processes must read this together.
        """
        return self._remover().slack

    @property
    def done(self) -> bool:
        """Whether the schedule has nothing left to remove, and no weight returns any more.

        The network has yet to recover from the last removal then, so train on for the planned
        epochs, until the learning rate has fallen. It is a reason to stop only if the number of
        epochs is open: IterativePruning with ``patience`` and a constant learning rate.
        """
        return self.schedule.done and self._growth.ended

    @property
    def floor(self) -> float | None:
        """The floor as a number, or None if there is none or the dense metric is not known yet."""
        constraint = self.constraint
        known = constraint.floor is not None and not constraint.needs_dense_metric
        return constraint.bound if known else None

    @property
    def reads_removed_gradients(self) -> bool:
        """Whether the next optimizer step reads the gradients of removed weights, too.

        A growth does unless it is an AlternatingGrowth or a RandomGrowth, and so does a penalty
        whose coefficient is relative to the mean magnitude of a tensor's gradients, in the steps in
        which it acts. Clipping, which includes them in the norm, does not count.
        """
        if not self._growth.ended and not isinstance(self.growth, AlternatingGrowth | RandomGrowth):
            return True
        if self._penalty is None or not self._penalty.coefficient.relative:
            return False
        if self._penalty.smoothing:
            return True  # the averages include the gradients of all steps
        if self._relative_at is None or self._relative_at[0] != self._steps:
            acts = any(strength > 0 for strength in self._strengths.values().values())
            self._relative_at = self._steps, acts
        return self._relative_at[1]

    @property
    def penalty(self) -> PenaltyTerm:
        """The penalty as a term for the loss: ``loss = loss + pruner.penalty(loss)``.

        Raises:
            PrunusError: The pruner has no penalty, or applies it itself, so that a term in the loss
                would apply it twice.
        """
        application = self._hooks.application
        if not isinstance(application, LossApplication):
            found = "no penalty" if self._penalty is None else f'apply="{self._penalty.apply}"'
            raise PrunusError(
                'pruner.penalty(loss) needs a pruner with RelevancePenalty(..., apply="loss"), but '
                f"this one has {found}"
            )
        return application.term()

    def step(self, metric: float | None = None) -> Validation:
        """Record a validation, as ``ReduceLROnPlateau.step`` does, and prune if the schedule asks.

        If the metric meets the floor and the state is the sparsest so far (or as sparse and better)
        it is kept for :meth:`finish`. Then the schedule may remove weights, or return to the best
        state and remove fewer from there; weights that this brings back are those of that state,
        and their optimizer state is cleared.

        Args:
            metric: The validation metric just measured. Optional for schedules that do not need it.

        Returns:
            The outcome.

        Raises:
            ArgumentError: The schedule or the floor needs a metric and got none, or the first
                metric has another unit than the floor, which it meets by far.
            ArgumentTypeError: The metric is not a number.
            NonFiniteError: The metric is NaN or infinite, or scores or weights are NaN.
            PrunusError: Removed weights are not zero, so that the metric is not that of the sparse
                network, several pruners with a floor validate this model by turns, or processes
                have different metrics or weights.
            PeerError: Another process did not answer.
        """
        if metric is None:
            raise_problems(
                missing_metric_problem(
                    self.schedule, self.constraint.floor, fix="call pruner.step(metric)"
                )
            )
        metric = None if metric is None else as_number(_METRIC, metric)
        self._check_equal_metric(metric)
        self._monitor.before_validation(metric)
        if metric is not None:
            self._check_alternation()
        counts = self._validations, self._best_metric
        sparsity, self._unmeasured_removal = self.sparsity, False
        best = metric is not None and self._consider(metric)
        met = metric is None or self.constraint.met(metric)
        least, before = self._remover().least, self.schedule.state_dict()
        restored = False
        # What is removed from here on is measured at the next validation.
        cost, self._predicted_cost = self._predicted_cost, None
        try:
            decision = self.schedule.after_validation(self._status(metric, met, least))
            if isinstance(decision, Restore):
                self._restore_best()
                decision, restored = decision.keep, True
            removed = 0 if decision is None else self._remove_to(max(decision, least), self._final)
        except BaseException:  # a function that the schedule calls may raise anything
            self.schedule.load_state_dict(before)  # it has counted a removal that failed
            self._validations, self._best_metric = counts
            self._predicted_cost = cost
            raise
        self._strengths.count_validation()
        # The state that a return abandons is not the one that the next validation continues.
        last, self._last_metric = self._last_metric, None if restored else metric
        self._monitor.after_validation(None if removed or restored else metric)
        validation = Validation(
            step=self._steps,
            metric=metric,
            sparsity=sparsity,
            floor=self.floor,
            met=met,
            best=best,
            removed=removed,
            sparsity_after=self.sparsity,
            restored=restored,
            change=None if metric is None or last is None else metric - last,
            predicted_cost=cost,
            penalty=self._penalty_report(),
        )
        self._history.append(validation)
        self._post_notice(validation)
        return validation

    def _post_notice(self, validation: Validation) -> None:
        """Post a notice for the case that the training ends here without :meth:`finish`.

        Not if the model is in the best state already. Whatever continues or completes the training
        withdraws it.
        """
        self._notice.withdraw()
        floor, best, name = validation.floor, self._best, self.constraint.bound_name
        is_best = validation.best and not validation.removed
        if floor is None or validation.metric is None or is_best or not self.keep_best:
            return
        if validation.removed:
            last = "which no validation has measured"
        else:
            last = f"of metric {validation.metric:.6g}"
        if best.kept is None:
            delivered = f"the {name} of {floor:.6g} was not met by any validation"
        else:
            delivered = (
                f"finish() loads the sparsest state that met the {name} of {floor:.6g}, of "
                f"sparsity {1 - best.kept / self._prunable:.4f} and metric {best.metric:.6g}"
            )
        self._notice.post(
            "the training ended without pruner.finish(): the model is in its last state, "
            f"{last}, with a sparsity of {validation.sparsity_after:.4f}; {delivered}"
        )

    @property
    def history(self) -> History:
        """Every validation that :meth:`step` received, oldest first."""
        return History(self._history)

    def _penalty_report(self) -> PenaltyReport | None:
        """Return what the penalty did, and warn once if it cannot matter."""
        probe = self._hooks.probe
        report = None if probe is None else probe.report(self._strengths.period)
        if probe is not None and report is not None:
            probe.warn_once(report)
        return report

    def _status(self, metric: float | None, met: bool, least: int) -> PruningStatus:
        """Return what the schedule decides on."""
        return PruningStatus(
            met=met,
            prunable=self._prunable,
            kept=self.masks.kept,
            least=least,
            slack=self.slack,
            metric=metric,
            mode=self.constraint.mode,
            margin=math.inf if metric is None else self.constraint.margin(metric),
            best_kept=self._best.kept,
            metric_if_kept=self._metric_if_kept,
        )

    def _restore_best(self) -> None:
        """Restore the weights and masks of the best state."""
        check_in_model(self.selection, self.model)
        reshard(self.model)
        removed = {name: ~mask for name, mask in self.masks.active().items()}
        self._best.restore(self.model, self.masks)
        self._editor.clear_returned(removed)
        self._remainders().clear()  # they belong to the weights before
        self._growth.restored()

    def consider(self, metric: float) -> bool:
        """Keep the present state for :meth:`finish` if it is the best so far, and remove nothing.

        :meth:`step` includes this. It is for a state to deliver if pruning finds no better one,
        such as the dense network.

        Args:
            metric: The validation metric of the present state.

        Returns:
            Whether the state was kept.

        Raises:
            ArgumentTypeError: The metric is not a number.
            NonFiniteError: The metric is NaN or infinite.
            PrunusError: Removed weights are not zero, or processes have different metrics.
            PeerError: Another process did not answer.
        """
        metric = as_number(_METRIC, metric)
        self._check_equal_metric(metric)
        return self._consider(metric)

    def _check_alternation(self) -> None:
        """Check that pruners with floors do not take turns at validations of one model.

        Each would deliver a state of the whole model with its own tensors at their sparsest, and
        no validation has measured what remains after the second ``finish``.
        """
        last = _last_validated.get(self.model, lambda: None)()
        floors = [p.constraint.floor for p in (self, last) if p is not None]
        if last not in (None, self) and self._validations and floors != [None, None]:
            raise PrunusError(
                "several pruners with a floor validate this model by turns, and each finish() "
                "would deliver another state than was measured: use one Pruner for all tensors, "
                "as Pruner(model, [optimizer_a, optimizer_b], floor=...), or give the others a "
                "schedule without a floor, and no metric in step()"
            )
        _last_validated[self.model] = ref(self)

    def _consider(self, metric: float) -> bool:
        check_in_model(self.selection, self.model)
        self._check_zeros()
        if not math.isfinite(metric):
            raise NonFiniteError(f"{_METRIC} must be finite, but is {metric}")
        if self.constraint.dense_metric is None:
            self._check_unit(metric)
        self.constraint = self.constraint.with_dense_metric(metric)
        self._validations += 1
        if self._best_metric is None or self.constraint.better(metric, self._best_metric):
            self._best_metric = metric
        return (
            self.keep_best
            and self.constraint.met(metric)
            and self._best.offer(self.model, self.masks, metric, self.constraint)
        )

    def _check_unit(self, metric: float) -> None:
        """Check the first metric against a floor that may have another unit.

        A floor that is always met would prune the model to nothing, which is an error. One that is
        far away may be reached from random weights, in BLEU for example, which is a warning.
        """
        wide = self.constraint.wide_problem(metric)
        if wide is not None:
            warnings.warn(wide, stacklevel=4)
        problem = self.constraint.unit_problem(metric)
        if problem is None:
            return
        raise_problems(problem if self.constraint.met(metric) else None)
        warnings.warn(f"{problem}. Nothing is removed until it is met", stacklevel=4)

    def prune(self, *, sparsity: float | None = None, kept: int | None = None) -> int:
        """Remove weights now, down to a sparsity or a number of kept prunable weights.

        Groups of a ``pattern`` are removed as far as they fit, so that up to :attr:`slack` weights
        more are kept.

        In a dense phase of :class:`~prunus.AlternatingGrowth` they are removed when it ends.

        Returns:
            How many were removed.

        Raises:
            ArgumentError: Both or neither of the two were passed, or one is out of range.
            PrunusError: ``min_density`` or the allocation forbids it, the score needs gradients and
                has not observed any of some tensor, or processes have different weights.
            NonFiniteError: Scores or weights are NaN.
            PeerError: Another process did not answer.
        """
        raise_problems(either_problem(sparsity=sparsity, kept=kept))
        prunable = self.selection.prunable
        if sparsity is not None:
            raise_problems(number_problem("sparsity", sparsity, least=0, most=1))
            kept = prunable - round(sparsity * prunable)
        assert kept is not None
        raise_problems(number_problem("kept", kept, whole=True, least=0, most=prunable))
        removed = self._remove_to(kept)
        self._unmeasured_removal |= removed > 0
        return removed

    def finish(self) -> None:
        """Restore the sparsest state that met the floor, and of equally sparse ones the best.

        Without any metric so far, or with ``keep_best=False``, the present state stays, and a dense
        phase of :class:`~prunus.AlternatingGrowth` ends: weights are removed as at its last step.
        No weight returns from here on. It warns if the training ended before the schedule, if
        nothing was removed for want of a floor or a schedule, and if it returns to a denser state
        without a floor that asks for it.

        Raises:
            FloorNotReachedError: There is a floor and no validation met it.
            NonFiniteError: Scores are NaN at the end of a dense phase.
            PrunusError: Layers of the model were replaced since, removed weights of the present
                state are not zero, or processes have different weights at the end of a dense phase.
            PeerError: Another process did not answer.
        """
        self._notice.withdraw()
        self._warn_of_missing_steps()
        self._warn_of_missing_plan()
        self._warn_of_unvalidated_removals()
        if self._best.kept is not None:
            self._restore_best()
        elif self.constraint.floor is not None and self.keep_best:
            raise FloorNotReachedError(
                self.constraint.not_met_message(self._validations, self._best_metric)
            )
        else:
            check_in_model(self.selection, self.model)
            self._check_zeros()
        if not self._growth.ended:
            check_in_model(self.selection, self.model)
            reshard(self.model)
            self._growth.end()
        self._warn_of_incomplete_patterns()

    def _warn_of_incomplete_patterns(self) -> None:
        """Warn of N:M patterns of which groups have more weights than n."""
        counts = self._remover().beyond_patterns()
        if counts:
            tensors = [f"{name} ({count:,} weights more)" for name, count in counts.items()]
            warnings.warn(
                f"N:M patterns are not complete in {listing(tensors)}: fewer weights were removed "
                "than they need. Lower the floor, train longer, or remove them now with "
                "pruner.prune(sparsity=...)",
                stacklevel=3,
            )

    def _warn_of_missing_steps(self) -> None:
        """Warn if the training ended before the schedule."""
        last = self.schedule.last_step
        if last is not None and self._steps < last:
            warnings.warn(
                f"{type(self.schedule).__name__} removes its last weights at step {last:,}, but "
                f"the training ended at step {self._steps:,} with a sparsity of "
                f"{self.sparsity:.4g}: train longer, or pass the schedule the length of this "
                "training, in optimizer steps",
                stacklevel=3,
            )

    def _warn_of_missing_plan(self) -> None:
        """Warn if nothing was removed because nothing decides what to remove."""
        if self._without_plan and self.growth is None and self.masks.kept == self._prunable:
            warnings.warn(
                "the pruner has removed no weight, because it has neither a floor nor a schedule: "
                'pass floor="dense-0.5%" or schedule=GradualPruning(sparsity=...), or call '
                "pruner.prune(sparsity=...) during the training; schedule=Schedule() if nothing "
                "should be removed",
                stacklevel=3,
            )

    def _warn_of_unvalidated_removals(self) -> None:
        """Warn if the state to restore is denser only because none after it was validated.

        The last removal of an iterative schedule, by a validation, is meant to be abandoned so.
        """
        best = self._best.kept
        unmeasured = self._unmeasured_removal and self.constraint.floor is None
        if unmeasured and best is not None and self.masks.kept < best:
            sparsity = 1 - best / self._prunable
            warnings.warn(
                f"finish() returns from a sparsity of {self.sparsity:.4g} to {sparsity:.4g}, "
                "because no validation followed the last removal: call pruner.step(metric) after "
                "it, or build the pruner with keep_best=False",
                stacklevel=3,
            )

    def detach(self) -> None:
        """Remove the hooks from the optimizers and release the masks. Removed weights stay zero."""
        self._notice.withdraw()
        self._hooks.remove()
        for optimizer in self.optimizers:
            _pruners.get(optimizer, WeakSet()).discard(self)
        if _last_validated.get(self.model, lambda: None)() is self:
            del _last_validated[self.model]  # its successor does not take turns with it
        self.masks.detach()

    def state_dict(self, *, complete: bool | None = None) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain numbers.

        Masks are packed eight weights to a byte. The model and the optimizer are saved by their own
        ``state_dict``, beside this.

        Args:
            complete: Whether to include a placeholder for everything that may be in it later, as
                `torch.distributed.checkpoint` needs, which reads a checkpoint in place. Default:
                for models that are sharded over processes, all of which must call this then. Pass
                True to read a checkpoint of such a model into one that is not sharded.

        Raises:
            PeerError: Another process did not answer.
        """
        self._notice.withdraw()  # a later run may resume from it
        complete = self._process_group.sharded if complete is None else complete
        return {
            "masks": self.masks.packed(),
            "steps": self._steps,
            "waiting": self._hooks.waiting,
            "prunings": self._prunings,
            "validations": self._validations,
            "best_metric": self._best_metric,
            "dense_metric": self.constraint.dense_metric,
            "schedule": self.schedule.state_dict(),
            "strength": self._strengths.state_dict(),
            "penalty": {}
            if self._hooks.probe is None or complete
            else self._hooks.probe.state_dict(),
            "last_metric": self._last_metric,
            "predicted_cost": self._predicted_cost,
            # As text: checkpoints that are read in place have no room for more records.
            "history": self.history.to_json(),
            "growth": growth_state(self.growth, self._growth),
            "pattern": descriptions(self._patterns),
            **self._hooks.state.state_dict(complete=complete),
            "best": self._best.state_dict(
                self.model, self.masks, complete=complete and self.keep_best
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, and zero the removed weights.

        Nothing is changed if the state is rejected.

        Raises:
            CheckpointError: The state is not a pruner's or of another model.
        """
        check_state(state, (*TENSOR_KEYS, *COUNT_KEYS))
        check_growth_state(self.growth, self._growth, state["growth"])
        self._hooks.check_waiting(state["waiting"])
        check_patterns(descriptions(self._patterns), state["pattern"])
        self._hooks.state.check(state)
        self._strengths.check(state["strength"])
        probe = self._hooks.probe
        if probe is not None:
            probe.check(state["penalty"])
        self._best.check(state["best"], self.model, self.masks)
        reshard(self.model)
        # Everything that can fail comes before the first change.
        try:
            history = History.from_json(state["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise state_error(f"history: {error}") from error
        schedule = copy.deepcopy(self.schedule)
        try:
            schedule.load_state_dict(state["schedule"])
        except (KeyError, TypeError, ValueError, PrunusError) as error:
            raise state_error(f"schedule: {error}") from error
        self.masks.load_packed(state["masks"])
        self.masks.apply_()
        self._hooks.load_waiting(state["waiting"])
        self._steps = int(state["steps"])
        self._strengths.load_state_dict(state["strength"])
        self._last_metric, self._predicted_cost = state["last_metric"], state["predicted_cost"]
        if probe is not None:
            probe.load_state_dict(state["penalty"])
        self._prunings, self._validations = int(state["prunings"]), int(state["validations"])
        self._best_metric = state["best_metric"]
        self._history = list(history)
        self.constraint = replace(self.constraint, dense_metric=state["dense_metric"])
        self.schedule = schedule
        self._growth.restored()
        load_growth_state(self._growth, state["growth"])
        self._hooks.state.load_state_dict(state)
        self._best.load_state_dict(state["best"], self.model)

    def _check_equal_metric(self, metric: float | None) -> None:
        self._process_group.check_equal(
            {
                "number of validation metrics": float(metric is not None),
                "validation metric": 0.0 if metric is None else metric,
            },
            "call pruner.step(metric) in all of them, with the metric of all the data, "
            "or its average over the processes",
        )

    def _check_zeros(self) -> None:
        nonzero = self.masks.revived()
        self._process_group.check_equal(
            {"number of removed weights that are not zero": float(sum(nonzero.values()))},
            _DIFFERING_WEIGHTS,
        )
        if nonzero:
            counts = [f"{name} ({count:,})" for name, count in nonzero.items()]
            raise PrunusError(
                f"removed weights are not zero in {listing(counts)}: since the last step of this "
                "pruner's optimizers something else changed them, such as load_state_dict or "
                "another optimizer, which must be passed to Pruner too. Call pruner.masks.apply_() "
                "before you validate, or detach() this pruner"
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PrunusError(
            "a Pruner is tied to its optimizers and cannot be copied or pickled: save "
            "pruner.state_dict(), and load it into a new Pruner of the copied model and optimizers"
        )

    def _count_step(self) -> None:
        self._steps += 1
        self._strengths.count_step()
        keep = self.schedule.after_step(step=self._steps, prunable=self._prunable)
        if keep is not None:
            removed = self._remove_to(max(keep, self._remover().least), self._final)
            self._unmeasured_removal |= removed > 0
        self._growth.update()

    @property
    def _final(self) -> int | None:
        """How many weights the schedule keeps in the end; None if that is open."""
        return self.schedule.final_kept(self._prunable)

    def _remover(self) -> Remover:
        memory = self._hooks.observer.memory
        return Remover(
            self.masks,
            self.score,
            memory,
            self.min_density,
            seed=self._prunings,
            allocation=self._allocation,
            patterns=self._patterns,
        )

    def _metric_if_kept(self, kept: int, evaluate: Callable[[], float]) -> float:
        """Return what ``evaluate`` measures if only ``kept`` weights are kept, and change nothing.

        Raises:
            ArgumentTypeError: It does not return a number.
            PrunusError: It took steps of the optimizer, or processes have different results.
            PeerError: Another process did not answer.
        """
        check_in_model(self.selection, self.model)
        reshard(self.model)
        self._fill_unobserved()
        steps, result, error = self._steps, math.nan, None
        with restored(self.model, self.masks), torch.no_grad():
            self._editor.mask_to(kept, self._final)
            self.masks.apply_()
            try:
                result = as_number(f"the {_TRIAL}", evaluate())
            except BaseException as raised:
                error = raised
                raise
            finally:
                values = {"number of errors in evaluate()": float(error is not None)}
                values[_TRIAL] = result
                # After an error, the other processes must not wait for this one.
                with contextlib.suppress(*([PrunusError] if error is not None else [])):
                    self._process_group.check_equal(values, _DIFFERING_TRIALS)
        if self._steps != steps:
            raise PrunusError(
                f"evaluate() of {type(self.schedule).__name__} took {self._steps - steps} steps of "
                "the optimizer, but must only measure the model: remove the training from it"
            )
        return result

    def _remainders(self) -> dict[str, torch.Tensor]:
        """Return the remainders of 16-bit weights that the penalty keeps."""
        application = self._hooks.application
        return {} if application is None else application.remainders

    def _check_equal_replicas(self) -> CheckEqual | None:
        """Return the check that replicas remove alike, or None without replicas."""
        if self._process_group.group is None or self._process_group.sharded:
            return None
        return partial(self._process_group.check_equal, fix=_DIFFERING_WEIGHTS)

    def _remove_to(self, kept: int, final: int | None = None) -> int:
        """Remove weights until ``kept`` are left; return how many were removed."""
        before = self.masks.kept
        self._fill_unobserved()
        check_in_model(self.selection, self.model)
        reshard(self.model)
        self._growth.remove(kept, final)
        return before - self.masks.kept

    def _fill_unobserved(self) -> None:
        """Count tensors that had no gradient in many steps as irrelevant, with a warning."""
        names = self._hooks.observer.fill_unobserved()
        if names:
            warnings.warn(
                f"{listing(names)} had no gradient in {self._steps:,} steps: the loss does not "
                "depend on these weights, so that they are removed first and count in the "
                "sparsity. Leave them out with select(model, exclude=...) if they are not used, or "
                "are trained by another loss later",
                stacklevel=4,
            )

    def _count_removal(self, predicted_cost: float | None) -> None:
        """Count a removal, and add the rise of the loss that the score predicts for it."""
        self._prunings += 1
        self._strengths.count_pruning()
        if predicted_cost is not None:
            self._predicted_cost = (self._predicted_cost or 0.0) + predicted_cost


_METRIC = "the validation metric"

_TRIAL = "result of evaluate()"

_DIFFERING_TRIALS = (
    "return the metric of all the data, or its average over the processes, from evaluate()"
)

_DIFFERING_WEIGHTS = (
    "their weights differ, so that they cannot prune alike. Start all of them from the same state, "
    "and change weights through the optimizer alone"
)

_pruners: MutableMapping[torch.optim.Optimizer, WeakSet[Pruner]] = WeakKeyDictionary()
"""The pruners attached to each optimizer."""

_last_validated: MutableMapping[nn.Module, Callable[[], Pruner | None]] = WeakKeyDictionary()
"""The pruner of each model that received the last validation metric."""


def _process_group_of(model: nn.Module, selection: Selection) -> ProcessGroup:
    """Return the processes that train the model together."""
    if selection.process_group.sharded:
        return selection.process_group
    device = next(iter(selection.values())).parameter.device
    return replica_group_of(model, device)
