"""Tests of the difference between the outputs of a model and its compact copy that is accepted."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.sparse_models import zero
from prunus import PrunusError
from prunus._inference.model_calls import own_rounding
from prunus._inference.outputs import LARGEST_ROUNDING, ROUNDING_FACTOR, TYPE_TOLERANCES
from prunus.compaction.surgery import apply_plan

from .round_trips import compact_with_report

# ``compact`` the function hides the module of the same name.
COMPACT: Any = importlib.import_module("prunus.compaction.compact")

EXAMPLE = normal(4, 8, seed=1)


def network(offset: float) -> Any:
    """Return a network with 100 dead units whose large hidden values cancel, so that it rounds."""
    model: Any = nn.Sequential(
        nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)
    )
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed) / parameter.shape[-1] ** 0.5)
        model[0].bias.fill_(offset)
        model[2].weight -= model[2].weight.mean(1, keepdim=True)
    zero(model[0].weight, slice(0, 100))
    zero(model[2].bias)
    zero(model[4].bias)
    return model.eval()


def plant_error(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Add an error of this size to the outputs of each compact copy."""

    def with_error(model: Any, *arguments: Any) -> None:
        apply_plan(model, *arguments)
        with torch.no_grad():
            model[4].bias += error

    monkeypatch.setattr(COMPACT, "apply_plan", with_error)


@pytest.mark.slow
def test_a_difference_within_four_times_the_models_own_rounding_is_accepted() -> None:
    model = network(offset=100.0)
    small, report = compact_with_report(model, EXAMPLE)
    assert report.parameters < 0.7 * report.parameters_before
    with torch.no_grad():
        rounding = own_rounding(model, (EXAMPLE,), {}, [model(EXAMPLE)])
        exact = copy.deepcopy(model).double()(EXAMPLE.double())
        difference = (small(EXAMPLE).double() - exact).abs().max() / exact.abs().max()
    assert rounding > TYPE_TOLERANCES[torch.float32]  # otherwise this test shows nothing
    assert report.error > TYPE_TOLERANCES[torch.float32]
    assert difference <= ROUNDING_FACTOR * rounding


@pytest.mark.slow
def test_an_error_beyond_the_models_own_rounding_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_error(monkeypatch, 1e-3)
    with pytest.raises(
        PrunusError,
        match=r"an output of the copy differs by .* of the largest, and .* is accepted; if that is "
        r"rounding, model\.double\(\) with inputs in float64 can be made smaller\. Use the model",
    ):
        compact_with_report(network(offset=100.0), EXAMPLE)
    with pytest.raises(PrunusError, match=r"differs by .* is accepted\. Use the model as it is"):
        compact_with_report(network(offset=100.0).double(), EXAMPLE.double())


@pytest.mark.slow
def test_a_model_that_hardly_rounds_has_the_tolerance_of_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_error(monkeypatch, 1e-4)
    with pytest.raises(PrunusError, match=r"differs by .*, and 1e-05 is accepted"):
        compact_with_report(network(offset=0.1), EXAMPLE)


@pytest.mark.slow
def test_a_model_that_rounds_to_nothing_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outputs do not tell a wrong copy from a right one."""
    plant_error(monkeypatch, 1.0)
    with pytest.raises(PrunusError, match=rf"differs by .*, and {LARGEST_ROUNDING:g} is accepted"):
        compact_with_report(network(offset=1e6), EXAMPLE)


def test_the_rounding_of_a_model_that_does_not_run_in_float64_is_unknown() -> None:
    class Narrow(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
            return super().forward(input.float())

    model, wide = Narrow(8, 2), nn.Linear(8, 2)
    for layer, found in ((model, False), (wide, True)):
        outputs = [layer(EXAMPLE).detach()]
        assert (own_rounding(layer, (EXAMPLE,), {}, outputs) > 0) is found
