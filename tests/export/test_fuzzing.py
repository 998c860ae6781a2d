"""Some thousand damaged files; ``benchmarks/robustness/fuzz_sparse_files.py`` reads more."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from benchmarks.robustness.damaged_files import bases, mutants, read_all


def test_damaged_files_are_read_or_raise_sparse_file_error(tmp_path: Path) -> None:
    files, limit = bases(tmp_path), 1 << 20
    assert read_all(iter(files[:-1]), tmp_path / "file", limit=limit).kinds == {"read": 12}
    outcomes = read_all(mutants(files, 2000, seed=0), tmp_path / "file", limit=limit)
    # Some damage is to values, which may be anything.
    assert outcomes.kinds["refused"] > 1000
    assert outcomes.kinds["read"] > 100


def test_reading_damaged_files_allocates_bounded_memory(tmp_path: Path) -> None:
    files, limit = bases(tmp_path), 1 << 20
    read_all(mutants(files, 20, seed=1), tmp_path / "file", limit=limit)  # loads libraries
    tracemalloc.start()
    try:
        read_all(mutants(files, 300, seed=0), tmp_path / "file", limit=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Positions are decoded in blocks of 8 MiB, whatever the limit; two of them are held at a time.
    assert peak < 16 * (1 << 20) + 8 * limit
