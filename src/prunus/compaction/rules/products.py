"""Rules for products of two activations: matrix products and attention."""

from __future__ import annotations

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call, Value
from prunus.compaction.rules.base import Rule
from prunus.compaction.rules.elementwise import couple_broadcast
from prunus.compaction.tensor_ops import equal_up_to_rounding, sum_to_shape

__all__ = ["MatrixProduct", "ScaledDotProductAttention"]


def _protect_contracted(
    coupling: Coupling, value: Value | None, dims: tuple[int, ...], call: Call
) -> None:
    """Protect dimensions that a product sums over.

    The size of such a dimension is commonly used to scale the result, so it has to stay. If it
    comes from a view, another dimension of the view may become smaller instead.
    """
    if value is None:
        return
    for dim in dims:
        if (units := value.units.get(dim % value.rank)) is not None:
            coupling.backtrack(units)
            coupling.protect(units, f"{call}: multiplies two activations along this dimension")


class MatrixProduct(Rule):
    """``mm``, ``bmm`` and ``matmul`` of two tensors that may both vary."""

    operators = frozenset(("mm", "bmm", "matmul"))

    @classmethod
    def supports(cls, call: Call) -> bool:
        return len(call.inputs) == 2 and all(value.rank >= 2 for value in call.inputs)

    def forward(self, coupling: Coupling) -> None:
        left, right = self._factors()
        out = self.call.out
        couple_broadcast(coupling, [left, right], out, skip_last=2)
        for value, kept, contracted in ((left, -2, -1), (right, -1, -2)):
            _protect_contracted(coupling, value, (contracted,), self.call)
            if (units := value.units.get(kept % value.rank)) is not None:
                out.units[kept % out.rank] = units
        out.varies = (left.nonzero.float() @ right.nonzero.float()) > 0

    def backward(self) -> None:
        left, right = self._factors()
        live = (self.call.out.needed & self.call.out.varies).float()
        left_nonzero, right_nonzero = left.nonzero, right.nonzero
        to_left = (live @ right_nonzero.float().mT).sum_to_size(left.shape) > 0
        to_right = (left_nonzero.float().mT @ live).sum_to_size(right.shape) > 0
        left.needed |= to_left & left_nonzero
        right.needed |= to_right & right_nonzero

    def _factors(self) -> tuple[Value, Value]:
        return self.call["self"], self.call.get("mat2", self.call.get("other"))


class ScaledDotProductAttention(Rule):
    """``scaled_dot_product_attention``: values averaged with weights from queries and keys."""

    operators = frozenset(("scaled_dot_product_attention",))

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.query: Value = call["query"]
        self.key: Value = call["key"]
        self.value: Value = call["value"]
        self.mask: Value | None = call.get("attn_mask")

    @classmethod
    def supports(cls, call: Call) -> bool:
        return all(value.rank >= 3 for value in call.inputs[:3])

    def forward(self, coupling: Coupling) -> None:
        query, key, value, mask, out = self.query, self.key, self.value, self.mask, self.call.out
        masks = [] if mask is None else [mask]
        if self.call.get("enable_gqa") and query.shape[-3] != key.shape[-3]:
            self._couple_grouped_heads(coupling)
        else:
            couple_broadcast(coupling, [query, key, value, *masks], out, skip_last=2)
        if (features := value.units.get(value.rank - 1)) is not None:
            out.units[out.rank - 1] = features
        for one, dims in ((query, (-2, -1)), (key, (-2, -1)), (value, (-2,)), (mask, (-2, -1))):
            _protect_contracted(coupling, one, dims, self.call)
        # The weights of a row sum to 1, so a constant value stays the same constant, except in rows
        # that are masked entirely, which are 0.
        uniform = equal_up_to_rounding(value.data, value.data[..., :1, :]).all(-2, keepdim=True)
        varies = value.nonzero if masks else value.varies | ~uniform.cpu()
        varies = varies.any(-2, keepdim=True)
        if varies.dim() > 2 and varies.shape[-3] != out.shape[-3]:
            varies = varies.repeat_interleave(out.shape[-3] // varies.shape[-3], -3)
        out.varies = varies.expand(out.shape).contiguous()

    def backward(self) -> None:
        live = self.call.out.needed & self.call.out.varies
        by_feature = live.any(-2, keepdim=True)
        by_head = live.any(-1, keepdim=True).any(-2, True)
        self.value.needed |= _reduce_to_heads(by_feature, self.value)
        self.query.needed |= _reduce_to_heads(by_head, self.query)
        self.key.needed |= _reduce_to_heads(by_head, self.key)
        if self.mask is not None:
            rows = live.any(-1, keepdim=True)
            rows = rows.expand(*self.call.out.shape[:-1], self.key.shape[-2])
            self.mask.needed |= sum_to_shape(rows, self.mask.shape)

    def _couple_grouped_heads(self, coupling: Coupling) -> None:
        """Couple each head of queries with the head of keys and values that it shares."""
        head_dim = self.call.out.rank - 3
        queries_per_key = self.query.shape[-3] // self.key.shape[-3]
        repeats = ((self.query, 1), (self.key, queries_per_key), (self.value, queries_per_key))
        merged = coupling.merge(
            [
                None if (units := one.units.get(head_dim)) is None else units.repeat_interleave(n)
                for one, n in repeats
            ]
        )
        if merged is not None:
            self.call.out.units[head_dim] = merged


def _reduce_to_heads(mask: torch.Tensor, value: Value) -> torch.Tensor:
    """Return a mask over the output's heads as one over the heads of queries, keys or values."""
    heads = value.shape[-3]
    if heads not in (1, mask.shape[-3]):  # several heads of queries share one of keys
        shape = (*mask.shape[:-3], heads, -1, *mask.shape[-2:])
        mask = mask.reshape(shape).any(-3)
    reduced = sum_to_shape(mask, torch.Size((*value.shape[:-2], *mask.shape[-2:])))
    return reduced.expand(value.shape)
