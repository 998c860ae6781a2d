"""Tests of the models and example inputs that ``compact`` accepts or rejects."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import zero
from prunus import PrunusError, compact
from prunus.selection import total_parameters

from .networks import FunctionalModel, TiedModel
from .round_trips import compact_and_reload


def test_keyword_arguments_and_integer_inputs_are_supported() -> None:
    class Model(TiedModel):
        def forward(self, *, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(tokens) * scale

    model: Any = Model()
    zero(model.embed.weight, slice(None), slice(0, 3))
    example = {"tokens": torch.tensor([[0, 10]]), "scale": torch.tensor(2.0)}
    small = compact_and_reload(model, example)
    assert small.embed.weight.shape == (11, 5)
    other = {"tokens": torch.tensor([[3, 0, 7]]), "scale": torch.tensor(-3.0)}
    for inputs in (example, other):
        torch.testing.assert_close(small(**inputs), model(**inputs), rtol=5e-6, atol=1e-6)


def test_torch_prune_parametrization_is_rejected_until_removed() -> None:
    from torch.nn.utils import prune as untyped

    prune: Any = untyped
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    mask = torch.ones(6, 4)
    mask[:2] = 0
    prune.custom_from_mask(model[0], "weight", mask)
    with pytest.raises(PrunusError, match="cannot be copied.*prune.remove"):
        compact_and_reload(model, torch.ones(1, 4))
    prune.remove(model[0], "weight")
    small = compact_and_reload(model, torch.ones(1, 4))
    assert small[0].weight.shape == (4, 4)
    assert_outputs_match(small, model, torch.randn(5, 4))


@pytest.mark.slow
def test_compiled_models_are_unwrapped() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    small = compact_and_reload(torch.compile(model, backend="eager"), torch.ones(1, 4))
    assert isinstance(small, nn.Sequential)
    assert total_parameters(small) == 4 * 5 + 2 * 5
    assert_outputs_match(small, model, torch.randn(5, 4))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return -x
        output: torch.Tensor = self.layer(x)
        return output


ERRORS: dict[str, tuple[Any, Any, str]] = {
    "no module": (
        {"a": 1},
        torch.ones(1),
        r"must be a torch\.nn\.Module, but is \{'a': 1\}: pass the network itself",
    ),
    "no parameters": (nn.ReLU(), torch.ones(1), r"ReLU has no parameters"),
    "no values": (nn.LazyLinear(3), torch.ones(1), r"weight \(not initialized\), bias.*Run the"),
    "no memory": (nn.Linear(2, 2, device="meta"), torch.ones(1), r"weight \(no memory\)"),
    "example": (nn.Linear(3, 3), 7, r"a tensor, a tuple .* or a mapping .*, but is int"),
    "shape": (
        nn.Linear(3, 3),
        torch.ones(2, 5),
        r"Linear itself fails on the example inputs \(float32 of shape \(2, 5\)\): RuntimeError: "
        r"mat1 and mat2 shapes cannot be multiplied",
    ),
    "name": (nn.Linear(3, 3), {"y": torch.ones(3)}, r"\(y=float32 of shape \(3,\)\): TypeError"),
    "branch": (
        Branching(),
        torch.ones(2, 3),
        r"Branching cannot be traced by torch\.export, at .*test_inputs\.py:\d+, in forward, "
        r"`if x\.sum\(\) > 0:`: .*torch\.where instead of if",
    ),
    "nothing": (
        FunctionalModel(lambda m, x: None, a=nn.Linear(9, 9)),  # type: ignore[arg-type, return-value]
        torch.ones(2, 9),
        r"FunctionalModel returns no tensors",
    ),
    "empty": (
        nn.Linear(9, 9),
        torch.ones(0, 9),
        r"Linear returns tensors without elements .*\(float32 of shape \(0, 9\)\)",
    ),
    "empty tokens": (
        nn.Sequential(nn.Embedding(9, 9)),
        torch.ones(2, 0, dtype=torch.int64),
        r"Sequential returns tensors without elements .*\(int64 of shape \(2, 0\)\)",
    ),
    "not finite": (
        nn.Linear(9, 9),
        torch.full((2, 9), torch.nan),
        r"Linear returns nothing finite on the example inputs \(float32 of shape \(2, 9\)\)",
    ),
    "random": (
        FunctionalModel(lambda m, x: F.dropout(m.a(x)), a=nn.Linear(9, 9)),
        torch.ones(2, 9),
        r"FunctionalModel is random in evaluation mode",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_models_and_examples_are_rejected(case: str) -> None:
    model, example, message = ERRORS[case]
    with pytest.raises(PrunusError, match=message):
        compact_and_reload(model, example)


def test_compact_model_with_other_outputs_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    # No difference is within these tolerances; one of 0 would accept equal outputs.
    module = importlib.import_module("prunus.compaction.compact")
    monkeypatch.setattr(module, "output_tolerance", lambda tensors: -1.0)
    monkeypatch.setattr(module, "LARGEST_ROUNDING", -1.0)
    message = (
        r"Sequential cannot be made smaller .*: an output .* differs .*\. Use the model as it is"
    )
    with pytest.raises(PrunusError, match=message):
        compact_and_reload(model, torch.ones(2, 4))


def test_inputs_rejected_by_the_model_are_not_used_for_the_check() -> None:
    model: Any = FunctionalModel(
        # binary_cross_entropy raises for inputs that are not probabilities.
        lambda m, x: m.b(torch.relu(m.a(x))) + F.binary_cross_entropy(x, torch.zeros_like(x)),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    zero(model.a.weight, 0)
    with pytest.raises(RuntimeError):
        model(-torch.ones(3, 4))
    x = torch.rand(3, 4)
    small = compact_and_reload(model, x)
    assert small.a.out_features == 5
    assert_outputs_match(small, model, x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)),
        FunctionalModel(
            lambda m, x: m.b(torch.relu(m.a(x.mul_(2)))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
        ),
    ],
)
def test_inputs_written_to_by_the_model_are_restored(model: Any) -> None:
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    zero(first.weight, 0)
    example = torch.randn(3, 4)
    before = example.clone()
    small = compact_and_reload(model, example)
    assert torch.equal(example, before)
    assert [p.shape for p in small.parameters()] == [(5, 4), (5,), (2, 5), (2,)]
    torch.testing.assert_close(small(before.clone()), model(before.clone()))


def test_a_model_that_stores_outputs_of_its_training_is_copied() -> None:
    class Stateful(nn.Sequential):
        states: list[torch.Tensor]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            if not torch.compiler.is_exporting():
                self.states = [y]
            return y

    model = Stateful(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model.get_parameter("0.weight"), slice(0, 2))
    model(torch.randn(3, 4)).sum().backward()
    small = compact(model, torch.ones(1, 4))
    assert small.get_parameter("0.weight").shape == (4, 4)
    assert model.states[0].grad_fn is not None
    assert_outputs_match(small, model, torch.randn(5, 4))


def test_the_fix_for_an_untraceable_model_is_that_of_its_error() -> None:
    class Unexportable(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                raise ValueError("no mask was passed")
            return super().forward(x)

    message = r"Unexportable cannot be traced .*: no mask was passed\. Change its forward, or the"
    with pytest.raises(PrunusError, match=message):
        compact_and_reload(Unexportable(4, 2), torch.ones(1, 4))


class Results:
    """Results in attributes, of a class that no exporter knows."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.parent = self  # a cycle
        for name, tensor in tensors.items():
            setattr(self, name, tensor)


class KeyCache(Results):
    """Keys for the next call."""


class Returning(nn.Module):
    """Two layers, of which the first's outputs are also returned in an object."""

    def __init__(self, type_of_results: type[Results]) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.type_of_results = type_of_results

    def forward(self, x: torch.Tensor) -> Any:
        key = self.key(x)
        return self.out(key.relu()), self.type_of_results(key=key)


@pytest.mark.parametrize(("type_of_results", "kept"), [(KeyCache, 4), (Results, 6)])
def test_tensors_in_objects_are_outputs_unless_in_a_cache(
    type_of_results: type[Results], kept: int
) -> None:
    model = Returning(type_of_results)
    zero(model.key.weight, slice(0, 2))
    small = compact_and_reload(model, torch.ones(1, 4))
    assert small.key.weight.shape == (kept, 4)
    x = torch.randn(5, 4)
    (expected, expected_results), (found, results) = model(x), small(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(results.key, expected_results.key[:, 6 - kept :])
    assert "forward" not in vars(model)


def test_empty_input_does_not_prevent_compaction() -> None:
    model: Any = FunctionalModel(
        lambda m, x, more: m.b(torch.relu(m.a(torch.cat([x, more], 1)))),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
    )
    zero(model.a.weight, 0)
    small = compact_and_reload(model, (torch.randn(3, 5, 4), torch.randn(3, 0, 4)))
    assert small.a.out_features == 5
    assert_outputs_match(small, model, torch.randn(3, 5, 4), torch.randn(3, 2, 4))


def test_compact_model_shares_no_memory_with_the_original() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    small = compact_and_reload(model, torch.ones(2, 4))
    kept = copy.deepcopy(model.state_dict())
    zero(small[0].weight)
    assert torch.equal(model[0].weight, kept["0.weight"])
