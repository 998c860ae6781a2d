"""What happens around each step of the optimizer: the penalty's part in it, and the zeros after it.

This code runs at every step, so it is written to cost little beside the tensor operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from prunus._distributed.shards import from_local_part, is_sharded, local, local_part, shard_of
from prunus._utils.checks import number_problem
from prunus.errors import CheckpointError, PrunusError, listing
from prunus.masks import Masks, clear_
from prunus.penalties.relevance import PenaltyTerm, RelevancePenalty
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
        self._process_group = masks.selection.process_group
        self._sharded = self._process_group.sharded
        self._penalty = penalty
        self._score = score
        self._max_grad_norm = max_grad_norm
        self._strengths = strengths
        self._stepped = stepped
        self._targets = tuple((t, t.name, t.parameter) for t in masks.selection.values())
        self._counted: dict[int, bool] = {}
        self._coefficients: dict[str, torch.Tensor] = {}
        self._shrinking: list[str] = []
        self._active: Mapping[str, torch.Tensor] = {}
        self._term_was_taken = False
        self._no_grad = torch.no_grad()
        # Not to be traced when the step is compiled: what they read of masks and strengths would be
        # taken for constants there, and each pruning would compile them anew.
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]

    def remove(self) -> None:
        """Listen no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    KEYS = ("score", "averages", "remainders", "averaged", "observed")
    """What :meth:`state_dict` is made of: tensors first, then plain numbers."""

    def state_dict(self, *, complete: bool) -> dict[str, dict[str, Any]]:
        """Return all that is remembered from step to step, by tensor.

        Args:
            complete: Whether to hold a place, of zeros, for everything that may ever be remembered,
                as a distributed checkpoint needs, which is read into what is there.
        """
        held = {
            "score": self.memory,
            "averages": self.averages,
            "remainders": self.remainders,
        }
        penalty = self._penalty
        may = {
            "score": self._score.uses_gradient,
            "averages": penalty is not None and bool(penalty.smoothing),
            "remainders": penalty is not None and penalty.apply == "decoupled",
        }
        state: dict[str, dict[str, Any]] = {key: dict(tensors) for key, tensors in held.items()}
        for target, name, _ in self._targets if complete else ():
            for key, tensors in state.items():
                if may[key] and (key != "remainders" or _is_short(target.weight)):
                    # Widened, for what is read into it may be wider than what is there now.
                    wide = torch.promote_types(target.weight.dtype, torch.float32)
                    tensor = tensors.get(name, torch.zeros_like(target.weight)).to(wide)
                    tensors[name] = from_local_part(tensor, target.parameter)
        state["averaged"] = {name: self.averaged.get(name, 0) for name in state["averages"]}
        state["observed"] = {name: int(name in self.memory) for name in state["score"]}
        return state

    def check(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Make sure that :meth:`load_state_dict` can take this.

        Raises:
            CheckpointError: It has other tensors, or of other shapes; every one is named.
        """
        selection = self._masks.selection
        remembered = {name: tensor for key in self.KEYS for name, tensor in state[key].items()}
        foreign = [name for name in remembered if name not in selection]
        if foreign:
            raise CheckpointError(f"this is the state of another model: it has {listing(foreign)}")
        tensors, counts = self.KEYS[:3], self.KEYS[3:]
        unlike = [
            f"{name} as {value!r}"
            for key in counts
            for name, value in state[key].items()
            if number_problem(name, value, whole=True, least=0)
        ]
        for key in tensors:
            for name, tensor in state[key].items():
                shape = tuple(selection[name].parameter.shape)
                if not isinstance(tensor, torch.Tensor):
                    unlike.append(f"{name} as {type(tensor).__name__}")
                elif tensor.shape != shape:
                    unlike.append(f"{name} of {tuple(tensor.shape)} for {shape}")
        if unlike:
            found = listing(list(dict.fromkeys(unlike)))
            raise CheckpointError(f"this is the state of another model: it has {found}")

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over copies of what :meth:`state_dict` returned; other keys are left alone."""

        def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            # In the weight's order of memory, for a sum's last bit depends on it.
            return {
                name: torch.empty_like(target.weight, dtype=tensor.dtype).copy_(
                    local_part(tensor, target.parameter)
                )
                for name, tensor in tensors.items()
                for target in [self._masks.selection[name]]
            }

        def used(key: str, counts: str) -> dict[str, torch.Tensor]:
            """Leave out what only held a place."""
            return {n: tensor for n, tensor in state[key].items() if state[counts].get(n)}

        self.memory = copies(used("score", "observed"))
        self.averages = copies(used("averages", "averaged"))
        self.averaged = {name: int(n) for name, n in state["averaged"].items() if n}
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
        sharded = self._sharded
        if sharded:
            self._settle()  # before anyone looks at a gradient
        if self._score.uses_gradient:
            self._observe(loss_scale)
        scale: torch.Tensor | float | None = loss_scale
        if self._max_grad_norm is not None:
            scale = self._clip(self._max_grad_norm, loss_scale)
            if not bool(scale > 0):
                penalty = None  # the norm overflowed, and nothing can be said of relevance
        apply = None if penalty is None else penalty.apply
        if penalty is not None and penalty.smoothing:
            self._average(penalty, scale)
        means = self._means(penalty) if sharded and penalty is not None else {}
        for target, name, parameter in self._targets:
            gradient = parameter.grad
            if gradient is None:  # took no part in this step
                continue
            if gradient.layout is not torch.strided:
                self._refuse_sparse([parameter])
            if sharded:
                gradient = local(gradient)
            mask, strength = active.get(name), strengths[name]
            if loss_scale is not None and apply == "gradient":
                strength *= loss_scale  # for it is divided by that with the rest of the gradient
            average = self.averages[name] if penalty is not None and penalty.smoothing else None
            if penalty is not None and strength > 0:
                if apply == "gradient":
                    penalty.add_to_gradient_(
                        gradient,
                        target.weight if sharded else parameter,
                        strength,
                        mask,
                        target.padding,
                        scale=scale,
                        average=average,
                        mean=means.get(name),
                    )
                    continue
                if apply == "decoupled":
                    # Now, because some optimizers overwrite the gradient during the step.
                    self._remember_coefficients(
                        penalty, target, gradient, scale, average, means.get(name)
                    )
            if mask is not None:
                clear_(gradient, mask)

    def _held(self, target: Target) -> torch.Tensor:
        """Return what is in memory here of a tensor; without a call where that is all of it."""
        return target.weight if self._sharded else target.parameter

    def _settle(self) -> None:
        """Lay each gradient out as its tensor is, where tensor parallelism left it otherwise."""
        clipping = self._max_grad_norm is not None  # which looks at the gradients of all tensors
        groups = self._optimizer.param_groups if clipping else ()
        for parameter in (
            *(parameter for group in groups for parameter in group["params"]),
            *(parameter for _, _, parameter in self._targets if not clipping),
        ):
            gradient: Any = parameter.grad
            if is_sharded(gradient) and gradient.placements != parameter.placements:
                parameter.grad = gradient.redistribute(placements=parameter.placements)

    def _average(self, penalty: RelevancePenalty, scale: torch.Tensor | float | None) -> None:
        for target, name, parameter in self._targets:
            gradient = target.gradient
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                self._refuse_sparse([parameter])
            count = self.averaged[name] = self.averaged.get(name, 0) + 1
            self.averages[name] = penalty.average(gradient, self.averages.get(name), count, scale)

    def _means(self, penalty: RelevancePenalty) -> Mapping[str, torch.Tensor]:
        """Return the mean magnitude of what each coefficient is made of, over all processes."""
        if penalty.apply == "loss" or not penalty.coefficient.relative:
            return {}
        counted = self._masks.selection.counted
        sums = []
        for target, name, _ in self._targets:
            seen = target.gradient
            if seen is not None and penalty.smoothing:
                seen = self.averages[name]
            sums.append(
                # In float64, so that the mean hardly depends on how the tensor is spread.
                torch.linalg.vector_norm(seen, ord=1, dtype=torch.float64)
                if seen is not None and counted[name]
                else torch.zeros((), dtype=torch.float64, device=target.weight.device)
            )
        totals = self._process_group.sum(torch.stack(sums))
        return {
            name: total / parameter.numel()
            for (_, name, parameter), total in zip(self._targets, totals, strict=True)
        }

    def _observe(self, loss_scale: float | None) -> None:
        for target, name, _ in self._targets:
            gradient = target.gradient
            if gradient is not None and gradient.layout is torch.strided:
                if loss_scale is not None:
                    # In 16 bits a small gradient would become 0.
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    gradient = gradient.to(wide) / loss_scale
                memory = self._score.observe(target.weight, gradient, self.memory.get(name))
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
        norm = self._shared_norm(parameters) if self._sharded else _norm(parameters)
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        if self._sharded:
            for parameter in parameters:
                if parameter.grad is not None:
                    gradient = local(parameter.grad)
                    gradient.mul_(factor.to(gradient.device, gradient.dtype))
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return factor if loss_scale is None else factor * loss_scale

    def _shared_norm(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norm of all gradients over all processes that hold a part of them."""
        if set(self._counted) != {id(p) for p in parameters}:
            counted = self._process_group.counts_shards([shard_of(p) for p in parameters])
            self._counted = {id(p): own for p, own in zip(parameters, counted, strict=True)}
        norms = [
            torch.linalg.vector_norm(local(p.grad), dtype=torch.float64)
            for p in parameters
            if p.grad is not None and self._counted[id(p)]
        ]
        zero = torch.zeros((), dtype=torch.float64, device=local(parameters[0]).device)
        total = self._process_group.sum(sum((norm.square() for norm in norms), zero))
        return total.sqrt().to(torch.promote_types(parameters[0].dtype, torch.float32))

    def _refuse_sparse(self, parameters: Iterable[torch.Tensor]) -> None:
        sparse = {
            id(p) for p in parameters if p.grad is not None and p.grad.layout is not torch.strided
        }
        names = [name for name, p in self._model.named_parameters() if id(p) in sparse]
        if sparse:
            raise PrunusError(
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
        mean: torch.Tensor | None,
    ) -> None:
        # The average is in the loss's own units, whatever the gradient was multiplied by.
        seen, scale = (gradient, scale) if average is None else (average, None)
        held = self._coefficients.get(target.name)
        if held is None or not _alike(held, seen):
            held = self._coefficients[target.name] = torch.empty_like(seen)
        penalty.coefficients(seen, target.padding, scale, mean=mean, out=held)
        self._shrinking.append(target.name)

    def _after_step(self, *_: Any) -> None:
        if self._skipped():
            return
        penalty = self._penalty
        if penalty is not None and penalty.apply == "decoupled":
            strengths = self._strengths()
            for name in self._shrinking:
                penalty.shrink_(
                    self._held(self._masks.selection[name]),
                    self._coefficients[name],
                    strengths[name],
                    self._remainder(name),
                )
        for name, mask in self._active.items():
            clear_(self._held(self._masks.selection[name]), mask)
        if penalty is not None and penalty.apply == "loss" and not self._term_was_taken:
            warnings.warn(
                'a step was taken without the penalty: with apply="loss" the loss must be '
                "loss + pruner.penalty(loss)",
                stacklevel=2,
            )
            self._term_was_taken = True  # once is enough
        self._stepped()

    def _remainder(self, name: str) -> torch.Tensor | None:
        """Return the remainder of a tensor whose type is too short to shrink by itself."""
        weight = self._held(self._masks.selection[name])
        if not _is_short(weight):
            return None
        held = self.remainders.get(name)
        if held is None:
            held = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        self.remainders[name] = held.to(weight.device)
        return self.remainders[name]


def _norm(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients; of float16 ones in float32, whose range it needs."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if all(gradient.dtype is not torch.float16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total


def _is_short(weight: torch.Tensor) -> bool:
    return weight.element_size() < 4


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.device, one.shape, one.stride()) == (
        other.dtype,
        other.device,
        other.shape,
        other.stride(),
    )
