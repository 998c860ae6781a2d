"""The group of processes that train one model, and its collective operations.

Two kinds of data are exchanged: sums of a few numbers over all shards of a model
(:meth:`ProcessGroup.sum`), and values that must be equal in all processes, such as a validation
metric (:meth:`ProcessGroup.check_equal`). Weights are never sent. Every process of a group must
make the same calls in the same order; if one of them does not, or has ended, the others raise an
error within the group's time-out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "CheckEqual",
    "ProcessGroup",
    "failure_reported",
    "process_group_of",
    "replica_group_of",
]

CheckEqual = Callable[[Mapping[str, float]], None]
"""Checks that all processes have the same numbers, given these of the present one by name."""


@contextlib.contextmanager
def failure_reported(check_equal: CheckEqual | None, names: Iterable[str]) -> Iterator[None]:
    """Report an error to the other processes, which must not wait for this one's numbers.

    Args:
        check_equal: The check that follows if there is no error; None without other processes.
        names: The names of its numbers.
    """
    try:
        yield
    except PrunusError:
        if check_equal is not None:
            with contextlib.suppress(PrunusError):
                check_equal(dict.fromkeys(names, math.nan))
        raise


@dataclass(frozen=True)
class ProcessGroup:
    """A process group; by default a single process, without communication.

    The processes either hold one model together (``sharded``), so that counts are summed over them;
    or hold a replica each, so that nothing is summed and their values are only compared.

    Attributes:
        group: The group of ``torch.distributed``, or None for a single process.
        sharded: Whether each process holds only a part of the model.
        device: The device that the group's backend communicates from.
    """

    group: Any = None
    sharded: bool = False
    device: torch.device | None = None

    @property
    def processes(self) -> int:
        """How many processes hold the model together."""
        return dist.get_world_size(self.group) if self.sharded else 1

    def shards_counted_here(self, shards: Sequence[Shard]) -> list[bool]:
        """Return, for each shard, whether this process counts it.

        Of several processes that hold the same shard of a tensor, the one of the lowest rank
        counts it.

        Args:
            shards: This process's shards, of the same tensors in every process.

        Raises:
            PeerError: Another process did not answer.
        """
        if not self.sharded:
            return [True] * len(shards)
        numbers = torch.tensor([n for shard in shards for n in (*shard.size, *shard.offsets)])
        by_rank = self._all_gather("the positions of their shards", numbers)
        lengths = [2 * len(shard.shape) for shard in shards]
        own = torch.split(numbers, lengths)
        lower_ranks = [torch.split(row, lengths) for row in by_rank[: dist.get_rank(self.group)]]
        return [
            not any(torch.equal(own[i], other[i]) for other in lower_ranks)
            for i in range(len(shards))
        ]

    def sum(self, counts: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes that hold shards, on the device of ``counts``.

        Raises:
            PeerError: Another process did not answer.
        """
        if not self.sharded:
            return counts
        with _peer_errors("counts over all shards of the model"):
            total = counts.to(self.device, copy=True)
            dist.all_reduce(total, group=self.group)
            return total.to(counts.device)

    def check_equal(self, values: Mapping[str, float], fix: str) -> None:
        """Check that all processes have the same numbers.

        Args:
            values: The numbers by description; as many in every process.
            fix: What to do if they differ, for the message.

        Raises:
            PrunusError: They differ. Every process raises it, with the values of all of them.
            PeerError: Another process did not answer.
        """
        if self.group is None:
            return
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        rows = [row.tolist() for row in self._all_gather(listing(list(values), most=1), own)]
        differing = []
        for name, by_rank in zip(values, zip(*rows, strict=True), strict=True):
            # Compared as text, so that NaN equals NaN.
            if len(set(map(repr, by_rank))) > 1:
                shown = [f"{value:.12g} on process {rank}" for rank, value in enumerate(by_rank)]
                differing.append(f"{name}, which is {listing(shown)}")
        if differing:
            raise PrunusError(f"all processes must have the same {listing(differing)}: {fix}")

    def _all_gather(self, what: str, own: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor of every process, by rank."""
        with _peer_errors(what):
            sent = own.to(self.device)
            received = [torch.empty_like(sent) for _ in range(dist.get_world_size(self.group))]
            dist.all_gather(received, sent, group=self.group)
            return [tensor.to(own.device) for tensor in received]


SINGLE_PROCESS = ProcessGroup()
"""A single process."""


@contextlib.contextmanager
def _peer_errors(what: str) -> Iterator[None]:
    """Raise a PeerError for an error of the communication.

    Args:
        what: What is exchanged.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the type of torch's errors of process groups
        raise PeerError(
            f"another process did not exchange {what}: it may have ended, or did not call the "
            "pruner as this one did, within the group's time-out. Every process must take the same "
            "steps and make the same calls of pruner.step, prune, finish and state_dict. Stop all "
            f"of them and resume from the last checkpoint ({error})"
        ) from error


def process_group_of(tensors: Sequence[torch.Tensor]) -> ProcessGroup:
    """Return the group of the processes that hold these tensors' shards.

    Args:
        tensors: All tensors, sharded or not, in an order that is the same in every process.

    Raises:
        PrunusError: The tensors are sharded over different processes, or over a group without this
            process.
    """
    sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
    # In an order that is the same in every process.
    meshes = list(dict.fromkeys(tensor.device_mesh for tensor in sharded))
    return _group_of_meshes(meshes) if meshes else SINGLE_PROCESS


def replica_group_of(model: nn.Module, device: torch.device) -> ProcessGroup:
    """Return the group of the processes that each train a replica of the model.

    Args:
        model: The model as it is trained, inside DistributedDataParallel if there are replicas.
        device: The device of its parameters.
    """
    for module in wrapped_modules(model):
        if is_ddp(module):
            ddp: Any = module
            return ProcessGroup(group=ddp.process_group, device=device)
    return SINGLE_PROCESS


def _group_of_meshes(meshes: list[Any]) -> ProcessGroup:
    """Return the group of the largest mesh, which must include all others and this process."""
    by_ranks = {tuple(sorted(mesh.mesh.flatten().tolist())): mesh for mesh in meshes}
    largest = max(by_ranks, key=len)
    separate = [ranks for ranks in by_ranks if not set(ranks) <= set(largest)]
    if separate or dist.get_rank() not in largest:
        raise PrunusError(
            "the tensors to prune must be sharded over the same processes, including this one, but "
            f"they are sharded over {listing([str(list(ranks)) for ranks in sorted(by_ranks)])} "
            f"and this is process {dist.get_rank()}: build a separate Pruner for each stage of a "
            "pipeline, with select(stage)"
        )
    mesh = by_ranks[largest]
    device = torch.device(mesh.device_type)
    if mesh.ndim == 1:
        return ProcessGroup(group=mesh.get_group(), sharded=True, device=device)
    if len(largest) == dist.get_world_size():
        return ProcessGroup(group=dist.group.WORLD, sharded=True, device=device)
    if mesh.mesh_dim_names is None:
        raise PrunusError(
            f"the mesh of {math.prod(mesh.shape)} processes, {tuple(mesh.shape)}, that the tensors "
            "are sharded over needs names for its dimensions: init_device_mesh(..., "
            'mesh_dim_names=("data", "tensor"))'
        )
    return ProcessGroup(group=mesh._flatten().get_group(), sharded=True, device=device)
