"""One-shot pruning: all removals at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunus._utils.fields import number
from prunus.schedules.base import PruningStatus, Schedule, kept_at, removal_interval

__all__ = ["OneShot"]


@dataclass(kw_only=True)
class OneShot(Schedule):
    """Removes all weights at once that are to be removed.

    Args:
        sparsity: The fraction of removed weights.
        at: The optimizer step after which to remove; None (default) for the first validation.

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> schedule = OneShot(sparsity=0.75)
        >>> status = PruningStatus(met=True, prunable=8, kept=8)
        >>> schedule.after_validation(status), schedule.done
        (2, True)
    """

    sparsity: float = number(above=0, below=1)
    at: int | None = number(None, whole=True, least=1, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the weights were removed."""
        return self._done

    @property
    def interval(self) -> int | None:
        """A quarter of the steps before the removal; None if a validation starts it."""
        return None if self.at is None else removal_interval(self.at)

    @property
    def last_step(self) -> int | None:
        """Step ``at``; None if a validation starts the removal."""
        return self.at

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Remove if this is step ``at``."""
        return self._once(prunable) if self.at == step else None

    def after_validation(self, status: PruningStatus) -> int | None:
        """Remove at the first validation, if ``at`` is None."""
        return self._once(status.prunable) if self.at is None and not self._done else None

    def _once(self, prunable: int) -> int:
        self._done = True
        return self.final_kept(prunable)

    def final_kept(self, prunable: int) -> int:
        """Return the number that ``sparsity`` keeps."""
        return kept_at(prunable, self.sparsity)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the weights were removed."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._done = bool(state["done"])
