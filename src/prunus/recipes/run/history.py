"""The history of a run: the epochs in its metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

from prunus.errors import CheckpointError
from prunus.recipes.run.progress import Epoch
from prunus.recipes.run.state import PhaseName

__all__ = ["read_history"]


def read_history(file: Path) -> list[Epoch]:
    """Return the epochs in a file of metrics; none if there is no such file.

    NaN and null are read as NaN. A last line without an end is one that another process is writing,
    and is left out. Keys that an older version did not write have their defaults, and unknown ones
    are ignored.

    Args:
        file: The metrics.jsonl of a run.

    Raises:
        CheckpointError: Lines are damaged; every one is listed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> line = '{"phase": "dense", "epoch": 1, "loss": 0.5, "validation_loss": 0.6, '
        >>> _ = file.write_text(line + '"validation": NaN}' + chr(10) + line)
        >>> [(epoch.epoch, epoch.loss, epoch.validation) for epoch in read_history(file)]
        [(1, 0.5, nan)]
    """
    if not file.exists():
        return []
    epochs, problems = [], []
    *lines, _ = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(_epoch(json.loads(line)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            problems.append(f"line {number}: {reason}")
    if problems:
        more = f"; and {len(problems) - 5} more lines" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{file} is damaged: {'; '.join(problems[:5])}{more}. Restore it from a copy"
        )
    return epochs


def _epoch(record: Any) -> Epoch:
    """Return the epoch of a line."""
    if not isinstance(record, dict):
        raise TypeError(f"it must be an object, but is {record!r}")
    phases = get_args(PhaseName)
    if record["phase"] not in phases:
        raise ValueError(f"phase must be one of {', '.join(phases)}, but is {record['phase']!r}")
    extra = record.get("extra_metrics") or {}
    if not isinstance(extra, dict):
        raise TypeError(f"extra_metrics must be an object, but is {extra!r}")
    return Epoch(
        phase=record["phase"],
        epoch=int(_number("epoch", record["epoch"])),
        loss=_measured("loss", record["loss"]),
        validation_loss=_measured("validation_loss", record["validation_loss"]),
        validation=_measured("validation", record["validation"]),
        extra_metrics={name: _measured(name, value) for name, value in extra.items()},
        floor=_optional("floor", record.get("floor")),
        sparsity=_number("sparsity", record.get("sparsity", 0.0)),
        removed=int(_number("removed", record.get("removed", 0))),
        predicted_cost=_optional("predicted_cost", record.get("predicted_cost")),
        seconds=_number("seconds", record.get("seconds", 0.0)),
        lr=_optional("lr", record.get("lr")),
        restored=record.get("restored") is True,
    )


def _measured(name: str, value: Any) -> float:
    """Return a measured value; NaN if it is None."""
    return math.nan if value is None else _number(name, value)


def _optional(name: str, value: Any) -> float | None:
    """Return a number or None."""
    return None if value is None else _number(name, value)


def _number(name: str, value: Any) -> float:
    """Return a value as a number.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    return float(value)
