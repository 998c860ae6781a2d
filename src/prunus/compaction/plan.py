"""The removal plan: the changes to a model's tensors, layers and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from prunus.compaction.coupling import Coupling
from prunus.compaction.folding import bias_contribution, calling_module
from prunus.compaction.graph import Graph
from prunus.compaction.input_selection import SELECTING_TYPES
from prunus.compaction.rules.base import operator_names
from prunus.compaction.rules.layers import WeightedLayer

__all__ = ["SIZE_OPERATORS", "RemovalPlan", "SizeChange", "build_plan"]

SIZE_OPERATORS = operator_names(
    """
    view _unsafe_view reshape unflatten flatten expand repeat split split_with_sizes chunk
    tensor_split tile
    """
)
"""Operators that receive sizes as arguments, which the model's code may have hard-coded."""

_INDEX_BYTES = 8
"""Size of the index of one selected feature."""


@dataclass(frozen=True)
class SizeChange:
    """The change of a size that a module passes to an operator."""

    module: str
    before: int
    after: int


@dataclass
class RemovalPlan:
    """The changes to a model.

    Attributes:
        kept_positions: The positions to keep of each parameter and buffer, by name and dimension.
        bias_additions: The folded constants to add to a bias, by its name.
        new_biases: The bias of each layer that has none, by the layer's name.
        selected_inputs: The input features that a layer selects, by the layer's name.
        first_names: The first name of each parameter and buffer, by each of its names.
        size_changes: The sizes that change and that a module may have stored as a number.
        size_locations: The source locations that pass sizes of dimensions that become smaller.
        protected: Why units that may be dead are kept.
    """

    kept_positions: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    bias_additions: dict[str, torch.Tensor] = field(default_factory=dict)
    new_biases: dict[str, torch.Tensor] = field(default_factory=dict)
    selected_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    first_names: dict[str, str] = field(default_factory=dict)
    size_changes: list[SizeChange] = field(default_factory=list)
    size_locations: list[str] = field(default_factory=list)
    protected: list[str] = field(default_factory=list)


def build_plan(
    model: nn.Module,
    graph: Graph,
    coupling: Coupling,
    removed: torch.Tensor,
    layers: Sequence[WeightedLayer],
) -> RemovalPlan:
    """Return the changes that remove units from a model.

    Args:
        model: The model that was traced.
        graph: Its graph, after the analysis.
        coupling: The coupling of its units.
        removed: For each unit whether it is removed.
        layers: The layers of the graph.
    """
    plan = RemovalPlan(protected=coupling.reasons, first_names=graph.first_names)
    for name, value in graph.parameters.items():
        kept = {
            dim: (~removed[units]).nonzero().flatten()
            for dim, units in value.units.items()
            if bool(removed[units].any())
        }
        if kept:
            plan.kept_positions[name] = kept
    removed_inputs = {layer: _removed_inputs(layer, removed) for layer in layers}
    for name, calls in _selection_candidates(model, graph, layers).items():
        _select_inputs(plan, name, calls, removed_inputs)
    for layer, inputs in removed_inputs.items():
        target = layer.context.bias_target
        if target is not None and (added := bias_contribution(layer, inputs)) is not None:
            biases = plan.bias_additions if target.exists else plan.new_biases
            biases[target.name] = added
    _record_size_changes(plan, graph, removed)
    return plan


def _removed_inputs(layer: WeightedLayer, removed: torch.Tensor) -> torch.Tensor:
    """Return for each input feature of a layer whether its unit is removed."""
    source, dim = layer.operands.source, layer.operands.source_dim
    units = source.units.get(dim)
    return torch.zeros(source.shape[dim], dtype=torch.bool) if units is None else removed[units]


def _selection_candidates(
    model: nn.Module, graph: Graph, layers: Sequence[WeightedLayer]
) -> dict[str, list[WeightedLayer]]:
    """Return the calls of each module that may select its inputs: its weight is not shared."""
    by_call = {layer.call: layer for layer in layers}
    modules = dict(model.named_modules())
    first_name = {id(module): name for name, module in reversed(modules.items())}
    found: dict[str, list[WeightedLayer]] = {}
    for name, module in modules.items():
        if type(module) not in SELECTING_TYPES or first_name[id(module)] != name:
            continue
        weight = graph.parameters.get(graph.first_names.get(f"{name}.weight".lstrip("."), ""))
        if weight is None or "weight" not in module._parameters or getattr(module, "groups", 1) > 1:
            continue
        owners = [
            other
            for other in modules.values()
            if any(parameter is module.weight for parameter in other._parameters.values())
        ]
        calls = [by_call[call] for call in weight.consumers if call in by_call]
        own_calls = all(
            layer.operands.weight is weight and calling_module(model, layer.call) is module
            for layer in calls
        )
        if len(owners) == 1 and calls and own_calls and len(calls) == len(weight.consumers):
            found[name] = calls
    return found


def _select_inputs(
    plan: RemovalPlan,
    name: str,
    calls: Sequence[WeightedLayer],
    removed_inputs: dict[WeightedLayer, torch.Tensor],
) -> None:
    """Let a layer select its inputs if that saves memory: skip those that no call of it uses."""
    present = ~removed_inputs[calls[0]]
    skipped = torch.stack([~layer.used & ~removed_inputs[layer] for layer in calls]).all(0)
    if bool((skipped == present).all()):
        skipped[int(skipped.nonzero()[0])] = False  # one feature is kept
    selected = present & ~skipped
    weight = calls[0].operands.weight
    kept = plan.kept_positions.get(str(weight.name), {})
    height = len(kept[0]) if 0 in kept else len(weight.data)
    kernel = weight.data[0, 0].numel()
    saved = height * kernel * int(skipped.sum()) * weight.data.element_size()
    if saved > _INDEX_BYTES * int(selected.sum()):
        plan.selected_inputs[name] = selected[present].nonzero().flatten()
        plan.kept_positions.setdefault(str(weight.name), {})[1] = selected.nonzero().flatten()
        for layer in calls:
            removed_inputs[layer] = removed_inputs[layer] | skipped


def _record_size_changes(plan: RemovalPlan, graph: Graph, removed: torch.Tensor) -> None:
    changes: dict[SizeChange, None] = {}
    locations: dict[str, None] = {}
    for call in graph.calls:
        if call.op not in SIZE_OPERATORS and "norm" not in call.op:
            continue
        for value in (*call.outputs, *call.inputs):
            for units in value.units.values():
                if bool(removed[units].any()):
                    if call.op in SIZE_OPERATORS:
                        locations[call.location] = None
                    after = int((~removed[units]).sum())
                    changes[SizeChange(call.module, len(units), after)] = None
    plan.size_changes, plan.size_locations = list(changes), list(locations)
