"""The state that is kept from step to step: saved, checked and restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.growth import NO_GROWTH
from helpers.peers import second_of_two_processes
from prunus import (
    CheckpointError,
    ConstantRelevance,
    FisherScore,
    MagnitudeScore,
    Selection,
    TaylorScore,
    select,
)
from prunus._engine.observation import GradientObserver
from prunus._engine.step_state import StepState
from prunus.penalties.averages import MagnitudeAverages
from prunus.penalties.decoupled_application import DecoupledApplication
from prunus.penalties.formula import PenaltyFormula
from prunus.penalties.gradient_application import GradientApplication


def selection_of(dtype: torch.dtype = torch.float32) -> Selection:
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    return select(model.to(dtype))


class Parts:
    """A state with the objects that it saves."""

    def __init__(
        self,
        selection: Selection,
        *,
        score: Any = None,
        smoothing: float = 0.5,
        application: Any = DecoupledApplication,
    ) -> None:
        self.observer = GradientObserver(score or TaylorScore(), selection)
        self.averages = MagnitudeAverages(smoothing)
        formula = PenaltyFormula(ConstantRelevance(), 2)
        self.application = application and application(formula, selection, dict)
        self.state = StepState(selection, self.observer, self.averages, self.application, NO_GROWTH)


def filled(selection: Selection) -> Parts:
    parts = Parts(selection)
    parts.observer.memory = {"a.weight": {"product": torch.tensor([[1.0, 2.0]])}}
    parts.observer.counts = {"a.weight": 3}
    parts.averages.tensors = {"b.weight": torch.tensor([[3.0]])}
    parts.averages.counts = {"b.weight": 7}
    parts.application.remainders = {"a.weight": torch.tensor([[0.25, 0.5]])}
    return parts


def listed(state: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {n: plain(v) for n, v in entries.items()} for key, entries in state.items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def test_the_state_holds_what_is_remembered_and_how_often_it_was_updated() -> None:
    state = filled(selection_of()).state.state_dict(complete=False)
    assert listed(state) == {
        "score": {"a.weight": {"product": [[1.0, 2.0]]}},
        "averages": {"b.weight": [[3.0]]},
        "remainders": {"a.weight": [[0.25, 0.5]]},
        "latent": {},
        "averaged": {"b.weight": 7},
        "observed": {"a.weight": 3},
    }


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_a_complete_state_holds_zeros_for_what_may_be_remembered_later(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    parts = filled(selection_of(dtype))
    parts.observer.memory["a.weight"]["product"] = torch.tensor([[1.0, 2.0]], dtype=dtype)
    state = parts.state.state_dict(complete=True)
    assert listed(state) == {
        "score": {"a.weight": {"product": [[1.0, 2.0]]}, "b.weight": {"product": [[0.0]]}},
        "averages": {"b.weight": [[3.0]], "a.weight": [[0.0, 0.0]]},
        "remainders": {"a.weight": [[0.25, 0.5]], "b.weight": [[0.0]]},
        "latent": {},
        "averaged": {"b.weight": 7, "a.weight": 0},
        "observed": {"a.weight": 3, "b.weight": 0},
    }
    scores = [tensor for memory in state["score"].values() for tensor in memory.values()]
    for tensor in [*scores, *state["averages"].values(), *state["remainders"].values()]:
        assert tensor.dtype == wide
    assert parts.application.remainders.keys() == {"a.weight"}  # not filled up itself


def test_a_complete_state_has_no_place_for_what_is_never_remembered() -> None:
    selection = selection_of()
    idle = Parts(selection, score=MagnitudeScore(), smoothing=0.0)
    assert not any(idle.state.state_dict(complete=True).values())
    without = Parts(selection, score=MagnitudeScore(), smoothing=0.0, application=None)
    assert not any(without.state.state_dict(complete=True).values())
    other = Parts(selection_of(torch.bfloat16), application=GradientApplication)
    assert other.state.state_dict(complete=True)["remainders"] == {}
    wide = Parts(selection_of(torch.float64))
    state = wide.state.state_dict(complete=True)
    assert state["remainders"] == {}
    assert state["score"]["a.weight"]["product"].dtype == torch.float64
    assert list(state["averages"]) == ["a.weight", "b.weight"]


def test_a_state_is_restored_as_copies() -> None:
    state = filled(selection_of()).state.state_dict(complete=False)
    restored = Parts(selection_of())
    restored.state.check(state)
    restored.state.load_state_dict({**state, "other": {"ignored": 1}})
    assert listed(restored.state.state_dict(complete=False)) == listed(state)
    assert restored.averages.counts == {"b.weight": 7}
    assert restored.observer.counts == {"a.weight": 3}
    state["score"]["a.weight"]["product"].zero_()
    assert restored.observer.memory["a.weight"]["product"].tolist() == [[1.0, 2.0]]
    without = Parts(selection_of(), application=None)
    without.state.load_state_dict(state)
    assert without.averages.tensors["b.weight"].tolist() == [[3.0]]


def test_placeholders_are_not_restored() -> None:
    complete = filled(selection_of(torch.bfloat16)).state.state_dict(complete=True)
    restored = Parts(selection_of(torch.bfloat16))
    restored.state.load_state_dict(complete)
    assert list(restored.observer.memory) == ["a.weight"]
    assert restored.observer.counts == {"a.weight": 3}
    assert list(restored.averages.tensors) == ["b.weight"]
    assert restored.averages.counts == {"b.weight": 7}


def test_restored_tensors_have_their_own_type_and_the_memory_order_of_the_weights() -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False)
    layer.weight = nn.Parameter(layer.weight.to(memory_format=torch.channels_last))
    parts = Parts(select(layer))
    memory = torch.arange(54.0, dtype=torch.float64).reshape(3, 2, 3, 3)
    state: dict[str, dict[str, Any]] = {
        "score": {"weight": {"product": memory}},
        "observed": {"weight": 1},
        "averages": {},
        "averaged": {},
        "remainders": {},
        "latent": {},
    }
    parts.state.load_state_dict(state)
    restored = parts.observer.memory["weight"]["product"]
    assert restored.stride() == layer.weight.stride()
    assert restored.dtype == torch.float64
    assert torch.equal(restored, memory)


def test_of_the_tensors_of_a_whole_model_a_process_restores_its_shards() -> None:
    from torch.distributed.tensor import DTensor, Shard

    with second_of_two_processes() as mesh:
        layer = nn.Linear(2, 4, bias=False)
        layer.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Shard(0)]))
        parts = Parts(select(layer))
        whole = torch.arange(8.0).reshape(4, 2)
        parts.state.load_state_dict(
            {**EMPTY, "score": {"weight": {"product": whole}}, "observed": {"weight": 1}}
        )
        assert parts.observer.memory["weight"]["product"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
        state = parts.state.state_dict(complete=True)
        saved = state["score"]["weight"]["product"]
        assert saved.shape == (4, 2)
        assert saved.to_local().tolist() == [[4.0, 5.0], [6.0, 7.0]]


LOAD = r"\. Load the state saved with this model$"

EMPTY: dict[str, dict[str, Any]] = {
    "score": {},
    "averages": {},
    "remainders": {},
    "latent": {},
    "averaged": {},
    "observed": {},
}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"score": {"x": {"product": torch.ones(1)}}, "averaged": {"y": 1, "x": 0}},
            "^this is the state of another model: unknown x, y" + LOAD,
        ),
        ({"observed": {"z": 1}}, "^this is the state of another model: unknown z" + LOAD),
        (
            {"averaged": {"a.weight": -1}, "observed": {"b.weight": 1.5}},
            "^this is the state of another model: the count of a.weight must be at least 0, but is "
            "-1, the count of b.weight must be a whole number of at least 0, but is 1.5" + LOAD,
        ),
        (
            {"score": {"a.weight": 3}, "remainders": {"b.weight": torch.ones(2, 1)}},
            r"^this is the state of another model: the score's memory of a.weight must be tensors "
            r"by name, but is int, "
            r"b.weight must have shape \(1, 1\), but has \(2, 1\)" + LOAD,
        ),
        (
            {
                "score": {"b.weight": {"product": torch.ones(2)}},
                "averages": {"b.weight": torch.ones(2)},
                "remainders": {"b.weight": torch.ones(2)},
            },
            r"model: product of b.weight must have shape \(1, 1\), but has \(2,\), "
            r"b.weight must have shape \(1, 1\), but has \(2,\)" + LOAD,
        ),
        (
            {
                "score": {"x": {"product": 3}, "b.weight": {"product": 3}},
                "observed": {"a.weight": -1},
            },
            "unknown x; the count of a.weight must be .* -1, product of b.weight must be a tensor, "
            "but is int" + LOAD,
        ),
    ],
)
def test_every_foreign_entry_is_named(entries: dict[str, Any], message: str) -> None:
    state = Parts(selection_of()).state
    state.check(EMPTY)
    state.check({**EMPTY, "averaged": {"a.weight": 0}})
    with pytest.raises(CheckpointError, match=message):
        state.check({**EMPTY, **entries})


@pytest.mark.parametrize(
    ("score", "remembers"),
    [(FisherScore(), "FisherScore remembers fisher"), (MagnitudeScore(), "nothing")],
)
def test_the_state_of_another_score_is_refused(score: Any, remembers: str) -> None:
    state = filled(selection_of()).state.state_dict(complete=False)
    other = Parts(selection_of(), score=score)
    with pytest.raises(
        CheckpointError,
        match=f"^this is the state of another score: .*{remembers}, but the state has product of "
        r"a.weight\. Pass score=, the score that the state was saved with$",
    ):
        other.state.check(state)
    other.state.check(EMPTY)  # of a run whose score remembered nothing
    state["score"]["a.weight"] = {}
    with pytest.raises(CheckpointError, match=r"remembers product, but .* has nothing of a.weight"):
        Parts(selection_of()).state.check(state)


def test_counts_without_a_tensor_are_not_restored() -> None:
    restored = Parts(selection_of())
    restored.state.load_state_dict(
        {**EMPTY, "observed": {"a.weight": 3}, "averaged": {"b.weight": 3}}
    )
    assert (restored.observer.counts, restored.observer.memory) == ({}, {})
    assert (restored.averages.counts, restored.averages.tensors) == ({}, {})
