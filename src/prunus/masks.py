"""Masks: which weights are kept, and how a removed one is held at exactly zero.

A parameter has at most one mask, whichever pruner removes its weights: masks are kept beside the
parameters, not inside them, so that state dicts, ``deepcopy``, ``torch.save`` and ``torch.compile``
see an ordinary model, and two pruners on one model respect each other's removals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import CheckpointError, UserError, listing
from prunus.pieces import bits, pieces
from prunus.selection import Selection, Target

__all__ = ["Masks"]


@dataclass(eq=False, slots=True)
class _Holder:
    """A parameter's one mask, and who has it in use."""

    mask: torch.Tensor
    users: WeakSet[Masks] = field(default_factory=WeakSet)


# For as long as the parameter lives. A pruner that is merely forgotten leaves its masks in force;
# only detaching ends them.
_attached: MutableMapping[torch.Tensor, _Holder] = WeakTensorKeyDictionary()


class Masks(Mapping[str, torch.Tensor]):
    """One boolean tensor per prunable tensor: True where the weight is kept.

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
        self.selection = selection
        self._counts: dict[str, tuple[tuple[int, int] | None, int]] = {}
        self._seen: list[tuple[_Holder, torch.Tensor, int]] = []
        self._lowered: list[str] = []
        self._holders = {
            name: _Holder(
                torch.ones_like(
                    target.parameter,
                    dtype=torch.bool,
                    requires_grad=False,
                    memory_format=torch.preserve_format,
                )
            )
            for name, target in selection.items()
        }

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
            torch.ne(target.parameter.detach(), 0, out=masks[name])
        masks._keep_padding()
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
            holder.mask = holder.mask.to(parameter.device)
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
        """How many prunable weights of one tensor are kept."""
        mask, target = self[name], self.selection[name]
        # Counted anew only when someone, perhaps another pruner, wrote to the mask or moved it.
        state = id(mask), mask._version
        seen, kept = self._counts.get(name, (None, 0))
        if seen != state:
            kept = int(torch.count_nonzero(candidates(target, mask)))
            self._counts[name] = state, kept
        return kept

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
            clear_(self.selection[name].parameter, mask)

    def revived(self) -> dict[str, int]:
        """Count, per tensor that has any, the removed weights that are not zero."""
        counts = {
            name: int(torch.count_nonzero(self.selection[name].parameter.detach()[~mask]))
            for name, mask in self.active().items()
        }
        return {name: count for name, count in counts.items() if count}

    def intersect_(self, other: Mapping[str, torch.Tensor]) -> None:
        """Keep only what ``other`` keeps too; rows that stand for padding stay in any case.

        Raises:
            UserError: Names, shapes or types are not those of these masks.
        """
        self._check(other)
        for name in self:
            self[name].logical_and_(other[name].to(self[name].device))
        self._keep_padding()

    def differences(self, other: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Count, per tensor, the weights that one of the two keeps and the other does not."""
        self._check(other)
        return {
            name: int(torch.count_nonzero(self[name] ^ other[name].to(self[name].device)))
            for name in self
        }

    def packed(self) -> dict[str, torch.Tensor]:
        """Return the masks as bits, eight weights to a byte, row-major, on the CPU.

        Example:
            >>> from torch import nn
            >>> from prunus import select
            >>> Masks(select(nn.Linear(5, 2))).packed()["weight"].tolist()
            [255, 192]
        """
        return {
            name: torch.from_numpy(np.packbits(self[name].cpu().numpy().reshape(-1)))
            for name in self
        }

    def load_packed(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Restore what :meth:`packed` returned; nothing is changed if anything does not fit.

        Raises:
            CheckpointError: Names or sizes are not those of these tensors.
        """
        self._check_names(packed)
        wrong = [
            f"{name}: {tuple(self.selection[name].parameter.shape)} needs "
            f"{-(-self.selection[name].parameter.numel() // 8)} bytes, got {packed[name].numel()}"
            for name in self
            if packed[name].dtype != torch.uint8
            or packed[name].numel() != -(-self.selection[name].parameter.numel() // 8)
        ]
        if wrong:
            raise CheckpointError(f"the masks are of another model: {listing(wrong)}")
        for name in self:
            shape = self.selection[name].parameter.shape
            flat = np.unpackbits(packed[name].cpu().numpy(), count=shape.numel())
            self[name].copy_(torch.from_numpy(flat.reshape(shape)))
        self._keep_padding()

    def _keep_padding(self) -> None:
        for name, target in self.selection.items():
            if target.padding_row is not None:
                self[name][target.padding_row] = True

    def _check(self, other: Mapping[str, torch.Tensor]) -> None:
        self._check_names(other)
        wrong = [
            f"{name}: expected a boolean tensor of shape {tuple(self[name].shape)}, got "
            f"{other[name].dtype} of shape {tuple(other[name].shape)}"
            for name in self
            if other[name].shape != self[name].shape or other[name].dtype != torch.bool
        ]
        if wrong:
            raise UserError(f"these masks do not fit: {listing(wrong)}")

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
    for piece, kept in pieces(tensor.detach(), mask):
        bits(piece).mul_(kept)


def candidates(target: Target, mask: torch.Tensor) -> torch.Tensor:
    """Return ``mask`` without the padding row: the kept weights that may still be removed."""
    if target.padding_row is None:
        return mask
    mask = mask.clone()
    mask[target.padding_row] = False
    return mask
