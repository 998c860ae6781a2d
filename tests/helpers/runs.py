"""Interrupting runs at chosen optimizer steps, and comparing the files of two runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.commands import contents, metrics, summary
from prunus._utils.files import load_tree

# Removes much at once and ends below the floor, so that the delivered state has to be chosen.
HARD: dict[str, Any] = {
    "dense_epochs": 4,
    "epochs": 8,
    "fraction": 0.6,
    "ratio": 200,
    "floor": "dense-0.02",
}


def timeless(value: Any) -> Any:
    """Remove times, and make tensors comparable."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1)
        return (str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
    return value


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs wrote the same files, up to times."""
    assert contents(one).keys() == contents(other).keys()
    assert timeless(metrics(one)) == timeless(metrics(other))
    assert timeless(summary(one)) == timeless(summary(other))
    last = "checkpoints/last.safetensors"
    assert timeless(load_tree(one / last)) == timeless(load_tree(other / last))
    for name in ("checkpoints/dense.safetensors", "model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class KilledError(BaseException):
    """A simulated kill: no code catches it, but cleanup runs as on any exception."""


def at_step(number: int, error: type[BaseException]) -> contextlib.AbstractContextManager[None]:
    """Raise an error after an optimizer step, counted from the start of the block."""

    def fail() -> None:
        raise error

    return _called_at_step(number, fail)


def terminated_at_step(number: int) -> contextlib.AbstractContextManager[None]:
    """Send this process SIGTERM after an optimizer step, counted from the start of the block."""
    return _called_at_step(number, lambda: os.kill(os.getpid(), signal.SIGTERM))


@contextlib.contextmanager
def _called_at_step(number: int, call: Callable[[], None]) -> Iterator[None]:
    steps = itertools.count(1)

    def count(*_: Any) -> None:
        if next(steps) == number:
            call()

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()
