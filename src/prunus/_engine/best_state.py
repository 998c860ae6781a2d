"""Remembering the sparsest state of a network that met its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunus._distributed.shards import from_local_part, local, local_part
from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus._utils.files import memory_key
from prunus.constraint import Constraint
from prunus.errors import CheckpointError, listing
from prunus.masks import Masks

__all__ = ["BestState", "not_a_state"]


def not_a_state(problem: str) -> CheckpointError:
    """Return the error for what is not the state of a pruner."""
    return CheckpointError(f"this is not the state of a Pruner: {problem}")


class BestState:
    """The sparsest state seen, and of equally sparse ones the one with the best metric.

    The state is a copy on the CPU of what this process holds of the model's ``state_dict``, buffers
    included.
    """

    def __init__(self) -> None:
        self.kept: int | None = None
        self.metric: float | None = None
        self._model: dict[str, Any] = {}
        self._masks: dict[str, torch.Tensor] = {}

    def offer(self, model: nn.Module, masks: Masks, metric: float, constraint: Constraint) -> bool:
        """Remember the present state if it is better; say whether it was."""
        kept = masks.kept
        if self.kept is not None and self.metric is not None:
            if kept > self.kept:
                return False
            if kept == self.kept and not constraint.better(metric, self.metric):
                return False
        self.kept, self.metric = kept, metric
        self._model = _copied(model.state_dict())
        self._masks = masks.packed()
        return True

    def restore(self, model: nn.Module, masks: Masks) -> None:
        """Bring the remembered state back."""
        model.load_state_dict(_whole(self._model, model))
        masks.load_packed(self._masks)
        masks.apply_()

    def state_dict(self, model: nn.Module, masks: Masks, *, complete: bool) -> dict[str, Any]:
        """Return everything remembered.

        Args:
            model: Whose state it is.
            masks: Its masks.
            complete: Whether to hold a place for a best state also while there is none.
        """
        copies, packed = self._model, self._masks
        if complete and self.kept is None:
            copies, packed = _copied(model.state_dict()), masks.packed()
        return {
            "kept": self.kept,
            "metric": self.metric,
            "model": _whole(copies, model),
            "masks": packed,
        }

    def check(self, state: Mapping[str, Any], model: nn.Module, masks: Masks) -> None:
        """Make sure that :meth:`load_state_dict` can take this.

        Raises:
            CheckpointError: There was a best state when it was saved, which is not in it, or it is
                no such state, or of another model.
        """
        missing = [key for key in ("kept", "metric", "model", "masks") if key not in state]
        raise_problems(f"best lacks {listing(missing)}" if missing else None, error=not_a_state)
        if state["kept"] is None:
            return
        raise_problems(
            number_problem("kept", state["kept"], whole=True, least=0),
            number_problem("metric", state["metric"]),
            *(type_problem(key, state[key], Mapping, "a mapping") for key in ("model", "masks")),
            error=lambda problem: not_a_state(f"best: {problem}"),
        )
        if not state["model"]:
            raise CheckpointError(
                "the state has no weights of the best network, though there was one when it was "
                "saved: read a distributed checkpoint into pruner.state_dict(complete=True)"
            )
        own = model.state_dict()
        unlike = [f"no {name}" for name in own if name not in state["model"]]
        unlike += [f"{name} besides" for name in state["model"] if name not in own]
        # Of other tensors a module may take other shapes when it is loaded.
        for name, target in masks.selection.items():
            held, shape = state["model"].get(name), tuple(target.parameter.shape)
            if isinstance(held, torch.Tensor) and tuple(held.shape) != shape:
                unlike.append(f"{name} of {tuple(held.shape)} for {shape}")
        if unlike:
            raise CheckpointError(f"this is the state of another model: best has {listing(unlike)}")
        masks.check_packed(state["masks"])

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Take over what :meth:`state_dict` returned, also of a model spread otherwise."""
        self.kept, self.metric = state["kept"], state["metric"]
        self._model, self._masks = {}, {}
        if self.kept is not None:
            self._model = _copied(_each(local_part, state["model"], model))
            self._masks = dict(state["masks"])


def _whole(copies: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Make the tensors that :func:`_copied` made parts of, as they are laid out in the model."""
    return _each(from_local_part, copies, model)


def _each(
    convert: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    state: Mapping[str, Any],
    model: nn.Module,
) -> dict[str, Any]:
    """Convert each tensor of a state, given the one that the model has in its place."""
    like = model.state_dict()
    return {
        name: convert(value, like[name])
        if isinstance(value, torch.Tensor) and name in like
        else value
        for name, value in state.items()
    }


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what this process holds to the CPU, a tensor that has several names once."""
    copies: dict[Any, torch.Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            held = local(value)
            key = memory_key(held) or name
            if key not in copies:
                copies[key] = held.to("cpu", copy=True)
            result[name] = copies[key]
        else:
            result[name] = value
    return result
