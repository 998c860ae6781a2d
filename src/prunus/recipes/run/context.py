"""The fixed parts of a run: its settings, task, directory and callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from prunus._engine.counts import full_counts, least_kept
from prunus._engine.preconditions import bound_allocation
from prunus.errors import ArgumentError, NonFiniteError, PrunusError
from prunus.patterns.binding import bind
from prunus.recipes.config import Config
from prunus.recipes.recipe import Recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.progress import Progress
from prunus.recipes.setting_values import describe_choices
from prunus.recipes.tasks.task import Evaluation, Task
from prunus.selection import Selection, total_parameters

if TYPE_CHECKING:
    from prunus.recipes.run.phases import Phase

__all__ = ["RunContext", "Stopped", "weights_to_keep"]


class Stopped(Exception):  # noqa: N818 - not an error: the caller asked for it
    """The run was asked to stop, has saved its state, and can be resumed."""


@dataclass(frozen=True)
class RunContext:
    """The fixed parts of a run.

    Attributes:
        recipe: The recipe.
        config: Its settings.
        directory: The directory to write to.
        progress: Receives progress callbacks.
        task: The task.
        identity: Recipe, seed, data, donor of the dense network, and settings: two runs with the
            same identity and data have the same result.
        selection: The prunable tensors of the network that is trained.
        kept: The number of prunable weights to keep in the end.
        stop: Returns whether the run is asked to stop.
    """

    recipe: Recipe
    config: Config
    directory: RunDirectory
    progress: Progress
    task: Task
    identity: dict[str, Any]
    selection: Selection
    kept: int
    stop: Callable[[], bool]

    def validate(self, model: nn.Module, phase: Phase | type[Phase], epoch: int) -> Evaluation:
        """Evaluate a network on the validation split after an epoch, and report its samples.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        evaluation = self.task.validate(model)
        # The last step of an epoch may have broken the network after the last training loss.
        self.check_finite(evaluation.loss, phase, epoch * self.task.steps_per_epoch)
        for line in evaluation.samples:
            self.progress.report(line)
        return evaluation

    def check_finite(self, loss: float, phase: Phase | type[Phase], step: int) -> None:
        """Check the loss of a step, counted from 1 within its phase.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        if math.isfinite(loss):
            return
        epoch = math.ceil(step / self.task.steps_per_epoch)
        raise NonFiniteError(
            f"the loss is {loss} at step {step} (epoch {epoch}) of the {phase.name} training: "
            f"lower {phase.lr_settings}. The checkpoint of the last whole epoch, if any, is kept "
            f"in {self.directory.path}"
        )


def weights_to_keep(config: Config, model: nn.Module, selection: Selection) -> int:
    """Return the number of prunable weights to keep for the compression ratio in the settings.

    Raises:
        PrunusError: The ratio cannot be reached with these settings.
    """
    total, prunable = total_parameters(model), selection.prunable
    if not config.ratio:
        return prunable
    kept = math.floor(total / config.ratio) - (total - prunable)
    guarded = sum(least_kept(tensor.prunable, config.min_density) for tensor in selection.values())
    least = max(1, guarded)
    if kept < least:
        remaining = total - prunable + least
        # Rounded down, so that the stated ratio itself can be reached.
        largest = math.floor(10 * total / remaining) / 10
        fixes = ["lower ratio"]
        if not config.biases:
            fixes.append("set biases=true")
        if config.min_density:
            fixes.append("lower min_density")
        raise PrunusError(
            f"ratio={config.ratio:g} cannot be reached: with biases={config.biases} and "
            f"min_density={config.min_density:g} at least {remaining:,} of {total:,} parameters "
            f"stay, so the largest possible ratio is {largest:.1f}: {describe_choices(fixes)}"
        )
    return kept


def check_pattern(
    config: Config, model: nn.Module, selection: Selection, kept: int, *, steps: int
) -> int:
    """Check that the pattern in the settings fits the network; return how many weights to keep.

    That is a little more than the ratio asks for where n:m leaves smaller groups at the end of
    rows.

    Args:
        config: The settings.
        model: The network.
        selection: Its prunable tensors.
        kept: How many weights to keep for the ratio.
        steps: The number of optimizer steps in the pruning epochs.

    Raises:
        ArgumentError: The pattern does not fit a tensor, the ratio or ``min_density``.
    """
    patterns = bind(config.make_pattern(), model, selection)
    if not patterns:
        return kept
    schedule = config.make_schedule(kept=kept, prunable=selection.prunable, steps=steps)
    allocation = config.make_allocation()
    try:
        bound_allocation(allocation, model, selection, config.min_density, schedule, patterns)
    except ArgumentError as error:
        settings = f"ratio={config.ratio:g} with pattern={config.pattern}"
        raise ArgumentError(f"{settings} cannot be reached: {error}") from None
    if not config.ratio:
        return kept
    fewest = {name: pattern.fewest for name, pattern in patterns.items()}
    counts = full_counts(selection, config.min_density)
    return max(kept, sum(max(tensor.least, fewest.get(tensor.name, 0)) for tensor in counts))
