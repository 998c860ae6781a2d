"""Sparse layers beside dense ones, torch's CSR, and the limits of the machine.

For each shape, batch and sparsity the calls are interleaved: torch's dense layer, in the faster of
its layouts; the sparse layer on activations stored feature by feature (for convolutions: in torch's
layout), and on activations stored item by item, transposed before and after; torch's CSR matrix on
the former. Weights and the positions of their zeros are random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import options, save, thin
from prunus._utils.timing import fitting_rounds, interleaved, spread
from prunus.runtime.convolution import SparseConv
from prunus.runtime.kernels.matrix import tile_rows
from prunus.runtime.kernels.records import MatrixRecord, Record
from prunus.runtime.kernels.tiles import Tile
from prunus.runtime.linear import SparseLinear
from prunus.runtime.rows import SparseRows

SPARSITIES = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995)
MATRICES = ((256, 256), (1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096))
BATCHES = (1, 16, 64, 100, 256)
CONVOLUTIONS = ((16, 32, 3), (32, 16, 3), (64, 8, 3), (64, 32, 3), (128, 16, 3), (64, 16, 1),
                (256, 16, 1))  # fmt: skip
"""Channels, height and width, and kernel, as in ResNets for images of 32×32 and more."""

IMAGES = (1, 16)


def main() -> None:
    parser = options(__doc__.splitlines()[0], "kernels")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    sparsities = (0.9,) if arguments.quick else SPARSITIES
    rows = []
    with torch.inference_mode():
        for shape, batch, sparsity in itertools.product(MATRICES, BATCHES, sparsities):
            if arguments.quick and max(shape) > 1024:
                continue
            rows.append(_row(_linear(shape, batch, sparsity), arguments.quick))
            print(_line(rows[-1]), flush=True)
        for image, images, sparsity in itertools.product(CONVOLUTIONS, IMAGES, sparsities):
            rows.append(_row(_convolution(image, images, sparsity), arguments.quick))
            print(_line(rows[-1]), flush=True)
        figures = {"peak_gflops": _peak(), "copy_gb_per_s": _bandwidth(), "rows": rows}
    save(arguments.out, arguments.seed, figures)


_Case = tuple[dict[str, Any], dict[str, Callable[[], object]], float]


def _linear(shape: tuple[int, int], batch: int, sparsity: float) -> _Case:
    outputs, inputs = shape
    linear = nn.Linear(inputs, outputs)
    thin(linear, sparsity)
    by_item = torch.randn(batch, inputs)
    by_feature = by_item.t().contiguous()
    sparse, transposing = SparseLinear(linear), SparseLinear(linear, by_item=True)
    stored = by_feature.t()
    csr = linear.weight.to_sparse_csr()
    about = {"layer": "linear", "shape": [outputs, inputs], "batch": batch, "sparsity": sparsity}
    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: linear(by_item),
        "sparse": lambda: sparse(stored),
        "sparse, by item": lambda: transposing(by_item),
        "csr": lambda: csr @ by_feature,
    }
    return about, calls, 2.0 * float((linear.weight != 0).sum()) * batch


def _convolution(shape: tuple[int, int, int], images: int, sparsity: float) -> _Case:
    channels, size, kernel = shape
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    thin(conv, sparsity)
    x = torch.randn(images, channels, size, size)
    last = x.contiguous(memory_format=torch.channels_last)
    sparse = SparseConv(conv)
    about = {"layer": "convolution", "shape": [channels, channels, kernel, kernel],
             "image": size, "batch": images, "sparsity": sparsity}  # fmt: skip
    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: conv(x),
        "dense, channels last": lambda: conv(last),
        "sparse": lambda: sparse(x),
    }
    return about, calls, 2.0 * float((conv.weight != 0).sum()) * images * size * size


def _row(case: _Case, quick: bool) -> dict[str, Any]:
    about, calls, operations = case
    rounds = 3 if quick else fitting_rounds(calls, 0.3, least=5, most=60)
    times = {
        name: spread(seconds)
        for name, seconds in interleaved(calls, rounds=rounds, calls=3, warm=1).items()
    }
    medians = {name: each["median_ms"] for name, each in times.items()}
    dense = min(value for name, value in medians.items() if name.startswith("dense"))
    ratios = {name: dense / value for name, value in medians.items() if "dense" not in name}
    gflops = operations / medians["sparse"] / 1e6
    return {**about, "times_faster_than_dense": ratios, "sparse_gflops": gflops, "times": times}


def _line(row: dict[str, Any]) -> str:
    ratios = ", ".join(f"{k} {v:.2f}x" for k, v in row["times_faster_than_dense"].items())
    shape = "×".join(map(str, row["shape"]))
    return f"{row['layer']} {shape}, {row['batch']}, {row['sparsity']:.1%}: {ratios}"


def _peak() -> float:
    """Return the GFLOP/s of one thread without cache misses: one row over the same 64 floats."""
    elements = 1 << 16
    rows = SparseRows(torch.ones(1, elements), None)
    rows.columns.zero_()
    weight, tiles = rows.record(threads=1, relu=False), torch.tensor([0, 0, 4 * 48])
    product = MatrixRecord(
        weight=weight.address,
        chunk=1,
        by_tiles=0,
        x_step=256,
        x_line=0,
        y_row=256,
        y_line=0,
        tiles=tiles.data_ptr(),
        tile_count=1,
    )
    record, x, y = Record(product, weight, tiles), torch.ones(64), torch.empty(64)
    kernel = tile_rows(Tile(16, 4), 16)
    arguments = (record.address, 0, 1, 0, 1, x.data_ptr(), y.data_ptr())
    seconds = interleaved({"row": lambda: kernel(*arguments)}, rounds=50)["row"]
    return 2.0 * elements * 64 / float(seconds.min()) / 1e9


def _bandwidth() -> float:
    """Return the gigabytes per second read and written by a copy of 256 MB."""
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, rounds=10)["copy"]
    return 2 * 4 * source.numel() / float(seconds.min()) / 1e9


if __name__ == "__main__":
    main()
