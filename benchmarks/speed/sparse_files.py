"""Size and speed of sparse files, compared with safetensors and a compressed numpy archive.

Matrices of several types with zeros at random positions are written and read by prunus, by
safetensors (with all zeros), and by numpy's compressed archive, which needs no other package. Only
prunus waits until the file is on disk. Times are medians of calls that take turns in one process,
in megabytes of the dense tensor per second. The restored bits are compared.

Run from the repository's root: ``python -m benchmarks.speed.sparse_files``
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import prunus
from benchmarks.measuring import options, save
from prunus._utils.timing import interleaved, spread
from prunus.export.sparse_format import as_bits, size_bound

SIDE = 2048
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
TYPES = (torch.float32, torch.bfloat16, torch.int8)


def matrix(dtype: torch.dtype, sparsity: float, seed: int) -> torch.Tensor:
    """Return a square matrix with zeros at random."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIDE, SIDE, generator=draw)
    if dtype == torch.int8:
        weight = torch.randint(1, 128, weight.shape, generator=draw) * weight.sign()
    weight[torch.rand(SIDE, SIDE, generator=draw) < sparsity] = 0
    return weight.to(dtype)


Pair = tuple[Callable[[], object], Callable[[], torch.Tensor], Path]


def prunus_file(weight: torch.Tensor, folder: Path) -> Pair:
    """Write and read a sparse file."""
    path = folder / "sparse.safetensors"
    return (
        partial(prunus.save_sparse, {"w": weight}, path),
        lambda: prunus.load_sparse(path)["w"],
        path,
    )


def safetensors_file(weight: torch.Tensor, folder: Path) -> Pair:
    """Write and read an ordinary file."""
    path = folder / "dense.safetensors"
    return partial(save_file, {"w": weight}, path), lambda: load_file(path)["w"].clone(), path


def compressed_archive(weight: torch.Tensor, folder: Path) -> Pair:
    """Write and read a compressed numpy archive of the bits, since numpy lacks bfloat16."""
    path = folder / "dense.npz"
    bits = as_bits(weight).reshape(weight.shape)

    def read() -> torch.Tensor:
        with np.load(path) as archive:
            return torch.from_numpy(archive["w"]).view(weight.dtype)

    return partial(np.savez_compressed, path, w=bits), read, path


METHODS = {
    "prunus": prunus_file,
    "safetensors": safetensors_file,
    "numpy, compressed": compressed_archive,
}


def measure(weight: torch.Tensor, *, rounds: int, seed: int) -> dict[str, Any]:
    """Measure every method on a matrix."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = {name: make(weight, Path(folder)) for name, make in METHODS.items()}
        for name, (write, read, _) in pairs.items():
            write()
            assert (as_bits(read()) == as_bits(weight)).all(), name
        sizes = {name: path.stat().st_size for name, (_, _, path) in pairs.items()}
        calls = {f"write {name}": write for name, (write, _, _) in pairs.items()}
        calls |= {f"read {name}": read for name, (_, read, _) in pairs.items()}
        seconds = interleaved(calls, rounds=rounds, seed=seed)
    count, megabytes = int(weight.count_nonzero()), weight.nbytes / 1e6
    bound = size_bound(weight.numel(), count, 8 * weight.itemsize)
    methods: dict[str, dict[str, Any]] = {}
    for name, size in sizes.items():
        times = {
            operation: spread(seconds[f"{operation} {name}"]) for operation in ("read", "write")
        }
        methods[name] = {
            "bytes": size,
            "of_bound": size / bound,
            **times,
            **{
                f"{operation}_MB_per_s": 1e3 * megabytes / t["median_ms"]
                for operation, t in times.items()
            },
        }
    return {"bound_bytes": bound, "dense_bytes": weight.nbytes, "methods": methods}


def main() -> None:
    """Measure all types and sparsities, print them, write the result file."""
    parser = options("Size and speed of sparse files.", "sparse_files")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for dtype in TYPES:
        for sparsity in SPARSITIES:
            weight = matrix(dtype, sparsity, arguments.seed)
            rounds = 2 if arguments.quick else 9
            figures = measure(weight, rounds=rounds, seed=arguments.seed)
            name = str(dtype).removeprefix("torch.")
            print(f"{name}, {sparsity:.0%} zeros", flush=True)
            for method, f in figures["methods"].items():
                print(
                    f"    {method:20}{f['of_bound']:8.3f} of the bound, read "
                    f"{f['read_MB_per_s']:8.0f} MB/s, write {f['write_MB_per_s']:8.0f} MB/s",
                    flush=True,
                )
            results.append({"dtype": name, "sparsity": sparsity, "rounds": rounds, **figures})
    save(arguments.out, arguments.seed, {"side": SIDE, "matrices": results}, digits=5)


if __name__ == "__main__":
    main()
