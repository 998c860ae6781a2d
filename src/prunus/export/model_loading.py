"""Loading of tensors into a model: all of them without loss of a bit, or none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunus._distributed.wrappers import unwrap
from prunus.errors import PrunusError, listing
from prunus.selection import check_model

__all__ = ["load_state"]


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load a state as ``load_state_dict`` does, or leave the model unchanged if that fails.

    Args:
        model: The model, possibly inside ``torch.compile`` or DistributedDataParallel. Lazy layers
            are initialized, even if loading then fails.
        state: The tensors by name.
        path: The file that the tensors come from, for the error message.

    Raises:
        PrunusError: The tensors do not fit the model, or the model's types would round them.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_state(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "a file")
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    check_model(model)
    current = model.state_dict()
    if current.keys() != state.keys():  # the names may be those without a wrapper
        model = unwrap(model)
        current = model.state_dict()
    tensors = {name: value for name, value in current.items() if _is_initialized_tensor(value)}
    problems = list(_problems(tensors, state))
    if problems:
        raise PrunusError(f"the model cannot hold what is in {path}: {'; '.join(problems)}")
    backup = [] if _cannot_fail_halfway(model, current, state) else _copy_tensors(model)
    try:
        model.load_state_dict(state)
    except Exception as error:
        with torch.no_grad():
            for tensor, copy in backup:
                tensor.copy_(copy)
        raise PrunusError(
            f"{path} does not fit the model: {error}\nPass a model of the class and sizes that the "
            "file was written from"
        ) from error


def _is_initialized_tensor(value: Any) -> bool:
    """Return whether a value of a state is a tensor, and not one of an uninitialized lazy layer."""
    return isinstance(value, torch.Tensor) and not is_lazy(value)


def _problems(
    current: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Yield why tensors of the model cannot hold every bit of those of a state."""
    meta = [name for name in current if current[name].is_meta]
    if meta:
        yield f'{listing(meta)} have no memory: call model.to_empty(device="cpu") first'
    narrow = [
        f"{name} ({current[name].dtype} for {tensor.dtype})"
        for name, tensor in state.items()
        if name in current and not _represents(current[name].dtype, tensor)
    ]
    if narrow:
        yield f"{listing(narrow)} would be rounded: load first and convert the model then"


def _represents(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Return whether converting a tensor to a type and back restores every bit."""
    if dtype == tensor.dtype:
        return True
    if tensor.is_complex() and not dtype.is_complex:
        return False  # torch would warn about the conversion
    restored = tensor.to(dtype).to(tensor.dtype)
    return torch.equal(_bytes(restored), _bytes(tensor))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _cannot_fail_halfway(
    model: nn.Module, current: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> bool:
    """Return whether loading cannot fail halfway, so that no backup of the model is needed.

    Torch copies the tensors that fit before it reports those that do not; and sharded tensors, and
    modules with custom code for loading, can fail in any way.
    """
    return (
        current.keys() == state.keys()
        and all(type(value) is torch.Tensor for value in current.values())
        and all(current[name].shape == tensor.shape for name, tensor in state.items())
        and not any(map(_is_expanded, current.values()))
        and not any(map(_has_custom_loading, model.modules()))
    )


def _has_custom_loading(module: nn.Module) -> bool:
    hooks = (
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or module._state_dict_hooks
        or module._state_dict_pre_hooks
    )
    methods = (type(module)._load_from_state_dict, type(module).set_extra_state)
    return bool(hooks) or not all(m.__module__.startswith("torch.nn.modules.") for m in methods)


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Return whether elements of a tensor share memory, so that it cannot be written to."""
    return any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _copy_tensors(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each tensor that loading may change, with a copy of it."""
    values = itertools.chain(model.parameters(), model.buffers())
    tensors = filter(_is_initialized_tensor, values)
    return [(tensor, tensor.detach().clone()) for tensor in tensors if not _is_expanded(tensor)]
