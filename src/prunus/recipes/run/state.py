"""The state of a run: what changes while it trains, and what its checkpoints hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from prunus._utils.random_states import host_random_states, load_host_random_states

__all__ = ["PartialEpoch", "PhaseClock", "PhaseName", "RunState"]

PhaseName = Literal["dense", "prune"]
"""The name of a phase of a run, in the order in which they run."""


@dataclass
class PhaseClock:
    """Seconds spent in each phase, including earlier processes of a resumed run."""

    seconds: dict[PhaseName, float] = field(
        default_factory=lambda: dict.fromkeys(get_args(PhaseName), 0.0)
    )
    _since: float = field(default_factory=time.perf_counter)

    def charge(self, phase: PhaseName) -> None:
        """Add the time since the last call to a phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class PartialEpoch:
    """The progress within an epoch.

    Attributes:
        steps: The number of steps done.
        loss_sum: The sum of their batches' losses, each times its size.
        size_sum: The sum of the sizes.
    """

    steps: int = 0
    loss_sum: float = 0.0
    size_sum: int = 0

    @property
    def mean_loss(self) -> float:
        """The mean loss over all items."""
        return self.loss_sum / self.size_sum


@dataclass(kw_only=True)
class RunState:
    """The state of a run.

    Attributes:
        model: The network.
        data_generator: The random numbers of the data order.
        data_generator_state: Their state at the start of the current epoch.
        clock: The time spent in each phase.
        metric_lines: The number of lines written to metrics.jsonl.
        dense_metric: The validation metric of the dense network, once it is trained.
        phase: The name of the current phase.
        epoch: The number of its complete epochs.
        partial: The progress within the epoch after these.
        phase_state: The state of optimizer, learning-rate scheduler and pruner in the checkpoint
            that the run resumes from, until the phase has loaded it.
    """

    model: nn.Module
    data_generator: torch.Generator
    data_generator_state: torch.Tensor
    clock: PhaseClock = field(default_factory=PhaseClock)
    metric_lines: int = 0
    dense_metric: float | None = None
    phase: PhaseName = "dense"
    epoch: int = 0
    partial: PartialEpoch | None = None
    phase_state: Mapping[str, Any] | None = None

    @classmethod
    def initial(cls, model: nn.Module, seed: int) -> RunState:
        """Return the state of a run before its first step."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            model=model, data_generator=generator, data_generator_state=generator.get_state()
        )

    def as_tree(self, phase_state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a checkpoint.

        Args:
            phase_state: The state of optimizer, learning-rate scheduler and pruner.
        """
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "partial_epoch": None if self.partial is None else asdict(self.partial),
            "model": dict(self.model.state_dict()),
            "phase_state": dict(phase_state),
            "data_order": self.data_generator_state,
            "random_state": torch.get_rng_state(),
            "host_random_states": host_random_states(),
            "seconds": dict(self.clock.seconds),
            "metric_lines": self.metric_lines,
            "dense_metric": self.dense_metric,
        }

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Load the content of a checkpoint; the phase loads its own state when it starts.

        Raises:
            KeyError, RuntimeError, TypeError: The content is not that of a checkpoint of this
                network.
        """
        phase_state = dict(tree["phase_state"])
        self.model.load_state_dict(tree["model"])
        self.data_generator.set_state(tree["data_order"])
        self.data_generator_state = tree["data_order"]
        torch.set_rng_state(tree["random_state"])
        load_host_random_states(tree["host_random_states"])
        self.clock.seconds = dict(tree["seconds"])
        self.metric_lines = int(tree["metric_lines"])
        self.dense_metric = tree["dense_metric"]
        self.phase, self.epoch = tree["phase"], int(tree["epoch"])
        partial = tree["partial_epoch"]
        self.partial = None if partial is None else PartialEpoch(**partial)
        self.phase_state = phase_state
