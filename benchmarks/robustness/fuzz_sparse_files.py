"""Fuzzing of the sparse file reader: one clear error per damaged file, in little time and memory.

Valid files are damaged at random, in their bytes and in the entries of their headers, and read. The
address space of the process is limited to its size before the first file and twice ``max_bytes``,
so that a larger allocation fails and ends the benchmark. Run from the repository's root:
``python -m benchmarks.robustness.fuzz_sparse_files``
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import RESULTS, save
from benchmarks.robustness.damaged_files import damaged, read_all, valid_files

MAX_BYTES = 1 << 26
"""The largest size of the tensors to read: 64 MiB."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = RESULTS / "fuzz_sparse_files.json"
    parser.add_argument("--files", type=int, default=120_000, help="default: 120,000")
    parser.add_argument("--seed", type=int, default=1, help="draws the damage; default: 1")
    parser.add_argument("--out", type=Path, default=out, help="default: beside the benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, path = valid_files(Path(folder)), Path(folder) / "file"
        # Read some before the limit is set: libraries are loaded on first use.
        read_all(damaged(files, 200, seed=0), path, MAX_BYTES)
        allowed = _address_space() + 2 * MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        outcomes = read_all(damaged(files, arguments.files, arguments.seed), path, MAX_BYTES)
    figures = {
        "limit_bytes": MAX_BYTES,
        "memory_allowed_on_top_bytes": 2 * MAX_BYTES,
        "files": arguments.files,
        "outcomes": dict(outcomes.counts),
        "slowest_seconds": outcomes.slowest,
    }
    print(figures)
    save(arguments.out, arguments.seed, figures)


def _address_space() -> int:
    """Return the size of the process's address space in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
