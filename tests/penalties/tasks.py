"""The network and loss that the tests of penalties share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.training import squared_error

BATCH = noise_batch(32, 8, 3, seed=1, dtype=torch.float64)


def small_network() -> Any:
    return tanh_network(8, 16, 3, seed=3, dtype=torch.float64)


def task_loss(model: nn.Module) -> torch.Tensor:
    return squared_error(model, BATCH)
