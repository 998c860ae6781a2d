"""A log of a run for TensorBoard, written from the run's own history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunus._utils.extras import missing_extra
from prunus._utils.files import report_write_errors
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.history import read_history
from prunus.recipes.run.progress import Epoch, PhaseStart

__all__ = ["TensorBoardLog", "scalars", "summary_writer"]


class TensorBoardLog:
    """Progress of a run as scalars in the folder ``tensorboard`` of the run.

    The log is written again from metrics.jsonl when a run starts or resumes, so that it has each
    epoch once, wherever the run was interrupted. A step is an epoch, counted through both phases.

    Args:
        directory: The directory of the run.

    Raises:
        MissingExtraError: The extra "tensorboard" is not installed.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.folder: Path = directory.path / "tensorboard"
        self._new_writer, self._directory = summary_writer(), directory
        self._writer: Any = None
        self._metric = ""
        self._started = 0.0
        self._last: Epoch | None = None
        self._step = 0

    def begin(self, phase: PhaseStart) -> None:
        """Write the epochs that the run has already."""
        if self._writer is None:
            self.write_history(phase.metric)

    def epoch(self, epoch: Epoch) -> None:
        """Write an epoch."""
        self._write(epoch)
        with report_write_errors(self.folder):
            self._writer.flush()

    def step(self) -> None:
        """Write nothing: a log has epochs alone."""

    def report(self, message: str) -> None:
        """Write nothing: the terminal has the messages."""

    def write_history(self, metric: str) -> None:
        """Replace the log by the epochs in metrics.jsonl.

        Args:
            metric: The name of the validation metric.
        """
        self.close()
        epochs = read_history(self._directory.metrics_file)
        self._metric, self._last, self._step = metric, None, 0
        self._started = time.time() - (epochs[-1].seconds if epochs else 0.0)
        with report_write_errors(self.folder):
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
            # A TensorBoard that is open drops what it has read of the files before.
            self._writer = self._new_writer(str(self.folder), purge_step=1)
        for epoch in epochs:
            self._write(epoch)
        with report_write_errors(self.folder):
            self._writer.flush()

    def write_history_once(self, metric: str) -> None:
        """Write the history of a run that was complete before, and so did not begin."""
        if self._writer is None:
            self.write_history(metric)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, epoch: Epoch) -> None:
        self._step += 1
        for name, value in scalars(epoch, self._last, self._metric):
            self._writer.add_scalar(name, value, self._step, walltime=self._started + epoch.seconds)
        self._last = epoch


def summary_writer() -> Any:
    """Return torch's class that writes logs.

    Raises:
        MissingExtraError: The extra "tensorboard" is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("--log tensorboard", "tensorboard", error) from error
    return SummaryWriter


def scalars(epoch: Epoch, before: Epoch | None, metric: str) -> Iterator[tuple[str, float]]:
    """Yield the names and values that a log has of an epoch.

    Args:
        epoch: The epoch.
        before: The epoch before it; None for the first.
        metric: The name of the validation metric.
    """
    yield f"validation/{metric}", epoch.validation
    for name, value in epoch.extra_metrics.items():
        yield f"validation/{name}", value
    yield "loss/training", epoch.loss
    yield "loss/validation", epoch.validation_loss
    yield "sparsity", epoch.sparsity
    if epoch.floor is not None:
        yield "floor", epoch.floor
    if epoch.lr is not None:
        yield "learning_rate", epoch.lr
    if epoch.predicted_cost is not None:
        yield "cost/predicted", epoch.predicted_cost
        # After a return to the best state the losses are of different networks.
        if before is not None and before.phase == epoch.phase and not before.restored:
            yield "cost/measured", epoch.validation_loss - before.validation_loss
