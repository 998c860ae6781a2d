"""How fast a sparse network is: dense, compact, with sparse layers, and in onnxruntime."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    call_arguments,
    call_model,
    copy_model,
    make_caller,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import TOLERANCE, relative_difference
from prunus._utils.checks import number_problem, raise_problems
from prunus._utils.files import memory_key
from prunus._utils.timing import fitting_rounds, interleaved, spread
from prunus.compaction import compact
from prunus.compaction.check import tolerance
from prunus.errors import PrunusError
from prunus.export.exported import bound_of
from prunus.export.onnx_file import OnnxSession, to_onnx
from prunus.export.sparse_file import save_sparse
from prunus.runtime import speed_up
from prunus.selection import check_model, total_parameters

__all__ = ["Bench", "BenchRow", "Matrices", "bench"]

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
            :func:`prunus._utils.timing.spread`.
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
        left_out: Why a variant was refused, by its name. One that is in no row or only in some, and
            not here, has no sparse layer that is faster there.
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
        gains: dict[str, list[float]] = {}
        for name in _ADVICE:
            # What is not there in a row gained nothing: speed_up would return the network itself.
            own = [row.times_faster.get(name, 1.0) for row in self.rows]
            if name not in self.left_out and any(name in row.times for row in self.rows):
                gains[name] = own
        best = max(gains, key=lambda name: statistics.geometric_mean(gains[name]), default=None)
        if best is None or statistics.geometric_mean(gains[best]) < _WORTH:
            return (
                "keep the dense network, for nothing is faster here; prune further, or try larger "
                "batches"
            )
        low, high = (f"{of(gains[best]):.1f}×" for of in (min, max))
        how_much = low if low == high else f"{low} to {high}"
        return f"use {_ADVICE[best]}: {how_much} as fast as the dense network"


class Matrices(nn.Module):
    """The matrices of a file as linear layers side by side, for one whose network is not known.

    Args:
        tensors: Those of two dimensions and more in float32 are taken, of as many rows as the first
            dimension has elements.

    Raises:
        PrunusError: There is none.

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
            raise PrunusError("there is no matrix in float32 among the tensors, so nothing to time")

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each layer's output for its own input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return random inputs, of shape (batch, columns of the matrix) each."""
        return tuple(torch.randn(batch, size) for size in self._widths)


def bench(
    model: nn.Module,
    example: Callable[[int], ExampleInputs],
    *,
    batches: Iterable[int] = (1, 64),
    threads: Iterable[int] = (),
    say: Callable[[str], None] = lambda _: None,
    seconds: float = 1.0,
) -> Bench:
    """Time a network as it is, compact, with sparse layers, both, and in onnxruntime.

    All variants are given the same inputs and take turns in one process; their outputs are compared
    with the dense network's. onnxruntime is given the compact network where there is one, as
    ``prunus export`` would write it.

    Args:
        model: The network.
        example: Returns inputs for a batch of a size.
        batches: The sizes.
        threads: With how many threads to compute; default: one, and as many as torch has.
        say: Is told what is being done.
        seconds: How long to time each batch, about, with each number of threads; at least five
            rounds.

    Returns:
        The timings, and the sizes of the network.

    Raises:
        PrunusError: It is no network, fails on the inputs, or cannot be written to a file; there is
            no batch to time.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> done = bench(model, lambda n: torch.randn(n, 32), batches=[4], threads=[1], seconds=0.1)
        >>> done.rows[0].times["dense"]["median_ms"] > 0
        True
    """
    check_model(model)
    if not callable(example):
        raise PrunusError(
            "example must be a function that returns inputs for a batch of a size, but is of type "
            f"{type(example).__name__}: lambda batch: torch.randn(batch, 784)"
        )
    batches, threads = _numbers("batches", batches), _numbers("threads", threads)
    raise_problems(
        *(number_problem("each of batches", each, whole=True, least=1) for each in batches),
        *(number_problem("each of threads", each, whole=True, least=1) for each in threads),
        None if batches else "there is no batch to time: give sizes of at least 1",
        number_problem("seconds", seconds, least=0),
    )
    before = torch.get_num_threads()
    left_out: dict[str, str] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, args, kwargs = prepare_call(model, example(batches[0]))
        model = copy_model(model)
        reference_outputs(model, args, kwargs)
        sizes = _sizes(model, Path(folder))
        say("looking for what is dead")
        small = _compacted(model, example(max(2, batches[0])), left_out)
        exported = _Exported(model if small is None else small, example, Path(folder))
        try:
            for count in threads or sorted({1, before}):
                torch.set_num_threads(count)
                for batch in batches:
                    say(f"timing a batch of {batch}, {count} thread{'s' if count > 1 else ''}")
                    row = _row(model, small, exported, example(batch), batch, left_out, seconds)
                    rows.append(row)
        finally:
            torch.set_num_threads(before)
    parameters = {"dense": total_parameters(model)}
    if small is not None:
        parameters["compact"] = total_parameters(small)
    return Bench(tuple(rows), left_out, parameters, sizes)


def _numbers(name: str, given: Iterable[int]) -> list[int]:
    try:
        return list(given)
    except TypeError:
        raise PrunusError(f"{name} must be a list of numbers, but is {given!r}") from None


def _sizes(model: nn.Module, folder: Path) -> dict[str, float]:
    path = folder / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that -0.0 is kept: it is in the bound as well
        save_sparse(model, path)
    tensors = {memory_key(t) or name: t for name, t in model.state_dict().items()}.values()
    return {
        "dense": sum(tensor.nbytes for tensor in tensors),
        "sparse": path.stat().st_size,
        "bound": math.fsum(map(bound_of, tensors)),
    }


def _compacted(
    model: nn.Module, given: ExampleInputs, left_out: dict[str, str]
) -> nn.Module | None:
    try:
        small, report = compact(model, given, return_report=True)
    except PrunusError as error:
        left_out["compact"] = str(error)
        return None
    if report.removed:
        return small
    left_out["compact"] = "no neuron, channel, head or input is dead"
    return None


class _Exported:
    """The network in ONNX, exported once if one file does for all batches."""

    def __init__(
        self, model: nn.Module, example: Callable[[int], ExampleInputs], folder: Path
    ) -> None:
        self._model, self._example, self._folder = model, example, folder
        self._files: dict[int, Path] = {}
        self._refusal: PrunusError | None = None
        self._any: Path | None = None

    def session(self, batch: int, threads: int) -> OnnxSession:
        """Return a session for batches of that size.

        Raises:
            PrunusError: The network cannot be exported; found out once.
        """
        if self._refusal is not None:
            raise self._refusal
        path = self._any or self._files.get(batch)
        if path is None:
            path = self._folder / f"{batch}.onnx"
            try:
                written = to_onnx(self._model, self._example(batch), path)
            except PrunusError as refusal:
                self._refusal = refusal
                raise
            if written.any_batch:
                self._any = path
            else:
                self._files[batch] = path
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
    args, kwargs = call_arguments(given)
    threads = torch.get_num_threads()
    networks = {"dense": model} if small is None else {"dense": model, "compact": small}
    replaced: tuple[str, ...] = ()
    for name, each in {"sparse": model, "compact, sparse": small}.items():
        with _unless_refused(name, left_out):
            if each is None:
                continue
            fast, report = speed_up(each, given, return_report=True)
            if report.replaced:
                networks[name] = fast
                replaced = report.replaced if name == "sparse" else replaced
    outputs = {name: call_model(network, args, kwargs) for name, network in networks.items()}
    calls = {name: make_caller(network, args, kwargs) for name, network in networks.items()}
    with _unless_refused("onnxruntime", left_out):
        session = exported.session(batch, threads)
        outputs["onnxruntime"] = session.outputs(args, kwargs)
        calls["onnxruntime"] = session.caller(args, kwargs)
    right = outputs["dense"]
    errors = {name: relative_difference(right, each) for name, each in outputs.items()}
    for name, error in list(errors.items()):
        if error > max(TOLERANCE, tolerance(right)):
            left_out[name] = f"its outputs are off by {error:.2g} of the largest"
            del calls[name], errors[name]
    with torch.inference_mode():
        rounds = fitting_rounds(calls, seconds / 4, least=5, most=100)
        timed = interleaved(calls, rounds=rounds, calls=3, warm=1)
    times = {name: spread(own) for name, own in timed.items()}
    return BenchRow(batch, threads, times, errors, replaced)


@contextlib.contextmanager
def _unless_refused(name: str, left_out: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except PrunusError as error:
        left_out[name] = str(error)
