"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The networks here are so small that several threads would be slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of the digits, so sparse that some neurons are dead."""
    from helpers.commands import SHORT, prunus  # takes a second to import, and few tests need it

    out = tmp_path_factory.mktemp("runs") / "run"
    options = (*SHORT, "--set", "floor=none", "--set", "fraction=0.8")
    assert prunus("run", "digits", *options, "--out", out).code == 0
    return out
