"""Tests of ``compact`` on random networks with random zeros."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_outputs_match

from .round_trips import compact_and_reload

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.GELU)


def sparsify(model: nn.Module, draw: np.random.Generator) -> None:
    """Set single weights, rows, columns, and occasionally whole tensors to zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                dead = draw.random(parameter.shape) < draw.choice([0, 0.3])
            else:
                shape = parameter.shape
                dead = draw.random(shape) < draw.choice([0.0, 0.5, 0.9])
                dead[draw.random(shape[0]) < draw.choice([0.0, 0.4])] = True
                dead[:, draw.random(shape[1]) < draw.choice([0.0, 0.4])] = True
                if draw.random() < 0.05:
                    dead[:] = True
            parameter[torch.from_numpy(dead)] = 0


def live_widths(weights: list[npt.NDArray[Any]]) -> list[int]:
    """Compute from the weights how many live units each hidden layer of an MLP has, at least one.

    A unit is live if a path of non-zero weights leads from an input to it, and another from it to
    an output.
    """
    fed = [np.ones(weights[0].shape[1], dtype=bool)]
    for weight in weights:
        fed.append(((weight != 0) & fed[-1][None, :]).any(1))
    read = np.ones(len(weights[-1]), dtype=bool)
    widths = []
    for layer in range(len(weights) - 1, 0, -1):
        # A unit that is read but not fed is a constant, so its own inputs are not read for it.
        live = read & fed[layer + 1]
        read = ((weights[layer] != 0) & live[:, None]).any(0)
        widths.append(max(1, int((read & fed[layer]).sum())))
    return widths[::-1]


@SETTINGS
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    bias=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_random_perceptrons_keep_outputs_and_exactly_the_live_units(
    widths: list[int], bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    activation = ACTIVATIONS[seed % len(ACTIVATIONS)]
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*[m for layer in layers for m in (layer, activation())][:-1]).eval()
    sparsify(model, draw)
    small = compact_and_reload(model, torch.randn(3, widths[0]))
    assert_outputs_match(small, model, torch.randn(20, widths[0]))
    expected = live_widths([layer.weight.detach().numpy() for layer in layers])
    left = [len(m.weight) for m in small.modules() if isinstance(m, nn.Linear)]
    assert left[:-1] == expected
    assert left[-1] == widths[-1]


class Network(nn.Module):
    """A network of random layers: chains, sums, branches, modules that are called again."""

    def __init__(self, draw: np.random.Generator, images: bool) -> None:
        super().__init__()
        self.images, width = images, int(draw.integers(2, 5)) * 2
        self.steps: list[tuple[str, str]] = []
        self.stem = nn.Conv2d(3, width, 3) if images else nn.Linear(5, width)
        for index in range(int(draw.integers(1, 7))):
            kind = str(draw.choice(["chain", "sum", "join", "again", "gate", "norm", "group"]))
            name = f"step{index}"
            if kind == "again" and self.steps:
                usable = [s for s in self.steps if s[0] in ("chain", "sum")]
                if usable:
                    self.steps.append(usable[int(draw.integers(len(usable)))])
                continue
            if kind in ("chain", "sum", "gate", "again"):
                kind = "chain" if kind == "again" else kind
                inner = int(draw.integers(1, 9))
                bias = bool(draw.random() < 0.7)
                step: nn.Module = nn.Sequential(
                    self._layer(width, inner, bias, draw),
                    ACTIVATIONS[int(draw.integers(5))](),
                    self._layer(inner, width, bias, draw),
                )
            elif kind == "join":
                step = nn.ModuleList(
                    [
                        self._layer(width, width, True, draw),
                        self._layer(2 * width, width, False, draw),
                    ]
                )
            elif kind == "norm":
                whole = draw.random() < 0.3
                if images:
                    step = nn.GroupNorm(1, width) if whole else nn.BatchNorm2d(width)
                else:
                    step = nn.LayerNorm(width) if whole else nn.BatchNorm1d(width)
                for name_, value in step.named_buffers():
                    if name_ == "running_mean":
                        value.normal_()
            elif images:
                groups = int(draw.choice([2, width]))
                step = nn.Conv2d(width, width, 3, padding=1, groups=groups)
            else:
                continue
            self.add_module(name, step)
            self.steps.append((kind, name))
        self.head = nn.Linear(width * 4 if images else width, 3)

    def _layer(self, into: int, out: int, bias: bool, draw: np.random.Generator) -> nn.Module:
        if not self.images:
            return nn.Linear(into, out, bias=bias)
        padding = int(draw.integers(2))
        return nn.Conv2d(into, out, 1 + 2 * padding, padding=padding, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for kind, name in self.steps:
            step: Any = getattr(self, name)
            if kind == "sum":
                x = x + step(x)
            elif kind == "gate":
                x = x * torch.sigmoid(step(x))
            elif kind == "join":
                x = step[1](torch.cat([x, torch.relu(step[0](x))], dim=1))
            else:
                x = step(x)
        if self.images:
            x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        output: torch.Tensor = self.head(x)
        return output


@SETTINGS
@given(images=st.booleans(), seed=st.integers(0, 100_000))
def test_random_networks_keep_their_outputs(images: bool, seed: int) -> None:
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    model: Any = Network(draw, images).eval()
    sparsify(model, draw)
    x = torch.randn(2, 3, 6, 6) if images else torch.randn(3, 5)
    small = compact_and_reload(model, x)
    assert_outputs_match(small, model, torch.randn_like(x))
    assert_outputs_match(small, model, torch.randn(4, *x.shape[1:]) * 3)
    assert len(small.stem.weight) <= len(model.stem.weight)
