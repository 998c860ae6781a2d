"""Tests of the names of tied tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus._utils.tied import first_names, named_tensors


def tied_model() -> nn.Module:
    """A model with a tied parameter, a tied buffer and a shared module."""
    model: Any = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2), "c": nn.ReLU()})
    model["a"].weight = model["b"].weight
    model["again"] = model["b"]
    buffer = torch.ones(3)
    for name in ("y", "x"):
        model.register_buffer(name, buffer)
    return model  # type: ignore[no-any-return]


def test_parameters_come_before_buffers_under_all_their_names() -> None:
    assert list(named_tensors(tied_model())) == [
        *("b.weight", "b.bias", "a.weight", "a.bias", "again.weight", "again.bias", "y", "x"),
    ]


def test_first_name_is_that_of_the_first_registration() -> None:
    assert first_names(named_tensors(tied_model())) == {
        "b.weight": "b.weight",
        "a.weight": "b.weight",
        "again.weight": "b.weight",
        "b.bias": "b.bias",
        "again.bias": "b.bias",
        "a.bias": "a.bias",
        "y": "y",
        "x": "y",
    }


def test_equal_tensors_that_share_no_memory_are_not_tied() -> None:
    a, b = torch.ones(2), torch.ones(2)
    assert first_names({"a": a, "b": b}) == {"a": "a", "b": "b"}
