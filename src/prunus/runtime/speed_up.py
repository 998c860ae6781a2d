"""Sparse networks that run faster than dense ones on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    call_model,
    copy_model,
    make_caller,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import TOLERANCE, UNSTABLE, relative_difference
from prunus._utils.checks import TypeProblem, raise_problems
from prunus.errors import PrunusError, first_line, listing
from prunus.runtime.attention_splitting import split_sparse_attentions
from prunus.runtime.calibration import calibration_problem, input_ranges
from prunus.runtime.candidates import is_sparse_enough, layer_inputs
from prunus.runtime.fusion import find_chains
from prunus.runtime.layer_choice import is_certain, time_layer, time_variants
from prunus.runtime.numba_extra import check_numba
from prunus.runtime.precision import FLOAT32, BFloat16, Int8, Precision, type_name
from prunus.runtime.replacing import Replacement, replace_layers, round_layers
from prunus.runtime.report import LayerTiming, SpeedUpReport
from prunus.runtime.verification import (
    difference_from_rounded,
    difference_on_random_inputs,
    rounding_excess,
)

__all__ = ["speed_up"]

_TYPES = (torch.float32, torch.bfloat16, torch.int8)
_TYPES_SHOWN = f"{_TYPES[0]}, {_TYPES[1]} or {_TYPES[2]}"


@overload
def speed_up(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    dtype: torch.dtype | None = None,
    calibration: Iterable[ExampleInputs] | None = None,
    return_report: Literal[False] = False,
) -> nn.Module: ...


@overload
def speed_up(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    dtype: torch.dtype | None = None,
    calibration: Iterable[ExampleInputs] | None = None,
    return_report: Literal[True],
) -> tuple[nn.Module, SpeedUpReport]: ...


def speed_up(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    dtype: torch.dtype | None = None,
    calibration: Iterable[ExampleInputs] | None = None,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, SpeedUpReport]:
    """Return a copy of a sparse network that runs faster on the CPU, for inference.

    Each ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d``, and each projection of a
    ``nn.MultiheadAttention``, is timed against a layer that computes with its non-zero weights
    only. The timing uses the layer's input on the example and torch's number of threads. Both
    layers take turns, and the layer is replaced where the median of their quotients favors the
    sparse one; timings that other processes disturb are repeated. ReLUs, and batch norms and max
    poolings after a convolution, are fused into the replaced layer where the network can be traced.
    Finally the whole network is timed in the same way, and returned dense where that is not slower.

    Each layer to replace is compared with its dense counterpart in float64, and the network with
    the dense one, both on the example and on random numbers. A layer whose differences rounding
    does not explain stays dense.

    A replaced layer keeps the attributes of the layer, such as ``bias`` and ``stride``. Its
    ``weight`` is for reading: its type, device and shape cost nothing, and reading its elements
    builds the dense matrix each time.

    With ``dtype``, linear layers are timed in that type too, and the fastest is used for each. They
    keep inputs and outputs in float32, and store their weights in that type alone; convolutions
    stay in float32. In bfloat16, weights and inputs are rounded, and sums are in float32. In int8,
    the weights of a row are integers times a factor, and inputs are integers within the range that
    the layer's inputs have in the calibration: values beyond it become its ends. Such a layer is
    compared in float64 with a dense one of the same rounded numbers, and with the exact one by a
    bound for their rounding; the network with the dense one whose layers round in the same way.
    How far its outputs are from those of the original network is ``error`` in the report: measure
    its metric. Zeros in blocks of 1×2 (bfloat16) or 1×4 weights (int8), by
    ``prunus.patterns.Block``, make the most of it.

    Args:
        model: Any network in float32 on the CPU, also one returned by :func:`prunus.compact`, or
            wrapped in ``torch.compile`` or DistributedDataParallel. It is not changed. Its weights
            decide what is sparse; masks are not consulted.
        example_inputs: The model's inputs: a tensor, a tuple of positional arguments or a mapping
            of keyword arguments. The network is made fast for their sizes; other sizes work too.
        dtype: ``torch.bfloat16`` or ``torch.int8`` to try linear layers in that type, too. Default
            None, or ``torch.float32``: only in float32.
        calibration: Inputs like ``example_inputs``, typical of those to come, from which int8 has
            the ranges of activations. Default: ``example_inputs``.
        return_report: Whether to return a :class:`SpeedUpReport` too, which replaces the warning.
            Default False.

    Returns:
        The copy, in evaluation mode, without gradients. If no sparse layer is faster, a dense copy,
        with a warning that lists the reasons.

    Raises:
        ArgumentError: ``dtype`` is another type, or ``calibration`` is empty or given without int8.
        PrunusError: The model is not a network, has no parameters, or fails on the example, on a
            calibration input or with sparse layers; a layer to be computed in int8 receives NaN or
            infinity in the calibration; Numba is missing.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        >>> _ = nn.init.sparse_(model[0].weight, 0.99)
        >>> fast, report = speed_up(model, torch.randn(64, 512), return_report=True)
        >>> [(layer.name, layer.fused, layer.density < 0.7) for layer in report.layers]
        [('0', ('1',), True), ('2', (), False)]
        >>> set(report.replaced) <= {"0"}  # depends on the machine; the second layer is dense
        True
        >>> x = torch.randn(64, 512)
        >>> with torch.no_grad():
        ...     torch.allclose(fast(x), model(x), atol=1e-5)
        True
    """
    fast, report = _speed_up(model, example_inputs, dtype or torch.float32, calibration)
    if return_report:
        return fast, report
    if not report.replaced:
        tried = [f"{t.name or 'the layer'} ({t.density:.0%} non-zero)" for t in report.layers]
        others = [f"{name}: {reason}" for name, reason in report.excluded.items()]
        reasons = listing([*tried, *others]) or "it has no layer of a supported type"
        warnings.warn(
            f"a dense copy of {type(model).__name__} is returned, because no sparse layer makes it "
            f"faster on this example: {reasons}. "
            + (
                "The timings were disturbed by other processes: repeat it on an idle machine"
                if report.disturbed
                else "Prune further, or use a larger batch"
            ),
            stacklevel=2,
        )
    return fast


def _speed_up(
    model: nn.Module,
    example_inputs: ExampleInputs,
    dtype: torch.dtype,
    calibration: Iterable[ExampleInputs] | None,
) -> tuple[nn.Module, SpeedUpReport]:
    _check_types(dtype, calibration)
    check_numba()
    model, args, kwargs = prepare_call(model, example_inputs)
    dense = copy_model(model)
    expected = reference_outputs(dense, args, kwargs)
    split = split_sparse_attentions(model, dense, args, kwargs, expected)
    inputs, excluded = layer_inputs(split.model, args, kwargs)
    in_float32: dict[str, str] = {}
    timings: list[LayerTiming] = []
    faster: list[Replacement] = []
    examples = [example_inputs] if calibration is None else calibration
    precisions = _precisions(split.model, inputs, dtype, examples, in_float32)
    with torch.inference_mode():
        for chain in find_chains(split.model, inputs):
            x = inputs[chain.name]
            features = x.shape[1 - chain.layer.weight.dim()]
            timed = time_layer(
                [Replacement(chain, features, each) for each in precisions[chain.name]], x
            )
            wrong: dict[str, str] = {}
            while (best := timed.fastest(wrong)) is not None:
                if (excess := rounding_excess(timed.replacements[best], x)) <= 1:
                    faster.append(timed.replacements[best])
                    break
                wrong[best] = (
                    f"its sparse counterpart is off by {excess:.2g} times what rounding explains"
                )
            timings.append(timed.timing(best))
            if best is None and wrong:
                excluded[chain.name] = "; ".join(wrong.values())
            elif best is not None and best != type_name(dtype):
                reason = wrong.get(type_name(dtype), f"{type_name(dtype)} is not faster")
                in_float32.setdefault(chain.name, reason)
    # Outside of inference mode: tensors made in that mode cannot be written to later, as by
    # load_state_dict, or by a forward that counts its calls in a buffer.
    networks = {
        "dense": (dense, make_caller(dense, args, kwargs)),
        **_sparse_networks(model, faster, split.joint, args, kwargs),
    }
    with torch.inference_mode():
        network_timings = time_variants({name: caller for name, (_, caller) in networks.items()})
    best = min(networks, key=network_timings.ratio)
    milliseconds = {
        name: network_timings.milliseconds(name)["median_ms"] for name in ("dense", best)
    }
    disturbed = not is_certain(network_timings) or any(timing.disturbed for timing in timings)
    network, _ = networks[best]
    error = relative_difference(expected, call_model(network, args, kwargs))
    excess, accepted = error, TOLERANCE
    if best != "dense" and any(each.precision.group > 1 for each in faster):
        rounded = round_layers(model, faster, joint=split.joint)
        excess, accepted = difference_from_rounded(dense, rounded, network, args, kwargs)
    elif best != "dense":
        error = max(error, difference_on_random_inputs(dense, network, args, kwargs))
        excess = error
    if excess > accepted:
        raise PrunusError(
            f"{type(model).__name__} cannot be sped up: its outputs would be off by {excess:.2g} "
            f"of the largest ({accepted:.2g} is accepted). {UNSTABLE}; or use the dense network"
        )
    _restore_buffers(network, model)
    if best == "dense":
        timings = [replace(timing, replaced=False) for timing in timings]
    replaced = {timing.name for timing in timings if timing.replaced}
    return network, SpeedUpReport(
        layers=tuple(timings),
        excluded=excluded | split.excluded,
        dense_ms=milliseconds["dense"],
        sparse_ms=milliseconds[best],
        threads=torch.get_num_threads(),
        error=error,
        disturbed=disturbed,
        in_float32={name: why for name, why in in_float32.items() if name in replaced},
    )


def _check_types(dtype: object, calibration: Iterable[ExampleInputs] | None) -> None:
    """Raise one error if the type, or the inputs to calibrate by, cannot be used."""
    raise_problems(
        _type_problem(dtype),
        None if calibration is None else calibration_problem(calibration),
        "calibration is only for dtype=torch.int8: leave it out, or pass that"
        if calibration is not None and dtype is not torch.int8
        else None,
    )


def _type_problem(dtype: object) -> str | None:
    """Return why sparse layers cannot compute in a type, or None if they can."""
    if not isinstance(dtype, torch.dtype):
        return TypeProblem(f"dtype must be {_TYPES_SHOWN}, but is {dtype!r}")
    return None if dtype in _TYPES else f"dtype must be {_TYPES_SHOWN}, but is {dtype}"


def _precisions(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    calibration: Iterable[ExampleInputs],
    in_float32: dict[str, str],
) -> dict[str, list[Precision]]:
    """Return the types in which each layer is tried, by the layer's name.

    Args:
        model: The network.
        inputs: The input of each layer.
        dtype: The type to try beside float32.
        calibration: Inputs of the network, for int8.
        in_float32: Where the reason is written if a layer cannot be computed in that type.
    """
    precisions: dict[str, list[Precision]] = {name: [FLOAT32] for name in inputs}
    if dtype is torch.float32:
        return precisions
    linear: dict[str, nn.Linear] = {}
    for name in inputs:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            linear[name] = layer
        else:
            in_float32[name] = f"a {type(layer).__name__} has no counterpart in {type_name(dtype)}"
    sparse = {name: layer for name, layer in linear.items() if is_sparse_enough(layer)}
    if dtype is torch.int8:
        ranges = input_ranges(model, sparse, calibration)
        lower: dict[str, Precision] = {
            name: Int8.for_range(*bounds) for name, bounds in ranges.items()
        }
    else:
        lower = dict.fromkeys(sparse, BFloat16())
    for name, layer in sparse.items():
        if name not in lower:
            in_float32[name] = "it is not called on the calibration inputs"
        elif problem := lower[name].weight_problem(layer.weight):
            in_float32[name] = problem
        else:
            precisions[name].append(lower[name])
    return precisions


def _sparse_networks(
    model: nn.Module,
    replacements: Sequence[Replacement],
    joint: Mapping[str, bool],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
    """Return the network with sparse layers, and a function that calls it, for each layout.

    A layout that the network's own code rejects is left out: ``torch.view_as_complex``, for one,
    reads only outputs that are stored item by item.

    Raises:
        PrunusError: It rejects every layout.
    """
    networks: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    failures = []
    for by_item in (False, True) if replacements else ():
        layout = "by item" if by_item else "by feature"
        network = replace_layers(model, replacements, joint=joint, by_item=by_item)
        try:
            networks[layout] = network, make_caller(network, args, kwargs)
        except Exception as error:  # the model's own code raises errors of any type
            failures.append(error)
    if failures and not networks:
        raise PrunusError(
            f"{type(model).__name__} cannot be sped up: with sparse layers its forward fails with "
            f"{type(failures[-1]).__name__}: {first_line(failures[-1])}. Use the dense network"
        ) from failures[-1]
    return networks


def _restore_buffers(network: nn.Module, model: nn.Module) -> None:
    """Give a copy that was called for timing the buffers of its original, which was not.

    A forward may write to them, as to a count of its calls.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in network.named_modules(remove_duplicate=False):
        own = modules[name]._buffers if name in modules else {}
        for key in module._buffers.keys() & own.keys():
            buffer = own[key]
            module._buffers[key] = None if buffer is None else buffer.clone()
