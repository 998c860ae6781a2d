"""What happens around each step of the optimizer: the penalty's part in it, and the zeros after it.

This code runs at every step, so it is written to cost little beside the tensor operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from prunus.errors import CheckpointError, UserError, listing
from prunus.masks import Masks, clear_
from prunus.penalty import PenaltyTerm, RelevancePenalty
from prunus.scores import Score
from prunus.selection import Target

__all__ = ["StepHooks"]


class StepHooks:
    """Listens to an optimizer's steps and keeps penalty, masks and score up with them.

    Before a step the score sees the gradients of the loss, they are clipped if that is asked for,
    the penalty's gradient is added, and the gradients of removed weights are blanked. After it the
    decoupled penalty is applied, and removed weights are set to exactly 0.0 again, whatever the
    optimizer did.

    Args:
        model: Whose parameters the optimizer holds.
        optimizer: Whose steps to listen to.
        masks: The masks in force, and with them the tensors.
        penalty: What shrinks irrelevant weights, or None.
        score: What wants to see the gradients.
        max_grad_norm: What to clip the norm of all gradients of the optimizer to, or None.
        strengths: Says γ of each tensor at the moment of the call.
        stepped: Is called after each step that was really taken.

    Attributes:
        memory: What the score remembers of each tensor.
        averages: The moving average of each tensor's gradient magnitudes, if the penalty asks.
        averaged: How many gradients each of them has seen.
        remainders: What rounding has taken from each 16-bit tensor as the penalty shrank it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        masks: Masks,
        penalty: RelevancePenalty | None,
        score: Score,
        *,
        max_grad_norm: float | None,
        strengths: Callable[[], Mapping[str, float]],
        stepped: Callable[[], None],
    ) -> None:
        self.memory: dict[str, torch.Tensor] = {}
        self.averages: dict[str, torch.Tensor] = {}
        self.averaged: dict[str, int] = {}
        self.remainders: dict[str, torch.Tensor] = {}
        self._model = model
        self._optimizer = optimizer
        self._masks = masks
        self._penalty = penalty
        self._score = score
        self._max_grad_norm = max_grad_norm
        self._strengths = strengths
        self._stepped = stepped
        self._targets = tuple((t, t.name, t.parameter) for t in masks.selection.values())
        self._coefficients: dict[str, torch.Tensor] = {}
        self._shrinking: list[str] = []
        self._active: Mapping[str, torch.Tensor] = {}
        self._term_was_taken = False
        self._no_grad = torch.no_grad()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Listen no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return all that is remembered from step to step, by tensor."""
        return {
            "score": dict(self.memory),
            "averages": dict(self.averages),
            "averaged": dict(self.averaged),
            "remainders": dict(self.remainders),
        }

    def check(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Make sure that :meth:`load_state_dict` can take this.

        Raises:
            CheckpointError: It has other tensors, or of other shapes; every one is named.
        """
        selection = self._masks.selection
        remembered = {
            name: tensor
            for key in ("score", "averages", "averaged", "remainders")
            for name, tensor in state[key].items()
        }
        foreign = [name for name in remembered if name not in selection]
        if foreign:
            raise CheckpointError(f"this is the state of another model: it has {listing(foreign)}")
        misshapen = [
            f"{name} of {tuple(tensor.shape)} for {tuple(selection[name].parameter.shape)}"
            for key in ("score", "averages", "remainders")
            for name, tensor in state[key].items()
            if tensor.shape != selection[name].parameter.shape
        ]
        if misshapen:
            found = listing(list(dict.fromkeys(misshapen)))
            raise CheckpointError(f"this is the state of another model: it has {found}")

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over copies of what :meth:`state_dict` returned; other keys are left alone."""

        def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            # In the weight's order of memory, for a sum's last bit depends on it.
            return {
                name: torch.empty_like(
                    self._masks.selection[name].parameter, dtype=tensor.dtype, requires_grad=False
                ).copy_(tensor)
                for name, tensor in tensors.items()
            }

        self.memory = copies(state["score"])
        self.averages = copies(state["averages"])
        self.averaged = {name: int(count) for name, count in state["averaged"].items()}
        self.remainders = copies(state["remainders"])

    def term(self, penalty: RelevancePenalty) -> PenaltyTerm:
        """Return the penalty as a term for the loss."""
        return PenaltyTerm(penalty, self._masks.selection, self._strengths_of_term)

    def _strengths_of_term(self) -> Mapping[str, float]:
        self._term_was_taken = True
        return self._strengths()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del optimizer
        # args[0] is the optimizer itself. An optimizer that is given a closure makes its gradients
        # there, within the step and perhaps several times over.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            with self._no_grad:
                self._edit_gradients()
            return None

        def edited() -> Any:
            loss = closure()
            with self._no_grad:
                self._edit_gradients()
            return loss

        if len(args) > 1:
            return (args[0], edited, *args[2:]), kwargs
        return args, {**kwargs, "closure": edited}

    def _skipped(self) -> bool:
        """Say whether a gradient scaler lets a fused optimizer skip this step, hooks and all."""
        found = getattr(self._optimizer, "found_inf", None)
        return found is not None and bool(found)

    def _loss_scale(self) -> float | None:
        """Return what a gradient scaler leaves a fused optimizer to divide out within its step."""
        scale = getattr(self._optimizer, "grad_scale", None)
        return None if scale is None else float(scale)

    def _edit_gradients(self) -> None:
        if self._skipped():
            return
        self._shrinking.clear()
        loss_scale = self._loss_scale()
        penalty, strengths = self._penalty, self._strengths()
        active = self._active = self._masks.active()
        if self._score.uses_gradient:
            self._observe(loss_scale)
        scale: torch.Tensor | float | None = loss_scale
        if self._max_grad_norm is not None:
            scale = self._clip(self._max_grad_norm, loss_scale)
            if not bool(scale > 0):
                penalty = None  # the norm overflowed, and nothing can be said of relevance
        way = None if penalty is None else penalty.way
        for target, name, parameter in self._targets:
            gradient = parameter.grad
            if gradient is None:  # took no part in this step
                continue
            if gradient.layout is not torch.strided:
                self._refuse_sparse([parameter])
            mask, strength = active.get(name), strengths[name]
            if loss_scale is not None and way == "gradient":
                strength *= loss_scale  # for it is divided by that with the rest of the gradient
            average = None
            if penalty is not None and penalty.smoothing:
                count = self.averaged[name] = self.averaged.get(name, 0) + 1
                average = penalty.average(gradient, self.averages.get(name), count, scale)
                self.averages[name] = average
            if penalty is not None and strength > 0:
                if way == "gradient":
                    penalty.add_to_gradient_(
                        gradient, parameter, strength, mask, target.padding_row, scale, average
                    )
                    continue
                if way == "decoupled":
                    # Now, because some optimizers overwrite the gradient during the step.
                    self._remember_coefficients(penalty, target, gradient, scale, average)
            if mask is not None:
                clear_(gradient, mask)

    def _observe(self, loss_scale: float | None) -> None:
        for _, name, parameter in self._targets:
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                if loss_scale is not None:
                    # In 16 bits a small gradient would become 0.
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    gradient = gradient.to(wide) / loss_scale
                memory = self._score.observe(parameter.detach(), gradient, self.memory.get(name))
                if memory is not None:
                    self.memory[name] = memory

    def _clip(self, max_norm: float, loss_scale: float | None) -> torch.Tensor:
        """Clip as ``clip_grad_norm_`` does; return what the gradients are multiplied by now."""
        held = {id(p): p for group in self._optimizer.param_groups for p in group["params"]}
        # In the model's order, in which one would clip by hand: the sum's last bit depends on it.
        parameters = [held.pop(id(p)) for p in self._model.parameters() if id(p) in held]
        parameters += held.values()
        self._refuse_sparse(parameters)
        limit = max_norm if loss_scale is None else max_norm * loss_scale
        norm = _norm(parameters)
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        return factor if loss_scale is None else factor * loss_scale

    def _refuse_sparse(self, parameters: Iterable[torch.Tensor]) -> None:
        sparse = {
            id(p) for p in parameters if p.grad is not None and p.grad.layout is not torch.strided
        }
        names = [name for name, p in self._model.named_parameters() if id(p) in sparse]
        if sparse:
            raise UserError(
                f"{listing(names) or 'a tensor of the optimizer'} has a sparse gradient, which the "
                "penalty, the score and clipping cannot read: build the embedding with "
                "sparse=False, or exclude it from the selection"
            )

    def _remember_coefficients(
        self,
        penalty: RelevancePenalty,
        target: Target,
        gradient: torch.Tensor,
        scale: torch.Tensor | float | None,
        average: torch.Tensor | None,
    ) -> None:
        # The average is in the loss's own units, whatever the gradient was multiplied by.
        seen, scale = (gradient, scale) if average is None else (average, None)
        held = self._coefficients.get(target.name)
        if held is None or not _alike(held, seen):
            held = self._coefficients[target.name] = torch.empty_like(seen)
        penalty.coefficients(seen, target.padding_row, scale, out=held)
        self._shrinking.append(target.name)

    def _after_step(self, *_: Any) -> None:
        if self._skipped():
            return
        penalty = self._penalty
        if penalty is not None and penalty.way == "decoupled":
            strengths = self._strengths()
            for name in self._shrinking:
                penalty.shrink_(
                    self._masks.selection[name].parameter,
                    self._coefficients[name],
                    strengths[name],
                    self._remainder(name),
                )
        for name, mask in self._active.items():
            clear_(self._masks.selection[name].parameter, mask)
        if penalty is not None and penalty.way == "loss" and not self._term_was_taken:
            warnings.warn(
                'a step was taken without the penalty: with way="loss" the loss must be '
                "loss + pruner.penalty(loss)",
                stacklevel=2,
            )
            self._term_was_taken = True  # once is enough
        self._stepped()

    def _remainder(self, name: str) -> torch.Tensor | None:
        """Return the remainder of a tensor whose type is too short to shrink by itself."""
        parameter = self._masks.selection[name].parameter
        if parameter.element_size() >= 4:
            return None
        held = self.remainders.get(name)
        if held is None:
            held = torch.zeros_like(parameter, dtype=torch.float32)
        self.remainders[name] = held.to(parameter.device)
        return self.remainders[name]


def _norm(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients; of float16 ones in float32, whose range it needs."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if all(gradient.dtype is not torch.float16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.device, one.shape, one.stride()) == (
        other.dtype,
        other.device,
        other.shape,
        other.stride(),
    )
