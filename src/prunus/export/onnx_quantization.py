"""Quantization of ONNX files to int8, by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError, first_line
from prunus.export.onnx_session import OnnxSession, check_onnx_extra

__all__ = ["quantize"]


def quantize(
    source: Path, target: Path, inputs: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> None:
    """Write an ONNX file with weights and activations in int8.

    Weights have a scale for each output, activations one for each tensor, from their extreme values
    over the inputs. Zeros stay zeros. Operators that onnxruntime cannot quantize stay in float32.

    Args:
        source: The file in float32.
        target: The file to write.
        inputs: Positional and keyword arguments of the torch module's ``forward``, to calibrate by.

    Raises:
        MissingExtraError: The 'onnx' extra is not installed.
        PrunusError: onnxruntime cannot quantize the network.
    """
    check_onnx_extra()
    from onnxruntime import quantization

    session = OnnxSession(source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Passes the inputs on, one at a time."""

        def __init__(self) -> None:
            self._inputs = iter([session.named_inputs(args, kwargs) for args, kwargs in inputs])

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
            )
    except Exception as error:
        raise PrunusError(
            f"onnxruntime cannot quantize the network ({type(error).__name__}: "
            f"{first_line(error)}): use it in float32"
        ) from error


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
