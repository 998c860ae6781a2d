"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from helpers.planted_timings import plant_timings


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant times by which every sparse variant is faster than the dense one."""
    plant_timings(monkeypatch, [1.0], [0.6], [0.7])
