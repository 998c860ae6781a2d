"""Tests of ``speed_up``: which layers are replaced, and which calls are rejected."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from collections import UserDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.planted_timings import plant_timings, report_of
from helpers.sparse_models import sparsified
from prunus import ArgumentTypeError, PrunusError, speed_up
from prunus.runtime.linear import SparseLinear


def test_timings_are_medians_and_the_faster_layer_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = sparsified(nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)), 0.99)
    x = torch.randn(64, 1024)
    plant_timings(monkeypatch, [3.0, 90.0, 4.0], [0.25, 0.5, 70.0], [1.0, 2.0, 3.0])
    fast, report = report_of(model, x)
    assert report.replaced == ("0", "2")
    assert [layer.fused for layer in report.layers] == [("1",), ()]
    assert report.layers[0].density == pytest.approx(0.01, abs=0.001)
    assert [layer.dense_ms for layer in report.layers] == pytest.approx([4.0, 4.0])
    assert [layer.sparse_ms for layer in report.layers] == pytest.approx([0.5, 0.5])
    assert (report.dense_ms, report.sparse_ms) == pytest.approx((4.0, 0.5))
    assert isinstance(fast.get_submodule("0"), SparseLinear)
    assert isinstance(fast.get_submodule("1"), nn.Identity)
    assert_outputs_match(fast, model, x)
    assert_outputs_match(fast, model, torch.randn(3, 1024))
    assert isinstance(model[0], nn.Linear)  # the network itself is unchanged


@pytest.mark.parametrize(("sparse", "replaced"), [(0.96, ("0",)), (0.98, ()), (1.5, ())])
def test_a_layer_is_replaced_only_if_it_is_faster_by_the_margin(
    sparse: float, replaced: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sparsified(nn.Sequential(nn.Linear(32, 32)))
    plant_timings(monkeypatch, [1.0], [sparse], [2.0])
    fast, report = report_of(model, torch.randn(4, 32))
    assert report.replaced == replaced
    assert report.layers[0].sparse_ms == pytest.approx(sparse)
    assert report.sparse_ms == pytest.approx(sparse if replaced else 1.0)
    assert_outputs_match(fast, model, torch.randn(4, 32))


class ViewedAsComplex(nn.Module):
    """A layer whose outputs are read in pairs, as rotary position embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(self.layer(x).unflatten(-1, (-1, 2))).abs()


class ViewedAsRows(nn.Module):
    """A layer whose outputs are flattened without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).view(len(x), -1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "shape"), [(ViewedAsComplex, (4, 32)), (ViewedAsRows, (2, 4, 5, 5))]
)
def test_a_layout_that_the_network_rejects_is_not_used(
    network: type[nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = sparsified(network()), torch.randn(shape)
    plant_timings(monkeypatch, [2.0], [1.0])  # of the dense network, and of the only other one
    fast, report = report_of(model, x)
    assert (report.replaced, report.sparse_ms) == (("layer",), 1.0)
    assert fast.get_submodule("layer")(x).is_contiguous()
    assert_outputs_match(fast, model, torch.randn(shape))


class ForDenseLayers(nn.Module):
    """A network that accepts no other layers than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> Any:
        if type(self.layer) is not nn.Linear:
            raise TypeError("expected a Linear")
        return self.layer(x)


def test_a_network_that_rejects_sparse_layers_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_timings(monkeypatch, [2.0], [1.0], [1.0])
    message = "ForDenseLayers cannot be sped up: .*fails with TypeError: expected a Linear. Use the"
    with pytest.raises(PrunusError, match=message):
        speed_up(sparsified(ForDenseLayers()), torch.randn(4, 32))


DISTURBED = {
    "rounds": ([[1.0], [9.0], [1.0], [7.0], [1.0]], [[0.5], [4.5], [0.5], [3.5], [0.5]]),
    "the dense layer": ([[1.0], [90.0], [1.0], [70.0], [1.0]], [[0.5]] * 5),
    "the sparse layer": ([[1.0]] * 5, [[0.5], [40.0], [0.5], [0.5], [30.0]]),
}


@pytest.mark.parametrize("disturbed", DISTURBED)
def test_decision_is_that_of_most_rounds_when_others_are_disturbed(
    disturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sparsified(nn.Sequential(nn.Linear(32, 32)))
    plant_timings(monkeypatch, *DISTURBED[disturbed], DISTURBED[disturbed][0])
    fast, report = report_of(model, torch.randn(4, 32))
    assert report.replaced == ("0",)
    assert report.layers[0].sparse_ms == pytest.approx(report.layers[0].dense_ms / 2)
    assert report.sparse_ms == pytest.approx(report.dense_ms / 2)
    assert isinstance(fast[0], SparseLinear)  # type: ignore[index]


def test_open_decision_is_repeated_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsified(nn.Sequential(nn.Linear(32, 32)))
    x = torch.randn(4, 32)
    seeds = plant_timings(monkeypatch, [[1.0]] * 4, [[0.9], [1.5], [0.8], [1.1]])
    _fast, report = report_of(model, x)
    assert report.disturbed
    assert [layer.disturbed for layer in report.layers] == [True]
    assert max(seeds) > 0
    with pytest.warns(UserWarning, match="disturbed by other processes: repeat it on an idle"):
        speed_up(model, x)
    faster = [[0.5], [0.7], [0.4], [0.6], [0.5]]
    seeds = plant_timings(monkeypatch, [[1.0]] * 5, faster, faster)
    _fast, report = report_of(model, x)
    assert not report.disturbed
    assert max(seeds) == 0


def test_measured_timings_are_positive_and_decide_what_is_replaced() -> None:
    torch.manual_seed(0)
    model = sparsified(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    fast, report = report_of(model, torch.randn(16, 64))
    for layer in report.layers:
        assert 0 < layer.dense_ms < math.inf
        assert 0 < layer.sparse_ms < math.inf
        assert not layer.replaced or layer.sparse_ms < layer.dense_ms
    assert 0 < report.sparse_ms <= report.dense_ms < math.inf
    assert_outputs_match(fast, model, torch.randn(16, 64))


def test_dense_network_is_returned_unchanged_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(8, 16)
    message = r"a dense copy of Sequential is returned.*0 \(100% non-zero\).*Prune further"
    with pytest.warns(UserWarning, match=message):
        fast = speed_up(model, x)
    assert fast is not model
    assert torch.equal(fast(x), model(x))


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    widths=st.lists(st.integers(1, 24), min_size=2, max_size=5),
    sparsity=st.sampled_from([0.4, 0.9, 1.0]),
    by_item=st.booleans(),
)
def test_layers_are_replaced_if_faster_and_below_the_highest_density(
    data: st.DataObject, widths: list[int], sparsity: float, by_item: bool
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    model = sparsified(nn.Sequential(*layers), sparsity)
    x = torch.randn(5, widths[0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant_timings(monkeypatch, [1.0], [0.6], [0.5 if by_item else 0.7])
        fast, report = report_of(model, x)
    densities = [float((layer.weight != 0).float().mean()) for layer in layers]
    assert [layer.density for layer in report.layers] == densities
    assert report.replaced == tuple(str(i) for i, each in enumerate(densities) if each < 0.7)
    assert all(
        layer.by_item == by_item for layer in fast.modules() if isinstance(layer, SparseLinear)
    )
    assert_outputs_match(fast, model, torch.randn(5, widths[0]))


@pytest.mark.usefixtures("_always_faster")
def test_layers_left_dense_are_reported_by_name_with_the_reason() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.recurrent = nn.LSTM(8, 8)
            self.wrapped = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
            self.uneven = nn.Conv2d(1, 1, 3, stride=(1, 2))
            self.hooked = nn.Linear(8, 8)
            self.hooked.register_forward_hook(lambda *_: None)
            self.idle = nn.Linear(8, 8)
            self.wide = nn.Linear(8, 8).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.hooked(self.linear(x))
            x = self.wrapped(self.recurrent(x)[0].t()).t()
            x = self.uneven(x[None, None])[0, 0]
            return x + self.wide(torch.ones(8).double()).sum().float()  # type: ignore[no-any-return]

    model = sparsified(Several(), 0.9)
    _fast, report = report_of(model, torch.randn(5, 8))
    assert report.replaced == ("linear", "uneven")
    for name, reason in {
        "recurrent": "a LSTM has no sparse counterpart",
        "wrapped": "padding_mode is 'circular'",
        "hooked": "it has hooks",
        "idle": "not called on this example",
        "wide": "float64",
    }.items():
        assert name in report.excluded, name
        assert reason in report.excluded[name]


class PartlyAutocast(nn.Module):
    """A network that computes a part of itself under autocast, with a layer in both parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.both(self.first(x))
        with torch.autocast("cpu", torch.bfloat16):
            return self.both(self.second(x.bfloat16())).float()  # type: ignore[no-any-return]


@pytest.mark.usefixtures("_always_faster")
def test_layers_called_on_other_types_than_float32_stay_dense() -> None:
    torch.manual_seed(0)
    model = sparsified(PartlyAutocast(), 0.9)
    fast, report = report_of(model, torch.randn(4, 32))
    assert report.replaced == ("first",)
    for name in ("second", "both"):
        assert "called on bfloat16 inputs, as under autocast" in report.excluded[name]
    assert_outputs_match(fast, model, torch.randn(5, 32))


class CountingCalls(nn.Module):
    """A network that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse, self.dense = nn.Linear(32, 32), nn.Linear(32, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.get_buffer("calls").add_(1)
        return self.dense(self.sparse(x))  # type: ignore[no-any-return]


def test_fast_model_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: Any = CountingCalls()
    sparsified(model.sparse, 0.9)
    plant_timings(monkeypatch, [2.0], [1.0], [3.0])
    fast, report = report_of(model, torch.randn(4, 32))
    assert report.replaced == ("sparse",)
    assert not [name for name, each in fast.state_dict().items() if each.is_inference()]
    assert fast.get_buffer("calls") == 0  # the calls for timing do not count
    fast(torch.randn(4, 32))
    assert fast.get_buffer("calls") == 1
    fast.load_state_dict({name: each + 1 for name, each in fast.state_dict().items()})
    assert model.calls == 0


class Counting(nn.Module):
    """A network that writes into its input, so that a second call would read other tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 64), nn.Linear(64, 64)

    def forward(self, batch: Any) -> torch.Tensor:
        tokens = batch["tokens"].add_(1)
        head: torch.Tensor = self.head(self.embedding(tokens))
        return head


@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_inputs_written_to_by_the_model_are_restored(mapping: Any) -> None:
    torch.manual_seed(0)
    model = sparsified(Counting(), 0.9)
    tokens = torch.arange(8)
    fast, report = report_of(model, (mapping(tokens=tokens),))
    assert tokens.tolist() == list(range(8))
    assert report.replaced == ("head",)
    right, fast = (each({"tokens": tokens.clone()}) for each in (model, fast))
    torch.testing.assert_close(fast, right)


@pytest.mark.usefixtures("_always_faster")
def test_keyword_arguments_and_several_outputs_are_supported() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.one(left + right), "head": self.other(right)}

    model = sparsified(Two())
    example = {"left": torch.randn(2, 6), "right": torch.randn(2, 6)}
    fast = speed_up(model, example)
    with torch.no_grad():
        for key, value in model(**example).items():
            torch.testing.assert_close(fast(**example)[key], value)


@pytest.mark.usefixtures("_always_faster")
def test_fast_model_rejects_gradients_and_can_be_copied() -> None:
    model = sparsified(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), 0.5)
    fast = speed_up(model, torch.randn(2, 6))
    assert not any(p.requires_grad for p in fast.parameters())
    with pytest.raises(PrunusError, match="without a gradient.*train the network that it was"):
        fast(torch.randn(2, 6, requires_grad=True))
    assert_outputs_match(copy.deepcopy(fast), model, torch.randn(2, 6))


@pytest.mark.usefixtures("_always_faster")
def test_model_that_is_a_single_layer_is_replaced() -> None:
    model = sparsified(nn.Linear(600, 600), 0.99)
    fast = speed_up(model, torch.randn(64, 600))
    assert isinstance(fast, SparseLinear)
    assert_outputs_match(fast, model, torch.randn(64, 600))


class Noisy(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return out + torch.rand(()) * next(self.count)

    count = iter(range(10**9))


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (lambda x: x, torch.ones(1), "must be a torch.nn.Module, but is of type function"),
        (nn.ReLU(), torch.ones(1), "ReLU has no parameters"),
        (nn.LazyLinear(3), torch.ones(1, 3), "no values: weight"),
        (
            nn.Sequential(nn.Linear(3, 3)),
            torch.ones(1, 4),
            r"fails on the example inputs \(float32 of shape \(1, 4\)\)",
        ),
        (nn.Sequential(nn.Linear(3, 3)), 7, "example_inputs must be a tensor.*but is int"),
        (
            Noisy(nn.Linear(3, 3)),
            torch.ones(1, 3),
            "is random in evaluation mode, make its forward deterministic",
        ),
    ],
)
def test_invalid_models_and_examples_are_rejected(model: Any, example: Any, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        speed_up(model, example)


def test_example_inputs_of_the_wrong_type_are_an_argument_error() -> None:
    with pytest.raises(ArgumentTypeError, match="example_inputs must be a tensor.*but is int"):
        speed_up(nn.Sequential(nn.Linear(3, 3)), 7)  # type: ignore[call-overload]


@pytest.mark.slow
def test_missing_numba_names_the_extra_to_install() -> None:
    code = """
import sys
sys.modules["numba"] = None
import torch, prunus
try:
    prunus.speed_up(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.ones(1, 2))
except prunus.PrunusError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'prunus[runtime]'" in ran.stdout


def test_timings_not_measured_are_nan() -> None:
    _fast, report = report_of(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4))
    assert math.isnan(report.layers[0].dense_ms)
    assert report.sparse_ms == report.dense_ms
