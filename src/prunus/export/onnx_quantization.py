"""Quantization of ONNX files to int8, by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunus.errors import ArgumentError, PrunusError, first_line, listing
from prunus.export.onnx_session import OnnxSession, check_onnx_extra

__all__ = ["count_int8", "quantize"]

_WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
"""The operators whose weights and inputs are quantized."""

_BETWEEN_CONVOLUTIONS = ("Relu", "MaxPool")
"""The operators that keep a convolution's output in int8 for the next one."""


def quantize(
    source: Path, target: Path, inputs: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> None:
    """Write an ONNX file whose linear layers and convolutions compute in int8.

    The file has pairs of the operators QuantizeLinear and DequantizeLinear. Weights are symmetric,
    with a scale for each output, so that zeros stay zeros. Activations have a scale and a zero
    point for each tensor, from their extreme values over the inputs. Products of two activations,
    as in attention, embeddings and all other operators stay in float32: a mask of attention
    contains minus infinity, which has no scale.

    Args:
        source: The file in float32.
        target: The file to write; it may exist after an error.
        inputs: Positional and keyword arguments of the torch module's ``forward``, to calibrate by.

    Raises:
        MissingExtraError: The 'onnx' extra is not installed.
        ArgumentError: There are no inputs, or some do not fit or contain NaN or infinity.
        PrunusError: onnxruntime cannot quantize the network, the network has no layers that can be
            quantized, or activations are NaN or infinite.
    """
    check_onnx_extra()
    import onnx
    from onnxruntime import quantization

    named = _named_inputs(OnnxSession(source), inputs)
    _check_calibration(named)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Passes the inputs on, one at a time."""

        def __init__(self) -> None:
            self._inputs = iter(named)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._inputs, None)

    try:
        with _silent():
            quantization.quantize_static(
                source,
                target,
                Reader(),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                # Unsigned, because the instructions of x86 multiply unsigned by signed numbers.
                activation_type=quantization.QuantType.QUInt8,
                op_types_to_quantize=[*_WITH_WEIGHTS, *_BETWEEN_CONVOLUTIONS],
                nodes_to_exclude=_products_of_activations(onnx.load(source).graph),
                # Convolutions alone need an output in int8 to compute in int8; others are as fast
                # and more precise with one in float32.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
    except Exception as error:
        raise PrunusError(
            f"onnxruntime cannot quantize the network ({type(error).__name__}: "
            f"{first_line(error)}): use it in float32, and check that its layers return no NaN or "
            "infinity for the inputs to calibrate by"
        ) from error
    _check_scales(target)


def count_int8(path: Path) -> int:
    """Return the number of weights of an ONNX file that are stored in int8, zeros included."""
    import onnx

    return sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    )


def _named_inputs(
    session: OnnxSession, inputs: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return inputs as arrays by name, after onnxruntime has computed outputs for each.

    Raises:
        ArgumentError: onnxruntime fails on some.
    """
    named = []
    for number, (args, kwargs) in enumerate(inputs):
        try:
            session.outputs(args, kwargs)
        except PrunusError as error:
            raise ArgumentError(
                f"calibration must have batches of inputs alone, without labels, but batch {number}"
                f" (the first is 0) does not fit: {error}"
            ) from error
        named.append(session.named_inputs(args, kwargs))
    return named


def _check_calibration(inputs: list[dict[str, Any]]) -> None:
    """Check that there are inputs to calibrate by, without NaN and infinity.

    Raises:
        ArgumentError: There are none, or some are not finite; each is listed.
    """
    if not inputs:
        raise ArgumentError(
            "calibration must have at least one batch of inputs, but has none: pass batches of "
            "training inputs"
        )
    wrong = [
        f"{name} of batch {number}"
        for number, batch in enumerate(inputs)
        for name, array in batch.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if wrong:
        raise ArgumentError(
            f"calibration must be finite, but NaN or infinity is in {listing(wrong)} (the first "
            "batch is 0): no scale holds it. Leave these batches out"
        )


def _products_of_activations(graph: Any) -> list[str]:
    """Return the names of the matrix products whose factors are both computed by the network."""
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in _WITH_WEIGHTS and constants.isdisjoint(node.input[:2])
    ]


def _check_scales(path: Path) -> None:
    """Check that an ONNX file has weights in int8, and that its scales are finite.

    Raises:
        PrunusError: It has none, or some scales are not.
    """
    import onnx
    from onnx import numpy_helper

    if not count_int8(path):
        raise PrunusError(
            "the network has no linear layer or convolution that onnxruntime can quantize: use it "
            "in float32"
        )
    graph = onnx.load(path).graph
    pairs = ("QuantizeLinear", "DequantizeLinear")
    scales = {node.input[1] for node in graph.node if node.op_type in pairs}
    wrong = [
        tensor.name.removesuffix("_scale")
        for tensor in graph.initializer
        if tensor.name in scales and not np.isfinite(numpy_helper.to_array(tensor)).all()
    ]
    if wrong:
        raise PrunusError(
            f"these tensors are NaN or infinite for the inputs to calibrate by: {listing(wrong)}. "
            "Use the network in float32, or change it so that its layers receive finite numbers"
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep onnxruntime from advising, on standard output and in the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
