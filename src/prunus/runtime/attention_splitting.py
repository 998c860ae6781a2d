"""Splitting of sparse attentions into separate projection layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import call_model, copy_model
from prunus._inference.outputs import TOLERANCE, relative_difference
from prunus.compaction.pruned_attention import PrunedMultiheadAttention
from prunus.runtime.attention import split_attentions
from prunus.runtime.candidates import call_recording, is_sparse_enough, unsuitable_tensor

__all__ = ["AttentionSplit", "split_sparse_attentions"]


@dataclass(frozen=True)
class AttentionSplit:
    """A network whose sparse attentions are split into layers where this keeps its outputs.

    Attributes:
        model: The network.
        joint: For each split attention, by name, whether one layer projects its inputs.
        excluded: Why other attentions with many zero weights stay whole, by name.
    """

    model: nn.Module
    joint: dict[str, bool] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


def split_sparse_attentions(
    model: nn.Module,
    dense: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any],
    expected: list[torch.Tensor],
) -> AttentionSplit:
    """Split the sparse attentions of a copy of a network, where this keeps the outputs.

    Args:
        model: The network, which is not changed.
        dense: A copy of it, returned as it is if no attention is split.
        args: Positional arguments of the example.
        kwargs: Keyword arguments of the example.
        expected: The network's outputs on the example.
    """
    attentions = {
        name: module
        for name, module in dense.named_modules()
        if type(module) in (nn.MultiheadAttention, PrunedMultiheadAttention)
        and any(map(is_sparse_enough, module.modules()))
    }
    excluded = {name: why for name, module in attentions.items() if (why := _unsuitable(module))}
    suitable = {name: module for name, module in attentions.items() if name not in excluded}
    joint = _inputs_are_one_tensor(dense, suitable, args, kwargs)
    if not joint:
        return AttentionSplit(dense, excluded=excluded)

    def split(names: Iterable[str]) -> nn.Module | None:
        """Return the network with these attentions split, or None if its outputs differ."""
        candidate = split_attentions(copy_model(model), {name: joint[name] for name in names})
        try:
            difference = relative_difference(expected, call_model(candidate, args, kwargs))
        except Exception:  # whatever a model's own code raises that accesses an attention
            return None
        return candidate if difference <= TOLERANCE else None

    candidate = split(joint)
    if candidate is None:
        for name in [name for name in joint if split([name]) is None]:
            excluded[name] = "its weights are read by the code around it"
            del joint[name]
        candidate = split(joint)
    if candidate is None:
        excluded |= dict.fromkeys(joint, "the outputs differ once it is split together with others")
        return AttentionSplit(dense, excluded=excluded)
    return AttentionSplit(candidate, joint, excluded)


def _unsuitable(attention: Any) -> str | None:
    """Return why the projections of an attention cannot be layers, or None if they can be."""
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it has keys and values of its own, by add_bias_kv or add_zero_attn"
    if attention._forward_hooks or attention._forward_pre_hooks:
        return "it has hooks"
    return unsuitable_tensor(attention)


def _inputs_are_one_tensor(
    model: nn.Module, attentions: Mapping[str, nn.Module], args: Any, kwargs: Mapping[str, Any]
) -> dict[str, bool]:
    """Return, for each attention called, whether query, key and value are always one tensor."""
    joint: dict[str, bool] = {}

    def record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        same = inputs["query"] is inputs["key"] is inputs["value"]
        joint[name] = joint.get(name, True) and same

    call_recording(model, attentions, record, args, kwargs)
    return joint
