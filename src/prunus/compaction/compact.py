"""The search for a smaller dense model with the same outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    call_model,
    copy_model,
    own_rounding,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import (
    LARGEST_ROUNDING,
    ROUNDING_FACTOR,
    output_tolerance,
    relative_difference,
)
from prunus._utils.conversions import check_not_converted
from prunus.compaction.analysis import analyse
from prunus.compaction.graph import Graph
from prunus.compaction.plan import RemovalPlan
from prunus.compaction.probes import probe_inputs
from prunus.compaction.report import CompactionReport, ResizedTensor
from prunus.compaction.surgery import apply_plan, candidate_size_attributes
from prunus.compaction.tracing import trace
from prunus.errors import PrunusError, listing
from prunus.selection import total_parameters

__all__ = ["compact"]


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

    Removes dead neurons, channels and attention heads: those whose output is constant or does not
    reach the model's output. A neuron whose incoming weights are all zero outputs a constant, which
    is folded into the biases of the next layers. Features that cannot be removed, such as the
    model's inputs, are skipped by layers that have no weight for them, where that saves memory.

    Coupled layers are found by tracing the model with ``torch.export``. The copy is an ordinary
    model of the same class that can be trained, saved and exported.

    Args:
        model: A module that ``torch.export`` can trace, also within ``torch.compile`` or
            DistributedDataParallel. It is not changed.
        example_inputs: The inputs of a call: a tensor, a tuple of positional arguments or a mapping
            of keyword arguments. Integers should span the range that the model accepts, since
            random inputs for the comparison are drawn from it.
        return_report: Whether to return a :class:`CompactionReport` too. Default False.

    Returns:
        The copy, in evaluation mode; an equal one if there is nothing to remove. On the example and
        on random inputs of its shapes no output differs by more than 1e-5 of the largest magnitude
        in float32, 1e-12 in float64, 1e-2 in float16 and 5e-2 in bfloat16; where the model itself
        differs from its copy in float64 by more than a quarter of that, by four times its own
        difference, up to 1e-3. Inputs that are infinite
        or NaN may give other outputs, since 0 times infinity is NaN. Numbers that forward computes
        from the sizes of its inputs are assumed to be those of the example.

    Raises:
        PrunusError: The model is not a module, has no parameters or is quantized or compiled by
            TorchScript, it does not accept the example, it cannot be traced or copied, its outputs
            are random, or no smaller model has the same outputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].weight.data[:5].zero_()    # five neurons with constant outputs
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
        >>> report.parameters_before, report.parameters, report.resized[0]
        (58, 23, ResizedTensor(name='0.weight', before=(8, 4), after=(3, 4)))
    """
    model, args, kwargs = prepare_call(model, example_inputs)
    check_not_converted(model)
    compaction = _Compaction(model, args, kwargs)
    candidate = compaction.search()
    small = candidate.model
    if small is None:
        raise PrunusError(
            f"{type(compaction.model).__name__} cannot be made smaller with the same outputs: "
            f"{candidate.failure}. Use the model as it is, and prunus.save_sparse "
            "to store it without zeros"
        )
    return (small, _build_report(compaction.model, small, candidate)) if return_report else small


@dataclass(frozen=True)
class _Candidate:
    """The outcome of one removal plan.

    Attributes:
        plan: The plan.
        model: The smaller model, or None if its outputs differ.
        replaced_types: The new type of each module whose type changed, by the module's name.
        changed_attributes: The integer attributes that changed, by module and attribute name.
        error: The largest relative difference of an output.
        failure: Why there is no model.
    """

    plan: RemovalPlan
    model: nn.Module | None = None
    replaced_types: Mapping[str, str] = field(default_factory=dict)
    changed_attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    error: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class _Probe:
    """The inputs of a call, and the original model's outputs for them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[torch.Tensor]


class _Compaction:
    """The original model with its graph, and the probes that a smaller model has to pass."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = model
        self._original = copy_model(model)
        self._probes = self._evaluate_probes(args, kwargs)
        self._graph: Graph = trace(self._original, args, kwargs)

    def _evaluate_probes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Probe]:
        example, *random = probe_inputs(args, kwargs)
        probes = [_Probe(*example, reference_outputs(self._original, *example))]
        again = call_model(self._original, *example, seed=1)
        if relative_difference(probes[0].outputs, again) > 0:
            raise PrunusError(
                f"{type(self.model).__name__} is random in evaluation mode: two calls on the same "
                "input return different outputs, so that no smaller model can be compared with it"
            )
        for inputs in random:
            # The model may reject random inputs, for example if it expects probabilities.
            with contextlib.suppress(PrunusError):
                probes.append(_Probe(*inputs, reference_outputs(self._original, *inputs)))
        return probes

    def search(self) -> _Candidate:
        """Return the smallest model that passes the probes, or the reason why there is none."""
        candidate = self._try(())
        if candidate.model is not None or not candidate.plan.size_locations:
            return candidate
        # The code may have hard-coded sizes: fix all that it passes, then release one by one those
        # that can change.
        fixed = set(candidate.plan.size_locations)
        candidate = self._try(fixed)
        if candidate.model is not None:
            for location in sorted(fixed):
                smaller = self._try(fixed - {location})
                if smaller.model is not None:
                    fixed.discard(location)
                    candidate = smaller
        return candidate

    def _try(self, fixed_sizes: Collection[str]) -> _Candidate:
        """Return the outcome of the plan that leaves the sizes at some source locations fixed."""
        plan = analyse(self._original, self._graph, fixed_sizes)
        first_failure = ""
        for size_attributes in candidate_size_attributes(self._original, plan.size_changes):
            small = copy_model(self.model)
            apply_plan(small, plan, size_attributes)
            # Recorded before the first call, since a model may change its attributes in a call.
            types, attributes = _module_changes(self._original, small)
            error, failure = self._compare(small)
            if not failure:
                return _Candidate(plan, small, types, attributes, error)
            first_failure = first_failure or failure
        return _Candidate(plan, failure=first_failure)

    def _compare(self, small: nn.Module) -> tuple[float, str]:
        """Return the largest relative difference of an output, and why the model is rejected."""
        worst = 0.0
        for probe in self._probes:
            try:
                outputs = call_model(small, probe.args, probe.kwargs)
                difference = relative_difference(probe.outputs, outputs)
            except Exception as error:
                return worst, f"the copy fails with {type(error).__name__}: {error}"
            worst = max(worst, difference)
            tolerance = output_tolerance([*small.parameters(), *probe.outputs])
            # The rounding is measured only where it decides, because it takes a copy of the model.
            if difference > tolerance and difference > max(tolerance, self._rounding_tolerance):
                return worst, self._difference_message(difference, tolerance)
        return worst, ""

    @cached_property
    def _rounding_tolerance(self) -> float:
        """The difference that the original model's own rounding explains."""
        rounding = max(
            own_rounding(self._original, probe.args, probe.kwargs, probe.outputs)
            for probe in self._probes
        )
        return min(ROUNDING_FACTOR * rounding, LARGEST_ROUNDING)

    def _difference_message(self, difference: float, tolerance: float) -> str:
        """Return why a copy with this difference is rejected, and how to find out more."""
        tolerance = max(tolerance, self._rounding_tolerance)
        message = (
            f"an output of the copy differs by {difference:.2g} of the largest, and "
            f"{tolerance:.2g} is accepted"
        )
        encoders = [
            name or type(module).__name__
            for name, module in self._original.named_modules()
            if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor
        ]
        if encoders:
            message += (
                f"; {listing(encoders)} may return 0 at padded positions, as only nested tensors "
                "do: set its use_nested_tensor to False"
            )
        wide = all(p.dtype == torch.float64 for p in self._original.parameters())
        if math.isfinite(difference) and not wide:
            message += (
                "; if that is rounding, model.double() with inputs in float64 can be made smaller"
            )
        return message


def _module_changes(
    before: nn.Module, after: nn.Module
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the new types and the changed integer attributes of a model's modules, by name."""
    modules = dict(before.named_modules())
    types, attributes = {}, {}
    for name, module in after.named_modules():
        old = modules[name]
        if type(module) is not type(old):
            types[name] = type(module).__name__
        changed = {
            attribute: value
            for attribute, value in vars(module).items()
            if type(value) is int and vars(old).get(attribute) != value
        }
        if changed:
            attributes[name] = changed
    return types, attributes


def _build_report(model: nn.Module, small: nn.Module, candidate: _Candidate) -> CompactionReport:
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    after = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    resized = tuple(
        ResizedTensor(name, tuple(old.shape), tuple(after[name].shape))
        for name, old in before.items()
        if old.shape != after[name].shape
    )
    return CompactionReport(
        resized=resized,
        new_biases=tuple(candidate.plan.new_biases),
        selecting_layers=tuple(candidate.plan.selected_inputs),
        protected=tuple(candidate.plan.protected),
        replaced_types=candidate.replaced_types,
        changed_attributes=candidate.changed_attributes,
        parameters_before=total_parameters(model),
        parameters=total_parameters(small),
        error=candidate.error,
    )
