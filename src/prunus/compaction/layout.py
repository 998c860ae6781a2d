"""Rules for operators that move elements and do not change them.

Nothing has to be said about any one of them: the operator itself is made to move the units, and
what is known of each element; its derivative moves back what is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from prunus.compaction.graph import Call, Value
from prunus.compaction.units import FROZEN, Units

__all__ = ["Concatenation", "Layout", "Padding", "Stacking", "spread"]

_CUTS = ("slice", "select", "narrow", "unbind")
"""Operators that take positions of a dimension by their numbers."""

_SPLITS = ("chunk", "split", "split_with_sizes", "tensor_split")


def spread(vector: torch.Tensor, dim: int, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of a shape in which a vector lies along one dimension."""
    sizes = [1] * len(shape)
    sizes[dim] = -1
    return vector.view(sizes).expand(shape)


class Layout:
    """Views, permutations, expansions, cuts: operators of one tensor that moves elements."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the outputs."""
        (source,) = call.inputs
        for output, moved in zip(call.outputs, call.replay(source.varies), strict=True):
            output.varies = moved.contiguous()
        cut = call.op in _CUTS or call.op in _SPLITS
        dim = call.get("dim", 0) % max(1, source.data.dim()) if cut else None
        whole = call.outputs and call.out.shape == source.shape
        vector = sum(size > 1 for size in source.shape) == 1
        if call.op in _CUTS and source.static and vector and not whole:
            # As where a model takes the first elements of a row: what holds of these few may not
            # hold of those that it takes for another input.
            for output in call.outputs:
                output.varies = torch.ones_like(output.varies)
        for own, held in source.units.items():
            if own == dim and not whole:
                if call.op not in _SPLITS or len({o.shape[own] for o in call.outputs}) > 1:
                    units.regret(held)
                    units.freeze(held, f"{call}: takes positions by their numbers")
                    continue
                # Parts stay of equal size only if the same positions go from each.
                parts = held.view(len(call.outputs), -1)
                units.tie(parts[1:], parts[:1])
            laid = spread(held, own, source.shape).contiguous()
            for output, moved in zip(call.outputs, call.replay(laid), strict=True):
                self._align(call, units, output, moved)

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        (source,) = call.inputs
        with torch.enable_grad():
            ones = torch.ones(source.shape, requires_grad=True)
            moved = call.replay(ones)
        (gradient,) = torch.autograd.grad(
            moved, ones, [o.needed.float() for o in call.outputs], allow_unused=True
        )
        if gradient is not None:
            source.needed |= gradient > 0

    def _align(self, call: Call, units: Units, output: Value, moved: torch.Tensor) -> None:
        """Find the dimension along which moved units lie, and tie what lies across it."""
        varied = []
        for dim in range(moved.dim()):
            if moved.shape[dim] > 1 and bool((moved != moved.narrow(dim, 0, 1)).any()):
                varied.append(dim)
            elif moved.shape[dim]:
                moved = moved.narrow(dim, 0, 1)
        if not varied or not moved.numel():
            units.freeze(moved, f"{call}: leaves a single position")
            return
        options = [moved.movedim(dim, 0).flatten(1) for dim in varied]
        chosen = 0
        if len(varied) > 1:
            chosen = units.choose(f"{call.line} {call.op} {list(output.shape)}", options)
        across, dim = options[chosen], varied[chosen]
        units.tie(across, across[:, :1])
        if dim in output.units:  # two dimensions became one, and only one of them can shrink
            units.freeze(across, f"{call}: makes one dimension of several")
        elif bool((across != FROZEN).any()):
            output.units[dim] = across[:, 0]


class Padding:
    """``pad``: the dimensions that grow stay of their size."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        (source,) = call.inputs
        call.out.varies = self._padded(call, source.varies.float()) > 0
        widths = call["pad"]
        for dim, held in source.units.items():
            place = 2 * (source.data.dim() - 1 - dim)
            if any(widths[place : place + 2]):
                units.freeze(held, f"{call}: adds a number of positions")
            else:
                call.out.units[dim] = held

    def backward(self, call: Call) -> None:
        """Say what the call needs of its input."""
        (source,) = call.inputs
        with torch.enable_grad():
            ones = torch.ones(source.shape, requires_grad=True)
            padded = self._padded(call, ones)
        (gradient,) = torch.autograd.grad(padded, ones, call.out.needed.float())
        source.needed |= gradient > 0

    @staticmethod
    def _padded(call: Call, tensor: torch.Tensor) -> torch.Tensor:
        return F.pad(tensor, call["pad"], call.get("mode", "constant"))


def _joined(units: Units, held: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Tie the units of tensors that are laid side by side, across which they are the same."""
    present = [one for one in held if one is not None]
    for one in present:
        units.tie(one, present[0])
    if present and len(present) < len(held):
        units.freeze(present[0])
    return present[0] if present and len(present) == len(held) else None


class Concatenation:
    """``cat``."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        parts, out = call.inputs, call.out
        dim = call["dim"] % out.data.dim()
        # An empty vector is left out whatever its dimensions.
        parts = [part for part in parts if part.data.dim() == out.data.dim()]
        out.varies = torch.cat([part.varies for part in parts], dim)
        for own in range(out.data.dim()):
            held = [part.units.get(own) for part in parts]
            if own == dim and any(one is not None for one in held):
                out.units[own] = torch.cat(
                    [
                        torch.full((part.shape[own],), FROZEN) if one is None else one
                        for part, one in zip(parts, held, strict=True)
                    ]
                )
            elif (joined := _joined(units, held)) is not None:
                out.units[own] = joined

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        dim, at = call["dim"] % call.out.data.dim(), 0
        for part in call.inputs:
            if part.data.dim() == call.out.data.dim():
                part.needed |= call.out.needed.narrow(dim, at, part.shape[dim])
                at += part.shape[dim]


class Stacking:
    """``stack``: tensors of one shape along a new dimension."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        parts, out = call.inputs, call.out
        dim = call["dim"] % out.data.dim()
        out.varies = torch.stack([part.varies for part in parts], dim)
        for own in range(out.data.dim() - 1):
            joined = _joined(units, [part.units.get(own) for part in parts])
            if joined is not None:
                out.units[own + (own >= dim)] = joined

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        needed = call.out.needed.unbind(call["dim"])
        for part, own in zip(call.inputs, needed, strict=True):
            part.needed |= own
