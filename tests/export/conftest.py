"""A finished run that the tests of exports share."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import SHORT, prunus


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of the digits, sparse enough that neurons of it are dead."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = (*SHORT, "--set", "floor=none", "--set", "fraction=0.8")
    assert prunus("run", "digits", *options, "--out", out).code == 0
    return out
