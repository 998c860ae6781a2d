"""Constant folding: the biases into which the contributions of constant features are added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from prunus.compaction.graph import Call, Graph
from prunus.compaction.rules.layers import BiasTarget, WeightedLayer
from prunus.compaction.tensor_ops import equal_up_to_rounding

__all__ = ["bias_contribution", "bias_target", "calling_module", "mark_conflicts"]


def calling_module(model: nn.Module, call: Call) -> nn.Module:
    """Return the module that makes a call."""
    try:
        return model.get_submodule(call.module)
    except AttributeError:
        return model


def bias_target(
    model: nn.Module, graph: Graph, layer: WeightedLayer, layers: Mapping[Call, WeightedLayer]
) -> BiasTarget | None:
    """Return the bias into which constants that a layer reads can be folded, or None.

    A bias can be used if only this layer's weight reads its constants: it is not shared with
    another layer. A layer of torch without a bias can have a new one.

    Args:
        model: The model that was traced.
        graph: Its graph.
        layer: The layer.
        layers: All layers, by their calls.
    """
    operands = layer.operands
    if operands.bias is not None:
        consumers = operands.bias.consumers
        same_layer = all(
            (other := layers.get(consumer)) is not None
            and other.operands.bias is operands.bias
            and other.operands.weight is operands.weight
            for consumer in consumers
        )
        usable = operands.bias.name is not None and consumers.count(layer.call) == 1
        if not (usable and same_layer):
            return None
        return BiasTarget(str(operands.bias.name), exists=True)
    module = calling_module(model, layer.call)
    plain = nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward
    if type(module).forward not in plain or "bias" not in module._parameters:
        return None
    weight_name = f"{layer.call.module}.weight".lstrip(".")
    if graph.first_names.get(weight_name) != operands.weight.name:
        return None
    first = next(name for name, other in model.named_modules() if other is module)
    return BiasTarget(first, exists=False)


def mark_conflicts(layers: Iterable[WeightedLayer]) -> bool:
    """Mark features whose constants differ between the calls that share a bias.

    One bias cannot hold two constants, so such a feature counts as varying.

    Args:
        layers: The layers, after the forward pass.

    Returns:
        Whether a feature was marked, so that the forward pass has to be run again.
    """
    by_bias: dict[BiasTarget, list[WeightedLayer]] = {}
    for layer in layers:
        if layer.context.bias_target is not None:
            by_bias.setdefault(layer.context.bias_target, []).append(layer)
    marked = False
    for calls in by_bias.values():
        varies = torch.stack([layer.inputs.varies for layer in calls])
        constants = torch.stack([layer.inputs.constants for layer in calls])
        equal = equal_up_to_rounding(constants, constants[:1]).all(0)
        conflicting = (varies.any(0) | ~equal) & ~varies.all(0)
        if bool(conflicting.any()):
            marked = True
            for layer in calls:
                layer.conflicting = layer.conflicting | conflicting
    return marked


def bias_contribution(layer: WeightedLayer, removed: torch.Tensor) -> torch.Tensor | None:
    """Return what the removed constant features add to a layer's outputs, or None if nothing.

    Args:
        layer: The layer, after the forward pass.
        removed: True for each input feature that is removed.
    """
    operands = layer.operands
    constants = layer.inputs.constants.double()
    folded = removed & ~layer.inputs.varies & (constants != 0)
    if operands.groups > 1 or operands.position_dependent or not bool(folded.any()):
        return None
    added = operands.summed_weights()[:, folded] @ constants[folded]
    return added if bool(added.any()) else None
