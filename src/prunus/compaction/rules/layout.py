"""Rules for operators that move elements without changing them.

Most need no description of their own: the operator itself is run on the units and on what is known
of each element, and its derivative maps needed outputs back to needed inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from prunus.compaction.coupling import PROTECTED, Coupling
from prunus.compaction.graph import Call, Value
from prunus.compaction.rules.base import Rule, operator_names
from prunus.compaction.tensor_ops import expand_along

__all__ = ["Concatenation", "Layout", "Padding", "Stacking"]

_INDEXING = ("slice", "select", "narrow", "unbind")
"""Operators that select positions of a dimension by index."""

_SPLITTING = ("chunk", "split", "split_with_sizes", "tensor_split")


class Layout(Rule):
    """Views, permutations, expansions, slices and splits of one tensor."""

    operators = operator_names(
        """
        adjoint atleast_1d atleast_2d atleast_3d chunk expand flatten flip moveaxis movedim narrow
        numpy_T permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape select slice
        split split_with_sizes squeeze swapaxes swapdims t tensor_split tile transpose unbind
        unflatten unsqueeze view _unsafe_view mT
        """
    )

    @classmethod
    def supports(cls, call: Call) -> bool:
        """Return whether the call has no other tensor argument, such as indices."""
        return len(call.inputs) == 1

    def forward(self, coupling: Coupling) -> None:
        call = self.call
        (source,) = call.inputs
        for output, moved in zip(call.outputs, call.replay(source.varies), strict=True):
            output.varies = moved.contiguous()
        cuts = call.op in _INDEXING or call.op in _SPLITTING
        cut_dim = call.get("dim", 0) % max(1, source.rank) if cuts else None
        unchanged = call.out.shape == source.shape
        is_vector = sum(size > 1 for size in source.shape) == 1
        if call.op in _INDEXING and source.static and is_vector and not unchanged:
            # For an input of another length the model may select other elements of a static vector,
            # such as the first n positions of a table, and these may have other values.
            for output in call.outputs:
                output.varies = torch.ones_like(output.varies)
        for dim, units in source.units.items():
            if dim == cut_dim and not unchanged:
                if not self._splits_evenly(dim):
                    coupling.backtrack(units)
                    coupling.protect(units, f"{call}: selects positions by index")
                    continue
                # The chunks stay of equal size only if each loses the same positions.
                chunks = units.view(len(call.outputs), -1)
                coupling.couple(chunks[1:], chunks[:1])
            expanded = expand_along(units, dim, source.shape).contiguous()
            for output, moved in zip(call.outputs, call.replay(expanded), strict=True):
                self._assign_units(coupling, output, moved)

    def backward(self) -> None:
        (source,) = self.call.inputs
        with torch.enable_grad():
            ones = torch.ones(source.shape, requires_grad=True)
            moved = self.call.replay(ones)
        needed = [out.needed.float() for out in self.call.outputs]
        (gradient,) = torch.autograd.grad(moved, ones, needed, allow_unused=True)
        if gradient is not None:
            source.needed |= gradient > 0

    def _splits_evenly(self, dim: int) -> bool:
        """Return whether the outputs are chunks of a dimension, all of the same size."""
        if self.call.op not in _SPLITTING:
            return False
        return len({output.shape[dim] for output in self.call.outputs}) == 1

    def _assign_units(self, coupling: Coupling, output: Value, moved: torch.Tensor) -> None:
        """Find the output dimension along which the moved units differ, and couple the others."""
        candidates = []
        for dim in range(moved.dim()):
            if moved.shape[dim] > 1 and bool((moved != moved.narrow(dim, 0, 1)).any()):
                candidates.append(dim)
            elif moved.shape[dim]:
                moved = moved.narrow(dim, 0, 1)
        if not candidates or not moved.numel():
            coupling.protect(moved, f"{self.call}: leaves a single position")
            return
        options = [moved.movedim(dim, 0).reshape(moved.shape[dim], -1) for dim in candidates]
        choice = 0
        if len(candidates) > 1:
            location = f"{self.call.location} {self.call.op} {list(output.shape)}"
            choice = coupling.choose(location, options)
        units, dim = options[choice], candidates[choice]
        coupling.couple(units, units[:, :1])
        if dim in output.units:  # two dimensions are merged, of which only one can become smaller
            coupling.protect(units, f"{self.call}: merges several dimensions into one")
        elif bool((units != PROTECTED).any()):
            output.units[dim] = units[:, 0]


class Padding(Rule):
    """``pad``: the padded dimensions keep their size."""

    operators = frozenset(("pad", "constant_pad_nd"))

    def forward(self, coupling: Coupling) -> None:
        (source,) = self.call.inputs
        self.call.out.varies = self._pad(source.varies.float()) > 0
        widths = self.call["pad"]
        for dim, units in source.units.items():
            index = 2 * (source.rank - 1 - dim)  # the widths begin with the last dimension
            if any(widths[index : index + 2]):
                coupling.protect(units, f"{self.call}: pads this dimension")
            else:
                self.call.out.units[dim] = units

    def backward(self) -> None:
        (source,) = self.call.inputs
        with torch.enable_grad():
            ones = torch.ones(source.shape, requires_grad=True)
            padded = self._pad(ones)
        (gradient,) = torch.autograd.grad(padded, ones, self.call.out.needed.float())
        source.needed |= gradient > 0

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.pad(tensor, self.call["pad"], self.call.get("mode", "constant"))


class Concatenation(Rule):
    """``cat``: tensors joined along an existing dimension."""

    operators = frozenset(("cat", "concat", "concatenate"))

    def forward(self, coupling: Coupling) -> None:
        out, inputs, joined_dim = self.call.out, self._joined(), self._dim()
        out.varies = torch.cat([value.varies for value in inputs], joined_dim)
        for dim in range(out.rank):
            units = [value.units.get(dim) for value in inputs]
            if dim == joined_dim and any(one is not None for one in units):
                out.units[dim] = torch.cat(
                    [
                        torch.full((value.shape[dim],), PROTECTED) if one is None else one
                        for value, one in zip(inputs, units, strict=True)
                    ]
                )
            elif (merged := coupling.merge(units)) is not None:
                out.units[dim] = merged

    def backward(self) -> None:
        start = 0
        for value in self._joined():
            size = value.shape[self._dim()]
            value.needed |= self.call.out.needed.narrow(self._dim(), start, size)
            start += size

    def _dim(self) -> int:
        return int(self.call["dim"]) % self.call.out.rank

    def _joined(self) -> list[Value]:
        """Return the inputs without empty vectors, which torch skips whatever the other shapes."""
        return [value for value in self.call.inputs if value.rank == self.call.out.rank]


class Stacking(Rule):
    """``stack``: tensors of one shape joined along a new dimension."""

    operators = frozenset(("stack",))

    def forward(self, coupling: Coupling) -> None:
        inputs, out = self.call.inputs, self.call.out
        new_dim = self.call["dim"] % out.rank
        out.varies = torch.stack([value.varies for value in inputs], new_dim)
        for dim in range(out.rank - 1):
            merged = coupling.merge([value.units.get(dim) for value in inputs])
            if merged is not None:
                out.units[dim + (dim >= new_dim)] = merged

    def backward(self) -> None:
        needed = self.call.out.needed.unbind(self.call["dim"])
        for value, own in zip(self.call.inputs, needed, strict=True):
            value.needed |= own
