"""Comparisons with exact shapes and types, and with a bound for each element."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

__all__ = [
    "assert_layer_matches_float64",
    "assert_outputs_match",
    "assert_states_identical",
    "rounding_bound",
    "tensor_bytes",
]

UNIT_ROUNDOFF = torch.finfo(torch.float32).eps / 2
"""The largest relative error of one rounding to the nearest float32."""


def rounding_bound(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute, for each output, how far a float32 result may lie from the exact one.

    A sum of n products and a bias takes at most n + 1 roundings on the way from a product to the
    result, in whatever order it is added up, so that the error is below
    ε·(n + 2)·(|W|·|x| + |b|) (Higham, Accuracy and Stability of Numerical Algorithms, section
    3.1). Here n is the number of non-zero weights of the row and ε the unit roundoff. A ReLU or a
    max pooling moves no two results further apart than they are.

    Args:
        layer: A linear layer or a convolution, or an ``nn.Sequential`` of one and of ReLUs
            and max poolings after it.
        x: The input.

    Returns:
        The bounds, in float64, of the shape of the output.
    """
    first, *others = layer if isinstance(layer, nn.Sequential) else [layer]
    magnitudes = copy.deepcopy(first).double()
    with torch.no_grad():
        for parameter in magnitudes.parameters():
            parameter.abs_()
        bound: torch.Tensor = magnitudes(x.double().abs())
        weight = first.get_parameter("weight")
        terms = weight.flatten(1).count_nonzero(dim=1).double() + 2
        # A convolution's channels come before its spatial dimensions, a linear layer's features
        # last.
        bound = bound * UNIT_ROUNDOFF * terms.reshape(-1, *[1] * (weight.dim() - 2))
        for other in others:
            bound = other(bound)
    return bound


def assert_layer_matches_float64(
    sparse: nn.Module, layer: nn.Module, x: torch.Tensor, rounded: torch.Tensor | None = None
) -> torch.Tensor:
    """Check a sparse layer against the dense one in float64, each output by its own bound.

    Args:
        sparse: The layer to check.
        layer: The dense one, as for :func:`rounding_bound`.
        x: The input, float32.
        rounded: The input of the dense layer, if the sparse one rounds it. Default: ``x``.

    Returns:
        What the sparse layer returns.

    Raises:
        AssertionError: The shape or the type differs, or an output is beyond its bound or not a
            number.
    """
    with torch.no_grad():
        found: torch.Tensor = sparse(x)
        read = x if rounded is None else rounded
        expected: torch.Tensor = copy.deepcopy(layer).double()(read.double())
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    assert found.dtype == torch.float32, f"{found.dtype}, not torch.float32"
    bound = rounding_bound(layer, read)
    assert bound.shape == expected.shape, f"bounds of shape {tuple(bound.shape)}"
    error = (found.double() - expected).abs()
    beyond = ~(error <= bound)  # so that NaN is beyond
    if beyond.any():
        first = tuple(beyond.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(beyond.sum())} of {beyond.numel()} outputs are beyond their bounds; at {first}: "
            f"{float(found[first])!r}, expected {float(expected[first])!r} ± "
            f"{float(bound[first]):.3g}"
        )
    return found


def assert_outputs_match(
    model: nn.Module,
    expected: nn.Module,
    *inputs: torch.Tensor,
    rtol: float = 5e-6,
    atol: float = 1e-6,
) -> None:
    """Check that a model returns what another one returns, of the same shape and type.

    Args:
        model: The model to check, in evaluation mode.
        expected: The model to compare it with; it is put into evaluation mode.
        inputs: Positional arguments of both.
        rtol: Tolerance of each output, relative to that output.
        atol: Tolerance of each output besides. Where all outputs are small it is ``rtol`` times the
            largest instead, so that no output may be off by more than 2·``rtol`` of the largest.

    Raises:
        AssertionError: An output, the shape or the type differs.
    """
    with torch.no_grad():
        found, right = model(*inputs), expected.eval()(*inputs)
    largest = float(right.abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(found, right, rtol=rtol, atol=min(atol, rtol * largest))


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements, row by row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_states_identical(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> None:
    """Check that two states have the same names, types, shapes and bits, in any order."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        assert tensor_bytes(tensor) == tensor_bytes(other[name]), name
