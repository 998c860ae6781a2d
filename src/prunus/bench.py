"""How fast a sparse network is: dense, compact, with sparse layers, and in onnxruntime."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.compaction import compacted
from prunus.errors import UserError
from prunus.examples import ExampleInputs, arguments, copied, difference, expected, tensors_of
from prunus.export.sparse_file import save_sparse
from prunus.export.to_onnx import OnnxSession, to_onnx
from prunus.export.to_sparse import bound_of
from prunus.runtime import sped_up
from prunus.selection import total_parameters
from prunus.timing import fitting_rounds, interleaved, spread

__all__ = ["Bench", "BenchRow", "Matrices", "bench"]

_TOLERANCE = 1e-4
_SECONDS = 1.0
_WORTH = 1.05
"""How many times faster than dense a variant must be to be recommended."""

_ADVICE = {
    "compact": "prunus.compact(model, example)",
    "sparse": "prunus.speed_up(model, example)",
    "compact, sparse": "prunus.speed_up(prunus.compact(model, example), example)",
    "onnxruntime": "`prunus export --to onnx` and onnxruntime",
}


@dataclass(frozen=True)
class BenchRow:
    """The timings of one batch and one number of threads.

    Attributes:
        batch: Items in the batch.
        threads: How many computed.
        times: Of each variant, "dense" first, the median and the quartiles in milliseconds, as
            :func:`prunus.timing.spread`.
        errors: Of each variant the largest difference of an output from the dense network's,
            relative to the largest magnitude.
        replaced: The layers that run sparse in the variant "sparse".
    """

    batch: int
    threads: int
    times: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float]
    replaced: tuple[str, ...]

    @property
    def times_faster(self) -> dict[str, float]:
        """How many times faster than dense each variant is, by medians."""
        dense = self.times["dense"]["median_ms"]
        return {name: dense / own["median_ms"] for name, own in self.times.items()}


@dataclass(frozen=True)
class Bench:
    """How fast and how small a network is.

    Attributes:
        rows: The timings.
        left_out: Why a variant was not timed, by its name.
        parameters: How many it has, "dense" and "compact".
        bytes: What its tensors take "dense", in a "sparse" file, and at least in any ("bound"), if
            their zeros lie at random.
    """

    rows: tuple[BenchRow, ...]
    left_out: Mapping[str, str]
    parameters: Mapping[str, int]
    bytes: Mapping[str, float]

    @property
    def recommendation(self) -> str:
        """What to do, in a line."""
        everywhere = set.intersection(*(set(row.times) for row in self.rows)) - {"dense"}
        gains = {
            name: [row.times_faster[name] for row in self.rows]
            for name in _ADVICE
            if name in everywhere
        }
        best = max(gains, key=lambda name: statistics.geometric_mean(gains[name]), default=None)
        if best is None or statistics.geometric_mean(gains[best]) < _WORTH:
            return (
                "keep the dense network, for nothing is faster here; prune further, or try larger "
                "batches"
            )
        low, high = min(gains[best]), max(gains[best])
        how_much = f"{low:.1f}×" if len(gains[best]) == 1 else f"{low:.1f}× to {high:.1f}×"
        return f"use {_ADVICE[best]}: {how_much} as fast as the dense network"


class Matrices(nn.Module):
    """The matrices of a file as linear layers side by side, for one whose network is not known.

    Args:
        tensors: Those of two dimensions and more in float32 are taken, of as many rows as the first
            dimension has elements.

    Raises:
        UserError: There is none.

    Example:
        >>> layers = Matrices({"a": torch.eye(3), "b": torch.ones(3)})
        >>> [tuple(y.shape) for y in layers(*layers.example(5))]
        [(5, 3)]
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self._widths: list[int] = []
        for tensor in tensors.values():
            if tensor.dim() > 1 and tensor.numel() and tensor.dtype == torch.float32:
                matrix = tensor.flatten(1)
                layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
                layer.weight = nn.Parameter(matrix)
                self.layers.append(layer)
                self._widths.append(matrix.shape[1])
        if not self.layers:
            raise UserError("there is no matrix in float32 among the tensors, so nothing to time")

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each layer's output for its own input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return random inputs, of shape (batch, columns of the matrix) each."""
        return tuple(torch.randn(batch, size) for size in self._widths)


_Call = Callable[[], Any]


def bench(
    model: nn.Module,
    example: Callable[[int], ExampleInputs],
    *,
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] = (),
    say: Callable[[str], None] = lambda _: None,
    seconds: float = _SECONDS,
) -> Bench:
    """Time a network as it is, compact, with sparse layers, both, and in onnxruntime.

    All variants are given the same inputs and take turns in one process; their outputs are compared
    with the dense network's.

    Args:
        model: The network.
        example: Returns inputs for a batch of a size.
        batches: The sizes.
        threads: With how many threads to compute; default: one, and as many as torch has.
        say: Is told what is being done.
        seconds: How long to time each batch, about, with each number of threads.

    Returns:
        The timings, and the sizes of the network.

    Raises:
        UserError: The network fails on the inputs, or a variant's outputs are off by more than
            1e-4 of the largest.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> done = bench(model, lambda n: torch.randn(n, 32), batches=[4], threads=[1], seconds=0.1)
        >>> done.rows[0].times["dense"]["median_ms"] > 0
        True
    """
    before = torch.get_num_threads()
    model, left_out = copied(model), dict[str, str]()
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected(model, *arguments(example(batches[0])))
        say("looking for what is dead")
        small = _compacted(model, example(max(2, batches[0])), left_out)
        exported = _Exported(small or model, example, Path(folder))
        try:
            for count in threads or sorted({1, before}):
                torch.set_num_threads(count)
                for batch in batches:
                    say(f"timing a batch of {batch}, {count} thread{'s' if count > 1 else ''}")
                    row = _row(model, small, exported, example(batch), batch, left_out, seconds)
                    rows.append(row)
        finally:
            torch.set_num_threads(before)
        sparse = Path(folder) / "model.safetensors"
        save_sparse(model, sparse, keep_negative_zeros=False)
        taken = sparse.stat().st_size
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    parameters = {"dense": total_parameters(model)}
    if small is not None:
        parameters["compact"] = total_parameters(small)
    return Bench(
        rows=tuple(rows),
        left_out=left_out,
        parameters=parameters,
        bytes={
            "dense": sum(tensor.nbytes for tensor in tensors),
            "sparse": taken,
            "bound": math.fsum(map(bound_of, tensors)),
        },
    )


def _compacted(
    model: nn.Module, given: ExampleInputs, left_out: dict[str, str]
) -> nn.Module | None:
    try:
        done = compacted(model, given)
    except UserError as error:
        left_out["compact"] = str(error)
        return None
    if done.removed:
        return done.model
    left_out["compact"] = "no neuron, channel, head or input is dead"
    return None


class _Exported:
    """The network in ONNX, exported once if one file does for all batches."""

    def __init__(
        self, model: nn.Module, example: Callable[[int], ExampleInputs], folder: Path
    ) -> None:
        self._model, self._example, self._folder = model, example, folder
        self._path: Path | None = None

    def session(self, batch: int, threads: int) -> OnnxSession:
        """Return a session for batches of that size."""
        if self._path is not None:
            return OnnxSession(self._path, threads)
        path = self._folder / "any.onnx"
        if to_onnx(self._model, self._example(max(2, batch)), path).any_batch:
            self._path = path
        elif batch < 2:
            to_onnx(self._model, self._example(batch), path)
        return OnnxSession(path, threads)


def _row(
    model: nn.Module,
    small: nn.Module | None,
    exported: _Exported,
    given: ExampleInputs,
    batch: int,
    left_out: dict[str, str],
    seconds: float,
) -> BenchRow:
    args, kwargs = arguments(given)
    threads = torch.get_num_threads()
    calls: dict[str, _Call] = {"dense": _caller(model, args, kwargs)}
    if small is not None:
        calls["compact"] = _caller(small, args, kwargs)
    replaced: tuple[str, ...] = ()
    for name, each in {"sparse": model, "compact, sparse": small}.items():
        with _unless_refused(name, left_out):
            if each is not None and (fast := sped_up(each, given)).replaced:
                calls[name] = _caller(fast.model, args, kwargs)
                replaced = fast.replaced if name == "sparse" else replaced
    with _unless_refused("onnxruntime", left_out):
        calls["onnxruntime"] = exported.session(batch, threads).caller(args, kwargs)
    with torch.inference_mode():
        right = tensors_of(calls["dense"]())
        errors = {name: difference(right, tensors_of(call())) for name, call in calls.items()}
        wrong = [f"{name} ({error:.2g})" for name, error in errors.items() if error > _TOLERANCE]
        if wrong:
            raise UserError(
                f"the outputs of {', '.join(wrong)} are off by more than {_TOLERANCE:g} of the "
                "largest"
            )
        rounds = fitting_rounds(calls, seconds / 4, least=5, most=100)
        timed = interleaved(calls, rounds=rounds, calls=3, warm=1)
    times = {name: spread(own) for name, own in timed.items()}
    return BenchRow(batch, threads, times, errors, replaced)


def _caller(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> _Call:
    return lambda: model(*args, **kwargs)


@contextlib.contextmanager
def _unless_refused(name: str, left_out: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        left_out[name] = str(error)
