"""Tests of replaced layers: equal outputs, with what can be fused into them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.planted_timings import report_of
from helpers.sparse_models import sparsified
from prunus import compact, speed_up
from prunus.runtime.fusion import find_chains
from prunus.runtime.linear import SparseLinear
from prunus.runtime.replacing import Replacement, replace_layers


class Residual(nn.Module):
    """A network that can be traced, whose norms and ReLUs are fusible in part."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()  # called twice, so that it is not fused
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.own_norm = nn.BatchNorm2d(8)
        self.own_relu = nn.ReLU(inplace=True)
        self.read_twice = nn.Conv2d(8, 8, 1)
        self.its_relu = nn.ReLU()
        self.head = nn.Linear(8, 5)
        for norm in (self.norm, self.own_norm):
            nn.init.uniform_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean = torch.randn(8)
            norm.running_var = torch.rand(8) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.own_relu(self.own_norm(self.second(x)))
        z = self.read_twice(y)
        x = self.relu(x + z + self.its_relu(z))
        x = x.mean(dim=(2, 3))
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_norms_and_relus_are_fused_unless_another_layer_uses_the_output(groups: int) -> None:
    torch.manual_seed(0)
    model = sparsified(Residual(groups), 0.6)
    x = torch.randn(2, 3, 16, 16)
    fast, report = report_of(model, x)
    assert {layer.name: layer.fused for layer in report.layers} == {
        "first": ("norm",),  # its ReLU is called twice
        "second": ("own_norm", "own_relu"),
        "read_twice": (),
        "head": (),
    }
    assert_outputs_match(fast, model, x)
    assert_outputs_match(fast, model, torch.randn(5, 3, 9, 11))


@pytest.mark.usefixtures("_always_faster")
def test_poolings_are_fused_before_or_after_the_relu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),  # 14
        nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 1), nn.ReLU(), nn.MaxPool2d(2),  # 12, 10, 5
        nn.Conv2d(4, 4, 2), nn.MaxPool2d(2, padding=1), nn.ReLU(),  # 4, 3
        nn.Conv2d(4, 4, 1), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(4, 4, 1), nn.MaxPool2d(1), nn.BatchNorm2d(4),
    )  # fmt: skip
    model = sparsified(model, 0.6)
    x = torch.randn(3, 1, 30, 30)
    fast, report = report_of(model, x)
    fused = {layer.name: layer.fused for layer in report.layers}
    expected = {"0": ("1", "2", "3"), "4": ("5", "6"), "8": (), "11": (), "13": ("14",)}
    assert fused == expected
    assert_outputs_match(fast, model, x)


def test_modules_under_several_names_are_not_fused() -> None:
    linear, relu = nn.Linear(4, 4), nn.ReLU()
    model = nn.Sequential(linear, relu, linear, nn.ReLU(), nn.Linear(4, 4), relu)
    assert [(c.name, c.fused_names) for c in find_chains(model, {"0", "4"})] == [
        ("0", ()),
        ("4", ()),
    ]


@pytest.mark.usefixtures("_always_faster")
def test_shared_layers_stay_shared() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 12)
    model = sparsified(nn.Sequential(linear, nn.Tanh(), linear, nn.Tanh(), linear))
    fast = speed_up(model, torch.randn(4, 12))
    assert fast.get_submodule("0") is fast.get_submodule("2") is fast.get_submodule("4")
    assert_outputs_match(fast, model, torch.randn(4, 12))


class Dynamic(nn.Module):
    """A network whose control flow depends on its input, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.relu(y) if float(x.sum()) > 0 else y  # type: ignore[no-any-return]


@pytest.mark.usefixtures("_always_faster")
def test_dynamic_control_flow_is_preserved() -> None:
    torch.manual_seed(0)
    model = sparsified(Dynamic())
    fast, report = report_of(model, torch.ones(4, 12))
    assert report.layers[0].replaced
    assert report.layers[0].fused == ()
    for x in (torch.ones(4, 12), -torch.ones(4, 12)):
        assert_outputs_match(fast, model, x)


def replace_all_linear_layers(model: nn.Module, *, by_item: bool) -> nn.Module:
    """Return a copy of a model with every linear layer sparse, whatever its density."""
    names = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    replacements = [
        Replacement(chain, chain.layer.weight.shape[1]) for chain in find_chains(model, names)
    ]
    assert {each.chain.name for each in replacements} == names
    return replace_layers(model, replacements, by_item=by_item)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    widths=st.lists(st.integers(1, 24), min_size=2, max_size=5),
    items=st.integers(1, 70),
    sparsity=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    by_item=st.booleans(),
)
def test_random_perceptrons_with_every_layer_sparse_keep_their_outputs(
    data: st.DataObject, widths: list[int], items: int, sparsity: float, by_item: bool
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers.append(nn.Linear(inputs, outputs, bias=data.draw(st.booleans())))
        # With eps 1 a normalization enlarges no rounding error of the layer before it, and with
        # biases of 1 the outputs are not small where the features are nearly equal.
        norm = nn.LayerNorm(outputs, eps=1.0)
        nn.init.ones_(norm.bias)
        layers += data.draw(st.sampled_from([[], [nn.ReLU()], [norm], [nn.Tanh(), nn.ReLU()]]))
    model = sparsified(nn.Sequential(*layers), sparsity)
    fast = replace_all_linear_layers(model, by_item=by_item)
    replaced = [name for name, layer in fast.named_modules() if isinstance(layer, SparseLinear)]
    assert replaced == [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    assert not any(type(layer) is nn.Linear for layer in fast.modules())
    x = torch.randn(items, widths[0])
    assert_outputs_match(fast, model, x)
    assert_outputs_match(replace_all_linear_layers(model, by_item=by_item), model, x[:1])


@pytest.mark.slow
@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")])
def test_compact_models_are_sped_up(wrap: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )
    with torch.no_grad():
        for name, part in (("0.weight", slice(2, 5)), ("4.weight", slice(10, 80))):
            model.get_parameter(name)[:, part] = 0
    x = torch.randn(3, 8, 6, 6)
    small = compact(sparsified(model, 0.6), x)
    kinds = {type(layer).__name__ for layer in small.modules()}
    assert {"SelectingConv2d", "SelectingLinear"} <= kinds
    fast, report = report_of(wrap(small), x)
    assert report.replaced == ("0", "4", "6")
    assert report.layers[0].fused == ("1", "2")
    assert report.layers[1].fused == ("5",)
    assert_outputs_match(fast, model, x)
