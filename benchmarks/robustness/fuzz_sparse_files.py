"""Read a great many damaged sparse files: one clear error each, no crash, no hang, little memory.

The files are whole ones with damage at random, to their bytes and to what their headers say. They
are read in a process that may not take more memory than twice the declared limit on top of what it
takes before the first, so that whoever asks for more is caught. Run from the repository's root:
``python -m benchmarks.robustness.fuzz_sparse_files``
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import RESULTS, save
from benchmarks.robustness.damaged_files import bases, mutants, read_all

LIMIT = 1 << 26
"""Bytes, 64 MiB: what the tensors of a file may come to."""


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
        files, path = bases(Path(folder)), Path(folder) / "file"
        read_all(mutants(files, 200, seed=0), path, LIMIT)  # whatever libraries load only now
        allowed = _taken() + 2 * LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        outcomes = read_all(mutants(files, arguments.files, arguments.seed), path, LIMIT)
    figures = {
        "limit_bytes": LIMIT,
        "memory_allowed_on_top_bytes": 2 * LIMIT,
        "files": arguments.files,
        "outcomes": dict(outcomes.kinds),
        "slowest_seconds": outcomes.slowest,
    }
    print(figures)
    save(arguments.out, arguments.seed, figures)


def _taken() -> int:
    """Return how much address space the process takes, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
