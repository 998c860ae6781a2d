"""Chunks of large tensors, so that temporaries stay small and in cache.

An element-wise formula of several operations reads and writes main memory once per operation when
it is applied to a whole large tensor. Applied chunk by chunk it reads and writes main memory once
in all, because a chunk stays in the processor's cache between operations. It also needs scratch
memory for one chunk only, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

__all__ = ["ACCELERATOR_CHUNK", "CPU_CHUNK", "bits", "chunks", "integer_type"]

CPU_CHUNK = 1 << 18
"""Elements per chunk on the CPU: a float32 operand of this size is 1 MiB. Measured on two cores
with as much second-level cache each, a quarter of this took 1.4 times as long, because each
operation on a chunk has a fixed cost, and four times this took 1.05 times less."""

ACCELERATOR_CHUNK = 1 << 28
"""Elements per chunk elsewhere, where launches cost more than memory traffic."""

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def integer_type(dtype: torch.dtype) -> torch.dtype:
    """Return the signed integer type of the width of a type.

    Example:
        >>> integer_type(torch.bfloat16)
        torch.int16
    """
    return _INTEGERS[dtype.itemsize]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a floating-point tensor as the signed integers of its bits.

    Multiplying the bits by 0 gives exactly +0.0 for every value, NaN, infinity and negative
    numbers included, whereas multiplying the float would give NaN or -0.0.

    Example:
        >>> bits(torch.tensor([1.0, -0.0]))
        tensor([ 1065353216, -2147483648], dtype=torch.int32)
    """
    return tensor.view(_INTEGERS[tensor.itemsize])


def chunks(*tensors: torch.Tensor, size: int | None = None) -> Iterable[tuple[torch.Tensor, ...]]:
    """Return matching views of tensors of one shape that cover each once, in order of memory.

    Args:
        *tensors: Tensors of one shape, on one device; any strides.
        size: The most elements in a chunk. Default: a number that suits the device.

    Returns:
        Tuples of one view per tensor. Tensors that fill their memory in the same order of
        dimensions (contiguous, or all channels-last) are split as flat vectors in that order;
        others along their first dimension.

    Example:
        >>> weight = torch.arange(5.0)
        >>> [chunk.tolist() for (chunk,) in chunks(weight, size=2)]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]
    """
    first = tensors[0]
    if first.numel() <= (CPU_CHUNK if size is None else size):
        return (tensors,)  # a generator would cost more than the operations on a small tensor
    if size is None:
        size = CPU_CHUNK if first.device.type == "cpu" else ACCELERATOR_CHUNK
    return _split(tensors, size)


def _split(tensors: tuple[torch.Tensor, ...], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    first = tensors[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    by_memory = [tensor.permute(order) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in by_memory):
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in by_memory), strict=True)
    elif first.dim() <= 1:
        yield from zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
    else:
        for rows in zip(*tensors, strict=True):
            yield from chunks(*rows, size=size)
