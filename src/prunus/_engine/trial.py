"""A trial removal: weights that are removed to measure the model, and then restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from prunus._distributed.shards import local
from prunus._distributed.wrappers import reshard
from prunus.masks import Masks

__all__ = ["restored"]


@contextlib.contextmanager
def restored(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Restore the model and its masks to the last bit when the context ends, also by an error.

    Restored are the prunable weights, their masks, the buffers, and whether each module is in
    training mode. It needs memory for a copy of the prunable weights and of the buffers.

    Args:
        model: The model that the masks belong to.
        masks: The masks; those of sharded tensors are recounted, so all processes must call this.

    Example:
        >>> from prunus import select
        >>> layer = nn.Linear(2, 1)
        >>> masks, before = Masks(select(layer)), layer.weight.clone()
        >>> with restored(layer, masks):
        ...     _ = masks["weight"].fill_(False)
        ...     masks.apply_()
        >>> masks.kept, bool((layer.weight == before).all())
        (2, True)
    """
    weights = {name: tensor.weight.clone() for name, tensor in masks.selection.items()}
    kept = {name: mask.clone() for name, mask in masks.items()}
    buffers = [(buffer, local(buffer).clone()) for buffer in model.buffers()]
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        reshard(model)
        with torch.no_grad():
            for name, tensor in masks.selection.items():
                tensor.weight.copy_(weights[name])
                masks[name].copy_(kept[name])
            for buffer, copied in buffers:
                # Written only if it changed, because an expanded buffer cannot be written to.
                if not torch.equal(local(buffer), copied):
                    local(buffer).copy_(copied)
        for module, was_training in training:
            module.training = was_training
        masks.recount()
