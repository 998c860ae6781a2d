"""Time whole sparse networks: dense, compact, with sparse layers, and in onnxruntime.

Of each network and batch the calls take turns, in one process and with as many threads each. The
outputs of all are compared with the dense network's. LeNets come from finished runs of their
recipes; the other networks have random weights, and zeros at random. For example::

    prunus run mnist-lenet300 --data FOLDER --out RUN
    python benchmarks/networks.py --threads 1 --run RUN
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import prunus
from measuring import options, save
from prunus.compaction import compacted
from prunus.examples import difference
from prunus.export.sparse_file import size_bound
from prunus.recipes.models import lenet5, lenet300
from prunus.runtime import sped_up
from prunus.timing import interleaved, spread

LENETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mnist-lenet300": (lenet300, (1, 28, 28)),
    "mnist-lenet5": (lenet5, (1, 28, 28)),
}
TOLERANCE = 1e-4


def main() -> None:
    parser = options(__doc__.splitlines()[0], "networks")
    parser.set_defaults(threads=1)
    parser.add_argument("--run", type=Path, action="append", default=[], help="of a LeNet's recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rows = []
    for name, model, batches in [*_trained(arguments.run), *_random()]:
        for shape in batches:
            rows.append(_row(name, model, torch.randn(shape), arguments))
            faster = ", ".join(f"{k} {v:.2f}x" for k, v in rows[-1]["times_faster"].items())
            print(f"{name}, {shape[0]}: {faster}", flush=True)
    save(arguments.out, arguments.seed, {"rows": rows})


_Network = tuple[str, nn.Module, list[tuple[int, ...]]]


def _trained(runs: list[Path]) -> Iterator[_Network]:
    for run in runs:
        recipe = json.loads((run / "summary.json").read_text())["recipe"]
        build, shape = LENETS[recipe]
        model = build()
        model.load_state_dict(load_file(run / "model.safetensors"))
        yield recipe, model.eval(), [(1, *shape), (256, *shape)]


def _random() -> Iterator[_Network]:
    for sparsity in (0.9, 0.95):
        layers = [part for _ in range(5) for part in (nn.Linear(2048, 2048), nn.ReLU())]
        yield (
            f"perceptron 5×2048, {sparsity:.0%}",
            _thin(nn.Sequential(*layers), sparsity),
            [(1, 2048), (64, 2048), (256, 2048)],
        )
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        yield (
            f"encoder 6×256, {sparsity:.0%}",
            _thin(encoder, sparsity),
            [(1, 64, 256), (8, 64, 256)],
        )


def _thin(model: nn.Module, sparsity: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[torch.rand_like(parameter) < sparsity] = 0
    return model.eval()


def _row(name: str, model: nn.Module, x: torch.Tensor, arguments: Any) -> dict[str, Any]:
    small = compacted(model, x)
    fast = sped_up(model, x)
    both = sped_up(small.model, x)
    session = _session(model, x, arguments.threads)
    fed = {session.get_inputs()[0].name: x.numpy()}
    calls: dict[str, Callable[[], Any]] = {
        "dense": lambda: model(x),
        "compact": lambda: small.model(x),
        "sparse": lambda: fast.model(x),
        "compact and sparse": lambda: both.model(x),
        "onnxruntime": lambda: torch.from_numpy(session.run(None, fed)[0]),
    }
    with torch.inference_mode():
        expected = [model(x)]
        errors = {each: difference(expected, [call()]) for each, call in calls.items()}
        wrong = {each: error for each, error in errors.items() if error > TOLERANCE}
        if wrong:
            raise SystemExit(f"{name}: outputs differ by {wrong}")
        rounds = 3 if arguments.quick else 60
        seconds = interleaved(calls, rounds=rounds, calls=3, warm=2, seed=arguments.seed)
    medians = {each: float(np.median(own)) for each, own in seconds.items()}
    return {
        "network": name,
        "batch": x.shape[0],
        "times_faster": {each: medians["dense"] / own for each, own in medians.items()},
        "replaced": list(fast.replaced),
        "parameters": {"dense": small.parameters_before, "compact": small.parameters},
        "bytes": _bytes(model),
        "errors": errors,
        "times": {each: spread(own) for each, own in seconds.items()},
    }


def _bytes(model: nn.Module) -> dict[str, float]:
    """Return what the network takes in a sparse file, and what it must take at least."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        prunus.save_sparse(model, path, keep_negative_zeros=False)
        taken = path.stat().st_size
    state = model.state_dict().values()
    bound = sum(size_bound(t.numel(), int((t != 0).sum()), 8 * t.element_size()) for t in state)
    return {"sparse_file": taken, "bound": bound, "of_bound": taken / bound}


def _session(model: nn.Module, x: torch.Tensor, threads: int) -> Any:
    import onnxruntime

    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        return onnxruntime.InferenceSession(path, wanted, ["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
