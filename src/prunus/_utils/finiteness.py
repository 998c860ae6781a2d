"""Tests for NaN and infinity that do not make the host wait for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunus._utils.batches import Batch, grouped

__all__ = ["finite_mask", "finiteness", "is_finite"]


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
    measurable: torch.Tensor | bool | None = None,
) -> list[bool | torch.Tensor]:
    """Return, for each tensor, whether no element is NaN or infinite, without a wait of the host.

    Args:
        tensors: The tensors, or this process's shards of them.
        sharded: Whether other processes hold other shards, which may be finite where this is not,
            so that no process may decide by its own.
        measurable: Whether the tensors may be used at all, which implies that all are finite: a
            bool, or a scalar on a device if the host does not know. Default None: not known.

    Returns:
        A bool where the host knows. Otherwise a scalar on the tensor's device: ``measurable``, or
        the largest magnitude, which is below infinity if all are finite. See :func:`finite_mask`.

    Example:
        >>> tensors = [torch.ones(2), torch.tensor([1.0, math.inf])]
        >>> finiteness(tensors, sharded=False), finiteness(tensors, sharded=True)
        ([True, False], [tensor(1.), tensor(inf)])
    """
    if isinstance(measurable, torch.Tensor):
        by_device = {t.device: measurable for t in tensors}
        by_device = {device: scalar.to(device) for device, scalar in by_device.items()}
        return [by_device[t.device] for t in tensors]
    if measurable is not None:
        return [measurable] * len(tensors)
    on_host = [not sharded and tensor.is_cpu for tensor in tensors]
    others = [t for t, here in zip(tensors, on_host, strict=True) if not here]
    magnitudes = iter(grouped(others, _largest_magnitudes))
    return [
        is_finite(tensor) if here else next(magnitudes)
        for tensor, here in zip(tensors, on_host, strict=True)
    ]


def finite_mask(batch: Batch, finite: Sequence[bool | torch.Tensor]) -> torch.Tensor:
    """Return where the tensors of a batch are finite, to broadcast against a loaded operand.

    Args:
        batch: The batch, of tensors for which the host does not know it.
        finite: The result of :func:`finiteness` for all tensors that were batched.
    """
    scalars = [scalar for scalar in finite if isinstance(scalar, torch.Tensor)]
    first = finite[batch.indices[0]]
    assert isinstance(first, torch.Tensor)
    if first.dtype is torch.bool:  # one for all tensors
        return first
    assert len(scalars) == len(finite)
    # A comparison with NaN is False.
    return batch.spread(scalars) < math.inf


def _largest_magnitudes(tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the largest magnitude of each of tensors of one type; NaN if an element is."""
    # The norm of no elements is an error.
    filled = [t if t.numel() else t.new_zeros(1) for t in tensors]
    return torch._foreach_norm(filled, math.inf)
