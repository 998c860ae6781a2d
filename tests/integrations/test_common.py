"""The arguments that the adapters share with the pruner."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from prunus import (
    ArgumentError,
    Block,
    GlobalAllocation,
    MagnitudeScore,
    Pruner,
    RandomGrowth,
    select,
)
from prunus.integrations.common import CallbackArguments, PrunerOptions


def test_options_are_the_arguments_that_a_pruner_accepts_by_name_only() -> None:
    parameters = inspect.signature(Pruner).parameters.values()
    by_name = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    hints = get_type_hints(Pruner.__init__)
    assert get_type_hints(PrunerOptions) == {name: hints[name] for name in by_name}


def arguments(**changes: Any) -> CallbackArguments:
    options: dict[str, Any] = {
        "penalty": None,
        "schedule": None,
        "metric": None,
        "floor": None,
        "mode": "max",
        "dense_metric": None,
        "score": MagnitudeScore(),
        "allocation": GlobalAllocation(),
        "selection": None,
        "masks": None,
        "keep_zeros": False,
        "min_density": 0.0,
        "keep_best": False,
        "growth": None,
        "pattern": None,
    }
    return CallbackArguments(**(options | changes))


def test_callbacks_pass_the_pattern_to_the_pruner() -> None:
    model = nn.Linear(8, 4)
    pruner = arguments(pattern=Block(1, 4)).attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        module=model,
        default_selection=select,
        earlier=None,
        resumed=False,
        max_grad_norm=None,
    )
    assert pruner.pattern == Block(1, 4)
    pruner.prune(kept=18)
    assert pruner.masks.kept == 20


def test_callbacks_check_the_pattern_before_training() -> None:
    arguments(pattern=Block(1, 4)).check("")
    with pytest.raises(ArgumentError, match="pattern must be None with growth=RandomGrowth"):
        arguments(pattern=Block(1, 4), growth=RandomGrowth()).check("")
