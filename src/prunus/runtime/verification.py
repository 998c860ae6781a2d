"""Comparison of sparse layers with the layers that they replace, on random inputs and examples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from prunus._inference.model_calls import call_model, copy_inputs
from prunus._inference.outputs import argument_tensors, relative_difference
from prunus.compaction.input_selection import without_selection
from prunus.runtime.replacing import Replacement

__all__ = ["difference_on_random_inputs", "rounding_excess"]

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

    Args:
        replacement: The layer, with the layers fused into it.
        x: The layer's input on an example.

    Returns:
        The quotient, at most 1 for a correct layer.
    """
    layer: Any = without_selection(replacement.chain.merged(), replacement.in_features)
    exact, magnitudes = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    for parameter in magnitudes.parameters():
        parameter.abs_()
    scale = 1.0
    if layer.bias is not None and layer.weight.numel():
        sums = magnitudes.weight.flatten(1).sum(dim=1)
        quotients = (magnitudes.bias / sums)[sums > 0]
        scale = min(_MOST_SCALE, max([1.0, *quotients[quotients.isfinite()].tolist()]))
    random = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * scale
    inputs = [torch.empty_like(x).copy_(random)]
    if bool(x.isfinite().all()):
        inputs.append(x)
    choices = (False, True) if isinstance(layer, nn.Linear) else (False,)
    sparse_layers = [replacement.sparse_layer(by_item=by_item) for by_item in choices]
    return max(
        _excess(replacement, exact, magnitudes, sparse(each), each)
        for each in inputs
        for sparse in sparse_layers
    )


def _excess(
    replacement: Replacement, exact: Any, magnitudes: Any, found: torch.Tensor, x: torch.Tensor
) -> float:
    """Return the largest error of an output, in units of its bound."""
    chain, linear = replacement.chain, isinstance(exact, nn.Linear)
    terms = exact.weight.flatten(1).count_nonzero(dim=1).double() + 2
    factors = _UNIT_ROUNDOFF * terms.reshape(-1, *[1] * (exact.weight.dim() - 2))
    worst = 0.0
    for part, outputs in _parts(x, found, linear, exact.weight.dim()):
        expected = exact(part.double())
        bound = factors * magnitudes(part.double().abs()) + torch.finfo(torch.float32).tiny
        expected = expected.relu() if chain.relu else expected
        if chain.pool is not None:
            expected, bound = chain.pool(expected), chain.pool(bound)
        if outputs.shape != expected.shape:
            return float("inf")
        known = expected.isfinite() & bound.isfinite()
        excess = ((outputs.double() - expected).abs() / bound)[known].nan_to_num(nan=float("inf"))
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
    args, kwargs = copy_inputs(args, kwargs)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in argument_tensors((args, kwargs)):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draw))
    try:
        expected = [each for each in call_model(dense, args, kwargs) if each.is_floating_point()]
    except Exception:  # whatever a model's own code raises on inputs that it does not expect
        return 0.0
    if not all(bool(each.isfinite().all()) for each in expected):
        return 0.0
    found = [each for each in call_model(fast, args, kwargs) if each.is_floating_point()]
    return relative_difference(expected, found)
