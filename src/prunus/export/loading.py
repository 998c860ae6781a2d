"""Loading tensors into a model: all of them with every bit, or none."""

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
    """Load a state as ``load_state_dict`` does; the model is left as it was if that fails.

    Args:
        model: The model, perhaps within ``torch.compile`` or DistributedDataParallel. Layers that
            are not initialized yet become so, also where the rest fails.
        state: Its tensors by name.
        path: Where they come from, for the message.

    Raises:
        PrunusError: They do not fit the model, or it cannot hold every bit of them.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_state(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "a file")
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    check_model(model)
    own = model.state_dict()
    if own.keys() != state.keys():  # which may be that of a wrapper
        model = unwrap(model)
        own = model.state_dict()
    held = {name: tensor for name, tensor in own.items() if _has_shape(tensor)}
    problems = list(_unable(held, state))
    if problems:
        raise PrunusError(f"the model cannot hold what is in {path}: {'; '.join(problems)}")
    before = [] if _certain(model, own, state) else _copies(model)
    try:
        model.load_state_dict(state)
    except Exception as error:
        with torch.no_grad():
            for tensor, copy in before:
                tensor.copy_(copy)
        raise PrunusError(f"{path} does not fit the model: {error}") from error


def _has_shape(value: Any) -> bool:
    """Tell tensors from other state, and from those of layers that have not seen an input yet."""
    return isinstance(value, torch.Tensor) and not is_lazy(value)


def _unable(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Say of which tensors the model could not hold every bit."""
    meta = [name for name in own if own[name].is_meta]
    if meta:
        yield f'{listing(meta)} have no memory: call model.to_empty(device="cpu") first'
    narrow = [
        f"{name} ({own[name].dtype} for {tensor.dtype})"
        for name, tensor in state.items()
        if name in own and not _holds(own[name].dtype, tensor)
    ]
    if narrow:
        yield f"{listing(narrow)} would be rounded: load first and convert the model then"


def _holds(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Say whether a tensor can be had back, to the bit, from one of that type."""
    if dtype == tensor.dtype:
        return True
    if tensor.is_complex() and not dtype.is_complex:
        return False  # and torch would warn
    back = tensor.to(dtype).to(tensor.dtype)
    return torch.equal(_bytes(back), _bytes(tensor))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _certain(model: nn.Module, own: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> bool:
    """Say that loading will not fail halfway, so that no copy need be kept.

    Torch copies what fits before it says what does not; and what is sharded, or loads itself by
    code of its own, may refuse anything.
    """
    return (
        own.keys() == state.keys()
        and all(type(value) is torch.Tensor for value in own.values())
        and all(own[name].shape == tensor.shape for name, tensor in state.items())
        and not any(map(_repeats, own.values()))
        and not any(map(_loads_itself, model.modules()))
    )


def _loads_itself(module: nn.Module) -> bool:
    hooked = (
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or module._state_dict_hooks
        or module._state_dict_pre_hooks
    )
    methods = (type(module)._load_from_state_dict, type(module).set_extra_state)
    return bool(hooked) or not all(m.__module__.startswith("torch.nn.modules.") for m in methods)


def _repeats(tensor: torch.Tensor) -> bool:
    """Say whether elements share memory, as of an expanded tensor, which nobody can write to."""
    return any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _copies(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copy what the model holds and loading may change."""
    held = filter(_has_shape, itertools.chain(model.parameters(), model.buffers()))
    return [(tensor, tensor.detach().clone()) for tensor in held if not _repeats(tensor)]
