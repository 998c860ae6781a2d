"""Tests of what reveals that a model's weights cannot be found in its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.pruners import magnitude_pruner
from prunus import PrunusError
from prunus._distributed.wrappers import deepspeed_problem


# Stand-ins with the names of DeepSpeed's classes and of its adapters.
class DeepSpeedEngine(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class DeepSpeedHybridEngine(DeepSpeedEngine): ...


class DeepSpeedOptimizer: ...


class ZeROOptimizer(DeepSpeedOptimizer): ...


class DeepSpeedOptimizerWrapper(torch.optim.SGD): ...


def layer(attribute: str | None = None) -> nn.Linear:
    module = nn.Linear(4, 4)
    if attribute is not None:
        setattr(module.weight, attribute, 0)
    return module


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def engine(of: type[DeepSpeedEngine]) -> nn.Module:
    return of(layer())


@pytest.mark.parametrize(
    ("model", "optimizer", "shown"),
    [
        (engine(DeepSpeedEngine), None, "DeepSpeedEngine"),
        (engine(DeepSpeedHybridEngine), None, "DeepSpeedHybridEngine"),
        (engine(DeepSpeedEngine), ZeROOptimizer(), "DeepSpeedEngine, ZeROOptimizer"),
        (layer(), ZeROOptimizer(), "ZeROOptimizer"),
        (layer(), DeepSpeedOptimizerWrapper([torch.ones(1)], lr=1), "DeepSpeedOptimizerWrapper"),
        (layer("_hp_mapping"), None, "parameters with _hp_mapping"),  # stages 1 and 2
        (layer("ds_id"), None, "parameters with ds_id"),  # stage 3
    ],
)
def test_models_that_deepspeed_trains_are_rejected(
    model: nn.Module, optimizer: Any, shown: str
) -> None:
    with pytest.raises(PrunusError) as caught:
        magnitude_pruner(model, sgd(model) if optimizer is None else optimizer)
    message = str(caught.value)
    assert message.startswith(f"DeepSpeed trains this model, as {shown} shows")
    assert "use DistributedDataParallel, or torch.distributed.fsdp.fully_shard" in message
    assert 'fsdp_config={"version": 2}' in message


def test_other_models_and_optimizers_have_no_deepspeed_problem() -> None:
    model = nn.parallel.DataParallel(layer())
    assert deepspeed_problem(model, sgd(model), None) is None
