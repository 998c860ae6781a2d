"""The history of a pruner: every validation that it has received."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, overload

from prunus._utils.files import write_atomically
from prunus._utils.text_table import text_table
from prunus.validation import VALIDATION_COLUMNS, PenaltyReport, Validation, validation_cells

__all__ = ["History"]


class History(Sequence[Validation]):
    """The validations of a pruner, oldest first; a read-only sequence.

    ``pruner.history`` is part of the pruner's state, so that a resumed run has it as a whole. Each
    record is some hundred bytes. ``str()`` of it is a table with a row for each validation.

    Args:
        validations: The validations to start with. Default: none.

    Example:
        >>> history = History([Validation(step=500, metric=0.98, sparsity=0.0, floor=0.97, met=True,
        ...                               best=True, removed=10, sparsity_after=0.5)])
        >>> [(validation.sparsity, validation.metric) for validation in history]
        [(0.0, 0.98)]
        >>> history.to_dicts()[0]["removed"]
        10
    """

    def __init__(self, validations: Iterable[Validation] = ()) -> None:
        self._validations = tuple(validations)

    @overload
    def __getitem__(self, place: int) -> Validation: ...

    @overload
    def __getitem__(self, place: slice) -> History: ...

    def __getitem__(self, place: int | slice) -> Validation | History:
        if isinstance(place, slice):
            return History(self._validations[place])
        return self._validations[place]

    def __len__(self) -> int:
        return len(self._validations)

    def __iter__(self) -> Iterator[Validation]:
        return iter(self._validations)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._validations == other._validations

    def __hash__(self) -> int:
        return hash(self._validations)

    def __repr__(self) -> str:
        if not self._validations:
            return "History(no validations)"
        last = self._validations[-1]
        return (
            f"History({len(self)} validations, the last at step {last.step:,}: metric "
            f"{last.metric}, sparsity {last.sparsity:.4f})"
        )

    def __str__(self) -> str:
        if not self._validations:
            return "no validations"
        rows = [validation_cells(validation) for validation in self._validations]
        return text_table(VALIDATION_COLUMNS, rows, text_columns=0)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dictionary of plain values for each validation, with equal keys.

        The values of the penalty stand beside the others; they are None where it has none.
        """
        return [_flat(validation) for validation in self._validations]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with a row for each validation; an empty cell is a value that is None.

        Args:
            path: The file to write or replace.

        Raises:
            PrunusError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, [*_OWN, *_PENALTY], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_dicts())
        write_atomically(Path(path), text.getvalue().encode())

    def to_json(self) -> str:
        """Return the validations as JSON, from which :meth:`from_json` restores every bit."""
        return json.dumps([asdict(validation) for validation in self._validations])

    @classmethod
    def from_json(cls, text: str) -> History:
        """Return the history that :meth:`to_json` returned as text.

        Raises:
            ValueError: It is not JSON.
            TypeError: It is not the JSON of a history.
            KeyError: A value is missing.
        """
        return cls(
            Validation(**{**record, "penalty": _penalty(record["penalty"])})
            for record in json.loads(text)
        )


def _penalty(record: dict[str, Any] | None) -> PenaltyReport | None:
    return None if record is None else PenaltyReport(**record)


_OWN = [field.name for field in fields(Validation) if field.name != "penalty"]

_PENALTY = [field.name for field in fields(PenaltyReport)]


def _flat(validation: Validation) -> dict[str, Any]:
    own = {name: getattr(validation, name) for name in _OWN}
    return own | {name: getattr(validation.penalty, name, None) for name in _PENALTY}
