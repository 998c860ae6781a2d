"""Small networks that several test files train."""

from __future__ import annotations

import torch
from torch import nn


def tanh_network(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    bias: bool = True,
    dropout: float | None = None,
    seed: int | None = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Return two linear layers with a tanh between them.

    Args:
        inputs: Features of an input.
        hidden: Units of the hidden layer.
        outputs: Features of an output.
        bias: Whether the layers have biases, which Muon does not accept.
        dropout: Probability of the dropout after the tanh; none at all if None.
        seed: Seed of the initialization; None draws from the generator as it is.
        dtype: Type of the parameters, which are drawn in float32.
    """
    if seed is not None:
        torch.manual_seed(seed)
    between = [nn.Tanh()] if dropout is None else [nn.Tanh(), nn.Dropout(dropout)]
    first, last = nn.Linear(inputs, hidden, bias=bias), nn.Linear(hidden, outputs, bias=bias)
    return nn.Sequential(first, *between, last).to(dtype)


def normalized_network(seed: int = 0) -> nn.Sequential:
    """Return a classifier of 20 features into three classes, with batch norm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3)
    )
