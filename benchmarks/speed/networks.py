"""Latency of whole sparse networks: dense, compact, with sparse layers, and in onnxruntime.

As in `prunus bench`, the calls are interleaved in one process, with the same number of threads, and
all outputs are compared with the dense network's. LeNets are loaded from finished runs of their
recipes; the other networks have random weights with zeros at random places. For example::

    prunus run mnist-lenet300 --data FOLDER --out RUN
    python -m benchmarks.speed.networks --threads 1 --run RUN
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.measuring import options, save, thin
from prunus._inference.model_calls import ExampleInputs
from prunus.bench import bench
from prunus.export.sparse_format import RECIPE_KEY
from prunus.recipes.run.loading import file_metadata, load_trained


@dataclass(frozen=True)
class Case:
    """Network to be timed."""

    name: str
    model: nn.Module
    example: Callable[[int], ExampleInputs]
    batches: tuple[int, ...]


def main() -> None:
    parser = options(__doc__.splitlines()[0], "networks")
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        help="directory of a finished run of a LeNet's recipe",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    networks = []
    for case in [*_trained(arguments.run), *_random()]:
        done = bench(
            case.model,
            case.example,
            batches=case.batches,
            threads=[arguments.threads],
            seconds=0.1 if arguments.quick else 4.0,
        )
        for row in done.rows:
            faster = ", ".join(f"{k} {v:.2f}x" for k, v in row.times_faster.items())
            print(f"{case.name}, {row.batch}: {faster}", flush=True)
        rows = [{**asdict(row), "times_faster": row.times_faster} for row in done.rows]
        networks.append({**asdict(done), "network": case.name, "rows": rows})
    save(arguments.out, arguments.seed, {"threads": arguments.threads, "networks": networks})


def _trained(runs: list[Path]) -> Iterator[Case]:
    for run in runs:
        network = load_trained(run / "model.safetensors")
        name = str(file_metadata(run / "model.safetensors")[RECIPE_KEY])
        yield Case(name, network.model, network.example_inputs, (1, 256))


def _random() -> Iterator[Case]:
    for sparsity in (0.9, 0.95):
        layers = [part for _ in range(5) for part in (nn.Linear(2048, 2048), nn.ReLU())]
        perceptron = nn.Sequential(*layers)
        thin(perceptron, sparsity)
        yield Case(
            f"perceptron 5×2048, {sparsity:.0%}",
            perceptron,
            lambda batch: torch.randn(batch, 2048),
            (1, 64, 256),
        )
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        thin(encoder, sparsity)
        yield Case(
            f"encoder 6×256, {sparsity:.0%}",
            encoder,
            lambda batch: torch.randn(batch, 64, 256),
            (1, 8),
        )


if __name__ == "__main__":
    main()
