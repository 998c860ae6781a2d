"""The checkpoints of a run: the newest one, and the one before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunus._utils.files import link_or_copy, load_tree, save_tree
from prunus.errors import CheckpointError

__all__ = ["Checkpoints"]


class Checkpoints:
    """The states that a run resumes from.

    Args:
        folder: The folder of the files.

    Attributes:
        folder: The folder of the files.
        last: The newest checkpoint, replaced after every epoch.
        previous: The checkpoint before that, because a crash may damage the newest one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = folder / "last.safetensors"
        self.previous = folder / "previous.safetensors"

    def __bool__(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, and keep the previous one.

        Raises:
            PrunusError: It cannot be written; the two previous ones are intact.
        """
        save_tree(self.last, state, previous=self.previous)

    def peek(self) -> dict[str, Any]:
        """Return the newest undamaged checkpoint, and change no file.

        Raises:
            CheckpointError: There is none.
        """
        try:
            return load_tree(self.last)
        except CheckpointError:
            if not self.previous.exists():
                raise
            return load_tree(self.previous)

    def load(self, report: Callable[[str], None]) -> dict[str, Any]:
        """Return the newest checkpoint, or the previous one if the newest is damaged.

        Args:
            report: Receives a message if it is the previous one.

        Raises:
            CheckpointError: There is none, or both are damaged.
        """
        try:
            return load_tree(self.last)
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            try:
                state = load_tree(self.previous)
            except CheckpointError as other:
                raise CheckpointError(
                    f"{error}; the previous one cannot be used either: {other}"
                ) from other
            report(f"{error}. Resuming from the previous one")
        # Else the damaged one would become the previous one of the next.
        link_or_copy(self.previous, self.last)
        return state
