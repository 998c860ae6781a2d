"""Metric and size of sparse networks in int8: the sparse file loaded back, and the ONNX file.

The networks are those of finished runs, and the ONNX file is calibrated by their training inputs.
For example::

    prunus run digits --set ratio=20 --seed 0 --out RUN
    python -m benchmarks.studies.int8 --run RUN ...
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import RESULTS, save
from prunus import load_sparse
from prunus.bench.reduced_precision import InSession
from prunus.export import to_onnx, to_sparse
from prunus.export.onnx_session import OnnxSession
from prunus.recipes.registry import find_recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.loading import load_dense, load_trained

__all__ = ["measure"]


def measure(run: Path) -> dict[str, Any]:
    """Return metrics and sizes of the sparse network of a run, in float32 and int8."""
    dense = load_dense(run)
    file = run / "model.safetensors"
    trained = load_trained(file)
    identity = RunDirectory(run).read_config()

    def metrics(model: nn.Module) -> dict[str, float]:
        return {
            "validation": dense.task.validate(model).metric,
            "test": dense.task.test(model).metric,
        }

    with tempfile.TemporaryDirectory() as folder:
        lossless = to_sparse(file, Path(folder) / "float32.safetensors")
        rounded = to_sparse(file, Path(folder) / "int8.safetensors", dtype="int8")
        example, path = trained.example_inputs(2), Path(folder) / "model.onnx"
        batches = dense.task.calibration_inputs()
        onnx = to_onnx(trained.model, example, path)
        onnx_int8 = to_onnx(trained.model, example, path, dtype="int8", calibration=batches)
        session = OnnxSession(path, threads=1)
        in_session = InSession(lambda _: session, lambda tensors: tensors[0])
        restored = load_trained(file).model
        load_sparse(rounded.path, restored)
        return {
            "recipe": identity["recipe"],
            "seed": identity["seed"],
            "settings": _changed(identity["recipe"], identity["config"]),
            "metric": dense.task.metric,
            "sparsity": _sparsity(trained.model),
            "float32": metrics(trained.model),
            "int8, sparse file": metrics(restored),
            "int8, onnxruntime": metrics(in_session),
            "bytes": {
                "sparse file": lossless.bytes,
                "sparse file, int8": rounded.bytes,
                "bound of the sparse file, int8": rounded.bound_bytes,
                "onnx": onnx.bytes,
                "onnx, int8": onnx_int8.bytes,
            },
        }


def _changed(recipe: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that are not the recipe's own."""
    own = find_recipe(recipe).config.as_dict()
    return {name: value for name, value in config.items() if value != own.get(name)}


def _sparsity(model: nn.Module) -> float:
    """Return the fraction of zeros among the weights of matrices."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    nonzero = sum(int(matrix.count_nonzero()) for matrix in matrices)
    return 1 - nonzero / sum(matrix.numel() for matrix in matrices)


def main() -> None:
    """Measure the networks, print them, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", type=Path, nargs="+", required=True, help="the directories of finished runs"
    )
    out = RESULTS / "int8.json"
    parser.add_argument("--out", type=Path, default=out, help="default: beside the benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = []
    for run in arguments.run:
        networks.append(measure(run))
        print(networks[-1])
    save(arguments.out, networks[0]["seed"], {"networks": networks}, digits=6)


if __name__ == "__main__":
    main()
