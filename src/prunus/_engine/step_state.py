"""The tensors that are remembered from step to step, as a ``state_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunus._distributed.shards import from_local_part, local_part
from prunus._engine.observation import GradientObserver
from prunus._engine.state_errors import other_model_error
from prunus._utils.checks import number_problem
from prunus.errors import CheckpointError, listing
from prunus.growth import GrowthRule
from prunus.penalties.application import Application
from prunus.penalties.averages import MagnitudeAverages
from prunus.selection import PrunableTensor, Selection

__all__ = ["COUNT_KEYS", "TENSOR_KEYS", "StepState"]

TENSOR_KEYS = ("score", "averages", "remainders", "latent")
"""The entries of the state that are tensors by name; of "score", mappings of tensors by name."""

COUNT_KEYS = ("averaged", "observed")
"""The entries of the state that are counts by name."""


class StepState:
    """Saves and restores what score, averages, penalty and growth remember of each tensor.

    Args:
        selection: The prunable tensors.
        observer: The gradient observer, which stores the score's memory.
        averages: The moving averages of gradient magnitudes.
        application: The penalty's application, which stores the remainders of 16-bit tensors; None
            without a penalty.
        growth: The rule of growth, which stores the values of removed weights that it trains.
    """

    def __init__(
        self,
        selection: Selection,
        observer: GradientObserver,
        averages: MagnitudeAverages,
        application: Application | None,
        growth: GrowthRule,
    ) -> None:
        self._selection = selection
        self._observer = observer
        self._averages = averages
        self._application = application
        self._growth = growth

    def state_dict(self, *, complete: bool) -> dict[str, dict[str, Any]]:
        """Return everything that is remembered, by tensor.

        Args:
            complete: Whether to include a placeholder of zeros for each tensor that may be
                remembered later, as a distributed checkpoint needs, which is read in place.
        """
        memory = self._observer.memory
        state: dict[str, dict[str, Any]] = {
            "score": {name: dict(tensors) for name, tensors in memory.items()},
            "averages": dict(self._averages.tensors),
            "remainders": {} if self._application is None else dict(self._application.remainders),
            "latent": dict(self._growth.latent),
        }
        for name, tensor in self._selection.items() if complete else ():
            if self._observer.active:
                places = state["score"].setdefault(name, {})
                for key in self._observer.score.memory_names:
                    places[key] = _completed(places.get(key), tensor)
            for key in ("averages", "remainders", "latent"):
                if self._may_remember(key, tensor.weight):
                    state[key][name] = _completed(state[key].get(name), tensor)
        averaged, observed = self._averages.counts, self._observer.counts
        state["averaged"] = {name: averaged.get(name, 0) for name in state["averages"]}
        state["observed"] = {name: observed.get(name, 0) for name in state["score"]}
        return state

    def _may_remember(self, key: str, weight: torch.Tensor) -> bool:
        if key == "averages":
            return bool(self._averages.smoothing)
        if key == "latent":
            return self._growth.keeps_latent
        return self._application is not None and self._application.needs_remainder(weight)

    def check(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: It has other tensors, tensors of other shapes, or invalid counts, or is
                that of another score; every one is named.
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
        tensors = [
            (name, f"{key} of {name}", tensor)
            for name, memory in state["score"].items()
            if isinstance(memory, Mapping)
            for key, tensor in memory.items()
        ]
        tensors += [
            (name, name, tensor)
            for key in ("averages", "remainders", "latent")
            for name, tensor in state[key].items()
        ]
        wrong += [
            f"the score's memory of {name} must be tensors by name, but is {type(memory).__name__}"
            for name, memory in state["score"].items()
            if not isinstance(memory, Mapping)
        ]
        wrong += [
            _tensor_problem(description, tensor, tuple(selection[name].parameter.shape))
            for name, description, tensor in tensors
            if name in selection
        ]
        found = list(dict.fromkeys(problem for problem in wrong if problem is not None))
        if unknown or found:
            raise other_model_error(unknown=unknown, wrong=found)
        self._check_score(state["score"])

    def _check_score(self, memories: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that the score's memory of each tensor has the names that the score gives it."""
        score = self._observer.score
        expected = set(score.memory_names)
        wrong = [name for name, memory in memories.items() if set(memory) != expected]
        if wrong:
            found = dict.fromkeys(str(key) for name in wrong for key in memories[name])
            raise CheckpointError(
                f"this is the state of another score: {type(score).__name__} remembers "
                f"{listing(score.memory_names) or 'nothing'}, but the state has "
                f"{listing(list(found)) or 'nothing'} of {listing(wrong)}. Pass score=, the score "
                "that the state was saved with"
            )

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load copies of what :meth:`state_dict` returned; other keys are ignored."""
        observer, averages = self._observer, self._averages
        observer.counts = _counts(state, "observed", of="score")
        observer.memory = {
            name: {
                key: self._copy(name, state["score"][name][key])
                for key in observer.score.memory_names
            }
            for name in observer.counts
        }
        averages.counts = _counts(state, "averaged", of="averages")
        averages.tensors = {
            name: self._copy(name, state["averages"][name]) for name in averages.counts
        }
        if self._application is not None:
            self._application.remainders = {
                name: self._copy(name, tensor) for name, tensor in state["remainders"].items()
            }
        self._growth.latent = {}
        if self._growth.keeps_latent and not self._growth.ended:
            self._growth.latent = {
                # In the weight's own type, whatever that of a placeholder.
                name: self._copy(name, tensor).to(self._selection[name].weight.dtype)
                for name, tensor in state["latent"].items()
            }

    @torch.inference_mode(False)  # tensors made in that mode could not be written to later
    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return this process's shard of a tensor in the weight's order of memory.

        The last bit of a sum depends on the order.
        """
        prunable = self._selection[name]
        copy = torch.empty_like(prunable.weight, dtype=tensor.dtype)
        return copy.copy_(local_part(tensor, prunable.parameter))


def _tensor_problem(name: str, value: object, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with an entry that must be a tensor of a shape, or None."""
    if not isinstance(value, torch.Tensor):
        return f"{name} must be a tensor, but is {type(value).__name__}"
    if value.shape == shape:
        return None
    return f"{name} must have shape {shape}, but has {tuple(value.shape)}"


def _counts(state: Mapping[str, Mapping[str, Any]], key: str, *, of: str) -> dict[str, int]:
    """Return the counts above 0 of tensors that the state has; those of placeholders are 0."""
    return {name: int(n) for name, n in state[key].items() if n and name in state[of]}


def _completed(value: torch.Tensor | None, tensor: PrunableTensor) -> torch.Tensor:
    """Return what is remembered of a tensor, or a placeholder of zeros, for a checkpoint."""
    weight = tensor.weight
    # Widened, because a wider tensor may be read into the placeholder.
    wide = torch.promote_types(weight.dtype, torch.float32)
    value = torch.zeros_like(weight) if value is None else value
    return from_local_part(value.to(wide), tensor.parameter)
