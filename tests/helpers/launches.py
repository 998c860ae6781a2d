"""Kernel launches and synchronizations that an accelerator would have, counted without one.

Fake tensors have a device and no numbers: an operation on them checks types and shapes only. So a
step can be counted as an accelerator would take it, on its own code path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Launches", "accelerator"]

DEVICE = torch.device("cuda:0")

_NO_KERNEL = (
    "empty",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "new_empty",
    "promote_types",
)
"""Operators without a kernel that are no views by their schema."""

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
"""Operators whose result has a value, or a shape, that the host waits for."""


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts kernel launches and synchronizations of the operators called within it.

    An operator counts as one launch, unless it only makes a view or allocates memory. One on a list
    of tensors counts as one if torch has one kernel for the whole list, and else as one for each
    tensor: it has one only where all tensors of the call have the same type, or it is a copy, and
    those that belong together have the same shape and strides.

    Attributes:
        kernels: Names of the operators, once for each launch.
        waits: Names of the operators that the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if _waits(name, args, kwargs or {}):
            self.waits.append(name)
        try:
            result = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            # The value is not known here: any will do, because the wait has been counted.
            return _plain_value(args[0])
        if func.namespace == "aten" and not (func.is_view or name.startswith(_NO_KERNEL)):
            self.kernels += [name] * _count(name, [*args, *(kwargs or {}).values()])
        return result


def _plain_value(tensor: torch.Tensor) -> float | int | bool:
    return True if tensor.dtype is torch.bool else 0.0


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if name in ("copy_", "_copy_from"):
        return bool(args[0].device.type == "cpu" and args[1].device.type != "cpu")
    if name == "_to_copy":
        device = kwargs.get("device")
        return device is not None and torch.device(device).type == "cpu" != args[0].device.type
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAITS


def _count(name: str, arguments: list[Any]) -> int:
    """Return how many kernels an operator launches on the accelerator."""
    lists = [a for a in arguments if _is_list_of_tensors(a)]
    if not lists:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        return int(not tensors or any(t.device.type != "cpu" for t in tensors))
    if not name.startswith("_foreach"):
        return 1
    length = len(lists[0])
    mixed = len({t.dtype for tensors in lists for t in tensors}) > 1
    alike = all(
        t.shape == first.shape and t.stride() == first.stride()
        for together in zip(*lists, strict=True)
        for first in together[:1]
        for t in together
    )
    dense = all(_is_dense(t) for tensors in lists for t in tensors)
    return 1 if alike and dense and (not mixed or name == "_foreach_copy_") else length


def _is_dense(tensor: torch.Tensor) -> bool:
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], torch.Tensor)


class _Copies(TorchFunctionMode):
    """Replaces ``copy_``, which torch's builds for the CPU reject for fake tensors elsewhere."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.copy_:
            target, source = args[:2]
            torch._foreach_copy_([target], [source.expand_as(target)])
            return target
        return func(*args, **(kwargs or {}))


@contextmanager
def accelerator() -> Iterator[Callable[..., torch.Tensor]]:
    """Run a block with fake tensors; yields a function that builds a tensor on an accelerator."""

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(*shape, dtype=dtype, device=DEVICE)

    # torch's own functions use operators on lists for tensors of known types only.
    types = [*_foreach_utils._foreach_supported_types, FakeTensor]
    with (
        mock.patch.object(_foreach_utils, "_foreach_supported_types", types),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Copies(),
    ):
        yield tensor
