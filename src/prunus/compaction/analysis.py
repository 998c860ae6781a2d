"""Analysis of a traced model: which units are dead, and which removals follow from them.

A unit is dead if it is constant, so that its contribution can be folded into the biases of its
consumers, or if no output of the model depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from prunus.compaction.coupling import PROTECTED, Backtrack, Coupling
from prunus.compaction.folding import bias_target, calling_module, mark_conflicts
from prunus.compaction.graph import Graph
from prunus.compaction.plan import SIZE_OPERATORS, RemovalPlan, build_plan
from prunus.compaction.rules import Rule, rule_for
from prunus.compaction.rules.layers import LayerContext, WeightedLayer
from prunus.compaction.tensor_ops import any_along

__all__ = ["analyse"]


def analyse(model: nn.Module, graph: Graph, fixed_sizes: Collection[str] = ()) -> RemovalPlan:
    """Compute which units of a model can be removed.

    A forward pass over the calls finds which elements vary with the input or between positions;
    the others are constants. A backward pass finds which elements the model's outputs depend on.
    A group of coupled units is removed if none of its units is needed at any place.

    Args:
        model: The model that was traced.
        graph: Its graph.
        fixed_sizes: Source locations, of :attr:`RemovalPlan.size_locations`, at which no size may
            change. Default: none.

    Returns:
        The plan of the removal.
    """
    rules = [rule_for(call) for call in graph.calls]
    layers = [rule for rule in rules if isinstance(rule, WeightedLayer)]
    by_call = {layer.call: layer for layer in layers}
    for layer in layers:
        convolution = isinstance(calling_module(model, layer.call), nn.modules.conv._ConvNd)
        layer.context = LayerContext(bias_target(model, graph, layer, by_call), convolution)
    choices: dict[str, int] = {}
    while True:
        coupling = Coupling(choices)
        try:
            _run_forward(graph, rules, coupling, fixed_sizes)
        except Backtrack:
            continue
        if not mark_conflicts(layers):
            break
    for value in graph.outputs:
        value.needed |= True
    for rule in reversed(rules):
        rule.backward()
    return build_plan(model, graph, coupling, _removed_units(graph, coupling), layers)


def _run_forward(
    graph: Graph, rules: Sequence[Rule], coupling: Coupling, fixed_sizes: Collection[str]
) -> None:
    for value in graph.values:
        value.reset()
    for value in graph.parameters.values():
        value.varies = _varies_between_positions(value.data.cpu())
        if value.consumers:
            value.units = {dim: coupling.new_units(size) for dim, size in enumerate(value.shape)}
    for value in graph.values:
        if value.static and value.name is None and value.rank == 0:
            value.varies = torch.zeros((), dtype=torch.bool)
    for rule in rules:
        rule.forward(coupling)
        call = rule.call
        if call.op in SIZE_OPERATORS and call.location in fixed_sizes:
            for value in (*call.inputs, *call.outputs):
                for units in value.units.values():
                    coupling.protect(units, f"{call}: its sizes are hard-coded")
    for value in (*graph.outputs, *graph.mutated):
        for units in value.units.values():
            coupling.protect(units)


def _varies_between_positions(data: torch.Tensor) -> torch.Tensor:
    """Return which elements of a parameter, added to features, vary between positions.

    A position table, from which a longer input reads more rows, is constant along positions only
    where it is 0. A vector has one element per feature, not per position.
    """
    wide = [dim for dim, size in enumerate(data.shape) if size > 1]
    varies = torch.full(data.shape, len(wide) > 1)
    for dim in wide:
        others = [other for other in range(data.dim()) if other != dim]
        varies = varies & (data != 0).any(dim=others, keepdim=True) if others else varies
    return varies


def _removed_units(graph: Graph, coupling: Coupling) -> torch.Tensor:
    """Return for each unit whether it is removed."""
    group = coupling.groups()
    needed = torch.zeros(len(group), dtype=torch.bool)
    needed[PROTECTED] = True
    uses = [(value, dim, units) for value in graph.values for dim, units in value.units.items()]
    for value, dim, units in uses:
        needed[group[units[any_along(value.needed, dim)]]] = True
    removed = ~needed[group]
    for _, _, units in uses:
        # No dimension may become empty: the group of its first unit is kept.
        if len(units) and bool(removed[units].all()):
            removed[group == group[units[0]]] = False
    return removed
