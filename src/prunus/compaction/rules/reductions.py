"""Rules for reductions and other operators that combine elements along dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call, Value
from prunus.compaction.rules.base import Rule, operator_names
from prunus.compaction.tensor_ops import equal_up_to_rounding

__all__ = ["MeanReduction", "Pooling", "Reduction", "Resampling", "SumReduction"]


def _any_over(mask: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    return mask.any(dim=list(dims), keepdim=True) if dims else mask


class Reduction(Rule):
    """Operators whose outputs depend on all elements along some dimensions, and on their number."""

    operators = operator_names(
        """
        softmax _softmax log_softmax _log_softmax logsumexp std var prod cumprod argmax
        argmin any all norm linalg_vector_norm sort argsort count_nonzero
        """
    )

    @classmethod
    def dims(cls, call: Call) -> Sequence[int]:
        """Return the dimensions that are combined: those of the argument ``dim``, or all."""
        dims: Any = call.get("dim")
        rank = call.inputs[0].rank
        if dims is None or dims == []:
            return range(rank)
        return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)] if rank else []

    @classmethod
    def supports(cls, call: Call) -> bool:
        """Return whether all outputs have the input's sizes but for the combined dimensions."""
        if len(call.inputs) != 1:
            return False
        (source,) = call.inputs
        combined = set(cls.dims(call))
        kept = [source.shape[dim] for dim in range(source.rank) if dim not in combined]
        return all(
            [size for dim, size in enumerate(out.shape) if dim not in combined] == kept
            if out.rank == source.rank
            else list(out.shape) == kept
            for out in call.outputs
        )

    def varies_after(self, source: Value, dims: Sequence[int]) -> torch.Tensor:
        """Return where the output varies, with size 1 along the combined dimensions."""
        return torch.ones_like(_any_over(source.nonzero, dims))

    def forward(self, coupling: Coupling) -> None:
        (source,) = self.call.inputs
        dims = list(self.dims(self.call))
        varies = self.varies_after(source, dims)
        kept = [dim for dim in range(source.rank) if dim not in dims]
        for out in self.call.outputs:
            same_rank = out.rank == source.rank
            out.varies = (varies if same_rank else varies.squeeze(dims)).expand(out.shape)
            out.varies = out.varies.contiguous()
            for dim in kept:
                if (units := source.units.get(dim)) is not None:
                    out.units[dim if same_rank else kept.index(dim)] = units
        for dim in dims:
            if (units := source.units.get(dim)) is not None:
                coupling.backtrack(units)
                coupling.protect(units, f"{self.call}: combines all positions of this dimension")

    def backward(self) -> None:
        (source,) = self.call.inputs
        dims = list(self.dims(self.call))
        for out in self.call.outputs:
            live = out.needed & out.varies
            if live.dim() != source.rank:
                for dim in sorted(dims):
                    live = live.unsqueeze(dim)
            source.needed |= _any_over(live, dims).expand(source.shape)


class SumReduction(Reduction):
    """Sums: constant only where all summed elements are 0, because their number may change."""

    operators = frozenset(("sum", "cumsum"))

    def varies_after(self, source: Value, dims: Sequence[int]) -> torch.Tensor:
        return _any_over(source.nonzero, dims)


class MeanReduction(Reduction):
    """Means, extrema and medians: equal constants yield the same constant."""

    operators = frozenset(("mean", "amax", "amin", "max", "min", "median"))

    def varies_after(self, source: Value, dims: Sequence[int]) -> torch.Tensor:
        if not dims:
            return source.nonzero
        first = source.data
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        varies = source.varies | ~equal_up_to_rounding(source.data, first).cpu()
        return _any_over(varies, dims)


def _spatial_dims(call: Call) -> range:
    """Return the trailing dimensions, as many as the operator's name states, such as ``2d``."""
    match = re.search(r"([123])d", call.op)
    assert match is not None
    rank = call.inputs[0].rank
    return range(rank - int(match[1]), rank)


class Pooling(MeanReduction):
    """Average and maximum pooling over the trailing dimensions."""

    operators = frozenset(
        f"{pool}{rank}d{indices}"
        for rank in (1, 2, 3)
        for pool, indices in (
            ("adaptive_avg_pool", ""),
            ("adaptive_max_pool", ""),
            ("avg_pool", ""),
            ("max_pool", ""),
            ("max_pool", "_with_indices"),
        )
    )

    @classmethod
    def dims(cls, call: Call) -> Sequence[int]:
        return _spatial_dims(call)

    def varies_after(self, source: Value, dims: Sequence[int]) -> torch.Tensor:
        padding = self.call.get("padding")
        widths = padding if isinstance(padding, list | tuple) else [padding]
        if "avg" in self.call.op and any(widths):  # the average includes zeros
            return _any_over(source.nonzero, dims)
        return super().varies_after(source, dims)


class Resampling(MeanReduction):
    """Interpolation and non-constant padding of the trailing dimensions."""

    operators = operator_names(
        """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        """
    )

    @classmethod
    def dims(cls, call: Call) -> Sequence[int]:
        return _spatial_dims(call)
