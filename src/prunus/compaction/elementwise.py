"""Rules for operators of which each output element hangs on one element of each input."""

from __future__ import annotations

import torch

from prunus.compaction.graph import Call, Value
from prunus.compaction.units import Units

__all__ = [
    "Elementwise",
    "Filled",
    "Gated",
    "Quotient",
    "Scaling",
    "Slopes",
    "broadcast",
    "gathered",
]


def broadcast(units: Units, inputs: list[Value], out: Value, dims: int = 0) -> None:
    """Tie the units of inputs that are broadcast against each other.

    Args:
        units: The units.
        inputs: The inputs.
        out: What they become; its units are set.
        dims: How many of the last dimensions to leave out.
    """
    rank = out.data.dim()
    for dim in range(rank - dims):
        held: list[torch.Tensor | None] = []
        for value in inputs:
            own = dim - rank + value.data.dim()
            if own < 0:
                continue
            if value.shape[own] == out.shape[dim]:
                held.append(value.units.get(own))
            elif own in value.units:
                units.freeze(value.units[own])
        present = [one for one in held if one is not None]
        for one in present:
            units.tie(one, present[0])
        if present and len(present) == len(held):
            out.units[dim] = present[0]
        elif present:
            units.freeze(present[0])


def gathered(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return where an element of an input is broadcast to an element where the mask is True."""
    return mask.float().sum_to_size(shape) > 0


class Elementwise:
    """Any function of one element each: the output is constant where all inputs are."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        for out in call.outputs:
            broadcast(units, call.inputs, out)
            varies = torch.zeros(out.shape, dtype=torch.bool)
            for value in call.inputs:
                varies |= self.passes(call, value)
            out.varies = varies

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        for value in call.inputs:
            needed = call.out.needed & call.out.varies & self.reads(call, value)
            value.needed |= gathered(needed, value.shape)

    def passes(self, call: Call, value: Value) -> torch.Tensor:
        """Return where the output may vary since an input does."""
        return value.varies

    def reads(self, call: Call, value: Value) -> torch.Tensor:
        """Return where the output hangs on an input."""
        return torch.tensor(True)


def _other(call: Call, value: Value) -> torch.Tensor:
    """Return where the other of two factors may be other than 0."""
    one, other = call["self"], call["other"]
    rest = other if value is one else one
    if isinstance(rest, Value):
        return rest.nonzero
    return torch.tensor(bool(rest != 0))


class Scaling(Elementwise):
    """``mul``: what is multiplied by a constant 0 is 0."""

    def passes(self, call: Call, value: Value) -> torch.Tensor:
        return value.varies & _other(call, value)

    def reads(self, call: Call, value: Value) -> torch.Tensor:
        return _other(call, value)


class Quotient(Elementwise):
    """``div``: a constant 0 stays 0, whatever it is divided by."""

    def passes(self, call: Call, value: Value) -> torch.Tensor:
        dividend: Value = call["self"]
        return value.varies if value is dividend else value.varies & dividend.nonzero

    def reads(self, call: Call, value: Value) -> torch.Tensor:
        dividend: Value = call["self"]
        return torch.tensor(True) if value is dividend else dividend.nonzero


class Filled(Elementwise):
    """``zeros_like`` and its kin: only the size of the input matters."""

    def passes(self, call: Call, value: Value) -> torch.Tensor:
        return torch.tensor(False)


class Slopes:
    """``prelu``: a slope for each channel, or one for all."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        source, slopes, out = call["self"], call["weight"], call.out
        out.units = dict(source.units)
        out.varies = source.varies
        own = slopes.units.get(0)
        if len(slopes.data) == 1:
            return
        held = out.units.get(1)
        if held is not None and own is not None:
            units.tie(held, own)
            return
        for one in (held, own):
            if one is not None:
                units.freeze(one)
        out.units.pop(1, None)

    def backward(self, call: Call) -> None:
        """Say what the call needs of its input."""
        call["self"].needed |= call.out.needed & call.out.varies
        call["weight"].needed |= len(call["weight"].data) == 1


class Gated:
    """``glu``: one half of a dimension times a function of the other."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        (source,) = call.inputs
        dim = call["dim"] % source.data.dim()
        one, other = source.varies.chunk(2, dim)
        call.out.varies = one | other
        for own, held in source.units.items():
            if own == dim:
                half = held.chunk(2)
                units.tie(*half)
                held = half[0]
            call.out.units[own] = held

    def backward(self, call: Call) -> None:
        """Say what the call needs of its input."""
        (source,) = call.inputs
        needed = call.out.needed & call.out.varies
        source.needed |= torch.cat([needed, needed], call["dim"])
