"""The pipeline around each step of one optimizer.

Before a step: match placements, let growth act, observe, clip, average, apply the penalty, mask.
After it: apply the decoupled penalty, mask, let growth act. It runs at every step, so it is written
to cost little beside the tensor operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunus._distributed.shards import local
from prunus._engine.clipping import GradientClipping
from prunus._engine.gradients import (
    check_dense,
    is_skipped,
    loss_scale_of,
    match_placements,
    mean_magnitudes,
    separate_elements,
)
from prunus._engine.observation import GradientObserver
from prunus._engine.optimizers import Optimizers
from prunus._engine.penalty_probe import PenaltyProbe
from prunus._engine.preconditions import check_shapes
from prunus._engine.second_moments import SecondMoments
from prunus._engine.update_probe import UpdateProbe
from prunus._utils.devices import on_device
from prunus.growth import GrowthRule
from prunus.masks import IntegerMasks, Masks, clear_all_
from prunus.penalties.application import Application, Strengths, TensorStep
from prunus.penalties.averages import MagnitudeAverages
from prunus.selection import PrunableTensor

__all__ = ["OptimizerHooks", "StepParts"]

_NOT_COMPILED = (
    "prunus acts around each optimizer step, outside of compiled code: compile the step with "
    "fullgraph=False, or the model alone"
)


@dataclass(frozen=True, eq=False)
class StepParts:
    """What the pipelines of all optimizers share.

    Attributes:
        model: The model.
        masks: The masks of the prunable tensors.
        application: The penalty's application, or None without a penalty.
        probe: Measures what the penalty does; None without a penalty.
        update_probe: Measures the updates; None if the strength does not ask for them.
        observer: The gradient observer, which stores the score's memory.
        averages: The moving averages of gradient magnitudes.
        growth: The rule of growth.
        strengths: Returns γ of each tensor at the moment of the call.
        steps_since_pruning: Returns the number of steps since the last removal.
    """

    model: torch.nn.Module
    masks: Masks
    application: Application | None
    probe: PenaltyProbe | None
    update_probe: UpdateProbe | None
    observer: GradientObserver
    averages: MagnitudeAverages
    growth: GrowthRule
    strengths: Strengths
    steps_since_pruning: Callable[[], int]


class OptimizerHooks:
    """The hooks on the steps of one optimizer.

    Args:
        optimizers: All optimizers.
        index: The position of this one among them.
        parts: What is shared with the others.
        max_grad_norm: Maximum norm of all gradients of the optimizer, or None.
        stepped: Called after each step that the optimizer has taken and not skipped, with its
            index.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        index: int,
        parts: StepParts,
        *,
        max_grad_norm: float | None,
        stepped: Callable[[int], None],
    ) -> None:
        optimizer, selection = optimizers[index], parts.masks.selection
        self._optimizer = optimizer
        self._index = index
        self._parts = parts
        self._stepped = stepped
        self._selection = selection
        self._sharded = selection.process_group.sharded
        self._second_moments = SecondMoments(optimizer, selection)
        self._clipping = (
            None
            if max_grad_norm is None
            else GradientClipping(parts.model, optimizer, max_grad_norm, selection.process_group)
        )
        self._prunable = tuple(optimizers.tensors(index))
        self._tensors = tuple((t, t.name, t.parameter) for t in self._prunable)
        self._parameters = {name: parameter for _, name, parameter in self._tensors}
        self._active_masks: Mapping[str, torch.Tensor] = {}
        self._integer_masks = IntegerMasks()
        self._clearing_masks: Mapping[str, torch.Tensor] = {}
        """The active masks, converted where that makes it faster to clear tensors with them."""
        self._gradients: list[tuple[PrunableTensor, str, torch.Tensor, torch.Tensor]] = []
        self._closure_called = True
        self._ignores_closure = False
        self._skipped: bool | None = None
        self._no_grad = torch.no_grad()
        # Not to be traced when the step is compiled: masks and strengths would become constants of
        # the compiled step, and each pruning would compile it again.
        disable = functools.partial(torch.compiler.disable, reason=_NOT_COMPILED)
        before, after = map(disable, (self._before_step, self._after_step))
        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _find_active_masks(self) -> None:
        """Find the masks to apply to the optimizer's tensors; none if they do not hold."""
        active: Mapping[str, torch.Tensor] = {}
        if self._parts.growth.masks_hold:
            active = self._parts.masks.active()
        if active and len(self._parameters) < len(self._selection):
            active = {name: mask for name, mask in active.items() if name in self._parameters}
        self._active_masks = active
        self._clearing_masks = self._integer_masks.of(active, self._parameters) if active else {}

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del optimizer
        # args[0] is the optimizer itself. An optimizer that receives a closure computes its
        # gradients there, within the step and perhaps several times. Some do not call it, because
        # the gradients are there already, and some accept another argument in its place.
        place = None
        if len(args) > 1:
            place = next((i for i, value in enumerate(args) if i > 0 and callable(value)), None)
        closure = kwargs.get("closure") if place is None else args[place]
        self._skipped = None
        if self._parts.update_probe is not None:
            self._parts.update_probe.forget(self._index)
        if closure is None or self._ignores_closure:
            with self._no_grad:
                self._edit_gradients()
            return None
        self._closure_called = False

        def edited() -> Any:
            self._closure_called = True
            self._parts.growth.before_closure()
            loss = closure()
            with self._no_grad:
                self._edit_gradients()
            return loss

        if place is not None:
            return (*args[:place], edited, *args[place + 1 :]), kwargs
        return args, {**kwargs, "closure": edited}

    def _edit_gradients(self) -> None:
        """Do all that comes before a step; name the tensors whose shape has changed."""
        try:
            self._prepare_step()
        except RuntimeError:
            check_shapes(self._selection)
            raise

    def _prepare_step(self) -> None:
        self._skipped = is_skipped(self._optimizer)
        if self._skipped:
            return
        application = self._parts.application
        if application is not None:
            application.begin()
        loss_scale, strengths = loss_scale_of(self._optimizer), self._parts.strengths()
        self._find_active_masks()
        if self._active_masks:
            self._second_moments.before_step(self._active_masks, self._parts.steps_since_pruning())
        separate_elements(self._inspected())
        if self._sharded:
            match_placements(self._inspected())
        self._parts.growth.before_step(self._parameters.keys())
        self._gradients = self._present_gradients()
        acting = application is not None and any(map(_is_positive, strengths.values()))
        smoothing = self._parts.averages.smoothing > 0
        scale, measurable = self._clip(loss_scale, used=acting or smoothing)
        if measurable is not False and smoothing:
            self._update_averages(scale, measurable)
        if application is None or not acting or measurable is False:
            self._mask_gradients()
        else:
            self._apply(application, strengths, loss_scale, scale, measurable)
        if self._parts.update_probe is not None:
            self._parts.update_probe.before_update(self._index)
        self._gradients = []  # or they would keep gradients alive that the caller has freed

    def _clip(
        self, loss_scale: torch.Tensor | None, *, used: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | bool | None]:
        """Pass the gradients to the score, and clip them if there is a limit.

        Args:
            loss_scale: The factor that a gradient scaler has multiplied them by, or None.
            used: Whether the caller uses the result.

        Returns:
            The factor that the gradients have been multiplied by, clipping included, and whether
            relevance can be measured by them: a bool on the CPU, otherwise a scalar on the device,
            which the host does not wait for; None without a limit, if that is not known.
        """
        observer, clipping = self._parts.observer, self._clipping
        scale, on_host = loss_scale, False
        measurable: torch.Tensor | bool | None = None
        if clipping is not None:
            factor = clipping.factor(clipping.norm(), loss_scale)
            scale = factor if loss_scale is None else factor * on_device(loss_scale, factor.device)
            on_host = scale.is_cpu and not self._sharded
            # Where the norm overflows, relevance cannot be measured, and an average would be
            # infinite or NaN from there on.
            measurable = bool(scale > 0) if on_host else None
        observed = observer.active and measurable is not False
        due = observer.due(self._prunable) if observed else []
        if scale is not None and clipping is not None and not on_host and (due or used):
            measurable = scale > 0
        if due:
            observer.observe(due, loss_scale, measurable)
        if clipping is not None:
            clipping.clip_(factor, loss_scale)
        return scale, measurable

    def _inspected(self) -> Iterable[torch.Tensor]:
        """Return the tensors whose gradients are read: all of the optimizer's for clipping."""
        if self._clipping is None:
            return [parameter for _, _, parameter in self._tensors]
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _update_averages(
        self, scale: torch.Tensor | None, measurable: torch.Tensor | bool | None
    ) -> None:
        gradients = {name: gradient for _, name, _, gradient in self._gradients}
        self._parts.averages.update(gradients, scale, measurable)

    def _apply(
        self,
        application: Application,
        strengths: Mapping[str, float],
        loss_scale: torch.Tensor | None,
        scale: torch.Tensor | None,
        measurable: torch.Tensor | bool | None,
    ) -> None:
        """Apply the penalty and the masks to the gradients.

        Args:
            application: The penalty's application.
            strengths: γ of each tensor.
            loss_scale: The factor that the optimizer divides out within its step, or None.
            scale: The factor that the gradients have been multiplied by, clipping included.
            measurable: Whether relevance can be measured: True, None, or a scalar on a device.
        """
        sharded, clearing = self._sharded, self._clearing_masks
        averages = self._parts.averages.tensors if self._parts.averages.smoothing else None
        means: Mapping[str, torch.Tensor] = {}
        if sharded and application.formula.coefficient.relative:
            means = mean_magnitudes(self._selection, self._prunable, averages)
        probe = self._parts.probe
        if probe is not None and not probe.is_due(self._index):
            probe = None
        kept: Mapping[str, torch.Tensor] = {}
        if probe is not None:
            kept = self._parts.masks.active()
            probe.begin(self._index)
        known = measurable if isinstance(measurable, torch.Tensor) else None
        steps, unpenalized = [], []
        for tensor, name, parameter, gradient in self._gradients:
            mask, strength = clearing.get(name), strengths[name]
            if not strength > 0:
                if mask is not None:
                    unpenalized.append((gradient, mask))
                continue
            # An average has the loss's own units, whatever the gradient was multiplied by.
            basis, basis_scale = (gradient, scale) if averages is None else (averages[name], None)
            weight = tensor.weight if sharded else parameter
            step = TensorStep(
                tensor,
                weight,
                gradient,
                strength,
                mask,
                loss_scale,
                basis,
                basis_scale,
                means.get(name),
                known,
            )
            if probe is not None:
                probe.measure(self._index, step, kept.get(name))
            steps.append(step)
        _clear(unpenalized)
        if steps:
            application.before_step(steps)

    def _present_gradients(self) -> list[tuple[PrunableTensor, str, torch.Tensor, torch.Tensor]]:
        """Return each tensor that takes part in the step, its name, parameter and local gradient.

        Raises:
            PrunusError: A gradient is sparse.
        """
        present: list[tuple[PrunableTensor, str, torch.Tensor, torch.Tensor]] = []
        for tensor, name, parameter in self._tensors:
            gradient = parameter.grad
            if gradient is None:  # the loss of this step does not depend on it
                continue
            if gradient.layout is not torch.strided:
                check_dense(self._parts.model, [parameter])
            present.append((tensor, name, parameter, gradient))
        if self._sharded:
            return [(t, name, parameter, local(g)) for t, name, parameter, g in present]
        return present

    def _mask_gradients(self) -> None:
        """Zero the gradients of removed weights, without a penalty."""
        masks = self._clearing_masks
        if masks:
            _clear([(g, masks[name]) for _, name, _, g in self._gradients if name in masks])

    def _after_step(self, *_: Any) -> None:
        if is_skipped(self._optimizer) if self._skipped is None else self._skipped:
            return
        if not self._closure_called:
            # This step was taken with unedited gradients: only the masks can be applied now.
            self._closure_called = self._ignores_closure = True
            self._find_active_masks()
        if self._parts.update_probe is not None:
            self._parts.update_probe.after_update(self._index)
        if self._parts.application is not None:
            self._parts.application.after_step()
        if self._parts.probe is not None:
            self._parts.probe.end(self._index)
        if self._active_masks:
            weights: list[torch.Tensor] = [self._parameters[name] for name in self._clearing_masks]
            if self._sharded:
                weights = [local(weight) for weight in weights]
            clear_all_(weights, list(self._clearing_masks.values()))
            self._second_moments.after_step()
        self._parts.growth.after_step()
        self._stepped(self._index)


def _is_positive(strength: float) -> bool:
    return strength > 0


def _clear(gradients: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Zero gradients where the masks beside them are False."""
    clear_all_([gradient for gradient, _ in gradients], [mask for _, mask in gradients])
