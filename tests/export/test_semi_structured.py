"""Tests of the check for the semi-structured format, against torch's own conversion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse import _semi_structured_conversions as conversions

import prunus
from helpers.errors import message_of
from prunus.export import semi_structured_layers


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))


def is_exact(weight: torch.Tensor) -> bool:
    """Return whether torch's conversion, which also runs on the CPU, keeps every weight."""
    convert: Any = conversions.sparse_semi_structured_from_dense_cutlass
    restore: Any = conversions.sparse_semi_structured_to_dense_cutlass
    restored: torch.Tensor = restore(*convert(weight))
    # torch restores float32 as pairs of float16, and sets a low bit where one is a signaling NaN.
    tolerance = 1e-4 if weight.dtype == torch.float32 else 0.0
    return torch.allclose(restored, weight, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [
        (torch.float16, prunus.NM(2, 4)),
        (torch.bfloat16, prunus.NM(2, 4)),
        (torch.float32, prunus.NM(1, 2)),
    ],
)
def test_layers_pruned_to_the_pattern_are_ready_and_converted_exactly(
    dtype: torch.dtype, pattern: prunus.Pattern
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(
        *(model, optimizer),
        score=prunus.MagnitudeScore(),
        schedule=prunus.OneShot(sparsity=0.5),
        pattern=pattern,
    )
    before = semi_structured_layers(model, dtype)
    assert before.ready == ()
    assert "non-zero weights" in before.problems["0"]
    pruner.prune(sparsity=0.5)
    layers = semi_structured_layers(model, dtype)
    assert layers.ready == ("0", "2")
    assert layers.problems == {"3": "its 10 outputs are not a multiple of 32"}
    for name in layers.ready:
        weight = model.get_parameter(f"{name}.weight").detach()
        assert ((weight.view(-1, 4) != 0).sum(1) <= 2).all()
        assert is_exact(weight.to(dtype))


def test_a_single_group_with_three_weights_is_reported_where_torch_drops_one() -> None:
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.get_parameter("weight").view(-1, 4)[:, 1:3] = 0
        model.get_parameter("0.weight")[5, 4:7] = 1
    layers = semi_structured_layers(model)
    assert layers.ready == ("2",)
    expected = "1 of 2,048 groups of 4 inputs have more than 2 non-zero weights"
    assert layers.problems["0"] == expected
    assert not is_exact(model.get_parameter("0.weight").detach().half())
    assert semi_structured_layers(network().half(), torch.bfloat16).ready == ()


def test_sizes_are_multiples_that_both_backends_of_torch_accept() -> None:
    backends: tuple[Any, ...] = (
        SparseSemiStructuredTensorCUTLASS,
        SparseSemiStructuredTensorCUSPARSELT,
    )
    for dtype, rows, columns in (
        (torch.float16, 32, 64),
        (torch.bfloat16, 32, 64),
        (torch.float32, 32, 32),
    ):
        for backend in backends:
            needed = backend._DTYPE_SHAPE_CONSTRAINTS.get(dtype)
            if needed is not None:  # cuSPARSELt has no float32
                assert rows % needed.sparse_min_rows == 0
                assert columns % needed.sparse_min_cols == 0
        for shape, ready in (((rows, columns), 1), ((rows // 2, columns), 0), ((rows, 16), 0)):
            layer = nn.Linear(shape[1], shape[0])
            nn.init.zeros_(layer.weight)
            assert len(semi_structured_layers(layer, dtype).ready) == ready


def test_wrong_arguments_are_refused() -> None:
    wrong: Any = torch.float64
    assert "dtype must be" in message_of(lambda: semi_structured_layers(network(), wrong))
    wrong = [1]
    assert "module" in message_of(lambda: semi_structured_layers(wrong)).lower()
