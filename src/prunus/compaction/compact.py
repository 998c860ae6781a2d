"""A smaller dense model that says the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    call_model,
    copy_model,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import relative_difference
from prunus.compaction.analysis import Plan, analyse
from prunus.compaction.check import draws, tolerance
from prunus.compaction.graph import Graph, trace
from prunus.compaction.surgery import operate, readings
from prunus.errors import PrunusError
from prunus.selection import total_parameters

__all__ = ["CompactionReport", "Removed", "compact"]


@dataclass(frozen=True)
class Removed:
    """A tensor that became smaller.

    Attributes:
        name: Its first name in the model.
        before: Its shape as it was.
        after: Its shape now.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class CompactionReport:
    """What :func:`compact` removed from a model.

    Attributes:
        removed: The parameters and buffers that became smaller.
        biases: The layers that have got a bias, for constants that other units had left behind.
        selecting: The layers that now select some of the features that they are given.
        frozen: Why some units stay even where they are dead: operators of which nothing is known,
            statistics that hang on every feature, sizes that the code writes down as numbers.
        kinds: The class of each module that has become one of prunus's own.
        sizes: Of each module the numbers it writes down that have changed, by attribute.
        parameters_before: How many parameters the model had, tied ones counted once.
        parameters: How many it has now.
        error: The largest difference of an output that was found, relative to the largest
            magnitude.
    """

    removed: tuple[Removed, ...]
    biases: tuple[str, ...]
    selecting: tuple[str, ...]
    frozen: tuple[str, ...]
    kinds: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    parameters_before: int
    parameters: int
    error: float


@overload
def compact(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: Literal[False] = False
) -> nn.Module: ...


@overload
def compact(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: Literal[True]
) -> tuple[nn.Module, CompactionReport]: ...


def compact(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: bool = False
) -> nn.Module | tuple[nn.Module, CompactionReport]:
    """Return a smaller dense copy of a model, with the same outputs.

    What is dead goes: neurons, channels and attention heads which nothing that varies feeds, or
    which nobody reads who is read. What a neuron without inputs says is a constant, and goes into
    the biases of its readers. Features that cannot go, such as the model's inputs, are left out by
    the layers that have no weight for them, where that saves memory.

    Which layers hang together is found by ``torch.export``. The copy is an ordinary model of the
    same class, to be trained, saved and exported like any other; its outputs were compared with the
    model's on random inputs.

    Args:
        model: Any module that ``torch.export`` can trace, also within ``torch.compile`` or
            DistributedDataParallel. It is not changed.
        example_inputs: What the model is called with: a tensor, a tuple of positional arguments or
            a mapping of keyword arguments. Integers should span the range that the model is made
            for: the random inputs do not leave it.
        return_report: Whether to return a :class:`CompactionReport` too. Default False.

    Returns:
        The copy, in evaluation mode; an equal one if there is nothing to remove. On the example and
        on random inputs of its shapes no output differs by more than 1e-5 of the largest magnitude
        in float32, 1e-12 in float64, 1e-2 in float16 and 5e-2 in bfloat16. Inputs that are infinite
        or NaN may give other outputs, for 0 times infinity is NaN. Numbers that forward computes
        from the sizes of its inputs are taken to be what they are for the example.

    Raises:
        PrunusError: It is no module or has no parameters, the example does not fit it, it cannot be
            traced or copied, its outputs are random, or a smaller model would say something else.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].weight.data[:5].zero_()    # five neurons without inputs
        >>> small = compact(model, torch.ones(1, 4))
        >>> small
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
        >>> x = torch.randn(10, 4)
        >>> torch.allclose(small(x), model(x), atol=1e-6)
        True
        >>> small, report = compact(model, torch.ones(1, 4), return_report=True)
        >>> report.parameters_before, report.parameters, report.removed[0]
        (58, 23, Removed(name='0.weight', before=(8, 4), after=(3, 4)))
    """
    model, args, kwargs = prepare_call(model, example_inputs)
    original = copy_model(model)
    inputs = list(draws(args, kwargs))
    right = [reference_outputs(original, *inputs[0])]
    taken = inputs[:1]
    if relative_difference(right[0], call_model(original, *inputs[0], seed=1)) > 0:
        raise PrunusError(
            f"{type(model).__name__} is random in evaluation mode: two calls on the same input "
            "differ, so that no smaller model can be compared with it"
        )
    for drawn in inputs[1:]:
        # A model may take inputs of some kind only, of which the example is one.
        with contextlib.suppress(PrunusError):
            right.append(reference_outputs(original, *drawn))
            taken.append(drawn)
    graph = trace(original, args, kwargs)

    def attempt(held: Collection[str]) -> _Attempt:
        return _attempt(model, original, graph, held, taken, right)

    made = attempt(())
    if made.model is None and made.plan.sized:
        # Sizes are written down somewhere as numbers: find out where, and let those stay.
        held = set(made.plan.sized)
        made = attempt(held)
        for place in sorted(held) if made.model is not None else ():
            freer = attempt(held - {place})
            if freer.model is not None:
                held.discard(place)
                made = freer
    if made.model is None:
        raise PrunusError(
            f"{type(model).__name__} cannot be made smaller with the same outputs: {made.reason}"
        )
    report = _described(model, made.model, made)
    return (made.model, report) if return_report else made.model


@dataclass(frozen=True)
class _Attempt:
    """A smaller model if it says the same, else why it does not."""

    plan: Plan
    model: nn.Module | None
    kinds: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    error: float
    reason: str


def _attempt(
    model: nn.Module,
    original: nn.Module,
    graph: Graph,
    held: Collection[str],
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]],
    wanted: list[list[torch.Tensor]],
) -> _Attempt:
    plan = analyse(original, graph, held)
    reason = ""
    for sizes in readings(original, plan.resizes):
        small = copy.deepcopy(model).eval()
        operate(small, plan, sizes)
        # Before it is called, for a model may count its calls, or keep what it has computed.
        kinds, numbers = _changes(original, small)
        error, failure = 0.0, ""
        for (args, kwargs), right in zip(inputs, wanted, strict=True):
            try:
                apart = relative_difference(right, call_model(small, args, kwargs))
            except Exception as raised:
                failure = f"the copy fails with {type(raised).__name__}: {raised}"
                break
            error = max(error, apart)
            if apart > tolerance([*small.parameters(), *right]):
                failure = f"an output of the copy is off by {apart:.2g} of the largest"
                break
        if not failure:
            return _Attempt(plan, small, kinds, numbers, error, "")
        reason = reason or failure
    return _Attempt(plan, None, {}, {}, 0.0, reason)


def _changes(
    before: nn.Module, after: nn.Module
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return by module the class that it has become, and its whole numbers that have changed."""
    modules = dict(before.named_modules())
    kinds, sizes = {}, {}
    for name, module in after.named_modules():
        old = modules[name]
        if type(module) is not type(old):
            kinds[name] = type(module).__name__
        numbers = {
            attribute: value
            for attribute, value in vars(module).items()
            if type(value) is int and vars(old).get(attribute) != value
        }
        if numbers:
            sizes[name] = numbers
    return kinds, sizes


def _described(model: nn.Module, small: nn.Module, made: _Attempt) -> CompactionReport:
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    after = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    removed = tuple(
        Removed(name, tuple(old.shape), tuple(after[name].shape))
        for name, old in before.items()
        if old.shape != after[name].shape
    )
    return CompactionReport(
        removed=removed,
        biases=tuple(made.plan.created),
        selecting=tuple(made.plan.selected),
        frozen=tuple(made.plan.reasons),
        kinds=made.kinds,
        sizes=made.sizes,
        parameters_before=total_parameters(model),
        parameters=total_parameters(small),
        error=made.error,
    )
