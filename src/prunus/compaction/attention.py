"""Attention of fewer heads than its embedding has room for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunus._inference.attention import Attention

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

    def forward(self, *arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what ``nn.MultiheadAttention`` returns."""
        attention = Attention(
            self._project,
            self.out_proj,
            self.head_dim,
            self.batch_first,
            self.dropout if self.training else 0.0,
        )
        return attention(*arguments, **settings)

    def _project(
        self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        one, other, third = map(F.linear, inputs, weights, biases)
        return one, other, third
