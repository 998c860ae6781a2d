"""The global random numbers of torch, Python and NumPy: seeds, and states to save and restore."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["SeparateStates", "host_random_states", "load_host_random_states", "seed_all", "seeded"]


def seed_all(seed: int) -> None:
    """Seed the global random numbers of torch, Python and NumPy.

    Args:
        seed: The seed, from 0 to 2**64 - 1.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed % 2**32, seed // 2**32])


def host_random_states() -> dict[str, Any]:
    """Return the states of Python's and NumPy's global random numbers, as a checkpoint holds them.

    Example:
        >>> states = host_random_states()
        >>> drawn = random.random(), np.random.rand()
        >>> load_host_random_states(states)
        >>> drawn == (random.random(), np.random.rand())
        True
    """
    version, numbers, spare = random.getstate()
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), spare],
        "numpy": [[int(key) for key in keys], int(place), int(has_gauss), float(gauss)],
    }


def load_host_random_states(states: Mapping[str, Any]) -> None:
    """Load what :func:`host_random_states` returned.

    Raises:
        KeyError, TypeError, ValueError: The states are damaged.
    """
    version, numbers, spare = states["python"]
    random.setstate((version, tuple(numbers), spare))
    keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, gauss))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all global random numbers within the block; restore their states after it.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(first, torch.rand(2))
        True
    """
    with _restored():
        seed_all(seed)
        yield


class SeparateStates:
    """Random numbers of their own for some calls, which neither read nor change the global ones.

    Each block continues where the previous one ended.

    Args:
        seed: Their seed.

    Example:
        >>> own = SeparateStates(3)
        >>> with own:
        ...     first = torch.rand(1)
        >>> with own:
        ...     second = torch.rand(1)
        >>> with seeded(3):
        ...     torch.equal(torch.cat([first, second]), torch.cat([torch.rand(1), torch.rand(1)]))
        True
    """

    def __init__(self, seed: int) -> None:
        with seeded(seed):
            self._own = _states()
        self._global: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        self._global = _states()
        _load(self._own)

    def __exit__(self, *_: object) -> None:
        assert self._global is not None
        self._own = _states()
        _load(self._global)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore the global states after the block."""
    states = _states()
    try:
        yield
    finally:
        _load(states)


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _load(states: tuple[Any, ...]) -> None:
    of_torch, of_python, of_numpy = states
    torch.set_rng_state(of_torch)
    random.setstate(of_python)
    np.random.set_state(of_numpy)
