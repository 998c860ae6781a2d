"""Tests for NaN and infinity that do not make the host wait for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunus._utils.batches import grouped

__all__ = ["finiteness", "is_finite"]


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


def finiteness(
    tensors: Sequence[torch.Tensor],
    *,
    sharded: bool,
    measurable: torch.Tensor | bool = True,
) -> list[bool | torch.Tensor]:
    """Return, for each tensor, whether no element is NaN or infinite, without a wait of the host.

    Args:
        tensors: The tensors, or this process's shards of them.
        sharded: Whether other processes hold other shards, which may be finite where this is not,
            so that no process may decide by its own.
        measurable: Whether the tensors may be used at all; a scalar on a device if the host does
            not know. Default True.

    Returns:
        A bool for a whole tensor on the CPU; otherwise a scalar on the tensor's device.

    Example:
        >>> tensors = [torch.ones(2), torch.tensor([1.0, math.inf])]
        >>> finiteness(tensors, sharded=False), finiteness(tensors, sharded=True)
        ([True, False], [tensor(True), tensor(False)])
    """
    on_host = [not sharded and tensor.device.type == "cpu" for tensor in tensors]
    others = [t for t, here in zip(tensors, on_host, strict=True) if not here]
    flags = iter(grouped(others, lambda group: _finite_on_device(group, measurable)))
    known = bool(measurable) if any(on_host) else True
    return [
        known and is_finite(tensor) if here else next(flags)
        for tensor, here in zip(tensors, on_host, strict=True)
    ]


def _finite_on_device(
    tensors: list[torch.Tensor], measurable: torch.Tensor | bool
) -> Sequence[torch.Tensor]:
    """Return scalars on the device of the tensors, which have one type."""
    device = tensors[0].device
    # The norm of no elements is an error.
    filled = [t if t.numel() else torch.zeros(1, device=device, dtype=t.dtype) for t in tensors]
    # A comparison with NaN is False. The norm of infinity is the largest magnitude.
    finite = torch.stack(torch._foreach_norm(filled, math.inf)) < math.inf
    if isinstance(measurable, torch.Tensor):
        finite &= measurable.to(device)
    elif not measurable:
        finite = torch.zeros_like(finite)
    return finite.unbind()
