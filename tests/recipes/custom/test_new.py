"""The recipe file that ``prunus new`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import prunus, summary
from prunus.recipes.registry import find_recipe


def test_new_recipe_is_written_under_the_name_of_a_python_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = prunus("new", "mine")
    assert outcome.code == 0
    assert outcome.out == "written to mine.py\ntry it: prunus run mine.py\n"
    assert "# prunus run mine.py  " in (tmp_path / "mine.py").read_text()
    config = find_recipe("mine.py").config
    assert config.as_dict()["width"] == 8
    assert prunus("new", "other.py").code == 0
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["mine.py", "other.py"]


def test_new_recipe_overwrites_no_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    prunus("new", tmp_path / "mine").refused(f"{path} exists already: choose another name")
    assert path.read_text() == "x = 1\n"
    prunus("new", tmp_path / "absent" / "mine").refused(
        f"cannot write {tmp_path / 'absent' / 'mine.py'}: No such file or directory"
    )


@pytest.mark.slow
def test_new_recipe_runs_as_it_is_and_reaches_its_ratio(tmp_path: Path) -> None:
    path, run = tmp_path / "mine.py", tmp_path / "run"
    assert prunus("new", path).code == 0
    assert prunus("run", path, "--out", run).code == 0
    result = summary(run)
    assert result["metric"] == {"name": "accuracy", "mode": "max"}
    assert result["compression_ratio"] >= 10
    assert result["sparse"]["test"] > 0.9
    assert prunus("export", run, "--to", "compact").code == 0
