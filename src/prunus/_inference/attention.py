"""Multi-head attention with exchangeable input and output projections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prunus.errors import PrunusError, listing

__all__ = ["Attention"]

_QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """The computation of ``nn.MultiheadAttention``, with any layers as projections.

    Args:
        project: Projects query, key and value, of shape (items, length, features) each, to the
            features of all heads.
        out: Projects the concatenated outputs of all heads to the output.
        head_dim: Features per head.
        batch_first: Whether inputs are of shape (items, length, features) and not (length, items,
            features).
        dropout: Probability of dropping an attention weight.
    """

    project: Callable[[_QueryKeyValue], _QueryKeyValue]
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
        """Return the output and the attention weights, as ``nn.MultiheadAttention`` does.

        Raises:
            PrunusError: ``is_causal`` without ``attn_mask``, or a mask of integers.
        """
        if is_causal and attn_mask is None:
            raise PrunusError(
                "attention with is_causal needs attn_mask: is_causal is only a hint about the mask"
            )
        batched = query.dim() == 3
        same = query is key is value
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        projected = self.project((query, query, query) if same else (query, key, value))
        q, k, v = (x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in projected)
        bias = _score_bias(q, attn_mask, key_padding_mask)
        weights: torch.Tensor | None = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            weights = F.dropout(weights, self.dropout)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            heads = F.scaled_dot_product_attention(q, k, v, bias, self.dropout)
        out = self.out(heads.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights


def _score_bias(
    query: torch.Tensor, mask: torch.Tensor | None, padding: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what the masks add to the scores of each head: -inf where a key is masked."""
    wrong = [str(m.dtype) for m in (mask, padding) if m is not None and _is_integer(m)]
    if wrong:
        raise PrunusError(f"masks must be of bool or floating point, but are {listing(wrong)}")
    masks = []
    if mask is not None:
        masks.append(mask if mask.dim() == 2 else mask.view(query.shape[0], -1, *mask.shape[1:]))
    if padding is not None:
        masks.append(padding[:, None, None, :])
    biases = [
        torch.zeros(m.shape, dtype=query.dtype, device=m.device).masked_fill(m, -math.inf)
        if m.dtype == torch.bool
        else m.to(query.dtype)
        for m in masks
    ]
    return sum(biases[1:], biases[0]) if biases else None


def _is_integer(mask: torch.Tensor) -> bool:
    return mask.dtype != torch.bool and not mask.is_floating_point()
