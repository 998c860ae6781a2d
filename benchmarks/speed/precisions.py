"""Sparse linear layers in float32, bfloat16 and int8 beside dense ones in the same types.

For each shape, batch and sparsity the calls are interleaved: torch's dense layers in float32,
bfloat16 (with inputs in that type) and int8, the latter also in onnxruntime; and sparse layers on
inputs stored item by item, which return outputs stored feature by feature. Their zeros are at
random places, or in blocks of as many weights as an instruction multiplies. Layers in int8 have
inputs and outputs in float32, as those of :func:`prunus.speed_up`.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import options, save
from prunus._utils.timing import clock_for, fitting_rounds, interleaved, spread
from prunus.bench.onnx_files import OnnxFiles
from prunus.runtime.linear import SparseLinear
from prunus.runtime.precision import BFloat16, Int8

SIZES = (1024, 4096)
SPARSITIES = (0.9, 0.95)
BATCHES = (1, 16, 64, 256)

Calls = dict[str, Callable[[], object]]


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__.splitlines()[0], "precisions")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rows = []
    sizes = SIZES[:1] if arguments.quick else SIZES
    sparsities = SPARSITIES[:1] if arguments.quick else SPARSITIES
    for size, sparsity in itertools.product(sizes, sparsities):
        # Zeros in blocks of one, two and four weights of a row.
        layers = {width: _linear(size, sparsity, width) for width in (1, 2, 4)}
        for batch in BATCHES:
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
                x = torch.randn(batch, size)
                calls = _dense(layers[1], x, Path(folder), arguments.threads) | _sparse(layers, x)
                rounds = 3
                if not arguments.quick:
                    rounds = fitting_rounds(calls, 0.4, least=9, most=60)
                seconds = interleaved(
                    calls, rounds=rounds, calls=3, warm=1, clock=clock_for(arguments.threads)
                )
            times = {name: spread(each) for name, each in seconds.items()}
            rows.append(
                {"shape": [size, size], "sparsity": sparsity, "batch": batch, "times": times}
            )
            medians = {name: each["median_ms"] for name, each in times.items()}
            shown = ", ".join(f"{name} {ms:.3g}" for name, ms in medians.items())
            print(f"{size}×{size}, {sparsity:.0%}, batch {batch}: {shown}", flush=True)
    save(arguments.out, arguments.seed, {"threads": arguments.threads, "rows": rows})


def _linear(size: int, sparsity: float, width: int) -> nn.Linear:
    """Return a layer with zeros at random places, in blocks of ``width`` weights of a row."""
    linear = nn.Linear(size, size)
    kept = torch.rand(size, size // width) >= sparsity
    with torch.no_grad():
        linear.weight *= kept.repeat_interleave(width, dim=1)
    return linear


def _sparse(layers: dict[int, nn.Linear], x: torch.Tensor) -> Calls:
    low, high = (float(bound) for bound in x.aminmax())
    int8 = Int8.for_range(low, high)
    sparse = {
        "sparse float32": SparseLinear(layers[1]),
        "sparse bfloat16": SparseLinear(layers[1], precision=BFloat16()),
        "sparse bfloat16, 1×2": SparseLinear(layers[2], precision=BFloat16()),
        "sparse int8": SparseLinear(layers[1], precision=int8),
        "sparse int8, 1×4": SparseLinear(layers[4], precision=int8),
    }
    return {name: functools.partial(layer, x) for name, layer in sparse.items()}


def _dense(linear: nn.Linear, x: torch.Tensor, folder: Path, threads: int) -> Calls:
    half, half_x = _converted(linear), x.bfloat16()
    with torch.inference_mode(False):
        files = OnnxFiles(linear, lambda _: x.clone(), folder, [x.clone()])
        session = files.quantized_session(len(x), threads)
    return {
        "dense float32": lambda: linear(x),
        "dense bfloat16": lambda: half(half_x),
        "dense int8, torch": _quantized(linear, x),
        "dense int8, onnxruntime": session.caller((x,), {}),
    }


def _converted(linear: nn.Linear) -> nn.Linear:
    half = nn.Linear(linear.in_features, linear.out_features, dtype=torch.bfloat16)
    half.load_state_dict(linear.state_dict())
    return half


def _quantized(linear: nn.Linear, x: torch.Tensor) -> Callable[[], Any]:
    """Return torch's call of a layer in int8, with its rounding before and after."""
    int8 = Int8.for_range(*(float(bound) for bound in x.aminmax()))
    output = Int8.for_range(*(float(bound) for bound in linear(x).aminmax()))
    integers, scales = int8.store_weight(linear.weight.detach())
    assert scales is not None
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such tensors are deprecated
        weight = torch.quantize_per_channel(
            integers * scales[:, None], scales, zeros, 0, torch.qint8
        )
    packed = torch.ops.quantized.linear_prepack(weight, linear.bias.detach())

    def call() -> Any:
        rounded = torch.quantize_per_tensor(x, int8.scale, int8.zero_point, torch.quint8)
        found = torch.ops.quantized.linear(rounded, packed, output.scale, output.zero_point)
        return found.dequantize()

    return call


if __name__ == "__main__":
    main()
