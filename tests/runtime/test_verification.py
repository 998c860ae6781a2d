"""Tests that ``speed_up`` finds wrong layers whatever the example and the bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.planted_timings import report_of
from helpers.sparse_models import sparsified
from prunus import PrunusError
from prunus.runtime.convolution import SparseConv
from prunus.runtime.fusion import Chain
from prunus.runtime.linear import SparseLinear

pytestmark = pytest.mark.usefixtures("_always_faster")


def plant_wrong_weight(monkeypatch: pytest.MonkeyPatch, sparse_type: Any) -> None:
    """Make sparse layers of a type compute with one weight doubled."""
    build = sparse_type.__init__

    def build_wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.rows.values[0] *= 2

    monkeypatch.setattr(sparse_type, "__init__", build_wrong)


EXAMPLES = {"zeros": 0.0, "quiet": 1e-3, "loud": 1e3}


@pytest.mark.parametrize("bias", [0.0, 1e7])
@pytest.mark.parametrize("example", EXAMPLES)
def test_wrong_layer_stays_dense_whatever_the_example_and_the_bias(
    example: str, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 5, stride=2), nn.ReLU(), nn.Conv1d(8, 6, 1), nn.Flatten(), nn.Linear(54, 3)
    )
    for index in (0, 4):
        nn.init.constant_(model.get_parameter(f"{index}.bias"), bias)
    model = sparsified(model, 0.5)
    x = EXAMPLES[example] * torch.randn(5, 4, 21)
    _fast, report = report_of(model, x)
    assert report.replaced == ("0", "2", "4")
    plant_wrong_weight(monkeypatch, SparseConv)
    fast, report = report_of(model, x)
    assert report.replaced == ("4",)
    assert set(report.excluded) == {"0", "2"}
    assert "times what rounding explains" in report.excluded["0"]
    assert_outputs_match(fast, model, torch.randn(5, 4, 21))
    plant_wrong_weight(monkeypatch, SparseLinear)
    assert report_of(model, x)[1].replaced == ()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Linear(6, 4), (2, 3, 6)),
        (nn.Conv1d(6, 4, 3, padding=1), (6, 9)),
        (nn.Conv2d(6, 4, 3, stride=2), (2, 6, 9, 9)),
        (nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
         (2, 6, 9, 9)),
    ],
)  # fmt: skip
def test_correct_layers_of_inputs_of_any_shape_and_layout_are_replaced(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    model = sparsified(layer, 0.5)
    x = torch.randn(*shape, 2)[..., 0]
    assert report_of(model, x)[1].replaced
    assert report_of(model, torch.randn(shape[::-1]).permute(*reversed(range(len(shape)))))


def test_wrong_fusion_is_found_where_the_example_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Chain, "relu", property(lambda _: True))
    model = sparsified(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()), 0.5)
    with pytest.raises(PrunusError, match="its outputs would be off by"):
        report_of(model, torch.zeros(4, 8))


@pytest.mark.parametrize("fails", [False, True])
def test_network_that_rejects_random_inputs_is_compared_on_the_example(fails: bool) -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if fails and bool((x < 0).any()):
                raise ValueError("a probability is negative")
            y: torch.Tensor = self.linear(x.log())  # NaN for negative numbers
            return y

    model, x = sparsified(Checked(), 0.5), torch.rand(4, 8) + 0.1
    fast, report = report_of(model, x)
    assert report.replaced == ("linear",)
    assert_outputs_match(fast, model, x)
