"""Attention of fewer heads than its embedding has room for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["SmallerAttention"]


class SmallerAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` of which heads were removed.

    Its parameters have the same names and lie in the same order; ``in_proj_weight`` has three times
    as many rows as the heads that are left have features. It is called alike, but takes neither
    keys nor values of other sizes, nor ``bias_k``, ``bias_v`` and ``add_zero_attn``.

    Attributes:
        width: How many features the heads that are left have in all.
    """

    width: int

    @staticmethod
    def take(module: nn.MultiheadAttention) -> None:
        """Make one of a module whose parameters have become smaller."""
        weight = module.in_proj_weight
        width = weight.shape[0] // 3 if weight is not None else module.embed_dim
        if width != module.embed_dim:
            module.__class__ = SmallerAttention
            module.width = width  # type: ignore[assignment]
            module.num_heads = width // module.head_dim
            module.out_proj.in_features = width

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [one[None] for one in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            inputs = [one.transpose(0, 1) for one in inputs]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        split = [
            F.linear(one, weight, bias).view(*one.shape[:2], -1, self.head_dim).transpose(1, 2)
            for one, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
        mask = self._mask(split[0], attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        attended: torch.Tensor | None = None
        if need_weights:
            scores = split[0] @ split[1].mT / math.sqrt(self.head_dim)
            attended = (scores if mask is None else scores + mask).softmax(-1)
            attended = F.dropout(attended, dropout)
            made = attended @ split[2]
            attended = attended.mean(1) if average_attn_weights else attended
            attended = attended if batched else attended[0]
        else:
            causal = is_causal and mask is None
            made = F.scaled_dot_product_attention(
                split[0], split[1], split[2], mask, dropout, is_causal=causal
            )
        out = self.out_proj(made.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], attended
        return (out if self.batch_first else out.transpose(0, 1)), attended

    def _mask(
        self, query: torch.Tensor, mask: torch.Tensor | None, padding: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return what to add to the scores of each head: -inf where a key is not to be seen."""
        parts = []
        if mask is not None:
            parts.append(
                mask if mask.dim() == 2 else mask.view(query.shape[0], -1, *mask.shape[1:])
            )
        if padding is not None:
            parts.append(padding[:, None, None, :])
        added = [
            torch.zeros(p.shape, dtype=query.dtype, device=p.device).masked_fill(p, -math.inf)
            if p.dtype == torch.bool
            else p.to(query.dtype)
            for p in parts
        ]
        return sum(added[1:], added[0]) if added else None
