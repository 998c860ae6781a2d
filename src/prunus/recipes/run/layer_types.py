"""Densities by layer type: embedding, attention, feed-forward and so on."""

from __future__ import annotations

import re

import torch
from torch import nn

from prunus.selection import PrunableTensor, Selection

__all__ = ["densities_by_layer_type", "layer_type_of"]

_PATTERNS = (
    ("norm", re.compile(r"norm|(^|\.)ln_", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention|[qkv]_proj|out_proj", re.IGNORECASE)),
    (
        "feed-forward",
        re.compile(r"(^|\.)(fc\d*|mlp|ffn|feed_forward|intermediate)\.", re.IGNORECASE),
    ),
)
"""Layer types by patterns of names; the order matters: the norm of an attention layer is a norm."""


def layer_type_of(model: nn.Module, tensor: PrunableTensor) -> str:
    """Return the layer type of a tensor.

    It is one of embedding, head, "embedding and head" (if tied), attention, feed-forward, norm,
    convolution and linear, recognized by the names that common implementations use.

    Example:
        >>> from prunus import select
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5))
        >>> [layer_type_of(model, tensor) for tensor in select(model).values()]
        ['embedding', 'linear']
    """
    names = (tensor.name, *tensor.aliases)
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    head = any(name.endswith(("lm_head.weight", "output_projection.weight")) for name in names)
    if any(isinstance(owner, nn.Embedding) for owner in owners):
        return "embedding and head" if head else "embedding"
    if head:
        return "head"
    for layer_type, pattern in _PATTERNS:
        if pattern.search(tensor.name):
            return layer_type
    if "Norm" in type(owners[0]).__name__:
        return "norm"
    return "convolution" if tensor.parameter.dim() > 2 else "linear"


def densities_by_layer_type(model: nn.Module, selection: Selection) -> dict[str, dict[str, int]]:
    """Count prunable and non-zero weights of each layer type."""
    layer_types: dict[str, dict[str, int]] = {}
    for tensor in selection.values():
        layer_type = layer_type_of(model, tensor)
        counts = layer_types.setdefault(layer_type, {"prunable": 0, "nonzero": 0})
        weight = tensor.parameter.detach()
        nonzero = int(torch.count_nonzero(weight))
        if tensor.padding_row is not None:
            nonzero -= int(torch.count_nonzero(weight[tensor.padding_row]))
        counts["prunable"] += tensor.prunable
        counts["nonzero"] += nonzero
    return layer_types
