"""Attention of several heads, given the layers that project into and out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prunus.errors import PrunusError, listing

__all__ = ["Attention"]

_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """What ``nn.MultiheadAttention`` computes, whatever computes the projections.

    Args:
        project: Query, key and value, of shape (items, length, features) each, into as many
            features as all heads have.
        out: What the heads have found, of as many features, into the output.
        head_dim: Features of each head.
        batch_first: Whether inputs are (items, length, features), not (length, items, features).
        dropout: Probability that a weight of the attention is dropped.
    """

    project: Callable[[_Three], _Three]
    out: Callable[[torch.Tensor], torch.Tensor]
    head_dim: int
    batch_first: bool
    dropout: float = 0.0

    def __call__(
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
        """Return what ``nn.MultiheadAttention`` returns for these arguments.

        Raises:
            PrunusError: ``is_causal`` without ``attn_mask``, or a mask of whole numbers.
        """
        if is_causal and attn_mask is None:
            raise PrunusError("attention with is_causal needs attn_mask, of which it is a hint")
        batched = query.dim() == 3
        same = query is key is value
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        projected = self.project((query, query, query) if same else (query, key, value))
        q, k, v = (x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in projected)
        mask = _added(q, attn_mask, key_padding_mask)
        attended: torch.Tensor | None = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            attended = (scores if mask is None else scores + mask).softmax(-1)
            attended = F.dropout(attended, self.dropout)
            made = attended @ v
            attended = attended.mean(1) if average_attn_weights else attended
            attended = attended if batched else attended[0]
        else:
            made = F.scaled_dot_product_attention(q, k, v, mask, self.dropout)
        out = self.out(made.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], attended
        return (out if self.batch_first else out.transpose(0, 1)), attended


def _added(
    query: torch.Tensor, mask: torch.Tensor | None, padding: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what to add to the scores of each head: -inf where a key is not to be seen."""
    wrong = [str(m.dtype) for m in (mask, padding) if m is not None and _is_whole(m)]
    if wrong:
        raise PrunusError(f"masks must be of bool or floating point, but are {listing(wrong)}")
    parts = []
    if mask is not None:
        parts.append(mask if mask.dim() == 2 else mask.view(query.shape[0], -1, *mask.shape[1:]))
    if padding is not None:
        parts.append(padding[:, None, None, :])
    added = [
        torch.zeros(p.shape, dtype=query.dtype, device=p.device).masked_fill(p, -math.inf)
        if p.dtype == torch.bool
        else p.to(query.dtype)
        for p in parts
    ]
    return sum(added[1:], added[0]) if added else None


def _is_whole(mask: torch.Tensor) -> bool:
    return mask.dtype != torch.bool and not mask.is_floating_point()
