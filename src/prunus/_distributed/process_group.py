"""The processes that train one model together, and what they have to tell each other.

Two kinds of data travel: sums of a few numbers over all shards of a model
(:meth:`ProcessGroup.sum`), and values that must be equal in all processes, such as a validation
metric (:meth:`ProcessGroup.check_equal`). Weights never do. Every process of a group must make the
same calls in the same order; if one does not, or has ended, the others fail within the time-out of
the group.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prunus._distributed.shards import Shard, is_sharded
from prunus._distributed.wrappers import is_ddp, wrapped_modules
from prunus.errors import PeerError, PrunusError, listing

__all__ = [
    "SINGLE_PROCESS",
    "ProcessGroup",
    "process_group_of",
    "replica_group_of",
]


@dataclass(frozen=True)
class ProcessGroup:
    """A group of processes; by default there is none, and no call says anything to anyone.

    Of two kinds: processes that hold one model together, each a part of it (``sharded``), whose
    counts are summed; and such that each have the whole model, of which nothing need be summed, but
    which have to agree.

    Attributes:
        group: The process group, or None for a process by itself.
        sharded: Whether each holds a part of the model only.
        device: Where the group's tensors travel from.
    """

    group: Any = None
    sharded: bool = False
    device: torch.device | None = None

    def counts_shards(self, boxes: Sequence[Shard]) -> list[bool]:
        """Say of each part whether this process shall count it.

        Of several processes that hold the same part of a tensor the first one does.

        Args:
            boxes: This process's parts of all tensors; of the same tensors in every process.

        Raises:
            PeerError: Another process did not answer.
        """
        if not self.sharded:
            return [True] * len(boxes)
        numbers = torch.tensor([n for box in boxes for n in (*box.size, *box.offsets)])
        every = self._gathered("which parts of the model they hold", numbers)
        before = every[: dist.get_rank(self.group)]
        lengths = [2 * len(box.shape) for box in boxes]
        own = torch.split(numbers, lengths)
        others = [torch.split(held, lengths) for held in before]
        return [not any(torch.equal(own[i], o[i]) for o in others) for i in range(len(boxes))]

    def sum(self, counts: torch.Tensor) -> torch.Tensor:
        """Sum over all processes that hold a part; the result is where ``counts`` is.

        Raises:
            PeerError: Another process did not answer.
        """
        if not self.sharded:
            return counts
        with _talking("counts over all parts of the model"):
            travelling = counts.to(self.device, copy=True)
            dist.all_reduce(travelling, group=self.group)
            return travelling.to(counts.device)

    def check_equal(self, values: Mapping[str, float], fix: str) -> None:
        """Make sure that all processes have the same numbers.

        Args:
            values: The numbers, by what they are; as many in every process.
            fix: What to do where they differ.

        Raises:
            PrunusError: They differ. All processes raise it, and name those that do.
            PeerError: Another process did not answer.
        """
        if self.group is None:
            return
        mine = torch.tensor(list(values.values()), dtype=torch.float64)
        rows = [row.tolist() for row in self._gathered(listing(list(values), most=1), mine)]
        differing = []
        for name, found in zip(values, zip(*rows, strict=True), strict=True):
            # Compared as text, so that NaN is the same as NaN.
            if len(set(map(repr, found))) > 1:
                told = [f"{value:.12g} on process {rank}" for rank, value in enumerate(found)]
                differing.append(f"{name}, which is {listing(told)}")
        if differing:
            raise PrunusError(f"all processes must have the same {listing(differing)}: {fix}")

    def _gathered(self, what: str, mine: torch.Tensor) -> list[torch.Tensor]:
        with _talking(what):
            travelling = mine.to(self.device)
            every = [torch.empty_like(travelling) for _ in range(dist.get_world_size(self.group))]
            dist.all_gather(every, travelling, group=self.group)
            return [held.to(mine.device) for held in every]


SINGLE_PROCESS = ProcessGroup()
"""A process by itself."""


@contextlib.contextmanager
def _talking(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's errors of process groups are of this kind
        raise PeerError(
            f"another process did not exchange {what}: perhaps it ended, or did not call the "
            "pruner as this one did, within the group's time-out. Every process must take the same "
            "steps and call pruner.step, prune, finish and state_dict alike. Stop all of them and "
            f"resume from the last checkpoint ({error})"
        ) from error


def process_group_of(tensors: Sequence[torch.Tensor]) -> ProcessGroup:
    """Find the processes that hold these tensors together.

    Raises:
        PrunusError: They are sharded over different processes, or over none that include this one.
    """
    sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
    # In an order that is the same in every process.
    meshes = list(dict.fromkeys(tensor.device_mesh for tensor in sharded))
    return _over(meshes) if meshes else SINGLE_PROCESS


def replica_group_of(model: nn.Module, device: torch.device) -> ProcessGroup:
    """Find the processes that each have the whole of a model and train it in step.

    Args:
        model: As it is trained, within DistributedDataParallel if it is.
        device: Of its parameters.
    """
    for wrapper in wrapped_modules(model):
        if is_ddp(wrapper):
            ddp: Any = wrapper
            return ProcessGroup(group=ddp.process_group, device=device)
    return SINGLE_PROCESS


def _over(meshes: list[Any]) -> ProcessGroup:
    ranks = {tuple(sorted(mesh.mesh.flatten().tolist())): mesh for mesh in meshes}
    widest = max(ranks, key=len)
    apart = [some for some in ranks if not set(some) <= set(widest)]
    if apart or dist.get_rank() not in widest:
        raise PrunusError(
            "the tensors to prune must be sharded over the same processes, this one included, but "
            f"they are over {listing([str(list(some)) for some in sorted(ranks)])} and this is "
            f"{dist.get_rank()}: give each stage of a pipeline a Pruner of its own, by "
            "select(stage)"
        )
    mesh = ranks[widest]
    device = torch.device(mesh.device_type)
    if mesh.ndim == 1:
        return ProcessGroup(group=mesh.get_group(), sharded=True, device=device)
    if len(widest) == dist.get_world_size():
        return ProcessGroup(group=dist.group.WORLD, sharded=True, device=device)
    if mesh.mesh_dim_names is None:
        raise PrunusError(
            f"the mesh of {math.prod(mesh.shape)} processes, {tuple(mesh.shape)}, that the tensors "
            "are sharded over needs names for its dimensions: init_device_mesh(..., "
            'mesh_dim_names=("data", "tensor"))'
        )
    return ProcessGroup(group=mesh._flatten().get_group(), sharded=True, device=device)
