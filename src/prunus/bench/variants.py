"""The variants of a network for one batch, built with the present number of threads."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs, call_arguments, call_model, make_caller
from prunus.bench.onnx_files import OnnxFiles
from prunus.bench.reduced_precision import Autocast, Converted
from prunus.errors import PrunusError, first_line
from prunus.runtime import speed_up

__all__ = ["Variants", "build_variants"]


@dataclass(frozen=True)
class Variants:
    """The variants of a network for one batch, by name and with "dense" first.

    Attributes:
        calls: Functions that compute the batch.
        outputs: The output tensors.
        networks: Those that are modules.
        replaced: Names of the layers that are sparse in the variant "sparse".
    """

    calls: dict[str, Callable[[], object]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()


def build_variants(
    model: nn.Module,
    small: nn.Module | None,
    onnx_files: OnnxFiles,
    inputs: ExampleInputs,
    batch: int,
    excluded: dict[str, str],
    wanted: Collection[str],
    calibration: Iterable[ExampleInputs],
) -> Variants:
    """Build every variant that a batch can be computed with, at torch's number of threads.

    Args:
        model: The dense network.
        small: The compact network, or None.
        onnx_files: The network in ONNX files.
        inputs: The batch.
        batch: Its size.
        excluded: By variant: why it cannot be built. Entries are added.
        wanted: Names of the variants to build beside "dense".
        calibration: Inputs that the ranges of sparse layers in int8 are computed from.
    """
    networks = {"dense": model}
    if small is not None and "compact" in wanted:
        networks["compact"] = small
    replaced: tuple[str, ...] = ()
    for name, network in {"sparse": model, "compact, sparse": small}.items():
        if network is None or name not in wanted:
            continue
        with excluded_on_error(name, excluded):
            fast, report = speed_up(network, inputs, return_report=True)
            if report.replaced:
                networks[name] = fast
                replaced = report.replaced if name == "sparse" else replaced
    smallest = model if small is None else small
    for name, options in _sparse_types(calibration).items():
        if name in wanted:
            with excluded_on_error(name, excluded):
                fast, report = speed_up(smallest, inputs, return_report=True, **options)
                # Without a layer in that type it is a variant in float32, which is timed already.
                if any(layer.replaced and layer.dtype != "float32" for layer in report.layers):
                    networks[name] = fast
    for name, build in _BUILDERS.items():
        if name in wanted and name not in excluded:
            with excluded_on_error(name, excluded, Exception), _quiet():
                networks[name] = build(smallest)
    variants = Variants(networks=networks, replaced=replaced)
    args, kwargs = call_arguments(inputs)
    for name, network in networks.items():
        # Compilers and converted networks raise errors of any type, and warn about themselves.
        others = name in _BUILDERS
        with (
            excluded_on_error(name, excluded, Exception if others else PrunusError),
            _quiet() if others else contextlib.nullcontext(),
        ):
            outputs = call_model(network, args, kwargs)
            variants.calls[name] = make_caller(network, args, kwargs)
            variants.outputs[name] = outputs
    sessions = {
        "onnxruntime": onnx_files.session,
        "onnxruntime, int8": onnx_files.quantized_session,
    }
    for name, session in sessions.items():
        if name in wanted:
            with excluded_on_error(name, excluded):
                built = session(batch, torch.get_num_threads())
                variants.outputs[name] = built.outputs(args, kwargs)
                variants.calls[name] = built.caller(args, kwargs)
    return variants


def _sparse_types(calibration: Iterable[ExampleInputs]) -> dict[str, dict[str, Any]]:
    """Return, for each variant with sparse layers in a lower type, the arguments of speed_up."""
    return {
        "sparse, bfloat16": {"dtype": torch.bfloat16},
        "sparse, int8": {"dtype": torch.int8, "calibration": calibration},
    }


def _compiled(network: nn.Module) -> nn.Module:
    """Return a compiled network.

    Raises:
        PrunusError: There is no C++ compiler.
    """
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "cl")), None)
    if found is None:
        raise PrunusError("torch.compile needs a C++ compiler, such as g++")
    torch._dynamo.reset()  # else batch sizes become symbols
    return torch.compile(network)  # type: ignore[return-value]  # it is a module like its argument


_BUILDERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": _compiled,
    "bfloat16, autocast": Autocast,
    "bfloat16": Converted,
}
"""What builds a variant that is a module with the dense network's inputs."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def excluded_on_error(
    name: str, excluded: dict[str, str], error_type: type[Exception] = PrunusError
) -> Iterator[None]:
    """Exclude a variant that raises an error.

    Args:
        name: The variant.
        excluded: Where the reason is written.
        error_type: The type of error. Default: those with a message for users.
    """
    try:
        yield
    except error_type as error:
        known = isinstance(error, PrunusError)
        excluded[name] = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
