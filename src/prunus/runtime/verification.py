"""Comparison of sparse layers with the layers that they replace, on random inputs and examples."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus._inference.model_calls import call_model, copy_inputs
from prunus._inference.outputs import TOLERANCE, argument_tensors, relative_difference
from prunus.compaction.input_selection import without_selection
from prunus.runtime.precision import underflow
from prunus.runtime.replacing import Replacement

__all__ = ["difference_from_rounded", "difference_on_random_inputs", "rounding_excess"]

_UNIT_ROUNDOFF = torch.finfo(torch.float32).eps / 2

_PART = 1 << 22
"""Numbers of an input, about, that are compared at once, which bounds the memory in float64."""

_MOST_SCALE = 1e12
"""The largest factor of a random input: above it, products of large weights could overflow."""


@torch.no_grad()
def rounding_excess(replacement: Replacement, x: torch.Tensor) -> float:
    """Return the largest error of a sparse layer, in units of what rounding explains.

    It is compared with the layer in float64, on ``x`` and on random inputs of the same shape and
    layout. A sum of n products and a bias may be off by ε·(n + 2)·(|W|·|x| + |b|) (Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.1), for each output by itself. Random inputs
    are so large that the weights contribute at least as much as the bias.

    A layer in bfloat16 or int8 is compared twice: by this bound with the layer whose weights and
    inputs are rounded to that type, and with the exact layer by a bound to which their rounding
    adds, see :meth:`prunus.runtime.precision.Precision.rounding_bound`.

    Args:
        replacement: The layer, with the layers fused into it.
        x: The layer's input on an example.

    Returns:
        The quotient, at most 1 for a correct layer.
    """
    precision = replacement.precision
    layer: Any = without_selection(replacement.chain.merged(), replacement.in_features)
    exact, rounded = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    if precision.group > 1:
        rounded.weight.copy_(precision.rounded_weight(layer.weight))
    magnitudes = copy.deepcopy(rounded)
    for parameter in magnitudes.parameters():
        parameter.abs_()
    scale = 1.0
    if layer.bias is not None and layer.weight.numel():
        sums = magnitudes.weight.flatten(1).sum(dim=1)
        quotients = (magnitudes.bias / sums)[sums > 0]
        scale = min(_MOST_SCALE, max([1.0, *quotients[quotients.isfinite()].tolist()]))
    random = precision.random_input(x.shape, torch.Generator().manual_seed(0), scale)
    inputs = [torch.empty_like(x).copy_(random)]
    if bool(x.isfinite().all()):
        inputs.append(x)
    choices = (False, True) if isinstance(layer, nn.Linear) else (False,)
    sparse_layers = [replacement.sparse_layer(by_item=by_item) for by_item in choices]
    references = _References(exact, rounded, magnitudes)
    return max(
        _excess(replacement, references, sparse(each), each)
        for each in inputs
        for sparse in sparse_layers
    )


class _References(NamedTuple):
    """Layers in float64 to compare with.

    Attributes:
        exact: The layer.
        rounded: The layer with the weights that the sparse one has.
        magnitudes: The latter with the magnitudes of its weights and bias.
    """

    exact: Any
    rounded: Any
    magnitudes: Any


def _excess(
    replacement: Replacement, references: _References, found: torch.Tensor, x: torch.Tensor
) -> float:
    """Return the largest error of an output, in units of its bound."""
    chain, precision, rounded = replacement.chain, replacement.precision, references.rounded
    linear, dimensions = isinstance(rounded, nn.Linear), rounded.weight.dim()
    terms = rounded.weight.flatten(1).count_nonzero(dim=1).double() + 2
    factors = _UNIT_ROUNDOFF * terms.reshape(-1, *[1] * (dimensions - 2))
    worst = 0.0
    for part, outputs in _parts(x, found, linear, dimensions):
        numbers = precision.rounded_input(part)
        bound = factors * references.magnitudes(numbers.abs()) + torch.finfo(torch.float32).tiny
        compared = [(rounded(numbers), bound)]
        if precision.group > 1:
            weight = references.exact.weight
            bound += underflow(weight, part)
            bound_of_both = bound + precision.rounding_bound(weight.float(), part)
            compared.append((references.exact(part.double()), bound_of_both))
        for expected, limit in compared:
            expected = expected.relu() if chain.relu else expected
            if chain.pool is not None:
                expected, limit = chain.pool(expected), chain.pool(limit)
            if outputs.shape != expected.shape:
                return float("inf")
            known = expected.isfinite() & limit.isfinite()
            excess = ((outputs.double() - expected).abs() / limit)[known]
            excess = excess.nan_to_num(nan=float("inf"))
            worst = max(worst, float(excess.max()) if excess.numel() else 0.0)
    return worst


def _parts(
    x: torch.Tensor, y: torch.Tensor, linear: bool, dimensions: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield items of an input and of the output together."""
    if linear:
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    elif x.dim() < dimensions:
        x, y = x[None], y[None]
    size = max(1, _PART * len(x) // max(1, x.numel()))
    yield from zip(torch.split(x, size), torch.split(y, size), strict=True)


def difference_on_random_inputs(
    dense: nn.Module, fast: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float:
    """Return the largest difference of two networks on random numbers, relative to the largest.

    Args:
        dense: The reference.
        fast: The other network.
        args: Positional arguments of the example, whose floating-point tensors are replaced.
        kwargs: Keyword arguments of the example, likewise.

    Returns:
        The difference of the floating-point outputs; 0 if the reference accepts no such inputs or
        returns nothing finite for them.
    """
    args, kwargs = _random_arguments(args, kwargs)
    expected = _finite_outputs(dense, args, kwargs)
    if expected is None:
        return 0.0
    found = [each for each in call_model(fast, args, kwargs) if each.is_floating_point()]
    return relative_difference(expected, found)


def difference_from_rounded(
    dense: nn.Module,
    rounded: nn.Module,
    fast: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[float, float]:
    """Return how far a network is from one with the same rounding, and how far it may be.

    Sums in another order may round to the other one of two neighboring numbers in bfloat16 or int8.
    Such errors stay below those of rounding all numbers, by which the network with the same
    rounding differs from the dense one.

    Args:
        dense: The network.
        rounded: The network whose dense layers round, by
            :func:`prunus.runtime.replacing.round_layers`.
        fast: The network with sparse layers in bfloat16 or int8.
        args: Positional arguments of the example.
        kwargs: Keyword arguments of the example.

    Returns:
        The larger difference and the accepted one, relative to the largest output: of the example
        or of random inputs, whichever exceeds what is accepted by more.
        Both are infinite where rounding changes integers that the network returns.
    """
    expected = call_model(dense, args, kwargs)
    reference = call_model(rounded, args, kwargs)
    results = [_compared(expected, reference, call_model(fast, args, kwargs))]
    args, kwargs = _random_arguments(args, kwargs)
    if (exact := _finite_outputs(dense, args, kwargs)) is not None:
        of_both = [
            [each for each in call_model(network, args, kwargs) if each.is_floating_point()]
            for network in (rounded, fast)
        ]
        results.append(_compared(exact, *of_both))
    return max(results, key=lambda result: result[0] - result[1] if math.isfinite(result[1]) else 0)


def _compared(
    exact: list[torch.Tensor], rounded: list[torch.Tensor], found: list[torch.Tensor]
) -> tuple[float, float]:
    """Return the difference of outputs from those of a rounded network, and the accepted one."""
    return relative_difference(rounded, found), TOLERANCE + relative_difference(exact, rounded)


def _random_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with random numbers in floating-point tensors."""
    args, kwargs = copy_inputs(args, kwargs)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in argument_tensors((args, kwargs)):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draw))
    return args, kwargs


def _finite_outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[torch.Tensor] | None:
    """Return the floating-point outputs; None if the model fails, or one of them is not finite."""
    try:
        outputs = [each for each in call_model(model, args, kwargs) if each.is_floating_point()]
    except Exception:  # whatever a model's own code raises on inputs that it does not expect
        return None
    return outputs if all(bool(each.isfinite().all()) for each in outputs) else None
