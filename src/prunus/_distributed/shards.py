"""Shards of tensors that several processes hold together.

``fully_shard`` and ``parallelize_module`` turn parameters into tensors of
`torch.distributed.tensor`, of which each process has a shard in memory: a block, stored as an
ordinary tensor. Operations on single weights work on the shard; only counts over the whole tensor
are summed over processes (:mod:`prunus._distributed.process_group`). An ordinary tensor is its own
and only shard.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunus._utils.files import memory_key

__all__ = [
    "Shard",
    "from_local_part",
    "gathered",
    "is_sharded",
    "local",
    "local_part",
    "positions",
    "shard_of",
    "sharded_by_rows",
]


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is one of `torch.distributed.tensor`, even with a single shard."""
    # Without that module there is no such tensor; importing it takes most of a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor, detached, in the same memory.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> local(weight).zero_(), weight.tolist()
        (tensor([0., 0.]), [0.0, 0.0])
    """
    if is_sharded(tensor):
        shard: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
        return shard
    return tensor.detach()


@dataclass(frozen=True)
class Shard:
    """The position of a process's shard in the whole tensor.

    Attributes:
        shape: Shape of the whole tensor.
        size: Shape of the shard.
        offsets: Indices of the shard's first element in the whole tensor.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    offsets: tuple[int, ...]


def shard_of(tensor: torch.Tensor) -> Shard:
    """Return the position of this process's shard of a tensor.

    Example:
        >>> shard_of(torch.ones(2, 3))
        Shard(shape=(2, 3), size=(2, 3), offsets=(0, 0))
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Shard(shape, shape, (0,) * len(shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    mesh, placements = sharded.device_mesh, sharded.placements
    size, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Shard(shape, tuple(size), tuple(offsets))


def local_part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the elements of ``value`` at the positions of this process's shard of ``like``.

    Args:
        value: A tensor of the shape of ``like``, sharded in any way or not at all.
        like: The tensor whose shard determines the positions.
    """
    if is_sharded(value):
        sharded: Any = value
        if is_sharded(like):
            target: Any = like
            same_mesh = sharded.device_mesh == target.device_mesh
            if same_mesh and sharded.placements == target.placements:
                return local(value)
            if same_mesh:
                return local(sharded.redistribute(placements=target.placements))
        value = sharded.full_tensor()
    if not is_sharded(like):
        return value.detach()
    shard = shard_of(like)
    return value.detach()[_slices(shard.offsets, shard.size)]


def sharded_by_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same tensor, sharded along its first dimension or not at all."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    sharded: Any = tensor
    placements = [
        placement if getattr(placement, "dim", 0) == 0 else Replicate()
        for placement in sharded.placements
    ]
    by_rows: torch.Tensor = sharded.redistribute(placements=placements)
    return by_rows


def gathered(tree: Any, *, keep: bool) -> Any:
    """Return a tree with whole tensors on the CPU in place of sharded ones.

    All processes that hold the shards must call this together. One tensor at a time is gathered.

    Args:
        tree: Dictionaries, lists and tuples of tensors and other values.
        keep: Whether this process needs the result. If not, sharded tensors become None.

    Example:
        >>> gathered({"weights": [torch.ones(2)], "steps": 3}, keep=True)
        {'weights': [tensor([1., 1.])], 'steps': 3}
    """
    wholes: dict[tuple[Any, ...], torch.Tensor] = {}

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(whole(item) for item in value)
        if not is_sharded(value):
            return value
        # Also for a tied tensor: whether a shard is empty, and has no key, differs by process.
        complete = value.full_tensor()
        if not keep:
            return None
        # The process that keeps the tensors stores a tied one once.
        key = memory_key(local(value))
        if key is None:
            return complete.cpu()
        return wholes.setdefault((*key, *value.shape), complete.cpu())

    return whole(tree)


def from_local_part(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the tensor whose shard in this process is ``part``, sharded as ``like`` is.

    It is on the device of ``like``; ``part`` is copied there if necessary. If ``like`` is not
    sharded the result is ``part``.

    Args:
        part: This process's shard. If ``like`` is sharded by rows, only the first dimension must
            agree with that of its shard.
        like: The tensor that determines mesh and placements.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    target: Any = like
    same_shape = part.shape == local(like).shape
    shape = like.shape if same_shape else torch.Size((like.shape[0], *part.shape[1:]))
    whole: torch.Tensor = DTensor.from_local(
        part.contiguous(),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=shape,
        stride=_strides(shape),
    )
    return whole


def positions(view: torch.Tensor, storage: torch.Tensor, shard: Shard) -> torch.Tensor:
    """Return the row-major positions of a view's elements in the whole tensor.

    Args:
        view: A view of ``storage``.
        storage: This process's shard of the whole tensor.
        shard: The position of the shard in the whole tensor.

    Returns:
        A vector of int64, in the order of ``view.reshape(-1)``.

    Example:
        >>> storage = torch.zeros(2, 3)
        >>> positions(storage[:, 1], storage, Shard((4, 3), (2, 3), (2, 0)))
        tensor([ 7, 10])
    """
    offset = torch.tensor(view.storage_offset() - storage.storage_offset(), device=view.device)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        offset = offset[..., None] + torch.arange(size, device=view.device) * stride
    offset = offset.reshape(-1)
    position = torch.zeros_like(offset)
    strides = _strides(shard.shape)
    for dim in sorted(range(storage.dim()), key=storage.stride, reverse=True):
        if storage.shape[dim] == 1:  # its stride may be anything
            index: torch.Tensor | int = 0
        else:
            index = offset // storage.stride(dim)
            offset = offset % storage.stride(dim)
        position += (index + shard.offsets[dim]) * strides[dim]
    return position


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _slices(offsets: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(offsets, size, strict=True))
