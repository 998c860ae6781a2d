"""Some thousand damaged files; ``benchmarks/fuzz_sparse_files.py`` reads many more."""

from __future__ import annotations

from pathlib import Path

from .fuzzing import bases, mutants, read_all


def test_damaged_files_end_in_one_clear_error(tmp_path: Path) -> None:
    files = bases(tmp_path)
    assert read_all(iter(files[:-1]), tmp_path / "file", limit=1 << 20).kinds == {"read": 12}
    outcomes = read_all(mutants(files, 2000, seed=0), tmp_path / "file", limit=1 << 20)
    # Some damage is to values, which may be anything.
    assert outcomes.kinds["refused"] > 1000
    assert outcomes.kinds["read"] > 100
    assert outcomes.slowest < 10
