"""A small classification task whose irrelevant inputs a pruner has to find."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from helpers.data import normal
from helpers.models import normalized_network


def classifier() -> Any:
    return normalized_network()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)


# Five of the twenty inputs decide the class; a pruner has fifteen to find irrelevant.
INPUTS = normal(600, 20, seed=1)
LABELS = (INPUTS[:, :5] @ normal(5, 3, seed=2)).argmax(1)


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for batch in torch.split(torch.randperm(500), 50):
        optimizer.zero_grad()
        inputs = INPUTS[batch].to(next(model.parameters()).dtype)
        F.cross_entropy(model(inputs), LABELS[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    inputs = INPUTS[500:].to(next(model.parameters()).dtype)
    return float((model(inputs).argmax(1) == LABELS[500:]).double().mean())
