"""Fixtures of the tests of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import prunus, settings
from helpers.runs import HARD


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caches of the libraries in the directory of the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache" / name))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def finished_hard_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits with the settings HARD; to be copied before it is changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert prunus("run", "digits", *settings(**HARD), "--out", path).code == 0
    return path
