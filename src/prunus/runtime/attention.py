"""Attention whose projections are layers of their own, so that they can be replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus._inference.attention import Attention

__all__ = ["OpenAttention"]

_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class OpenAttention(nn.Module):
    """``nn.MultiheadAttention``, its projections as linear layers; for inference.

    It is called alike.

    Args:
        attention: The module to do the work of; without ``bias_k``, ``bias_v``, ``add_zero_attn``.
        joint: Whether to project query, key and value by one layer, ``inputs``, as pays where they
            are one tensor; else by ``query``, ``key`` and ``value``.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> opened = OpenAttention(attention, joint=True)
        >>> torch.allclose(opened(x, x, x)[0], attention(x, x, x)[0], atol=1e-6)
        True
    """

    def __init__(self, attention: nn.MultiheadAttention, *, joint: bool) -> None:
        super().__init__()
        self.joint = joint
        weights: list[torch.Tensor]
        if attention.in_proj_weight is not None:
            weights = list(attention.in_proj_weight.chunk(3))
        else:
            weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        bias = attention.in_proj_bias
        if joint:
            self.inputs = _linear(torch.cat(weights), bias)
        else:
            biases = [None] * 3 if bias is None else list(bias.chunk(3))
            layers = [_linear(*both) for both in zip(weights, biases, strict=True)]
            self.query, self.key, self.value = layers
        out = attention.out_proj
        self.out = _linear(out.weight, out.bias)
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        # What nn.TransformerEncoderLayer looks at before it takes weights past its layers: that
        # there is no bias is one reason for it not to.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = attention._qkv_same_embed_dim
        self.num_heads = attention.num_heads
        self.eval()

    def forward(self, *arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what ``nn.MultiheadAttention`` returns."""
        return Attention(self._project, self.out, self.head_dim, self.batch_first)(
            *arguments, **settings
        )

    def _project(self, inputs: _Three) -> _Three:
        one, other, third = inputs
        if not self.joint:
            return self.query(one), self.key(other), self.value(third)
        if one is other is third:
            query, key, value = self.inputs(one).chunk(3, dim=-1)
            return query, key, value
        query, key, value = (self.inputs(x).chunk(3, dim=-1)[i] for i, x in enumerate(inputs))
        return query, key, value


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
