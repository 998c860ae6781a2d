"""The part of a tensor that this process holds, where several processes hold it together.

A tensor of `torch.distributed.tensor`, as ``fully_shard`` and ``parallelize_module`` make of
parameters, is a whole of which each process has a box in memory. Everything that is done to single
weights is done to that box, an ordinary tensor; only counts over the whole have to be summed over
processes (:mod:`prunus._distributed.process_group`). An ordinary tensor is a box that is the whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "Shard",
    "from_local_part",
    "is_sharded",
    "local",
    "local_part",
    "positions",
    "shard_of",
    "sharded_by_rows",
]


def is_sharded(tensor: object) -> bool:
    """Say whether a tensor is one of `torch.distributed.tensor`, be it in one piece."""
    # Who has not imported that module has no such tensor; it takes most of a second to import.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor, detached, in the same memory.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> local(weight).zero_(), weight.tolist()
        (tensor([0., 0.]), [0.0, 0.0])
    """
    if is_sharded(tensor):
        held: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
        return held
    return tensor.detach()


@dataclass(frozen=True)
class Shard:
    """Where a process's part lies in the whole tensor.

    Attributes:
        shape: Of the whole.
        size: Of the part, by dimension.
        offsets: The place of the part's first element in the whole, by dimension.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    offsets: tuple[int, ...]


def shard_of(tensor: torch.Tensor) -> Shard:
    """Say which part of a tensor this process holds.

    Example:
        >>> shard_of(torch.ones(2, 3))
        Shard(shape=(2, 3), size=(2, 3), offsets=(0, 0))
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Shard(shape, shape, (0,) * len(shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    held: Any = tensor
    mesh, placements = held.device_mesh, held.placements
    size, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Shard(shape, tuple(size), tuple(offsets))


def local_part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a value of the whole tensor ``like``.

    Args:
        value: Of the shape of ``like``: sharded in whatever way, or whole.
        like: Tells which part.
    """
    if is_sharded(value):
        whole: Any = value
        if is_sharded(like):
            target: Any = like
            same = whole.device_mesh == target.device_mesh
            if same and whole.placements == target.placements:
                return local(value)
            if same:
                return local(whole.redistribute(placements=target.placements))
        value = whole.full_tensor()
    if not is_sharded(like):
        return value.detach()
    box = shard_of(like)
    return value.detach()[_slices(box.offsets, box.size)]


def sharded_by_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same tensor, sharded along its first dimension at most."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    whole: Any = tensor
    placements = [
        placement if getattr(placement, "dim", 0) == 0 else Replicate()
        for placement in whole.placements
    ]
    rows: torch.Tensor = whole.redistribute(placements=placements)
    return rows


def from_local_part(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, laid out as ``like``, of which ``part`` is this process's part.

    It is on the device of the processes that hold ``like``, copied there if ``part`` is elsewhere.
    Only the first dimension has to be that of ``like`` where ``like`` is sharded by rows. An
    ordinary ``like`` gives back the part.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    target: Any = like
    alike = part.shape == local(like).shape
    shape = like.shape if alike else torch.Size((like.shape[0], *part.shape[1:]))
    whole: torch.Tensor = DTensor.from_local(
        part.contiguous(),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=shape,
        stride=_strides(shape),
    )
    return whole


def positions(view: torch.Tensor, held: torch.Tensor, box: Shard) -> torch.Tensor:
    """Return where the elements of a view lie in the whole tensor, counted row by row.

    Args:
        view: A part of ``held``, in the same memory.
        held: What this process holds of the whole.
        box: Where that lies in the whole.

    Returns:
        A vector of int64, in the order of ``view.reshape(-1)``.

    Example:
        >>> held = torch.zeros(2, 3)
        >>> positions(held[:, 1], held, Shard((4, 3), (2, 3), (2, 0)))
        tensor([ 7, 10])
    """
    offset = torch.tensor(view.storage_offset() - held.storage_offset(), device=view.device)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        offset = offset[..., None] + torch.arange(size, device=view.device) * stride
    offset = offset.reshape(-1)
    place = torch.zeros_like(offset)
    whole = _strides(box.shape)
    for dim in sorted(range(held.dim()), key=held.stride, reverse=True):
        if held.shape[dim] == 1:  # its stride may be anything
            index: torch.Tensor | int = 0
        else:
            index = offset // held.stride(dim)
            offset = offset % held.stride(dim)
        place += (index + box.offsets[dim]) * whole[dim]
    return place


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _slices(offsets: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(offsets, size, strict=True))
