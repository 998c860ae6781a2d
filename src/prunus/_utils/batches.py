"""Batches of small tensors, which one operation processes at once, and chunks of large ones.

On an accelerator the launch of an operation costs more than the work on a small tensor, so tensors
are processed together: by torch's operations on lists, or packed into one block of memory. On the
CPU large tensors are split into chunks instead, which stay in the cache between operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from prunus._utils.chunks import CPU_CHUNK, chunks

__all__ = [
    "ACCELERATOR_BATCH",
    "CPU_BATCH",
    "CPU_SMALL",
    "Batch",
    "batches",
    "grouped",
    "same_device_and_type",
]

CPU_SMALL = 1 << 10
"""The most elements of a tensor that is packed on the CPU, where with more the copies take longer
than the calls that they save. Measured with ResNet-32 and a small GPT-2, 8 times as many took 1.1
times as long in all, and none at all 1.05 times."""

CPU_BATCH = 1 << 16
"""Elements per batch on the CPU: four float32 operands stay in a second-level cache of 1 MiB."""

ACCELERATOR_BATCH = 1 << 24
"""Elements per batch, and per chunk of a larger tensor, elsewhere: a packed float32 operand is 64
MiB. No part of a step packs more than six operands at a time."""

_ROW = 128
"""Elements per row of a packed block. Each tensor begins in a new row, so that a number for each
tensor is a number for each row."""


@dataclass(eq=False, slots=True)
class Batch:
    """Several small tensors, or a chunk of a large one, each with the operands that belong to it.

    Attributes:
        indices: Positions of the tensors in the sequences that were batched.
        operands: For each operand, a view of each tensor. Those of several tensors are vectors in
            the order of memory.
    """

    indices: Sequence[int]
    operands: list[list[torch.Tensor]]

    @property
    def packed(self) -> bool:
        """Whether there are several tensors, so that :meth:`load` copies."""
        return len(self.indices) > 1

    def load(self, *operands: int, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """Return each operand as one tensor: a packed copy of several, or the chunk itself.

        Args:
            *operands: Numbers of the operands.
            dtype: Their type. Default: that of the first; they must have one type then.

        Returns:
            Blocks of rows. The end of a tensor's last row has any values.
        """
        if self.packed:
            return list(self.stack(*operands, dtype=dtype).unbind())
        loaded = [self.operands[number][0] for number in operands]
        return loaded if dtype is None else [chunk.to(dtype) for chunk in loaded]

    def stack(self, *operands: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return copies of operands as one tensor with a block of rows for each; see :meth:`load`.

        Args:
            *operands: Numbers of the operands.
            dtype: Their type. Default: that of the first; they must have one type then.
        """
        if not self.packed:
            return torch.stack(self.load(*operands, dtype=dtype))
        wanted = [self.operands[number] for number in operands]
        dtype = wanted[0][0].dtype if dtype is None else dtype
        rows = sum(_rows(view) for view in wanted[0])
        stacked = torch.empty(len(wanted), rows, _ROW, dtype=dtype, device=wanted[0][0].device)
        blocks = stacked.unbind()
        by_type: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for block, views in zip(blocks, wanted, strict=True):
            targets, sources = by_type.setdefault(views[0].dtype, ([], []))
            targets += self.views(block)
            sources += views
        for targets, sources in by_type.values():
            torch._foreach_copy_(targets, sources)
        return stacked

    def views(self, block: torch.Tensor) -> list[torch.Tensor]:
        """Return the part of each tensor in a block that has the form of a loaded operand."""
        if not self.packed:
            return [block]
        sizes: list[int] = []
        for view in self.operands[0]:
            sizes += (view.numel(), _rows(view) * _ROW - view.numel())
        return list(torch.split(block.view(-1), sizes)[::2])

    def store(self, operands: Sequence[int], blocks: Sequence[torch.Tensor]) -> None:
        """Copy blocks of one type to operands of one type, unless they are these operands."""
        if self.packed:
            targets = [view for number in operands for view in self.operands[number]]
            torch._foreach_copy_(targets, [v for block in blocks for v in self.views(block)])
            return
        for number, block in zip(operands, blocks, strict=True):
            if self.operands[number][0] is not block:
                self.operands[number][0].copy_(block)

    def spread(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the scalars of the tensors in a form that broadcasts against a loaded operand.

        Args:
            values: A scalar for each of all tensors that were batched.
        """
        if not self.packed:
            return values[self.indices[0]]
        counts = map(_rows, self.operands[0])
        columns = [values[i].expand(n) for i, n in zip(self.indices, counts, strict=True)]
        return torch.cat(columns).unsqueeze(1)


def _rows(view: torch.Tensor) -> int:
    return -(-view.numel() // _ROW)


def batches(
    *operands: Sequence[torch.Tensor], together: Sequence[object] = (), pack: bool = True
) -> Iterator[Batch]:
    """Return batches that cover tensors with their operands once.

    Args:
        *operands: For each operand, one tensor for each of the tensors, of one shape and on one
            device with the others of this tensor.
        together: For each tensor, a key; only tensors of equal keys share a batch. Default: any.
        pack: Whether batches may have several tensors. Default True.

    Returns:
        Batches of tensors of one device and with operands of the same types. Empty tensors are left
        out.

    Example:
        >>> weights = [torch.ones(2), torch.zeros(3), torch.ones(4, dtype=torch.float64)]
        >>> [(batch.indices, batch.packed) for batch in batches(weights)]
        [([0, 1], True), ([2], False)]
        >>> batch = next(batches(weights))
        >>> (block,) = batch.load(0)
        >>> batch.store([0], [block + batch.spread([torch.tensor(1.0), torch.tensor(5.0)])])
        >>> weights[0].tolist(), weights[1].tolist()
        ([2.0, 2.0], [5.0, 5.0, 5.0])
    """
    if not operands[0]:
        return
    groups: dict[object, list[int]] = {}
    for index, tensors in enumerate(zip(*operands, strict=True)):
        first = tensors[0]
        numel = first.numel()
        if not numel:
            continue
        cpu = first.is_cpu
        if pack and numel <= (CPU_SMALL if cpu else ACCELERATOR_BATCH):
            key = (first.device, *[t.dtype for t in tensors], together[index] if together else None)
            groups.setdefault(key, []).append(index)
            continue
        for parts in chunks(*tensors, size=CPU_CHUNK if cpu else ACCELERATOR_BATCH):
            yield Batch([index], [[part] for part in parts])
    for indices in groups.values():
        if len(indices) == 1:
            yield Batch(indices, [[column[indices[0]]] for column in operands])
        else:
            yield from _packs(indices, operands)


def _packs(indices: list[int], operands: Sequence[Sequence[torch.Tensor]]) -> Iterator[Batch]:
    """Yield batches of tensors with operands of the same types on one device."""
    most = CPU_BATCH if operands[0][indices[0]].is_cpu else ACCELERATOR_BATCH
    waiting: list[int] = []
    views: list[list[torch.Tensor]] = [[] for _ in operands]
    size = 0
    for index in indices:
        tensors = tuple(column[index] for column in operands)
        vectors = _vectors(tensors)
        if vectors is None:
            yield Batch([index], [[tensor] for tensor in tensors])
            continue
        numel = tensors[0].numel()
        if size + numel > most:
            yield Batch(waiting, views)
            waiting, views, size = [], [[] for _ in operands], 0
        waiting.append(index)
        size += numel
        for column, vector in zip(views, vectors, strict=True):
            column.append(vector)
    if waiting:
        yield Batch(waiting, views)


def _vectors(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor] | None:
    """Return vectors of the elements in the order of memory; None if their orders differ."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.detach().view(-1) for tensor in tensors]
    first = tensors[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    by_memory = [tensor.detach().permute(order) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in by_memory):
        return [tensor.view(-1) for tensor in by_memory]
    return None


def same_device_and_type(tensors: Sequence[torch.Tensor]) -> Iterable[list[int]]:
    """Return the indices of the tensors that share a device and a type.

    Example:
        >>> list(same_device_and_type([torch.ones(1), torch.ones(2).double(), torch.ones(3)]))
        [[0, 2], [1]]
    """
    groups: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    return groups.values()


def grouped(
    tensors: Sequence[torch.Tensor],
    function: Callable[[list[torch.Tensor]], Iterable[torch.Tensor]],
) -> list[torch.Tensor]:
    """Return one result for each tensor, of a function of tensors of one device and type.

    Example:
        >>> tensors = [torch.ones(2), torch.ones(1, dtype=torch.float64), torch.ones(3)]
        >>> [t.item() for t in grouped(tensors, lambda group: torch._foreach_norm(group, 1))]
        [2.0, 1.0, 3.0]
    """
    results: dict[int, torch.Tensor] = {}
    for indices in same_device_and_type(tensors):
        results.update(zip(indices, function([tensors[i] for i in indices]), strict=True))
    return [results[index] for index in range(len(tensors))]
