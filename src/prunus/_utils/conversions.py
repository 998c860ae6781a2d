"""Models that were converted into a form whose weights cannot be read or trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import nn

from prunus.errors import PrunusError, listing

__all__ = ["Conversion", "check_not_converted", "is_converted"]

Conversion = Literal["script", "packed", "sparse", "tensor"]
"""A form: a module of TorchScript, a quantized module with packed weights, a sparse layer of
``speed_up``, or a tensor of a subclass that stores its elements in another form, such as 8-bit
integers with scales."""

_PACKED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse")
"""The packages of torch's quantized modules."""

_SPARSE = "prunus.runtime."
"""The package of the sparse layers that replace dense ones for inference."""

_READABLE = ("torch.distributed.", "torch._subclasses.", "prunus.")
"""The packages of tensor subclasses that can be read, or that other checks treat: sharded tensors,
fake tensors, and the weights of sparse layers."""


def is_converted(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is of a subclass that stores its elements in another form.

    Example:
        >>> is_converted(nn.Parameter(torch.ones(1)))
        False
    """
    tensor_type = type(tensor)
    overrides = tensor_type.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return overrides and not tensor_type.__module__.startswith(_READABLE)


def check_not_converted(
    model: nn.Module,
    *,
    allowed: Collection[Conversion] = (),
    then: str = "quantize or convert the result",
) -> None:
    """Check that no part of a model is converted into a form whose weights cannot be read.

    Args:
        model: The model.
        allowed: The forms that the caller can handle.
        then: What to do with the network instead, for the message.

    Raises:
        PrunusError: A part is; every one is named, with the fix.
    """
    scripted = _outermost(model, lambda module: isinstance(module, torch.jit.ScriptModule))
    packed = _outermost(model, lambda module: type(module).__module__.startswith(_PACKED))
    sparse = _outermost(model, _is_for_inference)
    tensors = [
        f"{name} ({type(tensor).__name__})"
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if is_converted(tensor)
    ]
    problems = []
    if scripted and "script" not in allowed:
        problems.append(
            f"{listing(scripted)} is compiled by TorchScript: pass the network as it is before "
            "torch.jit.trace or torch.jit.script"
        )
    if packed and "packed" not in allowed:
        problems.append(
            f"the weights of {listing(packed)} are packed: pass the network as it is before it is "
            f"quantized, and {then}"
        )
    if sparse and "sparse" not in allowed:
        problems.append(
            f"{listing(sparse)} is a layer of speed_up, for inference only: pass the network that "
            "speed_up was called with, and call speed_up last"
        )
    if tensors and "tensor" not in allowed:
        problems.append(
            f"{listing(tensors)} store their elements in another form: pass the network as it is "
            f"before it is quantized or converted, and {then}"
        )
    if problems:
        raise PrunusError(
            f"the layers of {type(model).__name__} must be ordinary ones, but {'; '.join(problems)}"
        )


def _is_for_inference(module: nn.Module) -> bool:
    """Return whether a module replaces a dense layer, and is not that layer as it is trained."""
    return type(module).__module__.startswith(_SPARSE) and not isinstance(module, nn.Linear)


def _outermost(model: nn.Module, matches: Callable[[nn.Module], bool]) -> list[str]:
    """Return name and type of each module that matches and is not inside another one."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and matches(module):
            found[name] = f"{name or 'the model'} ({type(module).__name__})"
    return list(found.values())
