"""The tensors that are remembered from step to step, as a ``state_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunus._distributed.shards import from_local_part, local_part
from prunus._engine.observation import GradientObserver
from prunus._engine.state_errors import other_model_error
from prunus._utils.checks import number_problem
from prunus.penalties.application import Application
from prunus.penalties.averages import MagnitudeAverages
from prunus.selection import Selection

__all__ = ["COUNT_KEYS", "TENSOR_KEYS", "StepState"]

TENSOR_KEYS = ("score", "averages", "remainders")
"""The entries of the state that are tensors by name."""

COUNT_KEYS = ("averaged", "observed")
"""The entries of the state that are counts by name."""


class StepState:
    """Saves and restores what score, averages and penalty remember of each tensor.

    Args:
        selection: The prunable tensors.
        observer: The gradient observer, which stores the score's memory.
        averages: The moving averages of gradient magnitudes.
        application: The penalty's application, which stores the remainders of 16-bit tensors; None
            without a penalty.
    """

    def __init__(
        self,
        selection: Selection,
        observer: GradientObserver,
        averages: MagnitudeAverages,
        application: Application | None,
    ) -> None:
        self._selection = selection
        self._observer = observer
        self._averages = averages
        self._application = application

    def state_dict(self, *, complete: bool) -> dict[str, dict[str, Any]]:
        """Return everything that is remembered, by tensor.

        Args:
            complete: Whether to include a placeholder of zeros for each tensor that may be
                remembered later, as a distributed checkpoint needs, which is read in place.
        """
        state: dict[str, dict[str, Any]] = {
            "score": dict(self._observer.memory),
            "averages": dict(self._averages.tensors),
            "remainders": {} if self._application is None else dict(self._application.remainders),
        }
        for name, tensor in self._selection.items() if complete else ():
            weight = tensor.weight
            for key, tensors in state.items():
                if self._may_remember(key, weight):
                    # Widened, because a wider tensor may be read into the placeholder.
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    value = tensors.get(name, torch.zeros_like(weight)).to(wide)
                    tensors[name] = from_local_part(value, tensor.parameter)
        counts, memory = self._averages.counts, self._observer.memory
        state["averaged"] = {name: counts.get(name, 0) for name in state["averages"]}
        state["observed"] = {name: int(name in memory) for name in state["score"]}
        return state

    def _may_remember(self, key: str, weight: torch.Tensor) -> bool:
        if key == "score":
            return self._observer.active
        if key == "averages":
            return bool(self._averages.smoothing)
        return self._application is not None and self._application.needs_remainder(weight)

    def check(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: It has other tensors, tensors of other shapes, or invalid counts; every
                one is named.
        """
        selection = self._selection
        keys = (*TENSOR_KEYS, *COUNT_KEYS)
        names = dict.fromkeys(name for key in keys for name in state[key])
        unknown = [name for name in names if name not in selection]
        wrong = [
            number_problem(f"the count of {name}", value, whole=True, least=0)
            for key in COUNT_KEYS
            for name, value in state[key].items()
        ]
        wrong += [
            _tensor_problem(name, tensor, tuple(selection[name].parameter.shape))
            for key in TENSOR_KEYS
            for name, tensor in state[key].items()
            if name in selection
        ]
        found = list(dict.fromkeys(problem for problem in wrong if problem is not None))
        if unknown or found:
            raise other_model_error(unknown=unknown, wrong=found)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load copies of what :meth:`state_dict` returned; other keys are ignored."""
        self._observer.memory = self._copies(_without_placeholders(state, "score", "observed"))
        averages = self._averages
        averages.tensors = self._copies(_without_placeholders(state, "averages", "averaged"))
        averages.counts = {name: int(n) for name, n in state["averaged"].items() if n}
        if self._application is not None:
            self._application.remainders = self._copies(state["remainders"])

    def _copies(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return this process's shards in the weights' order of memory.

        The last bit of a sum depends on the order.
        """
        copies = {}
        for name, tensor in tensors.items():
            prunable = self._selection[name]
            copies[name] = torch.empty_like(prunable.weight, dtype=tensor.dtype)
            copies[name].copy_(local_part(tensor, prunable.parameter))
        return copies


def _tensor_problem(name: str, value: object, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with an entry that must be a tensor of a shape, or None."""
    if not isinstance(value, torch.Tensor):
        return f"{name} must be a tensor, but is {type(value).__name__}"
    if value.shape == shape:
        return None
    return f"{name} must have shape {shape}, but has {tuple(value.shape)}"


def _without_placeholders(
    state: Mapping[str, Mapping[str, Any]], key: str, count_key: str
) -> dict[str, torch.Tensor]:
    """Return the tensors that were updated at least once."""
    return {name: tensor for name, tensor in state[key].items() if state[count_key].get(name)}
