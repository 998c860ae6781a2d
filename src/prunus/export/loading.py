"""Loading tensors into a model: all of them with every bit, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from prunus.errors import UserError, listing
from prunus.selection import check_model
from prunus.world import unwrapped

__all__ = ["load_state"]


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load a state as ``load_state_dict`` does; the model is left as it was if that fails.

    Args:
        model: The model, perhaps within ``torch.compile`` or DistributedDataParallel.
        state: Its tensors by name.
        path: Where they come from, for the message.

    Raises:
        UserError: They do not fit the model, or it cannot hold every bit of them.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_state(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "a file")
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    check_model(model)
    model = unwrapped(model)
    own = model.state_dict()
    problems = list(_unable(own, state))
    if problems:
        raise UserError(f"the model cannot hold what is in {path}: {'; '.join(problems)}")
    shapes = {name: tensor.shape for name, tensor in own.items()}
    fits = shapes == {name: tensor.shape for name, tensor in state.items()}
    # Torch copies what fits before it says what does not.
    before = {} if fits else {name: tensor.clone() for name, tensor in own.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        with torch.no_grad():
            for name, tensor in before.items():
                own[name].copy_(tensor)
        raise UserError(f"{path} does not fit the model: {error}") from error


def _unable(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Say of which tensors the model could not hold every bit."""
    meta = [name for name in own if own[name].is_meta]
    if meta:
        yield f'{listing(meta)} have no memory: call model.to_empty(device="cpu") first'
    narrow = [
        f"{name} ({own[name].dtype} for {tensor.dtype})"
        for name, tensor in state.items()
        if name in own and torch.promote_types(own[name].dtype, tensor.dtype) != own[name].dtype
    ]
    if narrow:
        yield f"{listing(narrow)} would be rounded: load first and convert the model then"
