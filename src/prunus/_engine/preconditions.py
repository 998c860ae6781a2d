"""The preconditions of a pruner: what its arguments and its model must be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from torch import nn

from prunus._engine.counts import full_counts
from prunus._engine.pattern_allocation import PatternAllocation
from prunus._engine.state_errors import state_error
from prunus._utils.checks import (
    method_problem,
    number_problem,
    raise_problems,
    type_problem,
)
from prunus.allocation import Allocation
from prunus.errors import ArgumentError, CheckpointError, PrunusError, listing
from prunus.growth import Growth
from prunus.patterns.binding import PatternChoice, TensorPattern, pattern_problem
from prunus.patterns.shapes import NM
from prunus.penalties.loss_application import check_whole
from prunus.penalties.relevance import RelevancePenalty
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection

__all__ = [
    "argument_problems",
    "bound_allocation",
    "check_growth",
    "check_in_model",
    "check_patterns",
    "check_penalty",
    "check_shapes",
    "check_sole_pruner",
    "check_state",
    "grad_norm_problem",
    "missing_metric_problem",
    "warn_of_rounding",
]


def argument_problems(
    penalty: object,
    schedule: object,
    score: object,
    allocation: object,
    growth: object,
    pattern: object,
    min_density: object,
    selection: object,
) -> Iterator[str | None]:
    """Yield what is wrong with the arguments that a pruner and the callbacks share."""
    if penalty != "auto":
        expected = 'a RelevancePenalty, "auto"'
        fix = "such as prunus.RelevancePenalty(strength), or those of prunus.method(name)"
        yield type_problem("penalty", penalty, RelevancePenalty, expected, fix=fix, optional=True)
    named = isinstance(schedule, str)
    fix = "such as prunus.GradualPruning(sparsity=0.9, ...)" if named else ""
    yield type_problem("schedule", schedule, Schedule, "a Schedule", fix=fix, optional=True)
    # A score that uses no gradient is never asked to observe one.
    uses_none = getattr(score, "memory_names", None) == ()
    methods = ["compute"] if uses_none else ["observe", "compute"]
    fix = "pass an instance, such as prunus.MagnitudeScore()"
    yield method_problem("score", score, methods, "a Score", attributes=["memory_names"], fix=fix)
    if hasattr(score, "every") and not isinstance(score, type):
        yield number_problem("every of score", score.every, whole=True, least=1)
    yield type_problem(
        "allocation", allocation, Allocation, "an Allocation", fix="such as UniformAllocation()"
    )
    yield type_problem(
        "growth",
        growth,
        Growth,
        "a Growth",
        fix="prunus.SoftGrowth(until=...)",
        optional=True,
    )
    yield pattern_problem(pattern)
    yield number_problem("min_density", min_density, least=0, below=1)
    yield type_problem(
        "selection",
        selection,
        (Selection, Callable),  # type: ignore[arg-type]  # a class to Python, and none to mypy
        "a Selection, or a function that returns one, given the model",
        fix="prunus.select(model, include=...)",
        optional=True,
    )


def check_growth(
    growth: Growth | None,
    penalty: RelevancePenalty | None,
    schedule: Schedule,
    pattern: PatternChoice,
) -> None:
    """Check that a growth goes together with the penalty, the schedule and the pattern.

    Raises:
        ArgumentError: The schedule relies on removed weights staying removed, the penalty is a
            term of the loss, which does not see the removed weights that the growth trains, or the
            growth lets single weights of a group return.
    """
    if growth is None:
        return
    name, problems = type(growth).__name__, list[str]()
    if not schedule.supports_growth:
        problems.append(
            f"schedule must be one with which removed weights may return, with growth={name}, but "
            f"is {type(schedule).__name__}, which delivers the sparsest state that met the floor "
            "and relies on removed weights staying removed: pass GradualPruning, OneShot or "
            "Schedule(), or growth=None"
        )
    if growth.trains_removed and penalty is not None and penalty.application.in_loss:
        problems.append(
            f'apply must not be "loss" with growth={name}, because the loss sees removed weights '
            'as zero, so that the penalty would not shrink them: use apply="gradient" or '
            'apply="decoupled"'
        )
    patterns = list(pattern.values()) if isinstance(pattern, Mapping) else [pattern]
    unfit = [p for p in patterns if p is not None and (growth.exchanges or not isinstance(p, NM))]
    if unfit:
        fix = "SoftGrowth or AlternatingGrowth with NM, or growth=None"
        problems.append(
            f"pattern must be None with growth={name}, under which weights return singly and not "
            f"in groups, but is {listing(list(dict.fromkeys(map(repr, unfit))))}: pass {fix}"
        )
    raise_problems(*problems)


def grad_norm_problem(max_grad_norm: object) -> str | None:
    """Return what is wrong with a limit of the gradients' norm."""
    # Infinity limits nothing, as in torch's function.
    if isinstance(max_grad_norm, Real) and max_grad_norm == math.inf:
        return None
    return number_problem("max_grad_norm", max_grad_norm, above=0, optional=True)


def missing_metric_problem(
    schedule: Schedule, floor: float | str | None, *, fix: str
) -> str | None:
    """Return what is wrong with a validation without a metric.

    Args:
        schedule: The schedule.
        floor: The floor of the constraint, or None.
        fix: How to pass a metric.
    """
    if floor is None and not schedule.needs_metric:
        return None
    return f"{type(schedule).__name__} with floor={floor!r} needs the validation metric: {fix}"


def check_penalty(penalty: RelevancePenalty | None, score: Score, selection: Selection) -> None:
    """Check that a penalty goes together with the score and the model.

    Raises:
        ArgumentError: The score needs the gradient of the loss alone, and ``.grad`` includes the
            penalty's.
        PrunusError: The penalty is a term of the loss, and the model is sharded.
    """
    if penalty is None or not penalty.application.in_loss:
        return
    if score.memory_names:
        raise ArgumentError(
            f"{type(score).__name__} needs the gradient of the loss alone, but with "
            f'apply="{penalty.apply}" the gradient of the optimizer includes the penalty: choose '
            "another apply=, or another score such as score=MagnitudeScore()"
        )
    check_whole(selection)


def bound_allocation(
    allocation: Allocation,
    model: nn.Module,
    selection: Selection,
    min_density: float,
    schedule: Schedule,
    patterns: Mapping[str, TensorPattern],
) -> Allocation:
    """Return an allocation for the tensors of a model, checked with the schedule.

    Args:
        allocation: As for :class:`~prunus.Pruner`.
        model: The model.
        selection: Its tensors.
        min_density: As for :class:`~prunus.Pruner`.
        schedule: The schedule.
        patterns: The pattern of each tensor that has one.

    Raises:
        ArgumentError: It does not fit the tensors, ``min_density``, patterns or the schedule's
            final number; every problem is listed.
    """
    bound = allocation.bind(model, selection)
    counts, final = full_counts(selection, min_density), schedule.final_kept(selection.prunable)
    densities = {n: t.pattern.density for n, t in patterns.items() if isinstance(t.pattern, NM)}
    if densities:
        fewest = {name: patterns[name].fewest for name in densities}
        bound = PatternAllocation(bound, densities, fewest)
        counts = [replace(c, least=max(c.least, fewest.get(c.name, 0))) for c in counts]
    raise_problems(
        *bound.problems(counts, min_density=min_density, final=final),
        _group_problem(selection, patterns, final),
    )
    return bound


def _group_problem(
    selection: Selection, patterns: Mapping[str, TensorPattern], final: int | None
) -> str | None:
    """Return that a schedule removes fewer weights than the smallest group has, if it does."""
    if final is None or len(patterns) < len(selection):
        return None
    removed = selection.prunable - final
    smallest = min(patterns.values(), key=lambda tensor: tensor.layout.most_removed)
    size = smallest.layout.most_removed
    if removed >= size:
        return None
    return (
        f"the schedule removes {removed:,} of {selection.prunable:,} weights, but the smallest "
        f"group, of {smallest.pattern!r}, has {size:,}: raise its sparsity, or choose a pattern of "
        "smaller groups"
    )


def check_in_model(selection: Selection, model: nn.Module) -> None:
    """Check that the selected tensors are, and still are, the model's.

    Raises:
        PrunusError: Some are not; every one is named.
    """
    if selection.process_group.sharded:
        return  # while a layer is gathered, the model shows other tensors than these
    check_shapes(selection)
    in_model = {id(parameter) for parameter in model.parameters()}
    foreign = [name for name, t in selection.items() if id(t.parameter) not in in_model]
    if foreign:
        raise PrunusError(
            f"the tensors to prune must be the model's own, but {listing(foreign)} are not: "
            "select them from this model, and if layers were replaced since, build "
            "optimizer and Pruner again"
        )


def check_shapes(selection: Selection) -> None:
    """Check that the selected tensors have the shapes that they were selected with.

    Raises:
        PrunusError: Some do not; every one is named.
    """
    changed = [
        f"{name} ({_size(tensor.shape)} to {_size(tensor.parameter.shape)})"
        for name, tensor in selection.items()
        if tensor.parameter.shape != tensor.shape
    ]
    if changed:
        raise PrunusError(
            f"tensors changed their shape since the Pruner was built: {listing(changed)}. Resize "
            "them first, as by resize_token_embeddings, then build optimizer and Pruner"
        )


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def check_sole_pruner(
    selection: Selection,
    penalty: RelevancePenalty | None,
    max_grad_norm: float | None,
    growth: Growth | None,
    others: Iterable[tuple[Selection, RelevancePenalty | None, float | None, Growth | None]],
) -> None:
    """Check that pruners of one optimizer do not interfere.

    No tensor gets two penalties, or a growth beside another pruner, and no gradient is clipped
    before it is measured.

    Args:
        selection: The tensors of a new pruner.
        penalty: Its penalty.
        max_grad_norm: Its limit of the gradients' norm.
        growth: Its growth.
        others: The same of every pruner that the optimizer has already.

    Raises:
        PrunusError: The optimizer has such a pruner.
    """
    own = {id(tensor.parameter) for tensor in selection.values()}
    for other_selection, other_penalty, other_limit, other_growth in others:
        shared = own & {id(tensor.parameter) for tensor in other_selection.values()}
        if penalty is not None and other_penalty is not None and shared:
            raise PrunusError(
                "this optimizer has a Pruner with a penalty on these tensors already, and a second "
                "penalty would be added to it: call detach() on the other one first, or build a "
                "new optimizer if the other one is out of reach"
            )
        if (growth or other_growth) is not None and shared:
            raise PrunusError(
                "with growth a tensor may have one Pruner only, because weights that one of two "
                "lets return were removed by the other: call detach() on the other one first"
            )
        if (max_grad_norm or other_limit) is not None:
            raise PrunusError(
                "with max_grad_norm an optimizer may have one Pruner only, because a second one "
                "would see gradients that are clipped already: call detach() on the other one first"
            )


def check_state(state: Mapping[str, Any], tensor_keys: Sequence[str]) -> None:
    """Check that a state has all entries of a pruner's, of the types that they must have.

    Args:
        state: The state.
        tensor_keys: The entries of the step hooks.

    Raises:
        CheckpointError: An entry is missing or has the wrong type.
    """
    counts = ("steps", "prunings", "validations")
    mappings = (
        *("masks", "schedule", "strength", "penalty", "growth", "pattern"),
        *(*tensor_keys, "best"),
    )
    raise_problems(type_problem("it", state, Mapping, "a mapping"), error=state_error)
    numbers = ("dense_metric", "best_metric", "last_metric", "predicted_cost")
    keys = (*mappings, *counts, *numbers, "waiting", "history")
    missing = [key for key in keys if key not in state]
    raise_problems(f"it lacks {listing(missing)}" if missing else None, error=state_error)
    raise_problems(
        *(type_problem(key, state[key], Mapping, "a mapping") for key in mappings),
        *(number_problem(key, state[key], whole=True, least=0) for key in counts),
        *(number_problem(key, state[key], optional=True) for key in numbers),
        type_problem("history", state["history"], str, "text"),
        error=state_error,
    )


def check_patterns(own: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """Check that a state is that of a pruner with the same patterns.

    Args:
        own: The patterns by tensor, as text.
        saved: Those in the state.

    Raises:
        CheckpointError: They differ; every tensor is named.
    """
    differing = [
        f"{name} ({saved.get(name)} there, {own.get(name)} here)"
        for name in dict.fromkeys((*own, *saved))
        if saved.get(name) != own.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"this is the state of a Pruner with other patterns: {listing(differing)}; pass the "
            "pattern that the state was saved with"
        )


def warn_of_rounding(penalty: RelevancePenalty | None, selection: Selection) -> None:
    """Warn if the optimizer rounds the shrinkage of 16-bit weights."""
    if penalty is None or penalty.application.exact_in_16_bits:
        return
    short = [name for name, t in selection.items() if t.parameter.element_size() < 4]
    if short:
        warnings.warn(
            f"with apply={penalty.apply!r} the shrinkage is rounded to the 16-bit type of "
            f"{listing(short)} and may be lost entirely: use apply='decoupled', or train float32 "
            "weights under torch.autocast",
            stacklevel=3,
        )
