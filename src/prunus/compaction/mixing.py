"""Rules for operators that mix the elements along dimensions: sums, pooling, normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from prunus.compaction.graph import Call, Value, alike, anywhere
from prunus.compaction.layout import spread
from prunus.compaction.units import Units

__all__ = ["BatchNorm", "Lookup", "Mixing", "Normalization", "given_dims", "last_dims"]


def given_dims(call: Call, source: Value) -> Sequence[int]:
    """Return the dimensions that a call names; all if it names none."""
    dims: Any = call.get("dim")
    rank = source.data.dim()
    if dims is None or dims == []:
        return range(rank)
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)] if rank else []


def last_dims(count: int) -> Callable[[Call, Value], Sequence[int]]:
    """Return a function that names the last dimensions."""
    return lambda call, source: range(source.data.dim() - count, source.data.dim())


@dataclass(frozen=True)
class Mixing:
    """Each output is made of all elements along some dimensions, whose sizes therefore stay.

    Attributes:
        dims: Which dimensions they are.
        constants: What becomes of inputs that are one constant: the same constant ("kept"), a
            constant only if they are 0 ("zero"), or one that hangs on their number ("lost").
    """

    dims: Callable[[Call, Value], Sequence[int]]
    constants: Literal["kept", "zero", "lost"] = "lost"

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the outputs."""
        source = call.inputs[0]
        mixed = list(self.dims(call, source))
        rank = source.data.dim()
        constants = self.constants
        if constants == "kept" and any(_as_list(call.get("padding"))) and "avg" in call.op:
            constants = "zero"  # for the average is taken over zeros too
        if constants == "kept" and mixed:
            first = source.data
            for dim in mixed:
                first = first.narrow(dim, 0, 1)
            varying = source.varies | ~alike(source.data, first).cpu()
        else:
            varying = source.nonzero
        varying = varying.any(dim=mixed, keepdim=True) if mixed else varying
        if constants == "lost":
            varying = torch.ones_like(varying)
        kept = [dim for dim in range(rank) if dim not in mixed]
        for out in call.outputs:
            same = out.data.dim() == rank
            out.varies = (varying if same else varying.squeeze(mixed)).expand(out.shape)
            out.varies = out.varies.contiguous()
            for dim in kept:
                if (held := source.units.get(dim)) is not None:
                    out.units[dim if same else kept.index(dim)] = held
        for dim in mixed:
            if (held := source.units.get(dim)) is not None:
                units.regret(held)
                units.freeze(held, f"{call}: takes all positions together")

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        source = call.inputs[0]
        mixed = list(self.dims(call, source))
        for out in call.outputs:
            live = out.needed & out.varies
            if live.dim() != source.data.dim():
                for dim in sorted(mixed):
                    live = live.unsqueeze(dim)
            live = live.any(dim=mixed, keepdim=True) if mixed else live
            source.needed |= live.expand(source.shape)


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


class BatchNorm:
    """Batch and instance normalization: each channel by itself."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        source, out = call["input"], call.out
        beside = self._beside(call)
        channels = [source.units.get(1), *(one.units.get(0) for one in beside)]
        present = [held for held in channels if held is not None]
        for held in present:
            units.tie(held, present[0])
        out.units = {dim: held for dim, held in source.units.items() if dim != 1}
        if len(present) == len(channels):
            out.units[1] = present[0]
        elif present:
            units.freeze(present[0])
        out.varies = source.varies & self._gain(call, source)

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        source = call["input"]
        source.needed |= call.out.needed & call.out.varies
        needed = anywhere(call.out.needed, 1)
        for one in self._beside(call):
            one.needed |= needed

    @staticmethod
    def _beside(call: Call) -> list[Value]:
        names = ("weight", "bias", "running_mean", "running_var")
        return [call[name] for name in names if isinstance(call.get(name), Value)]

    @staticmethod
    def _gain(call: Call, source: Value) -> torch.Tensor:
        weight = call["weight"]
        if weight is None:
            return torch.tensor(True)
        return spread((weight.data != 0).cpu(), 1, source.shape)


@dataclass(frozen=True)
class Normalization:
    """Layer, group and RMS normalization: the statistics hang on every feature.

    Attributes:
        channel: Whether the gain lies along the second dimension, not along the last ones.
    """

    channel: bool = False

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        source, out = call["input"], call.out
        mixed = self._mixed(call)
        for dim, held in source.units.items():
            if dim in mixed:
                units.freeze(held, f"{call}: its statistics hang on every feature")
            else:
                out.units[dim] = held
        for one in (call.get("weight"), call.get("bias")):
            if isinstance(one, Value):
                for held in one.units.values():
                    units.freeze(held)
        out.varies = torch.ones(out.shape, dtype=torch.bool) & self._gain(call)
        for other in call.outputs[1:]:
            other.varies = torch.ones(other.shape, dtype=torch.bool)

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        source = call["input"]
        live = (call.out.needed & call.out.varies).any(dim=self._mixed(call), keepdim=True)
        source.needed |= live
        for other in call.outputs[1:]:
            source.needed |= other.needed.any()
        for one in (call.get("weight"), call.get("bias")):
            if isinstance(one, Value):
                one.needed |= True

    def _mixed(self, call: Call) -> list[int]:
        rank = call["input"].data.dim()
        first = 1 if self.channel else rank - len(call["normalized_shape"])
        return list(range(first, rank))

    def _gain(self, call: Call) -> torch.Tensor:
        weight: Value | None = call.get("weight")
        if weight is None:
            return torch.tensor(True)
        kept = (weight.data != 0).cpu()
        if self.channel:
            return spread(kept, 1, call["input"].shape)
        return kept


class Lookup:
    """``embedding``: rows of a table."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        table, out = call["weight"], call.out
        if (rows := table.units.get(0)) is not None:
            units.freeze(rows)
        if (columns := table.units.get(1)) is not None:
            out.units[out.data.dim() - 1] = columns
        for dim, held in call["indices"].units.items():
            out.units[dim] = held
        out.varies = (table.data != table.data[:1]).any(0).cpu().expand(out.shape).contiguous()

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        live = call.out.needed & call.out.varies
        call["weight"].needed |= call.out.needed.flatten(0, -2).any(0)
        call["indices"].needed |= live.any(-1)
