"""Some thousand damaged files; ``benchmarks/robustness/fuzz_sparse_files.py`` reads more."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from benchmarks.robustness.damaged_files import damaged, read_all, valid_files


@pytest.mark.slow
def test_damaged_files_are_read_or_raise_sparse_file_error(tmp_path: Path) -> None:
    files, max_bytes = valid_files(tmp_path), 1 << 20
    valid = read_all(files[:-1], tmp_path / "file", max_bytes)
    assert valid.counts == {"read": 16}
    outcomes = read_all(damaged(files, 2000, seed=0), tmp_path / "file", max_bytes)
    # Files with other values are valid files.
    assert outcomes.counts["refused"] > 1000
    assert outcomes.counts["read"] > 100


def test_reading_damaged_files_allocates_bounded_memory(tmp_path: Path) -> None:
    files, max_bytes = valid_files(tmp_path), 1 << 20
    # Read some before memory is traced: libraries are loaded on first use.
    read_all(damaged(files, 20, seed=1), tmp_path / "file", max_bytes)
    tracemalloc.start()
    try:
        read_all(damaged(files, 300, seed=0), tmp_path / "file", max_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Positions are decoded in blocks of 8 MiB, whatever the limit; two blocks exist at a time.
    assert peak < 16 * (1 << 20) + 8 * max_bytes
