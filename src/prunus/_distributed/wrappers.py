"""Wrappers around a model: ``torch.compile``, DistributedDataParallel and ``fully_shard``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from prunus.errors import PrunusError, listing

__all__ = [
    "check_wrappers",
    "deepspeed_problem",
    "is_ddp",
    "reshard",
    "unwrap",
    "wrapped_modules",
]

_FIX = (
    "use DistributedDataParallel, or torch.distributed.fsdp.fully_shard: that is fsdp=True with "
    'fsdp_config={"version": 2} in transformers, ModelParallelStrategy in Lightning, and '
    "FullyShardedDataParallelPlugin(fsdp_version=2) in accelerate"
)

_DEEPSPEED = {
    *("DeepSpeedEngine", "DeepSpeedOptimizer"),
    *("DeepSpeedPlugin", "DeepSpeedEngineWrapper", "DeepSpeedOptimizerWrapper"),  # of accelerate
    "DeepSpeedStrategy",  # of Lightning
}
"""The classes, or their base classes, that reveal that DeepSpeed trains a model."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and (Distributed)DataParallel wrappers.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(torch.compile(layer, backend="eager")) is layer
        True
    """
    return list(wrapped_modules(model))[-1]


def wrapped_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model itself, then the module inside each wrapper, outermost first."""
    module: Any = model
    while isinstance(module, nn.Module):
        yield module
        replicated = is_ddp(module) or isinstance(module, nn.DataParallel)
        module = module.module if replicated else getattr(module, "_orig_mod", None)


def is_ddp(module: object) -> bool:
    """Return whether a module is a DistributedDataParallel wrapper."""
    return isinstance(module, nn.parallel.DistributedDataParallel)


def check_wrappers(model: nn.Module) -> None:
    """Check that the model's parameters reveal which weights each process holds.

    Args:
        model: The model, inside its wrappers.

    Raises:
        PrunusError: The model is sharded by FullyShardedDataParallel or DeepSpeed, whose shards do
            not record the positions of their weights.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    flattened = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)
    ]
    if flattened:
        raise PrunusError(
            f"{listing(flattened)} is sharded by FullyShardedDataParallel, whose shards do not "
            f"record which weights they hold: {_FIX}"
        )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise PrunusError(_deepspeed_message("parameters with ds_id"))


def deepspeed_problem(model: object, *others: object) -> str | None:
    """Return that DeepSpeed trains a model, or None if it does not.

    At every stage: its optimizers step on flat partitions, or its engine steps in their place.

    Args:
        model: The model.
        others: What else may reveal it: an optimizer, a plugin, or a strategy of a trainer.
    """
    # By name, as DeepSpeed may not be installed.
    found = [
        type(thing).__name__
        for thing in (model, *others)
        if any(base.__name__ in _DEEPSPEED for base in type(thing).__mro__)
    ]
    # ZeRO leaves the module and the optimizer that the user passed as they are otherwise.
    if not found and isinstance(model, nn.Module):
        found = [
            f"parameters with {name}"
            for name in ("ds_id", "_hp_mapping")
            if any(hasattr(parameter, name) for parameter in model.parameters())
        ]
    return _deepspeed_message(*found) if found else None


def _deepspeed_message(*found: str) -> str:
    return (
        f"DeepSpeed trains this model, as {listing(found)} shows, but its partitions do not record "
        f"which weights they hold, so that it cannot be pruned: {_FIX}"
    )


def reshard(model: nn.Module) -> None:
    """Free the unsharded copies of weights that ``fully_shard`` holds.

    After a forward pass without gradients the outermost modules keep such copies, and the next
    forward pass would use them although the sharded weights have changed. Call this before any code
    but the optimizer writes to weights; after an optimizer step the weights are gathered anyway.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
