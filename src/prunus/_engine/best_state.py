"""The copy of the sparsest state of a network that met its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunus._distributed.shards import from_local_part, local, local_part
from prunus._engine.state_errors import other_model_error, state_error
from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus._utils.files import memory_key
from prunus.constraint import Constraint
from prunus.errors import CheckpointError, listing
from prunus.masks import Masks

__all__ = ["BestState"]


class BestState:
    """The sparsest state so far, and of equally sparse ones the one with the best metric.

    The state is a copy on the CPU of this process's shards of the model's ``state_dict``, buffers
    included.

    Attributes:
        kept: How many weights it keeps, or None if there is no state.
        metric: Its metric.
    """

    def __init__(self) -> None:
        self.kept: int | None = None
        self.metric: float | None = None
        self._model: dict[str, Any] = {}
        self._masks: dict[str, torch.Tensor] = {}

    def offer(self, model: nn.Module, masks: Masks, metric: float, constraint: Constraint) -> bool:
        """Copy the present state if it is better; return whether it was."""
        kept = masks.kept
        if self.kept is not None and self.metric is not None:
            if kept > self.kept:
                return False
            if kept == self.kept and not constraint.better(metric, self.metric):
                return False
        self.kept, self.metric = kept, metric
        self._model = _copy(model.state_dict())
        self._masks = masks.packed()
        return True

    def restore(self, model: nn.Module, masks: Masks) -> None:
        """Restore the best state."""
        model.load_state_dict(_whole(self._model, model))
        masks.load_packed(self._masks)
        masks.apply_()

    def state_dict(self, model: nn.Module, masks: Masks, *, complete: bool) -> dict[str, Any]:
        """Return the best state.

        Args:
            model: The model.
            masks: Its masks.
            complete: Whether to include placeholders if there is no best state yet.
        """
        copies, packed = self._model, self._masks
        if complete and self.kept is None:
            copies, packed = _copy(model.state_dict()), masks.packed()
        return {
            "kept": self.kept,
            "metric": self.metric,
            "model": _whole(copies, model),
            "masks": packed,
        }

    def check(self, state: Mapping[str, Any], model: nn.Module, masks: Masks) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: It is not such a state, is of another model, or lacks the weights of
                the best state that there was when it was saved.
        """
        lacking = [key for key in ("kept", "metric", "model", "masks") if key not in state]
        raise_problems(f"best lacks {listing(lacking)}" if lacking else None, error=state_error)
        if state["kept"] is None:
            return
        raise_problems(
            number_problem("kept", state["kept"], whole=True, least=0),
            number_problem("metric", state["metric"]),
            *(type_problem(key, state[key], Mapping, "a mapping") for key in ("model", "masks")),
            error=lambda problem: state_error(f"best: {problem}"),
        )
        if not state["model"]:
            raise CheckpointError(
                "the state lacks the weights of the best network that there was when it was "
                "saved: read a distributed checkpoint into pruner.state_dict(complete=True)"
            )
        expected = model.state_dict()
        missing = [name for name in expected if name not in state["model"]]
        unknown = [name for name in state["model"] if name not in expected]
        wrong = []
        # Only prunable tensors: a module may accept other shapes of its other tensors.
        for name, tensor in masks.selection.items():
            value, shape = state["model"].get(name), tuple(tensor.parameter.shape)
            if isinstance(value, torch.Tensor) and tuple(value.shape) != shape:
                wrong.append(f"{name} must have shape {shape}, but has {tuple(value.shape)}")
        if missing or unknown or wrong:
            raise other_model_error(missing=missing, unknown=unknown, wrong=wrong)
        masks.check_packed(state["masks"])

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Load what :meth:`state_dict` returned, also if the model was sharded otherwise."""
        self.kept, self.metric = state["kept"], state["metric"]
        self._model, self._masks = {}, {}
        if self.kept is not None:
            self._model = _copy(_each(local_part, state["model"], model))
            self._masks = dict(state["masks"])


def _whole(copies: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the whole tensors of local copies, laid out as in the model."""
    return _each(from_local_part, copies, model)


def _each(
    convert: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    state: Mapping[str, Any],
    model: nn.Module,
) -> dict[str, Any]:
    """Return a state with each tensor converted to the layout of the model's own."""
    like = model.state_dict()
    return {
        name: convert(value, like[name])
        if isinstance(value, torch.Tensor) and name in like
        else value
        for name, value in state.items()
    }


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies on the CPU of this process's shards; of a tied tensor, one copy."""
    copies: dict[Any, torch.Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            shard = local(value)
            key = memory_key(shard) or name
            if key not in copies:
                copies[key] = shard.to("cpu", copy=True)
            result[name] = copies[key]
        else:
            result[name] = value
    return result
