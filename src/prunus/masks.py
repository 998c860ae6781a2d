"""Masks: which weights are kept, and the operations that set the others to exactly zero.

A parameter has at most one mask, whichever pruner removes its weights. Masks are stored beside the
parameters, not inside them, so that state dicts, ``deepcopy``, ``torch.save`` and ``torch.compile``
see an ordinary model, and two pruners on one model respect each other's removals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from prunus._distributed.shards import from_local_part, local, local_part, sharded_by_rows
from prunus._utils.batches import ACCELERATOR_BATCH, Batch, batches, same_device_and_type
from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.chunks import CPU_CHUNK, bits, integer_type
from prunus._utils.digits import format_percent
from prunus._utils.text_table import text_table
from prunus.errors import ArgumentError, CheckpointError, PrunusError, listing
from prunus.selection import PrunableTensor, Selection

__all__ = ["Masks"]


@dataclass(eq=False, slots=True)
class _SharedMask:
    """The one mask of a parameter.

    Attributes:
        mask: The mask.
        users: The objects that use it.
        kept: How many weights it kept when it was counted.
        counted_state: The state of the mask when it was counted.
    """

    mask: torch.Tensor
    users: WeakSet[Masks] = field(default_factory=WeakSet)
    kept: int = 0
    counted_state: tuple[int, int] | None = None

    @property
    def state(self) -> tuple[int, int]:
        """The tensor, and how often it has been written to."""
        return id(self.mask), self.mask._version

    @torch.inference_mode(False)  # tensors made in that mode could not be written to later
    def move(self, device: torch.device) -> None:
        """Move the mask to a device; its count stays valid."""
        is_counted = self.counted_state == self.state
        self.mask = self.mask.to(device)
        self.counted_state = self.state if is_counted else None


# Entries live as long as the parameter. The masks of a pruner that is only deleted stay attached;
# ``detach`` ends them.
_attached: MutableMapping[torch.Tensor, _SharedMask] = WeakTensorKeyDictionary()


class Masks(Mapping[str, torch.Tensor]):
    """One boolean tensor per prunable tensor: True where the weight is kept.

    If several processes hold a tensor together, each has the mask of its shard. All counts are
    those of whole tensors. ``str()`` of it is a table with the density of each tensor.

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

    @torch.inference_mode(False)  # tensors made in that mode could not be written to later
    def __init__(self, selection: Selection) -> None:
        raise_problems(
            type_problem(
                "selection", selection, Selection, "a Selection", fix="prunus.select(model)"
            )
        )
        self.selection = selection
        self._active_at: list[tuple[_SharedMask, torch.Tensor, int]] = []
        """The masks and their versions when ``_active`` was computed."""
        self._active: dict[str, torch.Tensor] = {}
        self._shared = {
            name: _SharedMask(
                torch.ones_like(
                    tensor.weight, dtype=torch.bool, memory_format=torch.preserve_format
                ),
                kept=tensor.prunable,
            )
            for name, tensor in selection.items()
        }
        for shared in self._shared.values():
            shared.counted_state = shared.state

    @classmethod
    def attached(cls, selection: Selection) -> Self:
        """Return the masks attached to these tensors; attach full ones where there is none."""
        masks = cls(selection)
        for name, tensor in selection.items():
            shared = _attached.setdefault(tensor.parameter, masks._shared[name])
            shared.users.add(masks)
            masks._shared[name] = shared
        return masks

    @classmethod
    def from_zeros(cls, selection: Selection) -> Self:
        """Return masks that keep every weight that is not zero: for fine-tuning a sparse model.

        Padding rows count as kept.

        Example:
            >>> from torch import nn
            >>> from prunus import select
            >>> layer = nn.Linear(2, 1, bias=False)
            >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 3.0]]))
            >>> Masks.from_zeros(select(layer))["weight"].tolist()
            [[False, True]]
        """
        masks = cls(selection)
        for name, tensor in selection.items():
            torch.ne(tensor.weight, 0, out=masks[name])
        masks._keep_padding()
        masks.recount()
        return masks

    def detach(self) -> None:
        """Release the attached masks; those without another user are detached from the tensors."""
        for name, tensor in self.selection.items():
            shared = self._shared[name]
            shared.users.discard(self)
            if not shared.users and _attached.get(tensor.parameter) is shared:
                del _attached[tensor.parameter]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the mask of a tensor, on the tensor's present device."""
        shared, parameter = self._shared[name], self.selection[name].parameter
        if shared.mask.device != parameter.device:
            shared.move(self.selection[name].weight.device)
        return shared.mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._shared)

    def __len__(self) -> int:
        return len(self._shared)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, sparsity {self.sparsity:.4f})"

    def __str__(self) -> str:
        rows = [
            [name, *_counts(tensor.prunable, self.kept_in(name))]
            for name, tensor in self.selection.items()
        ]
        footer = [f"{len(self)} tensors", *_counts(self.selection.prunable, self.kept)]
        return text_table(["tensor", "prunable", "kept", "density"], rows, footer=footer)

    # Mapping compares by content, which tensors do not support; masks are equal only to themselves.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def kept_in(self, name: str) -> int:
        """Return how many prunable weights of one tensor are kept.

        Raises:
            PrunusError: The tensor is sharded and its mask was written to without :meth:`recount`.
                Only the process that wrote raises this, so write in all processes or in none.
        """
        self[name]  # may move the mask
        shared = self._shared[name]
        # Counted again only when the mask was written to, perhaps by another pruner.
        if shared.counted_state != shared.state:
            if self.selection.process_group.sharded:
                raise PrunusError(
                    f"the mask of {name}, which several processes hold together, was written to: "
                    "call masks.recount() in all of them"
                )
            shared.kept, shared.counted_state = self._count(name), shared.state
        return shared.kept

    def _count(self, name: str) -> int:
        """Return how many prunable weights are kept in this process's shard of a tensor."""
        return int(torch.count_nonzero(candidates(self.selection[name], self[name])))

    def recount(self) -> None:
        """Count the kept weights over all processes that hold the tensors together.

        Needed only for masks of sharded tensors that were written to by hand; all processes must
        call it.

        Raises:
            PeerError: Another process did not answer.
        """
        group, counted = self.selection.process_group, self.selection.counted
        if not group.sharded:
            return  # each mask is counted when its count is read
        counts = torch.tensor([self._count(name) if counted[name] else 0 for name in self])
        totals = group.sum(counts).tolist()
        for shared, kept in zip(self._shared.values(), totals, strict=True):
            shared.kept, shared.counted_state = kept, shared.state

    def active(self) -> Mapping[str, torch.Tensor]:
        """Return the masks of the tensors that have lost weights; the others need no masking.

        Cheap enough for several calls a step: masks are counted again only after one was written
        to, perhaps by another pruner. The mapping is the same object as long as nothing changed.
        """
        for shared, mask, version in self._active_at:
            if shared.mask is not mask or mask._version != version:
                break
        else:
            if self._active_at and all(map(self._is_in_place, self._active)):
                return self._active
        self._active = {n: self[n] for n in self if self.kept_in(n) < self.selection[n].prunable}
        self._active_at = [(s, s.mask, s.mask._version) for s in self._shared.values()]
        return self._active

    def _is_in_place(self, name: str) -> bool:
        """Return whether a mask is on the device of its tensor."""
        mask, parameter = self._shared[name].mask, self.selection[name].parameter
        # Faster than a comparison of devices.
        return mask.is_cpu if parameter.is_cpu else mask.device == parameter.device

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
        """Set every removed weight to exactly +0.0, even if it is NaN or infinite."""
        active = self.active()
        clear_all_([self.selection[name].weight for name in active], list(active.values()))

    def revived(self) -> dict[str, int]:
        """Return how many removed weights are not zero, by tensor, for tensors that have any."""
        active = self.active()
        nonzero = [
            int(torch.count_nonzero(self.selection[name].weight[~mask]))
            if self.selection.counted[name]
            else 0
            for name, mask in active.items()
        ]
        counts = self.selection.process_group.sum(torch.tensor(nonzero, dtype=torch.int64)).tolist()
        return {name: count for name, count in zip(active, counts, strict=True) if count}

    def intersect_(self, other: Mapping[str, torch.Tensor]) -> None:
        """Keep only the weights that ``other`` keeps too, and padding rows.

        Raises:
            ArgumentError: Names, shapes or types are not those of these masks; every one is listed.
        """
        self._check(other)
        for name in self:
            self[name].logical_and_(other[name].to(self[name].device))
        self._keep_padding()
        self.recount()

    def differences(self, other: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Return, by tensor, how many weights exactly one of the two keeps.

        Raises:
            ArgumentError: As for :meth:`intersect_`.
        """
        self._check(other)
        return {
            name: int(torch.count_nonzero(self[name] ^ other[name].to(self[name].device)))
            for name in self
        }

    def packed(self) -> dict[str, torch.Tensor]:
        """Return the masks as bits, eight weights of a row to a byte, on the CPU.

        Those of sharded tensors are sharded by rows, on the tensor's device, so that any number of
        processes can load a distributed checkpoint of them, a single process included. All
        processes must call this together.

        Example:
            >>> from torch import nn
            >>> from prunus import select
            >>> Masks(select(nn.Linear(5, 2))).packed()["weight"].tolist()
            [[248], [248]]
        """
        packed = {}
        for name, tensor in self.selection.items():
            rows = sharded_by_rows(from_local_part(self[name].view(torch.uint8), tensor.parameter))
            packed[name] = from_local_part(_pack(local(rows)), rows)
        return packed

    def load_packed(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Load what :meth:`packed` returned; nothing is changed if any mask does not fit.

        Raises:
            CheckpointError: Names or sizes are not those of these tensors.
        """
        self.check_packed(packed)
        for name, tensor in self.selection.items():
            # First the rows that this process unpacks, then the shard that it holds.
            whole = from_local_part(self[name].view(torch.uint8), tensor.parameter)
            rows = sharded_by_rows(whole)
            packed_rows = local_part(packed[name], from_local_part(_pack(local(rows)), rows))
            unpacked = from_local_part(_unpack(packed_rows, local(rows).shape), rows)
            self[name].copy_(local_part(unpacked, whole))
        self._keep_padding()
        self.recount()

    def check_packed(self, packed: Mapping[str, torch.Tensor]) -> None:
        """Check that :meth:`load_packed` can load these.

        Raises:
            CheckpointError: Names or sizes are not those of these tensors; every one is listed.
        """
        missing, unknown = self._differing_names(packed)
        if missing or unknown:
            raise CheckpointError(
                "the masks are of another model or selection: "
                f"missing {listing(missing) or 'none'}; unknown {listing(unknown) or 'none'}"
            )
        shapes = {name: self.selection[name].parameter.shape for name in self}
        wrong = [
            f"{name}: {tuple(shape)} needs torch.uint8 of shape {_packed_shape(shape)}, got "
            f"{_description(packed[name])}"
            for name, shape in shapes.items()
            if not isinstance(packed[name], torch.Tensor)
            or packed[name].dtype != torch.uint8
            or tuple(packed[name].shape) != _packed_shape(shape)
        ]
        if wrong:
            raise CheckpointError(f"the masks are of another model: {listing(wrong)}")

    def _keep_padding(self) -> None:
        for name, tensor in self.selection.items():
            if tensor.local_padding_row is not None:
                self[name][tensor.local_padding_row] = True

    def _check(self, other: Mapping[str, torch.Tensor]) -> None:
        missing, unknown = self._differing_names(other)
        problems = [f"missing {listing(missing)}"] * bool(missing)
        problems += [f"unknown {listing(unknown)}"] * bool(unknown)
        wrong = [
            f"{name} must be {_description(mask)}, but is {_description(other[name])}"
            for name, mask in self.items()
            if name in other and _description(other[name]) != _description(mask)
        ]
        problems += [listing(wrong)] * bool(wrong)
        if problems:
            raise ArgumentError(
                f"masks must fit the selection: {'; '.join(problems)}; build them with "
                "Masks.from_zeros(selection)"
            )

    def _differing_names(self, other: Mapping[str, torch.Tensor]) -> tuple[list[str], list[str]]:
        """Return the names that ``other`` lacks, and those that it has besides."""
        missing = [name for name in self if name not in other]
        return missing, [name for name in other if name not in self]


def attached_mask(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the mask that a parameter has now, or None if nothing masks it.

    Example:
        >>> from torch import nn
        >>> from prunus import select
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> masks = Masks.attached(select(layer))
        >>> attached_mask(layer.weight) is masks["weight"]
        True
        >>> masks.detach()
        >>> attached_mask(layer.weight)
    """
    shared = _attached.get(parameter)
    return None if shared is None else shared.mask


def clear_(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Set ``tensor`` to exactly +0.0 where ``mask`` is False, in place; floating point only."""
    clear_all_([tensor], [mask])


def clear_all_(
    tensors: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], *, inverted: bool = False
) -> None:
    """Set tensors to exactly +0.0 where their masks are False, in place.

    On the CPU it takes one call for all. On an accelerator it takes two launches for each batch of
    tensors with boolean masks, and one for all tensors of a type with :class:`IntegerMasks`.

    Args:
        tensors: Floating-point tensors.
        masks: A mask of the same shape for each of them, boolean or of :class:`IntegerMasks`.
        inverted: Whether to set them where the masks are True instead; needs boolean masks. Default
            False.

    Example:
        >>> tensors = [torch.tensor([-1.0, 2.0]), torch.tensor([torch.nan])]
        >>> clear_all_(tensors, [torch.tensor([False, True]), torch.tensor([False])])
        >>> tensors
        [tensor([0., 2.]), tensor([0.])]
    """
    if not tensors:
        return
    tensors = [tensor.detach() for tensor in tensors]
    if not inverted and all(tensor.is_cpu for tensor in tensors):
        # Without launches to save, the copies of packing would take longer than the products.
        torch._foreach_mul_([bits(tensor) for tensor in tensors], list(masks))
        return
    boolean = [i for i, mask in enumerate(masks) if mask.dtype is torch.bool]
    if len(boolean) < len(masks):
        others = [i for i, mask in enumerate(masks) if mask.dtype is not torch.bool]
        for indices in same_device_and_type([tensors[i] for i in others]):
            group = [others[i] for i in indices]
            torch._foreach_mul_([bits(tensors[i]) for i in group], [masks[i] for i in group])
    for batch in batches([tensors[i] for i in boolean], [masks[i] for i in boolean]):
        clear_batch_(batch, 0, 1, inverted=inverted)


def clear_batch_(batch: Batch, tensor: int, mask: int, *, inverted: bool = False) -> None:
    """Set an operand of a batch to exactly +0.0 where another one, a mask, is False.

    Args:
        batch: The batch.
        tensor: The number of the operand to change.
        mask: The number of the mask, boolean or of :class:`IntegerMasks`.
        inverted: Whether to set it where the mask is True instead; needs a boolean mask. Default
            False.
    """
    integers = [bits(view) for view in batch.operands[tensor]]
    if batch.operands[mask][0].dtype is not torch.bool:
        torch._foreach_mul_(integers, batch.operands[mask])
        return
    if not batch.packed:
        kept = batch.operands[mask][0]
        integers[0].mul_(kept.logical_not() if inverted else kept)
        return
    # torch has a kernel for a list of products only if all factors have one type.
    (kept,) = batch.load(mask, dtype=integers[0].dtype)
    if inverted:
        kept.bitwise_xor_(1)
    torch._foreach_mul_(integers, batch.views(kept))


class IntegerMasks:
    """Masks as integers of the width of their tensors, converted once after each change.

    :func:`clear_all_` multiplies with them at once, while a boolean mask is converted at each use:
    on the CPU within the product, which takes half as long again, on an accelerator by a launch
    of its own.

    They take as much memory as the tensors, so not all masks are converted: on the CPU those of
    tensors of at most ``CPU_CHUNK`` weights, where a larger one would cost more time to read than
    its conversion, and together at most ``ACCELERATOR_BATCH`` weights, which is 64 MiB in float32.

    Example:
        >>> tensors, integers = {"weight": torch.tensor([-1.0, 2.0])}, IntegerMasks()
        >>> masks = integers.of({"weight": torch.tensor([False, True])}, tensors)
        >>> clear_all_(list(tensors.values()), list(masks.values()))
        >>> masks, tensors
        ({'weight': tensor([0, 1], dtype=torch.int32)}, {'weight': tensor([0., 2.])})
    """

    def __init__(self) -> None:
        self._state: list[tuple[torch.Tensor, int, torch.dtype]] = []
        self._masks: Mapping[str, torch.Tensor] = {}

    def of(
        self, masks: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Return the masks, converted where it saves time.

        Args:
            masks: Boolean masks by name.
            tensors: The tensors that they belong to; others are ignored.
        """
        state = [(mask, mask._version, tensors[name].dtype) for name, mask in masks.items()]
        if len(state) != len(self._state) or any(
            new[0] is not old[0] or new[1:] != old[1:]
            for new, old in zip(state, self._state, strict=True)
        ):
            self._state, self._masks = state, _converted(masks, tensors)
        return self._masks


@torch.inference_mode(False)  # as all that is kept of masks
def _converted(
    masks: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Return the masks, those of small tensors as integers."""
    converted: dict[str, torch.Tensor] = {}
    size = 0
    for name, mask in masks.items():
        numel = mask.numel()
        if size + numel <= ACCELERATOR_BATCH and not (mask.is_cpu and numel > CPU_CHUNK):
            size += numel
            converted[name] = torch.empty_like(mask, dtype=integer_type(tensors[name].dtype))
    if converted:
        torch._foreach_copy_(list(converted.values()), [masks[name] for name in converted])
    return {**masks, **converted}


def candidates(tensor: PrunableTensor, mask: torch.Tensor) -> torch.Tensor:
    """Return ``mask`` without the padding row: the kept weights that may still be removed."""
    if tensor.local_padding_row is None:
        return mask
    mask = mask.clone()
    mask[tensor.local_padding_row] = False
    return mask


def _description(mask: object) -> str:
    if not isinstance(mask, torch.Tensor):
        return repr(mask)
    return f"{mask.dtype} of shape {tuple(mask.shape)}"


def _packed_shape(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of a packed mask: by row, a byte for every eight weights."""
    return (shape[0], -(-math.prod(shape[1:]) // 8)) if shape else (1,)


def _pack(mask: torch.Tensor) -> torch.Tensor:
    rows, row = mask.shape[0] if mask.dim() else 1, math.prod(mask.shape[1:])
    packed = np.packbits(mask.cpu().numpy().reshape(rows, row), axis=1)
    return torch.from_numpy(packed.reshape(_packed_shape(mask.shape)))


def _unpack(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    rows, row = shape[0] if shape else 1, math.prod(shape[1:])
    flat = np.unpackbits(packed.cpu().numpy().reshape(rows, -(-row // 8)), axis=1, count=row)
    return torch.from_numpy(flat.reshape(shape))


def _counts(prunable: int, kept: int) -> list[str]:
    """Return the cells of a table about the mask of a tensor."""
    return [f"{prunable:,}", f"{kept:,}", format_percent(kept / prunable if prunable else 0.0)]
