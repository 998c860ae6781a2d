"""ONNX models in onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunus._utils.extras import missing_extra
from prunus.errors import PrunusError, first_line

__all__ = ["OnnxSession", "check_onnx_extra"]

_PASS_FITTING_INPUTS = "pass inputs of the number, types and shapes that the network has"


class OnnxSession:
    """A session of onnxruntime that computes one ONNX model on the CPU.

    Args:
        path: The ONNX file.
        threads: The number of threads. Default: onnxruntime's own choice.

    Raises:
        MissingExtraError: The 'onnx' extra is not installed.
        PrunusError: onnxruntime rejects the file.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        check_onnx_extra()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        with _as_prunus_error("rejects the network", "export it again with prunus.export.to_onnx"):
            self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]

    def outputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the output tensors of the model, in order.

        Args:
            args: The positional arguments of the torch module's ``forward``.
            kwargs: Its keyword arguments.

        Raises:
            PrunusError: onnxruntime fails on these inputs.
        """
        with _as_prunus_error("fails on the inputs", _PASS_FITTING_INPUTS):
            return self.caller(args, kwargs)()

    def caller(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Callable[[], list[torch.Tensor]]:
        """Return a function that computes the output tensors for these inputs on each call."""
        inputs = self.named_inputs(args, kwargs)
        return lambda: [torch.from_numpy(array) for array in self._session.run(None, inputs)]

    def named_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of the model as arrays by name."""
        named = {name: x for name, x in kwargs.items() if name in self._names}
        nested = {name: x for name, x in kwargs.items() if name not in named}
        names = [name for name in self._names if name not in named]
        leaves = pytree.tree_leaves((args, nested))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {
            name: x.detach().cpu().numpy()
            for name, x in (*named.items(), *zip(names, tensors, strict=True))
        }


@contextlib.contextmanager
def _as_prunus_error(failure: str, fix: str) -> Iterator[None]:
    """Turn any exception of onnxruntime, which has many types, into a message of one line."""
    try:
        yield
    except Exception as error:
        raise PrunusError(
            f"onnxruntime {failure} ({type(error).__name__}: {first_line(error)}): {fix}"
        ) from error


def check_onnx_extra() -> None:
    """Check that the packages of the 'onnx' extra are installed.

    Raises:
        MissingExtraError: One is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("writing ONNX files", "onnx", error) from error
