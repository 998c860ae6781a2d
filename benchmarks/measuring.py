"""Options shared by the benchmarks, and result files with the circumstances of a measurement."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._utils.files import write_atomically
from prunus._utils.system_info import system_info

__all__ = ["RESULTS", "options", "rounded", "save", "thin", "write_record"]

RESULTS = Path(__file__).resolve().parent / "results"
"""Folder of the committed result files."""


def options(description: str, name: str) -> argparse.ArgumentParser:
    """Return the options that all benchmarks share; ``name`` names the result file."""
    parser = argparse.ArgumentParser(description=description)
    default = RESULTS / f"{name}.json"
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--quick", action="store_true", help="a few rounds: does it run at all?")
    parser.add_argument("--out", type=Path, default=default, help="default: %(default)s")
    return parser


@torch.no_grad()
def thin(model: nn.Module, sparsity: float) -> None:
    """Set this fraction of every matrix of a model to zero, at random places."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter[torch.rand_like(parameter) < sparsity] = 0


def save(out: Path, seed: int, figures: Mapping[str, Any], digits: int = 4) -> None:
    """Write figures to ``out`` with the command, date, seed and machine they were measured by."""
    module = sys.modules["__main__"].__spec__
    assert module is not None, "run a benchmark as a module: python -m benchmarks..."
    name = module.name.removesuffix(".__main__")
    command = ["python", "-m", name, *map(_shown, sys.argv[1:])]
    record = {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "environment": system_info(),
        **figures,
    }
    write_record(out, record, digits)


def write_record(out: Path, record: Mapping[str, Any], digits: int) -> None:
    """Write a record as JSON, its numbers rounded to ``digits`` significant digits.

    Times are worth four at most; sizes and metrics, which are exact, are written with more.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(rounded(record, digits), indent=2) + "\n").encode())


def rounded(value: Any, digits: int) -> Any:
    """Return a tree of JSON with its floating-point numbers rounded to significant digits.

    Example:
        >>> rounded({"ms": [0.0123456, 98765.4], "count": 98765}, 3)
        {'ms': [0.0123, 98800.0], 'count': 98765}
    """
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _shown(argument: str) -> str:
    """Return an argument, with an absolute path reduced to its last part."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)
