"""Tests of ``speed_up``: equal outputs, and layers replaced only where that is faster."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import sparsified
from prunus import PrunusError, compact, speed_up
from prunus.runtime import SpeedUpReport, layer_timing
from prunus.runtime.fusion import find_chains
from prunus.runtime.linear import SparseLinear
from prunus.runtime.replacing import Replacement, replace_layers


def report_of(model: nn.Module, example: Any) -> tuple[nn.Module, SpeedUpReport]:
    return speed_up(model, example, return_report=True)


def plant_timings(monkeypatch: pytest.MonkeyPatch, *milliseconds: Sequence[float]) -> None:
    """Replace the measured time of every call by a planted one.

    Args:
        monkeypatch: Restores the measurement at the end of the test.
        milliseconds: The times of the calls of the dense variant, then of each other variant.
    """

    def interleaved(variants: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        return {
            name: 1e-3 * np.array([each], dtype=float)
            for name, each in zip(variants, milliseconds, strict=False)
        }

    monkeypatch.setattr(layer_timing, "interleaved", interleaved)


@pytest.fixture
def _always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant times by which every sparse variant is faster than the dense one."""
    plant_timings(monkeypatch, [1.0], [0.6], [0.7])


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


def test_measured_timings_are_positive_and_decide_what_is_replaced() -> None:
    torch.manual_seed(0)
    model = sparsified(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    fast, report = report_of(model, torch.randn(16, 64))
    for layer in report.layers:
        assert 0 < layer.dense_ms < math.inf
        assert 0 < layer.sparse_ms < math.inf
        assert not layer.sparse or layer.sparse_ms < layer.dense_ms
    assert 0 < report.sparse_ms <= report.dense_ms < math.inf
    assert_outputs_match(fast, model, torch.randn(16, 64))


def test_dense_network_is_returned_unchanged_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(8, 16)
    with pytest.warns(UserWarning, match=r"returned as it is.*0 \(100% non-zero\).*Prune further"):
        fast = speed_up(model, x)
    assert fast is not model
    assert torch.equal(fast(x), model(x))


class Residual(nn.Module):
    """A network that can be traced, whose norms and rectifiers are fusible in part."""

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
        "first": ("norm",),  # its rectifier is called twice
        "second": ("own_norm", "own_relu"),
        "read_twice": (),
        "head": (),
    }
    assert_outputs_match(fast, model, x)
    assert_outputs_match(fast, model, torch.randn(5, 3, 9, 11))


@pytest.mark.usefixtures("_always_faster")
def test_poolings_are_fused_before_or_after_the_rectifier() -> None:
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
    assert report.layers[0].sparse
    assert report.layers[0].fused == ()
    for x in (torch.ones(4, 12), -torch.ones(4, 12)):
        assert_outputs_match(fast, model, x)


@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layers_run_sparse_instead_of_the_fused_dense_kernel(
    batch_first: bool,
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
    model = sparsified(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 0.7)
    x = torch.randn(4, 6, 16)
    fast, report = report_of(model, x)
    assert report.replaced == tuple(
        f"layers.{i}.{name}"
        for i in range(2)
        for name in ("self_attn.inputs", "self_attn.out", "linear1", "linear2")
    )
    assert not report.left
    assert_outputs_match(fast, model, x)
    mask = torch.zeros((4, 6) if batch_first else (6, 4), dtype=torch.bool)
    mask[0, -2:] = True
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        found = fast(x, src_key_padding_mask=mask)
    kept = ~mask if batch_first else ~mask.t()
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-5)


def replace_all_linear_layers(model: nn.Module, *, by_item: bool) -> nn.Module:
    """Return a copy of a model with every linear layer sparse, whatever its density."""
    names = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    replacements = [
        Replacement(chain, chain.layer.weight.shape[1]) for chain in find_chains(model, names)
    ]
    assert {each.chain.name for each in replacements} == names
    return replace_layers(model, replacements, by_item=by_item)


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
        layers += data.draw(
            st.sampled_from([[], [nn.ReLU()], [nn.LayerNorm(outputs)], [nn.Tanh(), nn.ReLU()]])
        )
    model = sparsified(nn.Sequential(*layers), sparsity)
    fast = replace_all_linear_layers(model, by_item=by_item)
    replaced = [name for name, layer in fast.named_modules() if isinstance(layer, SparseLinear)]
    assert replaced == [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    assert not any(type(layer) is nn.Linear for layer in fast.modules())
    x = torch.randn(items, widths[0])
    assert_outputs_match(fast, model, x)
    assert_outputs_match(replace_all_linear_layers(model, by_item=by_item), model, x[:1])


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
    assert report.replaced == ("linear",)
    for name, reason in {
        "recurrent": "a LSTM has no sparse counterpart",
        "wrapped": "padding_mode is 'circular'",
        "uneven": "strides .* differ",
        "hooked": "it has hooks",
        "idle": "not called on this example",
        "wide": "float64",
    }.items():
        assert name in report.left, name
        assert reason.split(".*")[0] in report.left[name]


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
    with pytest.raises(PrunusError, match="without a gradient.*train the network that it was made"):
        fast(torch.randn(2, 6, requires_grad=True))
    assert_outputs_match(copy.deepcopy(fast), model, torch.randn(2, 6))


@pytest.mark.usefixtures("_always_faster")
def test_model_that_is_a_single_layer_is_replaced() -> None:
    model = sparsified(nn.Linear(600, 600), 0.99)
    fast = speed_up(model, torch.randn(64, 600))
    assert isinstance(fast, SparseLinear)
    assert_outputs_match(fast, model, torch.randn(64, 600))


@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("kind", ["self", "cross", "sizes", "no bias"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_projections_of_attention_are_replaced(kind: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    others: dict[str, Any] = {"sizes": {"kdim": 6, "vdim": 10}, "no bias": {"bias": False}}
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **others.get(kind, {}))
    with torch.no_grad():
        for name, tensor in attention.named_parameters():
            if name.endswith("bias"):  # torch initializes them to 0
                nn.init.normal_(tensor)
    model = sparsified(attention, 0.6)
    one = torch.randn(5, 5, 16)
    key, value = torch.randn(5, 5, 6 if kind == "sizes" else 16), torch.randn(5, 5, 16)
    if kind == "sizes":
        value = torch.randn(5, 5, 10)
    inputs = (one, one, one) if kind == "self" else (one, key, value)
    fast, report = report_of(model, inputs)
    names = ("inputs",) if kind == "self" else ("query", "key", "value")
    # The attention is the model itself, so that its name is empty, and no dot follows it.
    assert report.replaced == (*names, "out")
    padding = torch.zeros(5, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    with pytest.raises(PrunusError, match="is_causal needs attn_mask"):
        fast(*inputs, is_causal=True)
    with pytest.raises(
        PrunusError, match="masks must be of bool or floating point, but are torch.int64"
    ):
        fast(*inputs, key_padding_mask=padding.long())
    calls: list[dict[str, Any]] = [
        {},
        {"need_weights": False},
        {"key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
        {"attn_mask": torch.randn(20, 5, 5)},
    ]
    swapped = (one, one.flip(0), one.flip(1)) if kind == "self" else inputs
    with torch.no_grad():
        for args, settings in itertools.product((inputs, swapped), calls):
            expected, found = model(*args, **settings), fast(*args, **settings)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
            if settings.get("need_weights", True):
                torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_always_faster")
def test_attention_whose_weights_are_read_elsewhere_is_left_dense() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.other = nn.MultiheadAttention(8, 2, batch_first=True)
            self.hooked = nn.MultiheadAttention(8, 2, batch_first=True)
            self.hooked.register_forward_hook(lambda *_: None)
            self.biased = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.attention(x, x, x)[0] * self.attention.in_proj_weight.sum()
            for attention in (self.other, self.hooked, self.biased):
                x = x + attention(x, x, x)[0]
            return self.linear(x)  # type: ignore[no-any-return]

    model = sparsified(Curious())
    x = torch.randn(2, 3, 8)
    fast, report = report_of(model, x)
    assert report.replaced == ("other.inputs", "other.out", "linear")
    assert report.left["attention"] == "its weights are read by the code around it"
    assert report.left["hooked"] == "it has hooks"
    assert "keys and values of its own" in report.left["biased"]
    assert_outputs_match(fast, model, x)


@pytest.mark.usefixtures("_always_faster")
def test_shared_attention_called_with_keywords_or_without_a_batch_is_replaced() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.again = self.attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.attention(x, key=x, value=x)[0]
            return self.again(query=x, key=x, value=x)[0]  # type: ignore[no-any-return]

    model = sparsified(Twice(), 0.5)
    for x in (torch.randn(5, 8), torch.randn(5, 3, 8)):
        fast, report = report_of(model, x)
        assert report.replaced == ("attention.inputs", "attention.out")
        assert fast.get_submodule("again") is fast.get_submodule("attention")
        assert_outputs_match(fast, model, x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.usefixtures("_always_faster")
@pytest.mark.parametrize("nested", [True, False])
def test_encoder_is_replaced_for_padded_inputs_unless_it_uses_nested_tensors(nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = sparsified(nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested), 0.8)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, -2:] = True
    x = torch.randn(4, 6, 16)
    fast, report = report_of(model, {"src": x, "src_key_padding_mask": mask})
    if nested:  # nested tensors make padded outputs 0, which no other computation does
        assert report.replaced == ()
        assert "enable_nested_tensor=False" in report.left["layers.0.linear1"]
    else:
        assert "layers.0.self_attn.inputs" in report.replaced, report.left
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        found = fast(x, src_key_padding_mask=mask)
    torch.testing.assert_close(found[~mask], expected[~mask], rtol=0, atol=2e-5)


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
        (Noisy(nn.Linear(3, 3)), torch.ones(1, 3), "Is it random in evaluation mode"),
    ],
)
def test_invalid_models_and_examples_are_rejected(model: Any, example: Any, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        speed_up(model, example)


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
