"""Masks: which weights are kept, and how a removed one is held at exactly zero.

A parameter has at most one mask, whichever pruner removes its weights: masks are kept beside the
parameters, not inside them, so that state dicts, ``deepcopy``, ``torch.save`` and ``torch.compile``
see an ordinary model, and two pruners on one model respect each other's removals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from prunus._distributed.shards import from_local_part, local, local_part, sharded_by_rows
from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.chunks import bits, chunks
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.selection import PrunableTensor, Selection

__all__ = ["Masks"]


@dataclass(eq=False, slots=True)
class _Holder:
    """A parameter's one mask, who has it in use, and how much it keeps."""

    mask: torch.Tensor
    users: WeakSet[Masks] = field(default_factory=WeakSet)
    kept: int = 0
    seen: tuple[int, int] | None = None
    """What the mask was when it was counted: which tensor, written to how often."""

    @property
    def state(self) -> tuple[int, int]:
        return id(self.mask), self.mask._version

    def move(self, device: torch.device) -> None:
        counted = self.seen == self.state
        self.mask = self.mask.to(device)
        self.seen = self.state if counted else None


# For as long as the parameter lives. A pruner that is merely forgotten leaves its masks in force;
# only detaching ends them.
_attached: MutableMapping[torch.Tensor, _Holder] = WeakTensorKeyDictionary()


class Masks(Mapping[str, torch.Tensor]):
    """One boolean tensor per prunable tensor: True where the weight is kept.

    Of a tensor that several processes hold together each has the mask of its own part. All counts
    are of the whole.

    Attributes:
        selection: The tensors the masks belong to.

    Example:
        >>> from torch import nn
        >>> from prunus import select
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> masks = Masks(select(layer))
        >>> masks["weight"][0, :3] = False
        >>> masks.apply_()
        >>> masks.kept, masks.sparsity, int(layer.weight.count_nonzero())
        (5, 0.375, 5)
    """

    def __init__(self, selection: Selection) -> None:
        raise_problems(
            type_problem(
                "selection", selection, Selection, "a Selection", fix="prunus.select(model)"
            )
        )
        self.selection = selection
        self._seen: list[tuple[_Holder, torch.Tensor, int]] = []
        self._lowered: list[str] = []
        self._holders = {
            name: _Holder(
                torch.ones_like(
                    target.weight, dtype=torch.bool, memory_format=torch.preserve_format
                ),
                kept=target.prunable,
            )
            for name, target in selection.items()
        }
        for holder in self._holders.values():
            holder.seen = holder.state

    @classmethod
    def attached(cls, selection: Selection) -> Self:
        """Return the masks in force on these tensors, starting full ones where there is none."""
        masks = cls(selection)
        for name, target in selection.items():
            holder = _attached.setdefault(target.parameter, masks._holders[name])
            holder.users.add(masks)
            masks._holders[name] = holder
        return masks

    @classmethod
    def from_zeros(cls, selection: Selection) -> Self:
        """Return masks that keep every weight that is not zero: for fine-tuning a sparse model.

        Rows that stand for padding count as kept.

        Example:
            >>> from torch import nn
            >>> from prunus import select
            >>> layer = nn.Linear(2, 1, bias=False)
            >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 3.0]]))
            >>> Masks.from_zeros(select(layer))["weight"].tolist()
            [[False, True]]
        """
        masks = cls(selection)
        for name, target in selection.items():
            torch.ne(target.weight, 0, out=masks[name])
        masks._keep_padding()
        masks.recount()
        return masks

    def detach(self) -> None:
        """Let go of the masks in force here; those that no one else uses are forgotten."""
        for name, target in self.selection.items():
            holder = self._holders[name]
            holder.users.discard(self)
            if not holder.users and _attached.get(target.parameter) is holder:
                del _attached[target.parameter]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the mask of a tensor, on the device where the tensor is now."""
        holder, parameter = self._holders[name], self.selection[name].parameter
        if holder.mask.device != parameter.device:
            holder.move(self.selection[name].weight.device)
        return holder.mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, sparsity {self.sparsity:.4f})"

    # Mapping compares by content, which tensors cannot; masks are the same only if they are one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def kept_in(self, name: str) -> int:
        """How many prunable weights of one tensor are kept.

        Raises:
            PrunusError: The tensor is sharded and someone wrote to the mask without a recount. As
                only who wrote is told, write in all processes or in none.
        """
        self[name]  # which may move the mask
        holder = self._holders[name]
        # Counted anew only when someone, perhaps another pruner, wrote to the mask.
        if holder.seen != holder.state:
            if self.selection.process_group.sharded:
                raise PrunusError(
                    f"the mask of {name}, which several processes hold together, was written to: "
                    "call masks.recount() in all of them"
                )
            holder.kept, holder.seen = self._count(name), holder.state
        return holder.kept

    def _count(self, name: str) -> int:
        """Count what is kept in the part of a tensor that is held here."""
        return int(torch.count_nonzero(candidates(self.selection[name], self[name])))

    def recount(self) -> None:
        """Count what is kept, over all processes that hold the tensors together.

        Needed only for masks of sharded tensors that were written to by hand; all processes have to
        call it.

        Raises:
            PeerError: Another process did not answer.
        """
        group, counted = self.selection.process_group, self.selection.counted
        if not group.sharded:
            return  # each mask is counted when someone asks
        counts = torch.tensor([self._count(name) if counted[name] else 0 for name in self])
        totals = group.sum(counts).tolist()
        for holder, kept in zip(self._holders.values(), totals, strict=True):
            holder.kept, holder.seen = kept, holder.state

    def active(self) -> Mapping[str, torch.Tensor]:
        """Return the masks of the tensors that have lost weights; the others need no masking.

        Cheap enough to be asked several times a step: it looks closer only after someone, perhaps
        another pruner, wrote to a mask.
        """
        for holder, mask, version in self._seen:
            if holder.mask is not mask or mask._version != version:
                break
        else:
            if self._seen:
                return {name: self[name] for name in self._lowered}
        self._seen = [(h, h.mask, h.mask._version) for h in self._holders.values()]
        self._lowered = [n for n in self if self.kept_in(n) < self.selection[n].prunable]
        return {name: self[name] for name in self._lowered}

    @property
    def kept(self) -> int:
        """How many prunable weights are kept in all."""
        return sum(self.kept_in(name) for name in self)

    @property
    def sparsity(self) -> float:
        """Removed weights / prunable weights."""
        return 1.0 - self.density

    @property
    def density(self) -> float:
        """Kept weights / prunable weights."""
        return self.kept / self.selection.prunable

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every removed weight to exactly +0.0, also where it is NaN or infinite now."""
        for name, mask in self.active().items():
            clear_(self.selection[name].weight, mask)

    def revived(self) -> dict[str, int]:
        """Count, per tensor that has any, the removed weights that are not zero."""
        active = self.active()
        found = [
            int(torch.count_nonzero(self.selection[name].weight[~mask]))
            if self.selection.counted[name]
            else 0
            for name, mask in active.items()
        ]
        counts = self.selection.process_group.sum(torch.tensor(found, dtype=torch.int64)).tolist()
        return {name: count for name, count in zip(active, counts, strict=True) if count}

    def intersect_(self, other: Mapping[str, torch.Tensor]) -> None:
        """Keep only what ``other`` keeps too; rows that stand for padding stay in any case.

        Raises:
            PrunusError: Names, shapes or types are not those of these masks.
        """
        self._check(other)
        for name in self:
            self[name].logical_and_(other[name].to(self[name].device))
        self._keep_padding()
        self.recount()

    def differences(self, other: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Count, per tensor, the weights that one of the two keeps and the other does not."""
        self._check(other)
        return {
            name: int(torch.count_nonzero(self[name] ^ other[name].to(self[name].device)))
            for name in self
        }

    def packed(self) -> dict[str, torch.Tensor]:
        """Return the masks as bits, eight weights of a row to a byte, on the CPU.

        Those of sharded tensors are sharded by their rows too, and on the tensor's device, so that
        a distributed checkpoint of them can be loaded by any number of processes, one that has the
        whole model included; all processes have to call this together.

        Example:
            >>> from torch import nn
            >>> from prunus import select
            >>> Masks(select(nn.Linear(5, 2))).packed()["weight"].tolist()
            [[248], [248]]
        """
        packed = {}
        for name, target in self.selection.items():
            rows = sharded_by_rows(from_local_part(self[name].view(torch.uint8), target.parameter))
            packed[name] = from_local_part(_packed(local(rows)), rows)
        return packed

    def load_packed(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Restore what :meth:`packed` returned; nothing is changed if anything does not fit.

        Raises:
            CheckpointError: Names or sizes are not those of these tensors.
        """
        self.check_packed(packed)
        for name, target in self.selection.items():
            # Row by row as they were packed, and from there to where each weight is.
            whole = from_local_part(self[name].view(torch.uint8), target.parameter)
            rows = sharded_by_rows(whole)
            held = local_part(packed[name], from_local_part(_packed(local(rows)), rows))
            unpacked = from_local_part(_unpacked(held, local(rows).shape), rows)
            self[name].copy_(local_part(unpacked, whole))
        self._keep_padding()
        self.recount()

    def check_packed(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Make sure that :meth:`load_packed` can take this.

        Raises:
            CheckpointError: As there; every tensor that does not fit is named.
        """
        self._check_names(packed)
        shapes = {name: self.selection[name].parameter.shape for name in self}
        wrong = [
            f"{name}: {tuple(shape)} needs torch.uint8 of shape {_packed_shape(shape)}, got "
            f"{_described(packed[name])}"
            for name, shape in shapes.items()
            if not isinstance(packed[name], torch.Tensor)
            or packed[name].dtype != torch.uint8
            or tuple(packed[name].shape) != _packed_shape(shape)
        ]
        if wrong:
            raise CheckpointError(f"the masks are of another model: {listing(wrong)}")

    def _keep_padding(self) -> None:
        for name, target in self.selection.items():
            if target.local_padding_row is not None:
                self[name][target.local_padding_row] = True

    def _check(self, other: Mapping[str, torch.Tensor]) -> None:
        self._check_names(other)
        wrong = [
            f"{name}: expected a boolean tensor of shape {tuple(mask.shape)}, got "
            f"{_described(other[name])}"
            for name, mask in self.items()
            if _described(other[name]) != _described(mask)
        ]
        if wrong:
            raise PrunusError(f"these masks do not fit: {listing(wrong)}")

    def _check_names(self, other: Mapping[str, torch.Tensor]) -> None:
        missing = [name for name in self if name not in other]
        foreign = [name for name in other if name not in self]
        if missing or foreign:
            raise CheckpointError(
                "the masks are of another model or selection: "
                f"missing {listing(missing) or 'none'}; unknown {listing(foreign) or 'none'}"
            )


@torch.no_grad()
def clear_(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Set ``tensor`` to exactly +0.0 where ``mask`` is False, in place; floating point only."""
    for piece, kept in chunks(tensor.detach(), mask):
        bits(piece).mul_(kept)


def candidates(target: PrunableTensor, mask: torch.Tensor) -> torch.Tensor:
    """Return ``mask`` without the padding row: the kept weights that may still be removed."""
    if target.local_padding_row is None:
        return mask
    mask = mask.clone()
    mask[target.local_padding_row] = False
    return mask


def _described(mask: object) -> str:
    if not isinstance(mask, torch.Tensor):
        return repr(mask)
    return f"{mask.dtype} of shape {tuple(mask.shape)}"


def _packed_shape(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of a packed mask: a byte for eight weights of a row, rows apart."""
    return (shape[0], -(-math.prod(shape[1:]) // 8)) if shape else (1,)


def _packed(mask: torch.Tensor) -> torch.Tensor:
    rows, row = mask.shape[0] if mask.dim() else 1, math.prod(mask.shape[1:])
    packed = np.packbits(mask.cpu().numpy().reshape(rows, row), axis=1)
    return torch.from_numpy(packed.reshape(_packed_shape(mask.shape)))


def _unpacked(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    rows, row = shape[0] if shape else 1, math.prod(shape[1:])
    flat = np.unpackbits(packed.cpu().numpy().reshape(rows, -(-row // 8)), axis=1, count=row)
    return torch.from_numpy(flat.reshape(shape))
