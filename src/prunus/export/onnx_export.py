"""Export of a model to an ONNX file."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunus._inference.model_calls import (
    ExampleInputs,
    call_arguments,
    copy_model,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import (
    TOLERANCE,
    UNSTABLE,
    relative_difference,
    returning_tensors,
)
from prunus._utils.checks import choice_problem, raise_problems, type_problem
from prunus._utils.conversions import check_not_converted
from prunus._utils.files import write_atomically
from prunus.errors import PrunusError, first_line, root_cause
from prunus.export.onnx_quantization import count_int8, quantize
from prunus.export.onnx_session import OnnxSession, check_onnx_extra
from prunus.export.paths import as_path

__all__ = ["OnnxReport", "to_onnx"]

_ALTERNATIVE = "or store the model with prunus.save_sparse, and run it in torch"

_EXPORTER_LOGS = ("torch.onnx", "onnxscript", "onnx_ir")
"""Names of the exporter's loggers."""


@dataclass(frozen=True)
class OnnxReport:
    """The result of an export to ONNX.

    Attributes:
        path: The file that was written.
        bytes: The size of the file.
        any_batch: Whether the file supports batches of any size, or only of the example's size.
        error: The largest difference between onnxruntime's outputs and the model's, relative to
            the largest magnitude; in int8 of the outputs that are not integers.
        int8_weights: The number of weights in int8, zeros included.
    """

    path: Path
    bytes: int
    any_batch: bool
    error: float
    int8_weights: int = 0


def to_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | Path,
    *,
    dtype: str | None = None,
    calibration: Iterable[ExampleInputs] | None = None,
) -> OnnxReport:
    """Write a model to an ONNX file and check its outputs in onnxruntime.

    The file supports batches of any size if the first dimensions of all inputs are equal and the
    model can be traced with a variable batch size.

    In int8 (``dtype="int8"``) linear layers and convolutions compute with 8-bit integers, in pairs
    of QuantizeLinear and DequantizeLinear, which other runtimes read too. A weight w is stored as
    round(w / s), where s is the largest magnitude among the weights of its output / 127: zeros stay
    exactly zero. Activations have a scale and a zero point for each tensor, from their extreme
    values over ``calibration``. Embeddings, products of two activations, as in attention, and all
    other operators stay in float32.

    Args:
        model: A module that ``torch.onnx.export`` can trace; it is not changed.
        example_inputs: Inputs of the model: a tensor, a tuple of positional arguments or a mapping
            of keyword arguments.
        path: The file to write or replace.
        dtype: "int8", or None (default) for the model's own types.
        calibration: Batches of training inputs, each as ``example_inputs``, that the scales of
            activations are computed from; a few hundred examples together. Needed for int8.

    Returns:
        The file, its size, and how far the outputs differ. In int8 the difference is not limited:
        measure the metric.

    Raises:
        ArgumentError: The dtype is not known, ``calibration`` is missing, unused or empty, or
            contains NaN or infinity.
        ArgumentTypeError: An argument has another type.
        PrunusError: The model is not a module, fails on the example inputs or cannot be traced;
            onnxruntime's outputs in float32 differ by more than 1e-4 of the largest; it cannot
            quantize the network; the 'onnx' extra is missing; or the file cannot be written. An
            existing file is left unchanged.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> path = Path(tempfile.mkdtemp()) / "model.onnx"
        >>> report = to_onnx(model, torch.randn(2, 4), path)
        >>> report.any_batch, report.error < 1e-4
        (True, True)
    """
    check_onnx_extra()
    path = as_path(path)
    raise_problems(*_int8_problems(dtype, calibration))
    model, args, kwargs = prepare_call(model, example_inputs)
    check_not_converted(model, allowed=["packed"])
    model = copy_model(model)
    inputs = [(args, kwargs)]
    expected = [reference_outputs(model, args, kwargs)]
    dynamic_shapes = _dynamic_batch(model, args, kwargs)
    if dynamic_shapes is not None:
        doubled = pytree.tree_map(_double_batch, (args, kwargs))
        # Suppressed because a model may support no other batch size than the example's.
        with contextlib.suppress(PrunusError):
            expected.append(reference_outputs(model, *doubled))
            inputs.append(doubled)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        any_batch = len(inputs) > 1
        if any_batch:
            try:
                # Traced with the doubled batch: torch.export would treat a size of 1 as fixed.
                _export(model, *inputs[1], file, dynamic_shapes)
            except PrunusError:
                any_batch = False
        if not any_batch:
            _export(model, args, kwargs, file, None)
            inputs, expected = inputs[:1], expected[:1]
        error = _largest_difference(file, inputs, expected)
        if error > TOLERANCE:
            raise PrunusError(
                f"{type(model).__name__} cannot be exported: its outputs in onnxruntime differ by "
                f"{error:.2g} of the largest ({TOLERANCE:g} is accepted). {UNSTABLE}; "
                f"{_ALTERNATIVE}"
            )
        int8_weights = 0
        if calibration is not None:
            file, source = Path(folder) / "model.int8.onnx", file
            quantize(source, file, map(call_arguments, calibration))
            int8_weights = count_int8(file)
            error = _largest_difference(file, inputs, expected, floating_only=True)
            if not math.isfinite(error):
                raise PrunusError(
                    f"{type(model).__name__} cannot be exported in int8: its outputs in onnxruntime"
                    " have NaN or infinity where the model's are finite. Export it in float32"
                )
        content = file.read_bytes()
    write_atomically(path, content)
    return OnnxReport(path, len(content), any_batch, error, int8_weights)


def _int8_problems(dtype: object, calibration: object) -> Iterator[str | None]:
    """Yield what is wrong with the arguments ``dtype`` and ``calibration``."""
    if dtype is not None:
        yield choice_problem("dtype", dtype, ("int8",), "'int8' or None")
    batches = "batches of training inputs"
    # A single batch would be read as one that consists of its rows.
    if isinstance(calibration, torch.Tensor | Mapping):
        yield type_problem("calibration", calibration, list, batches, fix="pass calibration=[x]")
    elif calibration is not None:
        yield type_problem("calibration", calibration, Iterable, batches)
    if dtype == "int8" and calibration is None:
        yield f"calibration must be {batches} for dtype='int8', but is None: pass calibration=[x]"
    if dtype is None and calibration is not None:
        yield "calibration has no effect without dtype='int8': pass both or neither"


def _largest_difference(
    file: Path,
    inputs: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]],
    expected: Iterable[list[torch.Tensor]],
    *,
    floating_only: bool = False,
) -> float:
    """Return the largest relative difference between onnxruntime's outputs and the expected ones.

    Args:
        file: The ONNX file.
        inputs: The arguments of each call.
        expected: The output tensors of each call.
        floating_only: Whether integers and truth values are left out.
    """
    session, worst = OnnxSession(file), 0.0
    for call, outputs in zip(inputs, expected, strict=True):
        pairs = zip(outputs, session.outputs(*call), strict=True)
        compared = [pair for pair in pairs if pair[0].is_floating_point() or not floating_only]
        left, right = [pair[0] for pair in compared], [pair[1] for pair in compared]
        worst = max(worst, relative_difference(left, right))
    return worst


def _double_batch(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.dim() else x


def _dynamic_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return, for each argument, that its first dimension is dynamic; None if they differ."""
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors or any(not x.dim() for x in tensors) or len({len(x) for x in tensors}) > 1:
        return None
    arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    dynamic = torch.export.Dim.DYNAMIC
    shapes: dict[str, Any] = pytree.tree_map(
        lambda x: {0: dynamic} if isinstance(x, torch.Tensor) else None, dict(arguments)
    )
    return shapes


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    path: Path,
    dynamic_shapes: dict[str, Any] | None,
) -> None:
    with _silence_exporter(), returning_tensors(model):
        try:
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=dict(kwargs),
                dynamo=True,
                verbose=False,
                external_data=False,
                dynamic_shapes=dynamic_shapes,
            )
        except Exception as error:  # the exporter raises errors of many types
            cause = root_cause(error)  # the others name the exporter's steps
            raise PrunusError(
                f"{type(model).__name__} cannot be exported ({type(cause).__name__}: "
                f"{first_line(cause)}). Use only operators that torch.onnx.export can trace; "
                f"{_ALTERNATIVE}"
            ) from error


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress log messages and warnings of the exporter, which concern its own internals."""
    logs = [logging.getLogger(name) for name in _EXPORTER_LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
