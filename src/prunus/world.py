"""The processes that train one model together, and what they have to tell each other.

Two kinds of thing travel: sums of a few numbers over all parts of a model, where several processes
hold it together (:meth:`World.total`), and what all must agree on, such as a validation metric
(:meth:`World.agree`). Weights never do. Every process of a group has to come to the same calls in
the same order; one that does not, or has ended, makes the others fail within the group's time-out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prunus.errors import PeerError, UserError, listing
from prunus.shards import Shard, is_sharded

__all__ = ["ALONE", "World", "replicas_of", "unwrapped", "world_of"]


@dataclass(frozen=True)
class World:
    """A group of processes; by default there is none, and each call costs nothing.

    Attributes:
        group: The process group, or None for a process by itself.
        sharded: Whether each holds a part of the model only, so that counts must be summed.
        device: Where the group's tensors travel from.
    """

    group: Any = None
    sharded: bool = False
    device: torch.device | None = None

    def counted(self, shards: Sequence[Shard]) -> list[bool]:
        """Say of each part whether this process shall count it.

        Of several processes that hold the same part of a tensor the first one does.

        Args:
            shards: This process's parts of all tensors; of the same tensors in every process.
        """
        if not self.sharded:
            return [True] * len(shards)
        boxes = torch.tensor([n for shard in shards for n in (*shard.size, *shard.offsets)])
        mine = boxes.to(self.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        with _talking("which parts of the model they hold"):
            dist.all_gather(every, mine, group=self.group)
        before = [held.cpu() for held in every[: dist.get_rank(self.group)]]
        lengths = [2 * len(shard.shape) for shard in shards]
        own = torch.split(boxes, lengths)
        others = [torch.split(held, lengths) for held in before]
        return [not any(torch.equal(own[i], o[i]) for o in others) for i in range(len(shards))]

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        """Sum over all processes that hold a part; the result is where ``counts`` is."""
        if not self.sharded:
            return counts
        travelling = counts.to(self.device)
        if travelling is counts:
            travelling = counts.clone()
        with _talking("counts over all parts of the model"):
            dist.all_reduce(travelling, group=self.group)
        return travelling.to(counts.device)

    def agree(self, what: str, values: Sequence[float], mend: str) -> None:
        """Make sure that all processes have the same numbers.

        Raises:
            UserError: They have not. All of them raise it.
            PeerError: One of them did not answer.
        """
        if self.group is None:
            return
        mine = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        with _talking(what):
            dist.all_gather(every, mine, group=self.group)
        rows = [row.tolist() for row in every]
        # As text, so that NaN is the same as NaN.
        if len({str(row) for row in rows}) > 1:
            come = rows if len(rows[0]) > 1 else [row[0] for row in rows]
            given = [f"{value} on process {rank}" for rank, value in enumerate(come)]
            raise UserError(
                f"all processes must have the same {what}, but it is {listing(given)}: {mend}"
            )


ALONE = World()
"""A process by itself."""


@contextlib.contextmanager
def _talking(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's errors of process groups are of this kind
        raise PeerError(
            f"another process did not exchange {what}: it ended, or did not call the pruner as "
            "this one did, within the group's time-out. Every process must take the same steps and "
            "call pruner.step, prune, finish and state_dict alike. Stop all of them and resume "
            f"from the last checkpoint ({error})"
        ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within what ``torch.compile`` and DistributedDataParallel wrap around it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(layer, backend="eager")) is layer
        True
    """
    return list(_layers(model))[-1]


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model as it is, and then what each wrapper around it holds."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        yield inner
        inner = inner.module if _is_ddp(inner) else getattr(inner, "_orig_mod", None)


def world_of(tensors: Sequence[torch.Tensor]) -> World:
    """Find the processes that hold these tensors together.

    Raises:
        UserError: They are sharded over different processes, or in a way that does not tell which
            weights a part holds.
    """
    if any(hasattr(tensor, "ds_id") for tensor in tensors):
        raise UserError(
            "the parameters are partitioned by DeepSpeed, whose parts do not tell which weights "
            "they hold: use torch.distributed.fsdp.fully_shard, or DistributedDataParallel"
        )
    sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
    # In an order that is the same in every process.
    meshes = list(dict.fromkeys(tensor.device_mesh for tensor in sharded))
    return _over(meshes) if meshes else ALONE


def replicas_of(model: nn.Module, device: torch.device) -> World:
    """Find the processes that each have the whole of a model and train it in step.

    Args:
        model: As it is trained, within DistributedDataParallel if it is.
        device: Of its parameters.

    Raises:
        UserError: It is wrapped in a way whose parts do not tell which weights they hold.
    """
    flat = [n or "the model" for n, m in model.named_modules() if type(m).__name__ == _FSDP1]
    if flat:
        raise UserError(
            f"{listing(flat)} is sharded by FullyShardedDataParallel, whose parts do not tell "
            "which weights they hold: use torch.distributed.fsdp.fully_shard instead"
        )
    for wrapper in _layers(model):
        if _is_ddp(wrapper):
            ddp: Any = wrapper
            return World(ddp.process_group, False, device)
    return ALONE


def _over(meshes: list[Any]) -> World:
    ranks = {tuple(sorted(mesh.mesh.flatten().tolist())) for mesh in meshes}
    widest = max(ranks, key=len)
    if any(not set(some) <= set(widest) for some in ranks):
        raise UserError(
            "the tensors to prune must be sharded over the same processes, but they are over "
            f"{listing([str(list(some)) for some in sorted(ranks)])}: give each stage of a "
            "pipeline a Pruner of its own, by select(stage)"
        )
    device = torch.device(meshes[0].device_type)
    if widest == tuple(range(dist.get_world_size())):
        return World(dist.group.WORLD, True, device)
    mesh = next(m for m in meshes if m.size() == len(widest))
    flat = mesh if mesh.ndim == 1 else mesh._flatten()
    return World(flat.get_group(), True, device)


def _is_ddp(model: object) -> bool:
    return isinstance(model, nn.parallel.DistributedDataParallel)


_FSDP1 = "FullyShardedDataParallel"
