"""The hooks on the steps of all optimizers, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prunus._engine.observation import GradientObserver
from prunus._engine.optimizer_hooks import OptimizerHooks, StepParts
from prunus._engine.optimizers import Optimizers
from prunus._engine.penalty_probe import PenaltyProbe
from prunus._engine.state_errors import state_error
from prunus._engine.step_state import StepState
from prunus._engine.update_probe import UpdateProbe
from prunus._utils.checks import number_problem, raise_problems
from prunus.growth import GrowthRule
from prunus.masks import Masks
from prunus.penalties.application import Application, Strengths
from prunus.penalties.averages import MagnitudeAverages
from prunus.penalties.relevance import RelevancePenalty
from prunus.scores import Score

__all__ = ["StepHooks"]


class StepHooks:
    """The hooks on the optimizers' steps that apply penalty and masks and feed the score.

    Before a step the score observes the gradients of the loss, they are clipped if a limit is set,
    the penalty's gradient is added, and the gradients of removed weights are zeroed. After it the
    decoupled penalty is applied, and removed weights are set to exactly 0.0 again, whatever the
    optimizer did. Each optimizer's step concerns its own tensors.

    A step counts once every optimizer has taken at least one, so that removals come after the last
    of them.

    Args:
        model: The model whose parameters the optimizers hold.
        optimizers: The optimizers.
        masks: The masks of the prunable tensors.
        penalty: The penalty, or None.
        score: The score.
        growth: The rule of growth.
        max_grad_norm: Maximum norm of all gradients of an optimizer, or None.
        strengths: Returns γ of each tensor at the moment of the call.
        update_probe: Measures the updates. Default None, for a strength that does not ask for it.
        steps_since_pruning: Returns the number of steps since the last removal.
        optimizer_stepped: Called after each step that an optimizer has taken and not skipped, with
            its index.
        stepped: Called when a step counts.

    Attributes:
        application: The penalty's application, or None without a penalty.
        probe: Measures what the penalty does; None without a penalty.
        observer: The gradient observer, which stores the score's memory.
        state: Saves and restores what is remembered from step to step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Optimizers,
        masks: Masks,
        penalty: RelevancePenalty | None,
        score: Score,
        growth: GrowthRule,
        *,
        max_grad_norm: float | None,
        strengths: Strengths,
        update_probe: UpdateProbe | None = None,
        steps_since_pruning: Callable[[], int],
        optimizer_stepped: Callable[[int], None],
        stepped: Callable[[], None],
    ) -> None:
        selection = masks.selection
        self.application: Application | None = (
            None if penalty is None else penalty.application(penalty.formula, selection, strengths)
        )
        self.probe = None if penalty is None else PenaltyProbe(penalty, optimizers, selection)
        self.observer = GradientObserver(score, selection)
        averages = MagnitudeAverages(
            0.0 if penalty is None else penalty.smoothing, sharded=selection.process_group.sharded
        )
        self.state = StepState(selection, self.observer, averages, self.application, growth)
        self._optimizer_stepped = optimizer_stepped
        self._stepped = stepped
        self._waiting = [0] * len(optimizers)
        parts = StepParts(
            model,
            masks,
            self.application,
            self.probe,
            update_probe,
            self.observer,
            averages,
            growth,
            strengths,
            steps_since_pruning,
        )
        self._hooks = [
            OptimizerHooks(
                optimizers, index, parts, max_grad_norm=max_grad_norm, stepped=self._count
            )
            for index in range(len(optimizers))
        ]

    @property
    def waiting(self) -> list[int]:
        """For each optimizer, 1 if it has taken a step since the last one that counted, else 0."""
        return list(self._waiting)

    def check_waiting(self, waiting: object) -> None:
        """Check that :meth:`load_waiting` can load a value.

        Raises:
            CheckpointError: It is not the :attr:`waiting` of as many optimizers.
        """
        count = len(self._waiting)
        if not isinstance(waiting, list | tuple) or len(waiting) != count:
            found = f"of {len(waiting)}" if isinstance(waiting, list | tuple) else repr(waiting)
            raise state_error(
                f"waiting must be a list of {count} counts, one for each optimizer of this pruner, "
                f"but is {found}"
            )
        raise_problems(
            *(number_problem("waiting", value, whole=True, least=0, most=1) for value in waiting),
            error=state_error,
        )

    def load_waiting(self, waiting: Sequence[int]) -> None:
        """Load what :attr:`waiting` was."""
        self._waiting = [int(value) for value in waiting]

    def remove(self) -> None:
        """Remove the hooks from the optimizers."""
        for hooks in self._hooks:
            hooks.remove()

    def _count(self, index: int) -> None:
        self._optimizer_stepped(index)
        self._waiting[index] = 1
        if all(self._waiting):
            self._waiting = [0] * len(self._waiting)
            self._stepped()
