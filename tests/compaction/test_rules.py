"""Tests of the rules: which operators they name, and which calls they apply to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn

from prunus.compaction.graph import Call
from prunus.compaction.rules import RULES, rule_for
from prunus.compaction.tracing import trace

from .networks import FunctionalModel

OPERATORS = sorted(frozenset().union(*(rule.operators for rule in RULES)))


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_exists_in_torch(name: str) -> None:
    assert hasattr(torch.ops.aten, name)


def test_operators_have_one_rule_but_for_those_of_two_forms() -> None:
    rules = defaultdict(list)
    for rule in RULES:
        for name in rule.operators:
            rules[name].append(rule.__name__)
    assert {name: names for name, names in rules.items() if len(names) > 1} == {
        "max": ["ElementwiseExtremum", "MeanReduction"],
        "min": ["ElementwiseExtremum", "MeanReduction"],
        "mm": ["WeightedLayer", "MatrixProduct"],
        "matmul": ["WeightedLayer", "MatrixProduct"],
    }


def calls(run: Any, *inputs: torch.Tensor, **layers: nn.Module) -> dict[str, Call]:
    """Return the operator calls of a function of a model and its inputs, by operator."""
    graph = trace(FunctionalModel(run, **layers), inputs, {})
    return {call.op: call for call in graph.calls}


X = torch.ones(2, 3)
LAYER = nn.Linear(3, 3)

CASES: dict[str, tuple[Any, str, str]] = {
    "max of two": (lambda m, x: torch.max(x, m.a(x)), "max", "ElementwiseExtremum"),
    "max of one": (lambda m, x: x.max(dim=1)[0], "max", "MeanReduction"),
    "matrix of two activations": (lambda m, x: x.T @ m.a(x), "matmul", "MatrixProduct"),
    "matrix of a weight": (lambda m, x: x @ m.a.weight, "matmul", "WeightedLayer"),
    "matrix times vector": (lambda m, x: x @ x[0], "matmul", "Unknown"),
    "computed weight": (lambda m, x: nn.functional.linear(x, m.a(x)), "linear", "Unknown"),
    "fixed weight": (lambda m, x: m.a(x), "linear", "WeightedLayer"),
    "counts in a tensor": (
        lambda m, x: x.repeat_interleave(torch.tensor([1, 2]), 0, output_size=3),
        "repeat_interleave",
        "Unknown",
    ),
    "no rule": (lambda m, x: torch.fft.fft(x).real, "fft_fft", "Unknown"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_first_rule_that_applies_to_a_call_is_used(case: str) -> None:
    run, op, expected = CASES[case]
    assert type(rule_for(calls(run, X, a=LAYER)[op])).__name__ == expected
