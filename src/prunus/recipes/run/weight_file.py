"""Weight files: the weights of a network in one safetensors file, tied tensors stored once."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from prunus._utils.tied import first_names
from prunus.errors import CheckpointError, PrunusError
from prunus.export.model_loading import load_state
from prunus.export.sparse_format import RECIPE_KEY, encode_tensors
from prunus.export.sparse_reader import load_sparse

__all__ = ["encode_weights", "load_weights"]


def encode_weights(model: nn.Module, *, recipe: str, **facts: float) -> bytes:
    """Return the content of a safetensors file with a network's weights, its recipe and facts."""
    # A tied tensor is stored once, by its first name: safetensors rejects shared memory.
    aliases = _aliases(model)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }
    return encode_tensors(tensors, json.dumps({RECIPE_KEY: recipe, **facts}))


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a weight file or a sparse file into a network, and return the network.

    Raises:
        CheckpointError: The file is missing, damaged, or of another network.
    """
    try:
        tensors = load_sparse(path)
        first = {alias: tensors[name] for alias, name in _aliases(model).items() if name in tensors}
        load_state(model, {**tensors, **first}, path)
    except PrunusError as error:
        raise CheckpointError(
            f"the network {path} is damaged or missing: {error}. If there is no copy of it, "
            "start again"
        ) from error
    return model


def _aliases(model: nn.Module) -> dict[str, str]:
    """Return the first name of each tied parameter by its other names."""
    first = first_names(dict(model.named_parameters(remove_duplicate=False)))
    return {name: known for name, known in first.items() if known != name}
