"""Clipping of the norm of all gradients of an optimizer, within its step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunus._distributed.process_group import ProcessGroup
from prunus._distributed.shards import local, shard_of
from prunus._engine.gradients import check_dense
from prunus._utils.batches import grouped, same_device_and_type
from prunus._utils.devices import on_device

__all__ = ["GradientClipping"]


class GradientClipping:
    """Clips all gradients together, by the rule of ``torch.nn.utils.clip_grad_norm_``.

    Args:
        model: The model whose parameters the optimizer holds.
        optimizer: The optimizer.
        max_norm: The largest norm that stays as it is.
        process_group: The processes that hold the model together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        max_norm: float,
        process_group: ProcessGroup,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._process_group = process_group
        self._counted: dict[int, bool] = {}
        """Whether this process counts its shard of a tensor, by the tensor's ``id``."""

    def norm(self) -> torch.Tensor:
        """Return the norm of all gradients, as they are now."""
        parameters = self._parameters()
        check_dense(self._model, parameters)
        sharded = self._process_group.sharded
        return self._norm_over_processes(parameters) if sharded else _norm(parameters)

    def factor(
        self, norm: torch.Tensor, loss_scale: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """Return the factor by which gradients of this norm are clipped.

        Args:
            norm: The gradients' norm, from :meth:`norm`.
            loss_scale: The factor that a gradient scaler has multiplied them by, or None.

        Returns:
            The factor; 0 or NaN if the norm overflowed.
        """
        # As torch's function computes it, to the last bit, without its product with a limit of 1.
        positive = norm + 1e-6
        if loss_scale is not None:
            factor = self._max_norm * on_device(loss_scale, norm.device) / positive
        else:
            factor = positive.reciprocal()
            if self._max_norm != 1:
                factor = factor * self._max_norm
        return torch.clamp(factor, max=1.0)

    def clip_(self, factor: torch.Tensor, loss_scale: torch.Tensor | float | None = None) -> None:
        """Clip the gradients in place.

        Args:
            factor: The factor, from :meth:`factor`.
            loss_scale: The factor that a gradient scaler has multiplied them by, or None.
        """
        cast = self._process_group.sharded or loss_scale is not None
        # In any order, unlike for the norm.
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        for indices in same_device_and_type(gradients):
            group = [gradients[index] for index in indices]
            dtype = group[0].dtype if cast else factor.dtype
            torch._foreach_mul_(group, factor.to(group[0].device, dtype))

    def _parameters(self) -> list[torch.Tensor]:
        """Return the optimizer's parameters in the model's order.

        A caller who clips by hand passes ``model.parameters()``, and the last bit of the norm
        depends on the order.
        """
        unordered = {id(p): p for group in self._optimizer.param_groups for p in group["params"]}
        ordered = [unordered.pop(id(p)) for p in self._model.parameters() if id(p) in unordered]
        return [*ordered, *unordered.values()]

    def _norm_over_processes(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients over all processes that hold a shard of them."""
        if set(self._counted) != {id(p) for p in parameters}:
            counted = self._process_group.shards_counted_here([shard_of(p) for p in parameters])
            self._counted = {id(p): here for p, here in zip(parameters, counted, strict=True)}
        gradients = [
            local(p.grad) for p in parameters if p.grad is not None and self._counted[id(p)]
        ]
        norms = grouped(gradients, lambda own: torch._foreach_norm(own, 2, torch.float64))
        zero = torch.zeros((), dtype=torch.float64, device=local(parameters[0]).device)
        squares = torch.stack([zero, *(norm.to(zero.device) for norm in norms)]).square()
        total = self._process_group.sum(squares.sum())
        return total.sqrt().to(torch.promote_types(parameters[0].dtype, torch.float32))


def _norm(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients; of float16 ones in float32, whose range it needs."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if all(gradient.dtype is not torch.float16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = grouped(gradients, lambda own: torch._foreach_norm(own, 2, torch.float32))
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total
