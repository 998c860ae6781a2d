"""Gradients as an optimizer finds them before its step: layout, loss scale, mean magnitudes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from prunus._distributed.shards import is_sharded
from prunus._utils.magnitudes import magnitude_sums
from prunus.errors import PrunusError, listing
from prunus.selection import PrunableTensor, Selection

__all__ = [
    "check_dense",
    "is_skipped",
    "loss_scale_of",
    "match_placements",
    "mean_magnitudes",
    "separate_elements",
]


def is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a gradient scaler makes a fused optimizer skip this step.

    The host waits for it, because a step that is skipped counts neither for the schedule nor for
    the strength.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def loss_scale_of(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Return the loss scale that a fused optimizer divides out within its step, if there is one.

    It is a scalar that stays on its device, so that the host does not wait.
    """
    scale: torch.Tensor | None = getattr(optimizer, "grad_scale", None)
    return None if scale is None else scale.detach().reshape(())


def check_dense(model: torch.nn.Module, parameters: Iterable[torch.Tensor]) -> None:
    """Check that no gradient is sparse.

    Raises:
        PrunusError: Some are; every tensor is named.
    """
    sparse = {
        id(p) for p in parameters if p.grad is not None and p.grad.layout is not torch.strided
    }
    names = [name for name, p in model.named_parameters() if id(p) in sparse]
    if sparse:
        raise PrunusError(
            f"{listing(names) or 'a tensor of the optimizer'} has a sparse gradient, which the "
            "penalty, the score and clipping cannot read: build the embedding with "
            "sparse=False, or exclude it from the selection"
        )


def match_placements(parameters: Iterable[torch.Tensor]) -> None:
    """Redistribute gradients that tensor parallelism has laid out unlike their tensors."""
    for parameter in parameters:
        gradient: Any = parameter.grad
        target: Any = parameter
        if is_sharded(gradient) and gradient.placements != target.placements:
            parameter.grad = gradient.redistribute(placements=target.placements)


def separate_elements(parameters: Iterable[torch.Tensor]) -> None:
    """Copy gradients of which several elements share memory, so that each can be changed.

    Those that ``torch.autograd.grad`` returns for a sum of weights are expanded like that.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> (weight.grad,) = torch.autograd.grad(weight.sum(), [weight])
        >>> weight.grad.stride()
        (0,)
        >>> separate_elements([weight])
        >>> weight.grad.stride()
        (1,)
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or gradient.layout is not torch.strided:
            continue
        strides = gradient.stride()
        if 0 in strides and any(
            stride == 0 and size > 1 for stride, size in zip(strides, gradient.shape, strict=True)
        ):
            parameter.grad = gradient.clone(memory_format=torch.contiguous_format)


def mean_magnitudes(
    selection: Selection,
    tensors: Sequence[PrunableTensor],
    averages: Mapping[str, torch.Tensor] | None,
) -> Mapping[str, torch.Tensor]:
    """Return, by tensor, the mean of |gradient| over all processes that hold a shard of it.

    Args:
        selection: All tensors of the pruner.
        tensors: Those that the step moves.
        averages: The averages to use in place of the gradients, or None.
    """
    if not tensors:  # of an optimizer that trains others, in all processes alike
        return {}
    bases = {}
    for tensor in tensors:
        basis = tensor.gradient
        if basis is not None and selection.counted[tensor.name]:
            bases[tensor.name] = basis if averages is None else averages[tensor.name]
    # In float64, so that the mean hardly depends on how the tensor is sharded.
    sums = dict(zip(bases, magnitude_sums(list(bases.values()), torch.float64), strict=True))
    zero = torch.zeros((), dtype=torch.float64, device=tensors[0].weight.device)
    totals = selection.process_group.sum(torch.stack([sums.get(t.name, zero) for t in tensors]))
    sizes = [float(tensor.parameter.numel()) for tensor in tensors]
    means = torch._foreach_div(list(totals.unbind()), sizes)
    return dict(zip([tensor.name for tensor in tensors], means, strict=True))
