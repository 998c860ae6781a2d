"""The progress of a run on the terminal: a live bar, and plain lines of epochs."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from prunus._utils.digits import format_metric
from prunus._utils.durations import format_duration
from prunus.cli.screen import Screen
from prunus.constraint import Constraint
from prunus.recipes.run.progress import Epoch, PhaseStart

__all__ = ["TerminalProgress"]

LINE_SECONDS = 5.0
"""After this time the line of the next epoch is printed in any case."""


class TerminalProgress:
    """Shows the progress of a run: a live bar on a terminal, and plain lines of epochs.

    Of short epochs not every line is printed: each twentieth of the epochs has one, the first and
    the last too, and otherwise one is printed after five seconds. All epochs are in metrics.jsonl.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase: PhaseStart | None = None
        self._started = 0.0
        # Of the last line that was printed.
        self._line_epoch, self._line_time = 0, 0.0

    def begin(self, phase: PhaseStart) -> None:
        """Start the progress bar of a phase."""
        self.close()
        self._phase, self._started = phase, time.perf_counter()
        self._line_epoch, self._line_time = 0, self._started
        resumed = f", resuming after epoch {phase.epochs_done}" if phase.epochs_done else ""
        epochs = "1 epoch" if phase.epochs == 1 else f"{phase.epochs} epochs"
        self._screen.print(f"[bold]{phase.name}[/bold]: {epochs}{resumed}")
        if self._screen.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}% {task.fields[left]}"),
                console=self._screen,
                transient=True,
            )
            self._task = self._bar.add_task(
                phase.name,
                total=phase.epochs * phase.steps_per_epoch,
                completed=phase.epochs_done * phase.steps_per_epoch,
                left="",
            )
            self._bar.start()

    def step(self) -> None:
        """Advance the bar by one step."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def epoch(self, epoch: Epoch) -> None:
        """Update the time left, and print the line of an epoch if one is due."""
        phase, now = self._phase, time.perf_counter()
        assert phase is not None
        per_epoch = (now - self._started) / (epoch.epoch - phase.epochs_done)
        left = f"{format_duration(per_epoch * (phase.epochs - epoch.epoch))} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, left=left)
        if self._is_due(epoch.epoch, phase, now):
            self._line_epoch, self._line_time = epoch.epoch, now
            self._print_line(epoch, phase, left)

    def _is_due(self, epoch: int, phase: PhaseStart, now: float) -> bool:
        """Return whether the line of an epoch is to be printed."""
        first_or_last = not self._line_epoch or epoch == phase.epochs
        twentieth = 20 * epoch // phase.epochs > 20 * self._line_epoch // phase.epochs
        return first_or_last or twentieth or now - self._line_time >= LINE_SECONDS

    def _print_line(self, epoch: Epoch, phase: PhaseStart, left: str) -> None:
        parts = [
            f"epoch {epoch.epoch:>{len(str(phase.epochs))}}/{phase.epochs}",
            f"loss {format_metric(epoch.loss)}",
            f"validation {phase.metric} {format_metric(epoch.validation)}",
            *(f"{name} {value:.4g}" for name, value in epoch.extra_metrics.items()),
        ]
        if phase.constraint is not None:
            if phase.constraint.floor is not None:
                parts.append(compare_with_bound(phase.constraint, epoch.validation))
            parts.append(f"sparsity {epoch.sparsity:.4f}")
            parts += describe_pruning(epoch)
        self._screen.print("  " + "  ".join([*parts, left]), highlight=False, soft_wrap=True)

    def report(self, message: str) -> None:
        """Print a message."""
        self._screen.message(message)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe_pruning(epoch: Epoch) -> list[str]:
    """Return what the penalty did in an epoch, and what the last removals were expected to cost.

    Example:
        >>> from prunus import PenaltyReport
        >>> report = PenaltyReport(
        ...     mean_coefficient=0.13, irrelevant=0.1, shrink=1.5e-3, weight_decay=1e-5
        ... )
        >>> describe_pruning(Epoch("prune", 1, 0.5, 0.5, 0.9, {}, penalty=report))
        ['irrelevant 10%', 'shrink 1.5e-03']
        >>> describe_pruning(Epoch("prune", 1, 0.5, 0.5, 0.9, {}, predicted_cost=0.0123))
        ['predicted cost 0.0123']
    """
    parts = []
    if (report := epoch.penalty) is not None:
        parts.append(f"irrelevant {report.irrelevant:.0%}")
        if report.shrink is not None:
            parts.append(f"shrink {report.shrink:.1e}")
    if epoch.predicted_cost is not None:
        parts.append(f"predicted cost {epoch.predicted_cost:.3g}")
    return parts


def compare_with_bound(constraint: Constraint, metric: float) -> str:
    """Return the bound of a constraint, after the sign that tells whether the metric meets it.

    Example:
        >>> compare_with_bound(Constraint(0.9), 0.95), compare_with_bound(Constraint(0.9), 0.85)
        ('≥ floor 0.9000', '< floor 0.9000')
        >>> compare_with_bound(Constraint(2.5, mode="min"), 2.4)
        '≤ ceiling 2.5000'
    """
    name = constraint.bound_name
    unmet, met = {"floor": ("<", "≥"), "ceiling": (">", "≤")}[name]
    return f"{met if constraint.met(metric) else unmet} {name} {format_metric(constraint.bound)}"
