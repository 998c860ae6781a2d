"""Marks on the types of settings: what a setting affects, and which settings it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from prunus.recipes.setting_values import describe_choices

__all__ = ["Affects", "NotWith", "OnlyWith"]


class Affects(Enum):
    """A result of a run that depends on the marked setting.

    Example:
        >>> from typing import Annotated
        >>> batch_size: Annotated[int, Affects.DENSE_NETWORK] = 32
    """

    DENSE_NETWORK = "the dense network"
    TEACHER_OUTPUTS = "the teacher outputs"


@dataclass(frozen=True)
class NotWith:
    """A condition of the marked setting, which has no effect with one value of another setting.

    Attributes:
        setting: The name of the other setting.
        value: Its value with which the marked one has no effect.

    Example:
        >>> NotWith("strength", "auto").problem("strength_schedule", "auto")
        'strength_schedule has no effect with strength=auto: set another strength, or leave it out'
        >>> NotWith("strength", "auto").problem("strength_schedule", 0.1)
    """

    setting: str
    value: object

    def problem(self, name: str, value: object) -> str | None:
        """Return why a setting has no effect, or None if it has one.

        Args:
            name: The name of the marked setting.
            value: The value of the other setting.
        """
        if value != self.value:
            return None
        return (
            f"{name} has no effect with {self.setting}={value}: set another {self.setting}, or "
            "leave it out"
        )


@dataclass(frozen=True)
class OnlyWith:
    """A condition of the marked setting, which has an effect only with some values of another one.

    Attributes:
        setting: The name of the other setting.
        values: Its values with which the marked one has an effect.

    Example:
        >>> OnlyWith("schedule", ("iterative",)).problem("fraction", "gradual")
        'fraction has no effect with schedule=gradual: set schedule=iterative, or leave it out'
        >>> OnlyWith("schedule", ("iterative",)).problem("fraction", "iterative")
    """

    setting: str
    values: tuple[str, ...]

    def problem(self, name: str, value: str) -> str | None:
        """Return why a setting has no effect, or None if it has one.

        Args:
            name: The name of the marked setting.
            value: The value of the other setting.
        """
        if value in self.values:
            return None
        return (
            f"{name} has no effect with {self.setting}={value}: set "
            f"{self.setting}={describe_choices(self.values)}, or leave it out"
        )
