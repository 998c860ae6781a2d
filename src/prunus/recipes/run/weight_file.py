"""A network's weights as one safetensors file, in which a tied tensor lies once."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import nn

from prunus.errors import CheckpointError, PrunusError
from prunus.export.model_loading import load_state
from prunus.export.sparse_reader import load_sparse

__all__ = ["encode_weights", "load_weights"]


def encode_weights(model: nn.Module, **about: str | float) -> bytes:
    """Return a safetensors file of a network, with facts about it in its metadata."""
    # A tied tensor once, by its first name: safetensors refuses tensors that share memory.
    aliases = _aliases(model)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }
    # One key of metadata, for the order of several is drawn anew by each writing.
    return save(tensors, {"prunus": json.dumps(about)})


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load such a file, or a sparse one, into a network of the same shape, and return that.

    Raises:
        CheckpointError: The file is absent, damaged, or of another network.
    """
    try:
        tensors = load_sparse(path)
        first = {alias: tensors[name] for alias, name in _aliases(model).items() if name in tensors}
        load_state(model, {**tensors, **first}, path)
    except PrunusError as error:
        raise CheckpointError(
            f"the network {path} is damaged or absent: {error}; restore it from a copy or start "
            "anew"
        ) from error
    return model


def _aliases(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tied parameter by its other names."""
    first: dict[int, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {
        name: known
        for name, tensor in names
        if (known := first.setdefault(id(tensor), name)) != name
    }
