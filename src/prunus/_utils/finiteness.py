"""Tests for NaN and infinity that do not make the host wait for an accelerator."""

from __future__ import annotations

import math

import torch

__all__ = ["finite_on_device", "finiteness", "is_finite"]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite. The host waits for the tensor's device.

    Example:
        >>> is_finite(torch.tensor([1.0, 3e38, 3e38])), is_finite(torch.tensor([1.0, math.nan]))
        (True, False)
    """
    # A sum is many times faster than a test of each element, and not finite if one of them is not.
    # It may overflow without that, so the test decides.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(float(total)) or bool(tensor.isfinite().all())


def finite_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return, as a scalar on the tensor's device, whether no element is NaN or infinite.

    Example:
        >>> finite_on_device(torch.tensor([1.0, math.inf]))
        tensor(False)
    """
    if not tensor.numel():  # the norm of no elements is an error
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    largest: torch.Tensor = torch.linalg.vector_norm(tensor, ord=math.inf)
    return largest.isfinite()


def finiteness(tensor: torch.Tensor, *, sharded: bool) -> bool | torch.Tensor:
    """Return whether no element is NaN or infinite, without waiting for an accelerator.

    Args:
        tensor: The tensor, or this process's shard of one.
        sharded: Whether other processes hold other shards, which may be finite where this is not,
            so that no process may decide by its own.

    Returns:
        A bool for a whole tensor on the CPU; otherwise a scalar on the tensor's device.

    Example:
        >>> finiteness(torch.ones(2), sharded=False), finiteness(torch.ones(2), sharded=True)
        (True, tensor(True))
    """
    if sharded or tensor.device.type != "cpu":
        return finite_on_device(tensor)
    return is_finite(tensor)
