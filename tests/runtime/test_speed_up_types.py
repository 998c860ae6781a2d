"""Tests of ``speed_up`` with layers in bfloat16 and int8."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.planted_timings import plant_timings
from helpers.rounding import integer_layer, rounded_layer, to_bfloat16, to_integers
from helpers.sparse_models import sparsified
from prunus import ArgumentError, ArgumentTypeError, PrunusError, compact, speed_up
from prunus.runtime import SpeedUpReport
from prunus.runtime.fusion import Chain
from prunus.runtime.linear import SparseLinear
from prunus.runtime.precision import BFloat16
from prunus.runtime.replacing import Replacement

LOWER = [torch.bfloat16, torch.int8]


def typed_report_of(
    model: nn.Module, example: Any, dtype: torch.dtype, **options: Any
) -> tuple[nn.Module, SpeedUpReport]:
    """Return the fast model and the report."""
    return speed_up(model, example, dtype=dtype, return_report=True, **options)


def two_layers() -> Any:
    torch.manual_seed(0)
    return sparsified(nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)), 0.8)


@pytest.fixture
def _lower_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_timings(monkeypatch, [1.0], [0.6], [0.4])


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize(
    ("times", "name"),
    [
        ([[1.0], [0.6], [0.4]], "lower"),
        ([[1.0], [0.4], [0.6]], "float32"),
        ([[1.0], [0.4], [0.39]], "float32"),  # not clearly faster
        ([[1.0], [1.2], [0.9]], "lower"),
        ([[1.0], [1.2], [1.1]], "dense"),
    ],
)
def test_each_layer_computes_in_the_fastest_type(
    times: list[list[float]], name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = two_layers(), torch.randn(5, 32)
    plant_timings(monkeypatch, *times)
    fast, report = typed_report_of(model, x, dtype)
    lower = str(dtype).removeprefix("torch.")
    if name == "dense":
        assert report.replaced == ()
        assert torch.equal(fast(x), model(x))
        return
    expected = lower if name == "lower" else "float32"
    assert [layer.dtype for layer in report.layers] == [expected] * 2
    assert report.replaced == ("0", "2")
    assert report.layers[0].times_ms == pytest.approx({"float32": times[1][0], lower: times[2][0]})
    assert report.layers[0].sparse_ms == pytest.approx(report.layers[0].times_ms[expected])
    assert fast.get_submodule("0").rows.dtype == (dtype if name == "lower" else torch.float32)
    reasons = {} if name == "lower" else dict.fromkeys("02", f"{lower} is not faster")
    assert report.in_float32 == reasons
    assert (f"sparse, {lower}" in str(report)) == (name == "lower")
    if name == "float32":
        assert_outputs_match(fast, model, x)
    else:
        assert 1e-5 < report.error < 0.05


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_float32_is_as_without_a_type(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = two_layers(), torch.randn(5, 32)
    plant_timings(monkeypatch, [1.0], [0.6], [0.7])
    plain, typed = speed_up(model, x), speed_up(model, x, dtype=dtype)
    assert torch.equal(plain(x), typed(x))
    assert typed.get_submodule("0").rows.dtype == torch.float32


@pytest.mark.usefixtures("_lower_is_fastest")
def test_network_in_bfloat16_matches_a_reference_of_rounded_numbers() -> None:
    model, x = two_layers(), torch.randn(5, 32)
    fast, _report = typed_report_of(model, x, torch.bfloat16)
    first, last = (rounded_layer(model[i], to_bfloat16(model[i].weight)) for i in (0, 2))
    with torch.no_grad():
        hidden = first(to_bfloat16(x)).relu()
        expected = last(to_bfloat16(hidden))
        torch.testing.assert_close(fast(x).double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_lower_is_fastest")
def test_ranges_of_int8_are_those_of_all_calibration_inputs() -> None:
    model = sparsified(nn.Linear(32, 8), 0.5)
    with torch.no_grad():
        model.weight[:, 5] = 0
    x = torch.rand(4, 32)
    largest = x * 3
    largest[0, 1], largest[0, 5] = 4.1, 100.0  # the layer does not read the latter
    batches = [(x * 0 - 1,), largest, {"input": x}]
    fast, _ = typed_report_of(model, x, torch.int8, calibration=iter(batches))
    scale, zero_point = 5.1 / 255, 50
    assert float(fast.rows.input_scale) == pytest.approx(scale)  # type: ignore[union-attr,arg-type]
    assert int(fast.rows.zero_point) == zero_point  # type: ignore[union-attr,arg-type]
    beyond = torch.full((2, 32), 70.0)
    with torch.no_grad():
        found = fast(beyond)
        expected = integer_layer(model)(to_integers(beyond, scale, zero_point))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_lower_is_fastest")
def test_selecting_layers_and_attentions_compute_in_bfloat16_and_int8() -> None:
    torch.manual_seed(0)
    model = sparsified(nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 8)), 0.6)
    with torch.no_grad():
        model[0].weight[:, 10:] = 0
    small = compact(model, torch.randn(5, 40))
    encoder = sparsified(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 0.7)
    for network, x in ((small, torch.randn(5, 40)), (encoder, torch.randn(3, 7, 16))):
        for dtype in LOWER:
            fast, report = typed_report_of(network, x, dtype)
            lower = str(dtype).removeprefix("torch.")
            assert {layer.dtype for layer in report.layers if layer.replaced} == {lower}
            assert len(report.replaced) >= 2
            assert report.error < 0.1
            with torch.no_grad():
                torch.testing.assert_close(fast(x), network(x), rtol=0.2, atol=0.2)


@pytest.mark.usefixtures("_lower_is_fastest")
def test_convolutions_stay_in_float32_and_are_reported() -> None:
    torch.manual_seed(0)
    model = sparsified(
        nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(42, 4)), 0.6
    )
    _fast, report = typed_report_of(model, torch.randn(5, 4, 9), torch.bfloat16)
    assert [(layer.name, layer.dtype) for layer in report.layers] == [
        ("0", "float32"), ("3", "bfloat16"),
    ]  # fmt: skip
    assert report.in_float32 == {"0": "a Conv1d has no counterpart in bfloat16"}
    assert "0 stays in float32: a Conv1d has no counterpart" in str(report)


def plant_in_lower_types(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change sparse layers in bfloat16 and int8 after they are built."""
    build = SparseLinear.__init__

    def build_wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if self.rows.group > 1:
            change(self)

    monkeypatch.setattr(SparseLinear, "__init__", build_wrong)


def shift_the_weights(layer: Any) -> None:
    """Change weights by about the smallest step of their type."""
    values = layer.rows.values
    if values.dtype == torch.int8:
        values[(values != 0) & (values < 127)] += 1
    else:
        values *= 1 + 2**-7


def shift_the_range(layer: Any) -> None:
    """Change the rounding of activations by a step in int8, and swap the halves of bfloat16."""
    if layer.rows.is_scaled:
        layer.rows.zero_point += 1
    else:
        layer.rows.values.copy_(layer.rows.values.flip(1))


@pytest.mark.usefixtures("_lower_is_fastest")
@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("fault", [shift_the_weights, shift_the_range])
def test_a_wrong_layer_in_a_lower_type_is_replaced_in_float32(
    fault: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = two_layers(), torch.randn(5, 32)
    plant_in_lower_types(monkeypatch, fault)
    fast, report = typed_report_of(model, x, dtype)
    assert [layer.dtype for layer in report.layers] == ["float32", "float32"]
    assert report.replaced == ("0", "2")
    assert "times what rounding explains" in report.in_float32["0"]
    assert_outputs_match(fast, model, x)


@pytest.mark.usefixtures("_lower_is_fastest")
@pytest.mark.parametrize("dtype", LOWER)
def test_a_wrong_network_in_a_lower_type_is_rejected(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chain, "relu", property(lambda _: True))  # the layer itself is consistent
    model = sparsified(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()), 0.5)
    with pytest.raises(PrunusError, match="its outputs would be off by"):
        typed_report_of(model, torch.randn(4, 8), dtype)


@pytest.mark.usefixtures("_lower_is_fastest")
def test_a_wrong_rounding_is_found_by_the_bound_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def truncate(_: Any, weight: torch.Tensor) -> tuple[torch.Tensor, None]:
        return weight.to(torch.float8_e5m2).to(torch.bfloat16), None

    model, x = two_layers(), torch.randn(5, 32)
    monkeypatch.setattr(BFloat16, "store_weight", truncate)  # of the sparse and the dense layers
    _fast, report = typed_report_of(model, x, torch.bfloat16)
    assert [layer.dtype for layer in report.layers] == ["float32", "float32"]


@pytest.mark.usefixtures("_lower_is_fastest")
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_calibration_with_nan_or_infinity_is_one_error(number: float) -> None:
    model = two_layers()
    x = torch.randn(5, 32)
    batches = [x, x.clone()]
    column = int((model[0].weight != 0).any(dim=0).nonzero()[0])
    batches[1][2, column] = number
    message = r"these layers receive NaN or infinity: 0(, 2)?\. Leave out such inputs, or use bfl"
    with pytest.raises(PrunusError, match=message):
        typed_report_of(model, x, torch.int8, calibration=batches)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.float16}, ArgumentError,
         r"dtype must be torch.float32, torch.bfloat16 or torch.int8, but is torch.float16"),
        ({"dtype": "int8"}, ArgumentTypeError, "dtype must be torch.float32, .* but is 'int8'"),
        ({"dtype": torch.int8, "calibration": []}, ArgumentError, "calibration has no inputs"),
        ({"dtype": torch.int8, "calibration": torch.ones(2, 32)}, ArgumentTypeError,
         r"must be a list .* but is Tensor: pass \[inputs\]"),
        ({"dtype": torch.int8, "calibration": [torch.ones(2, 32), 3]}, ArgumentTypeError,
         "calibration input 2 must be a tensor, .* but is int"),
        ({"dtype": torch.int8, "calibration": 3}, ArgumentTypeError, "must be a list .* is int"),
        ({"dtype": torch.int8, "calibration": [(torch.ones(2, 32), torch.ones(2))]}, PrunusError,
         "fails on calibration input 1: TypeError: .*without labels"),
        ({"dtype": torch.bfloat16, "calibration": [torch.ones(2, 32)]}, ArgumentError,
         "calibration is only for dtype=torch.int8"),
    ],
)  # fmt: skip
def test_wrong_types_and_calibrations_are_rejected(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        speed_up(two_layers(), torch.ones(2, 32), **options)


@pytest.mark.usefixtures("_lower_is_fastest")
def test_layers_that_int8_cannot_compute_stay_in_float32() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.right(x) if len(x) > 3 else x
            return self.left(y)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = sparsified(Branches(), 0.6)
    _fast, report = typed_report_of(
        model, torch.randn(5, 8), torch.int8, calibration=[torch.randn(2, 8)]
    )
    assert report.in_float32 == {"right": "it is not called on the calibration inputs"}
    assert {layer.name: layer.dtype for layer in report.layers} == {
        "left": "int8", "right": "float32",
    }  # fmt: skip


@pytest.mark.usefixtures("_lower_is_fastest")
@pytest.mark.parametrize("dtype", LOWER)
def test_integer_outputs_may_change_with_the_rounding(dtype: torch.dtype) -> None:
    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 64)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.layer(x)
            return y, y.argmax(dim=-1)

    torch.manual_seed(0)
    model = sparsified(Largest(), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fast, report = typed_report_of(model, torch.randn(300, 16), dtype)
    assert report.replaced == ("layer",)


@pytest.mark.usefixtures("_lower_is_fastest")
def test_replacement_without_a_type_is_in_float32() -> None:
    chain = Chain("", nn.Linear(4, 3))
    layer: Any = Replacement(chain, 4).sparse_layer(by_item=False)
    assert layer.rows.dtype == torch.float32
