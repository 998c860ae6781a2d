"""A network in ONNX files, in float32 and int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from prunus._inference.model_calls import ExampleInputs, call_arguments
from prunus.errors import PrunusError
from prunus.export.onnx_export import to_onnx
from prunus.export.onnx_quantization import quantize
from prunus.export.onnx_session import OnnxSession

__all__ = ["CALIBRATIONS", "OnnxFiles"]

CALIBRATIONS = 8
"""The number of examples that the scales of activations in int8 are computed from."""


class OnnxFiles:
    """The network in ONNX files: a single one if it accepts any batch size, else one per size.

    Args:
        model: The network.
        example: Returns inputs for a batch of the requested size.
        folder: Where to write them.
        calibration: Inputs that the scales of the network in int8 are computed from.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Callable[[int], ExampleInputs],
        folder: Path,
        calibration: Sequence[ExampleInputs] = (),
    ) -> None:
        self._model, self._example, self._folder = model, example, folder
        self._calibration = calibration
        self._by_batch: dict[int, Path] = {}
        self._any_batch: Path | None = None
        self._failure: PrunusError | None = None

    def session(self, batch: int, threads: int) -> OnnxSession:
        """Return a session for batches of one size.

        Raises:
            PrunusError: The network cannot be exported, which is tried once.
        """
        return OnnxSession(self._path(batch), threads)

    def _path(self, batch: int) -> Path:
        """Return the file for batches of one size."""
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
        return path

    def quantized_session(self, batch: int, threads: int) -> OnnxSession:
        """Return a session of the network with weights and activations in int8.

        The scales of the activations are those of the inputs to calibrate by, and without any of
        :data:`CALIBRATIONS` examples.

        Raises:
            PrunusError: The network cannot be exported or quantized.
        """
        path = self._path(batch)
        quantized = path.with_suffix(".int8.onnx")
        if not quantized.exists():
            random = [self._example(batch) for _ in range(CALIBRATIONS)]
            # A file for batches of one size accepts no other.
            inputs = self._calibration if self._any_batch else ()
            quantize(path, quantized, map(call_arguments, inputs or random))
        return OnnxSession(quantized, threads)
