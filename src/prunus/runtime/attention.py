"""Attention whose projections are layers of its own, so that they can be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunus._inference.attention import Attention
from prunus.runtime.modules import keep_settings, set_module

__all__ = ["SplitAttention", "split_attentions"]

_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SplitAttention(nn.Module):
    """An ``nn.MultiheadAttention`` with linear layers as its projections, for inference.

    It is called like ``nn.MultiheadAttention``.

    Args:
        attention: The module to copy; without ``bias_k``, ``bias_v`` and ``add_zero_attn``.
        joint: Whether one layer, ``inputs``, projects query, key and value, which pays where they
            are one tensor; otherwise ``query``, ``key`` and ``value`` do.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> split = SplitAttention(attention, joint=True)
        >>> torch.allclose(split(x, x, x)[0], attention(x, x, x)[0], atol=1e-6)
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
        keep_settings(self, attention)
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        # nn.TransformerEncoderLayer checks these before it passes the weights of its layers to a
        # fused kernel; a missing bias is one reason for it not to.
        self.in_proj_bias = None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the outputs of ``nn.MultiheadAttention`` for these arguments."""
        return Attention(self._project, self.out, self.head_dim, self.batch_first)(*args, **kwargs)

    def _project(self, inputs: _Three) -> _Three:
        query, key, value = inputs
        if not self.joint:
            return self.query(query), self.key(key), self.value(value)
        if query is key is value:
            first, second, third = self.inputs(query).chunk(3, dim=-1)
            return first, second, third
        first, second, third = (self.inputs(x).chunk(3, dim=-1)[i] for i, x in enumerate(inputs))
        return first, second, third


def split_attentions(model: nn.Module, joint: Mapping[str, bool]) -> nn.Module:
    """Replace attentions of a network by :class:`SplitAttention` in place, and return the network.

    Args:
        model: The network, in evaluation mode.
        joint: For each attention to replace, by name, whether one layer projects its inputs.
    """
    for name, value in joint.items():
        attention: Any = model.get_submodule(name)
        model = set_module(model, name, SplitAttention(attention, joint=value))
    for module in model.modules():
        # In evaluation mode these pass the weights of their layers to one fused dense kernel.
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return model


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
