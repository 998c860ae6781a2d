"""The outputs of the dense network for the training data, from which the sparse one learns."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunus._utils.files import load_tree, save_tree
from prunus.errors import CheckpointError
from prunus.recipes.run.context import RunContext, Stopped
from prunus.recipes.run.phases import PruningPhase
from prunus.recipes.tasks.task import TeacherOutput

__all__ = ["load_or_compute"]


def load_or_compute(context: RunContext, dense: Callable[[], nn.Module]) -> list[TeacherOutput]:
    """Return the teacher outputs: from their file, or computed and written there.

    Args:
        context: The fixed parts of the run.
        dense: Returns the dense network; called only if outputs are computed.

    Returns:
        The outputs; empty where the task does not train on any.

    Raises:
        Stopped: The run was asked to stop; no outputs are saved.
    """
    path = context.directory.teacher_outputs_file
    if path.exists():
        try:
            saved: list[TeacherOutput] = load_tree(path)["teacher_outputs"]
            return saved
        except CheckpointError as error:
            context.progress.report(f"{error}: the teacher outputs are computed again")
    outputs, reported = [], -1
    for fraction, output in context.task.teacher_outputs(dense):
        outputs.append(output)
        if int(fraction * 10) > reported:
            reported = int(fraction * 10)
            context.progress.report(f"computing teacher outputs: {fraction:.0%}")
        if context.stop():
            raise Stopped(f"stopped before the first epoch ({PruningPhase.name})")
    if outputs:
        save_tree(path, {"teacher_outputs": outputs})
    return outputs
