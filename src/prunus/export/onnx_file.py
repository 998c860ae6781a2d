"""Writing a network for ONNX runtimes."""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunus._inference.model_calls import (
    ExampleInputs,
    copy_model,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import TOLERANCE, relative_difference
from prunus._utils.files import write_atomically
from prunus.errors import PrunusError

__all__ = ["OnnxFile", "OnnxSession", "to_onnx"]


@dataclass(frozen=True)
class OnnxFile:
    """A network for ONNX runtimes.

    Attributes:
        path: The file.
        bytes: Its size.
        any_batch: Whether it takes batches of any size; else that of the example.
        error: The largest difference of an output in onnxruntime, relative to the largest
            magnitude.
    """

    path: Path
    bytes: int
    any_batch: bool
    error: float


def to_onnx(model: nn.Module, example_inputs: ExampleInputs, path: str | Path) -> OnnxFile:
    """Write a network to an ONNX file, whose outputs in onnxruntime are compared with its own.

    The first dimension of the inputs may be of any size there, if all inputs have as many items and
    the network can be traced so.

    Args:
        model: Any module that ``torch.onnx.export`` can trace; it is not changed.
        example_inputs: What it is called with: a tensor, a tuple of positional arguments or a
            mapping of keyword arguments.
        path: The file to write or replace.

    Returns:
        What was written.

    Raises:
        PrunusError: It is no network, fails on the example or cannot be traced; onnxruntime's
            outputs differ by more than 1e-4 of the largest; onnx, onnxscript or onnxruntime is
            missing; or the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> file = to_onnx(model, torch.randn(2, 4), Path(tempfile.mkdtemp()) / "model.onnx")
        >>> file.any_batch, file.error < 1e-4
        (True, True)
    """
    _check_extra()
    model, args, kwargs = prepare_call(model, example_inputs)
    model = copy_model(model)
    inputs = [(args, kwargs)]
    right = [reference_outputs(model, args, kwargs)]
    free = _free_batch(model, args, kwargs)
    if free is not None:
        doubled = pytree.tree_map(_doubled, (args, kwargs))
        # A network may not take another batch than the example's.
        with contextlib.suppress(PrunusError):
            right.append(reference_outputs(model, *doubled))
            inputs.append(doubled)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        any_batch = len(inputs) > 1
        if any_batch:
            try:
                # Of the doubled one, for torch.export takes a size of 1 for a number that stays.
                _export(model, *inputs[1], written, free)
            except PrunusError:
                any_batch = False
        if not any_batch:
            _export(model, args, kwargs, written, None)
            inputs, right = inputs[:1], right[:1]
        session = OnnxSession(written)
        error = max(
            relative_difference(wanted, session.outputs(*given))
            for given, wanted in zip(inputs, right, strict=True)
        )
        if error > TOLERANCE:
            raise PrunusError(
                f"{type(model).__name__} cannot be exported: in onnxruntime its outputs are off by "
                f"{error:.2g} of the largest ({TOLERANCE:g} is accepted)"
            )
        content = written.read_bytes()
    write_atomically(Path(path), content)
    return OnnxFile(Path(path), len(content), any_batch, error)


class OnnxSession:
    """An ONNX file, opened by onnxruntime.

    Args:
        path: The file.
        threads: How many to compute with; default: as many as onnxruntime likes.

    Raises:
        PrunusError: onnxruntime refuses the file or, on a call, the inputs.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        _check_extra()
        import onnxruntime

        wanted = onnxruntime.SessionOptions()
        wanted.intra_op_num_threads = threads
        wanted.log_severity_level = 3
        with _as_user_error("refuses the network"):
            self._session = onnxruntime.InferenceSession(path, wanted, ["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]

    def outputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the network's output tensors, in order, for what the network is called with."""
        with _as_user_error("fails on the inputs"):
            return self.caller(args, kwargs)()

    def caller(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Callable[[], list[torch.Tensor]]:
        """Return a function that does so again and again."""
        named = {name: x for name, x in kwargs.items() if name in self._names}
        rest = {name: x for name, x in kwargs.items() if name not in named}
        names = [name for name in self._names if name not in named]
        given = [x for x in pytree.tree_leaves((args, rest)) if isinstance(x, torch.Tensor)]
        fed = {
            name: x.detach().cpu().numpy()
            for name, x in (*named.items(), *zip(names, given, strict=True))
        }
        return lambda: [torch.from_numpy(made) for made in self._session.run(None, fed)]


@contextlib.contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Say in one line what onnxruntime, or handing over to it, raises: errors of many kinds."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise PrunusError(f"onnxruntime {what}: {type(error).__name__}: {first}") from error


def _check_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise PrunusError(
            f"writing ONNX files needs the 'onnx' extra: pip install 'prunus[onnx]' ({missing})"
        ) from missing


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.dim() else x


def _free_batch(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return by argument that its first dimension may be of any size; None if they differ."""
    tensors = [x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, torch.Tensor)]
    if not tensors or any(not x.dim() for x in tensors) or len({len(x) for x in tensors}) > 1:
        return None
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    batch = torch.export.Dim.DYNAMIC
    free: dict[str, Any] = pytree.tree_map(
        lambda x: {0: batch} if isinstance(x, torch.Tensor) else None, dict(bound)
    )
    return free


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    path: Path,
    shapes: dict[str, Any] | None,
) -> None:
    with _quiet():
        try:
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=dict(kwargs),
                dynamo=True,
                verbose=False,
                external_data=False,
                dynamic_shapes=shapes,
            )
        except Exception as error:  # of many kinds, whatever stands in the way
            first = str(error).strip().partition("\n")[0]
            raise PrunusError(
                f"{type(model).__name__} cannot be exported: {type(error).__name__}: {first}"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about its own workings from the user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
