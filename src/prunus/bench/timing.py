"""Latency and size of a network and its faster variants."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    copy_model,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import TOLERANCE, output_tolerance, relative_difference
from prunus._utils.checks import as_number, number_problem, raise_problems, type_problem
from prunus._utils.files import memory_key
from prunus._utils.timing import PairedTimings, paired_timings
from prunus.bench.kinds import KINDS
from prunus.bench.onnx_files import CALIBRATIONS, OnnxFiles
from prunus.bench.reduced_precision import InSession
from prunus.bench.report import BenchReport, BenchRow
from prunus.bench.variants import Variants, build_variants
from prunus.compaction import compact
from prunus.constraint import Constraint, Mode, constraint_problems
from prunus.errors import ArgumentTypeError, PrunusError, unknown_name
from prunus.export.report import tensor_size_bound
from prunus.export.sparse_writer import save_sparse
from prunus.selection import check_model, total_parameters

__all__ = ["bench"]

_PRECISION = 0.1
"""Distance of the bounds of a speed-up, relative to it, up to which timings are not disturbed.

A heuristic: the recommendation rounds to a tenth.
"""

_METRIC = "the metric that evaluate returns"

_MOST_TIMES_LONGER = 4
"""Factor of the time to spend after which disturbed timings are not repeated any more."""


def bench(
    model: nn.Module,
    example: Callable[[int], ExampleInputs],
    *,
    batches: Iterable[int] = (1, 64),
    threads: Iterable[int] = (),
    progress: Callable[[str], None] = lambda _: None,
    seconds: float = 1.0,
    variants: Iterable[str] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    floor: float | str = "dense-0.2%",
    mode: Mode = "max",
    calibration: Iterable[ExampleInputs] = (),
) -> BenchReport:
    """Time a network dense, compact, with sparse layers, and by what else makes networks faster.

    All variants run interleaved on the same inputs in one process, and their outputs are compared
    with the dense network's:

    * in float32: "compact", "sparse", "compact, sparse", "onnxruntime", and "compiled" by
      ``torch.compile``, if there is a C++ compiler;
    * "sparse, bfloat16" and "sparse, int8", whose linear layers compute in that type where that is
      faster than sparse layers in float32, and "bfloat16, autocast", "bfloat16", and "onnxruntime,
      int8". Their outputs differ. They are recommended only if ``evaluate`` was passed and their
      metric meets the floor.

    All but "sparse" run the compact network if there is one.

    Args:
        model: The network.
        example: Returns inputs for a batch of the requested size.
        batches: The batch sizes.
        threads: The numbers of threads. Default: one, and as many as torch uses.
        progress: Called with a line of text before each stage.
        seconds: Approximate time to spend on each batch size and number of threads; at least five
            rounds are timed. Up to four times as much where other processes disturb the timings.
        variants: Names of the variants to time beside "dense". Default: all.
        evaluate: Returns the validation metric of a network with the inputs and outputs of the
            model. Default: metrics are not measured.
        floor: The metric that a network in bfloat16 or int8 must have, as for
            :class:`~prunus.Pruner`. Default: at most 0.2 percent below the dense network's.
        mode: "max" (default) if larger metrics are better, "min" if smaller are.
        calibration: Inputs that the scales of networks in int8 are computed from. Default:
            ``example``, whose values should then be those of real inputs.

    Returns:
        The timings, and the sizes of the network.

    Raises:
        ArgumentError: An argument is out of range.
        ArgumentTypeError: Arguments have the wrong type.
        PrunusError: The network fails on the inputs or cannot be written to a file.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = bench(
        ...     model,
        ...     lambda n: torch.randn(n, 32),
        ...     batches=[4],
        ...     threads=[1],
        ...     seconds=0.1,
        ...     variants=["sparse", "bfloat16"],
        ... )
        >>> report.rows[0].times["dense"]["median_ms"] > 0
        True
    """
    check_model(model)
    batches, threads = _numbers("batches", batches), _numbers("threads", threads)
    if isinstance(variants, str):
        raise ArgumentTypeError(
            f"variants must be a list of names, but is {variants!r}: pass [{variants!r}]"
        )
    wanted = list(KINDS) if variants is None else list(variants)
    _check_arguments(example, batches, threads, seconds, wanted, evaluate, floor, mode)
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
        typical = list(calibration)
        onnx_files = OnnxFiles(dense if small is None else small, example, Path(folder), typical)
        with _threads_restored() as before:
            for count in threads or sorted({1, before}):
                torch.set_num_threads(count)
                for batch in batches:
                    progress(f"timing a batch of {batch}, {count} thread{'s' * (count > 1)}")
                    inputs = example(batch)
                    ranges_from = typical
                    if not typical and "sparse, int8" in wanted:
                        ranges_from = [example(batch) for _ in range(CALIBRATIONS)]
                    built = build_variants(
                        dense, small, onnx_files, inputs, batch, excluded, wanted, ranges_from
                    )
                    rows.append(_timed(built, batch, excluded, seconds))
        metrics: dict[str, float] = {}
        if evaluate is not None:
            progress("measuring metrics")
            metrics = _metrics(evaluate, built, onnx_files, excluded)
    parameters = {"dense": total_parameters(dense)}
    if small is not None:
        parameters["compact"] = total_parameters(small)
    constraint = Constraint(floor, mode, metrics.get("dense"))
    below = tuple(name for name, metric in metrics.items() if not constraint.met(metric))
    return BenchReport(tuple(rows), excluded, parameters, sizes, metrics, below)


def _numbers(name: str, values: Iterable[int]) -> list[int]:
    try:
        return list(values)
    except TypeError:
        raise ArgumentTypeError(f"{name} must be a list of numbers, but is {values!r}") from None


def _check_arguments(
    example: object,
    batches: list[int],
    threads: list[int],
    seconds: float,
    variants: list[str],
    evaluate: object,
    floor: object,
    mode: object,
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
        *(unknown_name("variant", name, KINDS) for name in variants if name not in KINDS),
        type_problem(
            "evaluate",
            evaluate,
            Callable,  # type: ignore[arg-type]  # a class to Python, and none to mypy
            "a function that returns the metric of a network",
            optional=True,
        ),
        *constraint_problems(floor, mode, None),
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


def _timed(variants: Variants, batch: int, excluded: dict[str, str], seconds: float) -> BenchRow:
    """Compare the variants' outputs, and time those that match, interleaved."""
    expected = variants.outputs["dense"]
    errors = {
        name: relative_difference(expected, _like(expected, outputs))
        for name, outputs in variants.outputs.items()
    }
    accepted = output_tolerance(expected, least=TOLERANCE)
    wrong = {
        name: error
        for name, error in errors.items()
        if not error <= (accepted if name == "dense" or KINDS[name].exact else math.inf)
    }
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


def _like(expected: list[torch.Tensor], outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return outputs in the types of the expected ones, from which bfloat16 differs."""
    if len(expected) != len(outputs):
        return outputs
    return [
        actual.to(wanted.dtype) if actual.dtype == torch.bfloat16 else actual
        for wanted, actual in zip(expected, outputs, strict=True)
    ]


def _metrics(
    evaluate: Callable[[nn.Module], float],
    built: Variants,
    onnx_files: OnnxFiles,
    excluded: dict[str, str],
) -> dict[str, float]:
    """Return the metrics of the dense network and of those that compute in bfloat16 or int8.

    A variant whose metric cannot be measured has none.
    """
    networks = {
        name: network
        for name, network in built.networks.items()
        if name == "dense" or not KINDS[name].exact
    }
    single = len(built.outputs["dense"]) == 1
    if "onnxruntime, int8" in built.calls and single:
        networks["onnxruntime, int8"] = InSession(
            lambda batch: onnx_files.quantized_session(batch, torch.get_num_threads()),
            lambda tensors: tensors[0],
        )
    metrics = {"dense": as_number(_METRIC, evaluate(networks.pop("dense")))}
    for name, network in networks.items():
        # What else a task may ask of a network, such as its attributes, these need not have.
        if name not in excluded:
            with contextlib.suppress(Exception):
                metrics[name] = as_number(_METRIC, evaluate(network))
    return metrics
