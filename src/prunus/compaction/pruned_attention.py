"""Multi-head attention with fewer heads than its embedding dimension implies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunus._inference.attention import Attention

__all__ = ["PrunedMultiheadAttention"]


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` after the removal of heads.

    Its parameters have the same names and order; ``in_proj_weight`` has ``3 * inner_dim`` rows. It
    is called like ``nn.MultiheadAttention``, but does not support ``kdim``, ``vdim``, ``bias_k``,
    ``bias_v`` and ``add_zero_attn``.

    Attributes:
        inner_dim: The number of features of all remaining heads together.
    """

    inner_dim: int

    @staticmethod
    def convert(module: nn.MultiheadAttention) -> None:
        """Change the type of a module, in place, if its projections have become smaller."""
        weight = module.in_proj_weight
        inner_dim = weight.shape[0] // 3 if weight is not None else module.embed_dim
        if inner_dim != module.embed_dim:
            module.__class__ = PrunedMultiheadAttention
            module.inner_dim = inner_dim  # type: ignore[assignment]
            module.num_heads = inner_dim // module.head_dim
            module.out_proj.in_features = inner_dim

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output and the attention weights, as ``nn.MultiheadAttention`` does."""
        attention = Attention(
            self._project,
            self.out_proj,
            self.head_dim,
            self.batch_first,
            self.dropout if self.training else 0.0,
        )
        return attention(*args, **kwargs)

    def _project(
        self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        query, key, value = map(F.linear, inputs, weights, biases)
        return query, key, value
