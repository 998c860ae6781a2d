"""Latency and size of a network: dense, compact, with sparse layers, and in onnxruntime."""

from __future__ import annotations

import contextlib
import math
import shlex
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

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
from prunus._inference.outputs import TOLERANCE, output_tolerance, relative_difference
from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus._utils.files import memory_key
from prunus._utils.text_table import text_table
from prunus._utils.timing import PairedTimings, paired_timings
from prunus.compaction import compact
from prunus.errors import ArgumentError, ArgumentTypeError, PrunusError
from prunus.export.onnx_export import to_onnx
from prunus.export.onnx_session import OnnxSession
from prunus.export.report import tensor_size_bound
from prunus.export.sparse_writer import save_sparse
from prunus.runtime import speed_up
from prunus.selection import check_model, total_parameters

__all__ = ["BenchReport", "BenchRow", "MatrixLayers", "bench"]

_MIN_SPEEDUP = 1.05
"""The least speed-up over the dense network at which a variant is recommended."""

_PRECISION = 0.1
"""Distance of the bounds of a speed-up, relative to it, up to which timings are not disturbed.

A heuristic: the recommendation rounds to a tenth.
"""

_MOST_TIMES_LONGER = 4
"""Factor of the time to spend after which disturbed timings are not repeated any more."""

_TIMES = ("median_ms", "quartile_1_ms", "quartile_3_ms")
"""The keys of the times of a variant."""

_ADVICE = {
    "compact": "prunus.compact(model, example)",
    "sparse": "prunus.speed_up(model, example)",
    "compact, sparse": "prunus.speed_up(prunus.compact(model, example), example)",
    "onnxruntime": "prunus.export.to_onnx(model, example, path) and onnxruntime",
}
"""The calls in Python that build each variant, in the order of preference."""


@dataclass(frozen=True)
class BenchRow:
    """Timings of one batch size with one number of threads.

    Attributes:
        batch: Number of items in the batch.
        threads: Number of threads.
        times: By variant, "dense" first: the median and the quartiles in milliseconds, of processor
            time where one thread is used, in which other processes take no part. Those of
            other variants are the median and the quartiles of the quotients of their time and the
            dense network's in the same round, times the median of that.
        errors: By variant: the largest difference of an output from the dense network's, relative
            to the largest magnitude.
        replaced: Names of the layers that are sparse in the variant "sparse".
        disturbed: The variants whose speed-up is uncertain by more than a tenth, also after several
            repetitions, because other processes use the machine.
    """

    batch: int
    threads: int
    times: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, float]
    replaced: tuple[str, ...]
    disturbed: tuple[str, ...] = ()

    @property
    def times_faster(self) -> dict[str, float]:
        """The median time of the dense network divided by that of each variant."""
        dense = self.times["dense"]["median_ms"]
        return {name: dense / time["median_ms"] for name, time in self.times.items()}


@dataclass(frozen=True)
class BenchReport:
    """Latency and size of a network and its faster variants.

    ``str()`` of it is a table with a row for each variant, and the recommendation.

    Attributes:
        rows: The timings.
        excluded: By variant: why it was not timed. A variant that is neither here nor in a row has
            no sparse layer that is faster for that row's batch.
        parameters: Number of parameters of "dense" and, if there is one, of "compact".
        bytes: Size of the tensors: "dense", as a "sparse" file, and the lower bound for any file
            ("bound") if the positions of the zeros are random.
    """

    rows: tuple[BenchRow, ...]
    excluded: Mapping[str, str]
    parameters: Mapping[str, int]
    bytes: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries and lists, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the report that :meth:`as_dict` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is not one.
        """
        rows = [
            BenchRow(
                batch=int(row["batch"]),
                threads=int(row["threads"]),
                times={
                    str(name): {key: float(times[key]) for key in _TIMES}
                    for name, times in row["times"].items()
                },
                errors={str(name): float(error) for name, error in row["errors"].items()},
                replaced=tuple(map(str, row["replaced"])),
                disturbed=tuple(map(str, row["disturbed"])),
            )
            for row in content["rows"]
        ]
        for row in rows:
            if not row.times["dense"]["median_ms"] > 0:
                raise ValueError("the time of the dense network must be above 0")
        return cls(
            tuple(rows),
            {str(name): str(reason) for name, reason in content["excluded"].items()},
            {str(name): int(count) for name, count in content["parameters"].items()},
            {str(name): float(size) for name, size in content["bytes"].items()},
        )

    def __str__(self) -> str:
        rows = [
            [name, str(row.batch), str(row.threads), f"{times['median_ms']:.3g}", f"{faster:.2f}×"]
            for row in self.rows
            for (name, times), faster in zip(
                row.times.items(), row.times_faster.values(), strict=True
            )
        ]
        table = text_table(["network", "batch", "threads", "ms", "faster"], rows)
        excluded = [f"{name} excluded: {reason}" for name, reason in self.excluded.items()]
        return "\n".join([table, *excluded, self.recommendation])

    @property
    def recommendation(self) -> str:
        """The variant to use and its speed-up, in one line, with the call in Python."""
        return self.recommend()

    def recommend(self, run: str | Path | None = None) -> str:
        """Return the variant to use and its speed-up, in one line.

        Args:
            run: The run, or the file of one, that was timed: the line then names the subcommand
                that writes the variant, if there is one. Default None: the calls in Python.
        """
        speedups: dict[str, list[float]] = {}
        for name in _ADVICE:
            if name not in self.excluded and any(name in row.times for row in self.rows):
                # Absent from a row, it has no faster layer there: speed_up returns the network.
                speedups[name] = [row.times_faster.get(name, 1.0) for row in self.rows]
        mean = {name: statistics.geometric_mean(values) for name, values in speedups.items()}
        best = max(mean, key=lambda name: mean[name], default=None)
        if best is None or mean[best] < _MIN_SPEEDUP:
            return (
                "keep the dense network, for nothing is faster here; prune further, or try larger "
                f"batches{self._disturbance}"
            )
        low, high = (f"{bound(speedups[best]):.1f}×" for bound in (min, max))
        factor = low if low == high else f"{low} to {high}"
        advice = _ADVICE[best] if run is None else _command(best, run)
        return f"use {advice}: {factor} as fast as the dense network{self._disturbance}"

    @property
    def _disturbance(self) -> str:
        """Return what to add to a recommendation from disturbed timings."""
        if not any(row.disturbed for row in self.rows):
            return ""
        return "; other processes disturbed the timings, so repeat them on an idle machine"


def _command(variant: str, run: str | Path) -> str:
    """Return how to build a variant of a run's network: by a subcommand, if there is one."""
    if variant == "compact":
        return shlex.join(["prunus", "export", str(run), "--to", "compact"])
    if variant == "onnxruntime":
        return f"{shlex.join(['prunus', 'export', str(run), '--to', 'onnx'])} and onnxruntime"
    return f"{_ADVICE[variant]} in Python"


class MatrixLayers(nn.Module):
    """The matrices of a file as separate linear layers, to time a network of unknown structure.

    Args:
        tensors: The tensors by name. Each float32 tensor of two or more dimensions becomes a layer
            with as many outputs as its first dimension has elements; the others are ignored.

    Raises:
        ArgumentError: There is no such tensor.

    Example:
        >>> layers = MatrixLayers({"a": torch.eye(3), "b": torch.ones(3)})
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
            raise ArgumentError(
                "there is no matrix in float32 among the tensors, so nothing to time: pass your "
                "network itself to prunus.bench.bench(model, example) in Python"
            )

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each layer's output for its own input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return random inputs, one of shape (batch, columns of the matrix) for each layer."""
        return tuple(torch.randn(batch, width) for width in self._widths)


def bench(
    model: nn.Module,
    example: Callable[[int], ExampleInputs],
    *,
    batches: Iterable[int] = (1, 64),
    threads: Iterable[int] = (),
    progress: Callable[[str], None] = lambda _: None,
    seconds: float = 1.0,
) -> BenchReport:
    """Time a network dense, compact, with sparse layers, compact with them, and in onnxruntime.

    All variants run interleaved on the same inputs in one process, and their outputs are compared
    with the dense network's. onnxruntime runs the compact network if there is one.

    Args:
        model: The network.
        example: Returns inputs for a batch of the requested size.
        batches: The batch sizes.
        threads: The numbers of threads. Default: one, and as many as torch uses.
        progress: Called with a line of text before each stage.
        seconds: Approximate time to spend on each batch size and number of threads; at least five
            rounds are timed. Up to four times as much where other processes disturb the timings.

    Returns:
        The timings, and the sizes of the network.

    Raises:
        ArgumentError: An argument is out of range.
        ArgumentTypeError: Arguments have the wrong type.
        PrunusError: The network fails on the inputs or cannot be written to a file.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = bench(
        ...     model, lambda n: torch.randn(n, 32), batches=[4], threads=[1], seconds=0.1
        ... )
        >>> report.rows[0].times["dense"]["median_ms"] > 0
        True
    """
    check_model(model)
    batches, threads = _numbers("batches", batches), _numbers("threads", threads)
    _check_arguments(example, batches, threads, seconds)
    excluded: dict[str, str] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense, args, kwargs = prepare_call(model, example(batches[0]))
        dense = copy_model(dense)
        reference_outputs(dense, args, kwargs)
        sizes = _sizes(dense, Path(folder))
        progress("searching for dead units")
        small = _compact_variant(dense, example(max(2, batches[0])), excluded)
        onnx_files = _OnnxFiles(dense if small is None else small, example, Path(folder))
        with _threads_restored() as before:
            for count in threads or sorted({1, before}):
                torch.set_num_threads(count)
                for batch in batches:
                    progress(f"timing a batch of {batch}, {count} thread{'s' * (count > 1)}")
                    inputs = example(batch)
                    variants = _variants(dense, small, onnx_files, inputs, batch, excluded)
                    rows.append(_timed(variants, batch, excluded, seconds))
    parameters = {"dense": total_parameters(dense)}
    if small is not None:
        parameters["compact"] = total_parameters(small)
    return BenchReport(tuple(rows), excluded, parameters, sizes)


def _numbers(name: str, values: Iterable[int]) -> list[int]:
    try:
        return list(values)
    except TypeError:
        raise ArgumentTypeError(f"{name} must be a list of numbers, but is {values!r}") from None


def _check_arguments(
    example: object, batches: list[int], threads: list[int], seconds: float
) -> None:
    raise_problems(
        type_problem(
            "example",
            example,
            Callable,  # type: ignore[arg-type]  # a class to Python, and none to mypy
            "a function that returns inputs for a batch of a size",
            fix="lambda batch: torch.randn(batch, 784)",
        ),
        *(number_problem("each of batches", size, whole=True, least=1) for size in batches),
        *(number_problem("each of threads", count, whole=True, least=1) for count in threads),
        None if batches else "there is no batch to time: give sizes of at least 1",
        number_problem("seconds", seconds, least=0),
    )


@contextlib.contextmanager
def _threads_restored() -> Iterator[int]:
    """Yield torch's number of threads, and set it again at the end."""
    before = torch.get_num_threads()
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _sizes(model: nn.Module, folder: Path) -> dict[str, float]:
    """Return the size of the model's tensors, in memory, in a sparse file and at least."""
    path = folder / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that -0.0 is stored as a value; the bound counts it too
        save_sparse(model, path)
    tensors = {memory_key(t) or name: t for name, t in model.state_dict().items()}.values()
    return {
        "dense": sum(tensor.nbytes for tensor in tensors),
        "sparse": path.stat().st_size,
        "bound": math.fsum(map(tensor_size_bound, tensors)),
    }


def _compact_variant(
    model: nn.Module, inputs: ExampleInputs, excluded: dict[str, str]
) -> nn.Module | None:
    try:
        small, report = compact(model, inputs, return_report=True)
    except PrunusError as error:
        excluded["compact"] = str(error)
        return None
    if report.resized:
        return small
    excluded["compact"] = "no neuron, channel, head or input is dead"
    return None


class _OnnxFiles:
    """The network in ONNX files: a single one if it accepts any batch size, else one per size."""

    def __init__(
        self, model: nn.Module, example: Callable[[int], ExampleInputs], folder: Path
    ) -> None:
        self._model, self._example, self._folder = model, example, folder
        self._by_batch: dict[int, Path] = {}
        self._any_batch: Path | None = None
        self._failure: PrunusError | None = None

    def session(self, batch: int, threads: int) -> OnnxSession:
        """Return a session for batches of one size.

        Raises:
            PrunusError: The network cannot be exported, which is tried once.
        """
        if self._failure is not None:
            raise self._failure
        path = self._any_batch or self._by_batch.get(batch)
        if path is None:
            path = self._folder / f"{batch}.onnx"
            try:
                written = to_onnx(self._model, self._example(batch), path)
            except PrunusError as failure:
                self._failure = failure
                raise
            if written.any_batch:
                self._any_batch = path
            else:
                self._by_batch[batch] = path
        return OnnxSession(path, threads)


@dataclass(frozen=True)
class _Variants:
    """The variants of a network for one batch, by name and with "dense" first.

    Attributes:
        calls: Functions that compute the batch.
        outputs: The output tensors.
        replaced: Names of the layers that are sparse in the variant "sparse".
    """

    calls: dict[str, Callable[[], object]]
    outputs: dict[str, list[torch.Tensor]]
    replaced: tuple[str, ...]


def _variants(
    model: nn.Module,
    small: nn.Module | None,
    onnx_files: _OnnxFiles,
    inputs: ExampleInputs,
    batch: int,
    excluded: dict[str, str],
) -> _Variants:
    """Build every variant that this batch can be computed with, at torch's number of threads."""
    networks = {"dense": model} if small is None else {"dense": model, "compact": small}
    replaced: tuple[str, ...] = ()
    for name, network in {"sparse": model, "compact, sparse": small}.items():
        if network is None:
            continue
        with _excluded_on_error(name, excluded):
            fast, report = speed_up(network, inputs, return_report=True)
            if report.replaced:
                networks[name] = fast
                replaced = report.replaced if name == "sparse" else replaced
    args, kwargs = call_arguments(inputs)
    outputs = {name: call_model(network, args, kwargs) for name, network in networks.items()}
    calls = {name: make_caller(network, args, kwargs) for name, network in networks.items()}
    with _excluded_on_error("onnxruntime", excluded):
        session = onnx_files.session(batch, torch.get_num_threads())
        outputs["onnxruntime"] = session.outputs(args, kwargs)
        calls["onnxruntime"] = session.caller(args, kwargs)
    return _Variants(calls, outputs, replaced)


def _timed(variants: _Variants, batch: int, excluded: dict[str, str], seconds: float) -> BenchRow:
    """Compare the variants' outputs, and time those that match, interleaved."""
    expected = variants.outputs["dense"]
    errors = {
        name: relative_difference(expected, outputs) for name, outputs in variants.outputs.items()
    }
    accepted = output_tolerance(expected, least=TOLERANCE)
    wrong = {name: error for name, error in errors.items() if error > accepted}
    for name, error in wrong.items():
        excluded[name] = f"its outputs are off by {error:.2g} of the largest"
    errors = {name: error for name, error in errors.items() if name not in wrong}
    calls = {name: call for name, call in variants.calls.items() if name not in wrong}

    def uncertain(timings: PairedTimings) -> tuple[str, ...]:
        return tuple(name for name in calls if not timings.is_certain(name, precision=_PRECISION))

    with torch.inference_mode():
        timings = paired_timings(
            calls,
            reference="dense",
            seconds=seconds,
            most_seconds=_MOST_TIMES_LONGER * seconds,
            least=5,
            most=100,
            calls=3,
            threads=torch.get_num_threads(),
            is_certain=lambda timings: not uncertain(timings),
        )
    return BenchRow(
        batch,
        torch.get_num_threads(),
        {name: timings.milliseconds(name) for name in calls},
        errors,
        variants.replaced,
        uncertain(timings),
    )


@contextlib.contextmanager
def _excluded_on_error(name: str, excluded: dict[str, str]) -> Iterator[None]:
    """Exclude a variant that raises an error."""
    try:
        yield
    except PrunusError as error:
        excluded[name] = str(error)
