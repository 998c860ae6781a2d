"""Tests of the attributes of replaced layers: those of the layers that they replace."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_layer_matches_float64, assert_outputs_match
from helpers.planted_timings import report_of
from helpers.sparse_models import sparsified, sparsify_with_zero_rows
from prunus import ArgumentError, PrunusError, compact
from prunus.runtime.convolution import SparseConv
from prunus.runtime.linear import SparseLinear
from prunus.runtime.rows import SparseRows

SETTINGS = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv1d: (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode", "output_padding", "transposed",
    ),
}  # fmt: skip
SETTINGS[nn.Conv2d] = SETTINGS[nn.Conv1d]

LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(6, 4),
    "linear without bias": lambda: nn.Linear(6, 4, bias=False),
    "convolution of one dimension": lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1, groups=2),
    "convolution": lambda: nn.Conv2d(6, 4, (3, 2), stride=(2, 1), dilation=2, bias=False),
    "same padding": lambda: nn.Conv2d(6, 4, 3, padding="same"),
}


def sparse_of(layer: Any) -> SparseLinear | SparseConv:
    return SparseLinear(layer) if isinstance(layer, nn.Linear) else SparseConv(layer)


def assert_attributes_equal(found: Any, layer: Any) -> None:
    """Check settings, weight and bias, bit for bit."""
    layer_type = next(each for each in SETTINGS if isinstance(layer, each))
    for name in SETTINGS[layer_type]:
        assert getattr(found, name) == getattr(layer, name), name
    weight = found.weight
    assert isinstance(weight, torch.Tensor)
    for name in ("shape", "dtype", "device", "layout", "is_cuda"):
        assert getattr(weight, name) == getattr(layer.weight, name), name
    assert (weight.dim(), weight.numel(), len(weight)) == (
        layer.weight.dim(), layer.weight.numel(), len(layer.weight),
    )  # fmt: skip
    assert not weight.requires_grad
    torch.testing.assert_close(weight.clone(), layer.weight.detach(), rtol=0, atol=0)
    if layer.bias is None:
        assert found.bias is None
    else:
        torch.testing.assert_close(found.bias, layer.bias, rtol=0, atol=0, check_dtype=True)


@pytest.mark.parametrize("name", LAYERS)
def test_sparse_layer_has_the_attributes_of_the_layer_it_copies(name: str) -> None:
    layer = LAYERS[name]()
    sparsify_with_zero_rows(layer, 0.5)
    assert_attributes_equal(sparse_of(layer), layer)
    assert_attributes_equal(copy.deepcopy(sparse_of(layer)), layer)
    assert_attributes_equal(pickle.loads(pickle.dumps(sparse_of(layer))), layer)


def test_attributes_and_tensors_set_by_the_user_are_kept() -> None:
    linear: Any = nn.Linear(6, 4)
    linear.role, linear.rows = "head", 7
    linear.register_buffer("scale", torch.tensor([2.0]))
    linear.child = nn.ReLU()
    sparse = SparseLinear(linear)
    assert sparse.role == "head"
    assert isinstance(sparse.rows, SparseRows)  # what the layer computes with comes first
    assert torch.equal(sparse.get_buffer("scale"), linear.scale)
    assert isinstance(sparse.child, nn.ReLU)
    assert_layer_matches_float64(sparse, linear, torch.randn(3, 6))


def test_properties_of_a_weight_are_read_without_computing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sparse = SparseLinear(nn.Linear(6, 4))
    monkeypatch.delattr(SparseRows, "dense")
    weight = sparse.weight
    assert (weight.dtype, weight.device.type) == (torch.float32, "cpu")
    assert (weight.shape, weight.is_floating_point()) == ((4, 6), True)
    assert weight.detach().shape == weight.data.shape == (4, 6)
    with pytest.raises(AttributeError, match="dense"):
        weight.sum()


def test_operations_on_a_weight_use_its_elements() -> None:
    linear = nn.Linear(6, 4)
    sparsify_with_zero_rows(linear, 0.5)
    weight, expected = SparseLinear(linear).weight, linear.weight.detach()
    x = torch.randn(3, 6)
    for compute in (
        lambda w: w.t() @ w,
        lambda w: w[1:3, 2],
        lambda w: nn.functional.linear(x, w),
        lambda w: w.data.norm(),
        lambda w: torch.cat([w, w]),
        lambda w: w.to(torch.float64),
        lambda w: w.reshape(-1),
        copy.deepcopy,
        lambda w: pickle.loads(pickle.dumps(w)),
        lambda w: torch.from_numpy(w.numpy()),
        lambda w: torch.tensor(w.tolist()),
    ):
        found = compute(weight)
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, compute(expected), rtol=0, atol=0)
    assert repr(weight) == repr(weight.clone())
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False), expected)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.zero_(),
        lambda w: w.data.mul_(2),
        lambda w: w.detach().copy_(torch.ones(4, 6)),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: torch.add(torch.ones(4, 6), 1, out=w),
        lambda w: nn.init.zeros_(w),
    ],
)
def test_writing_into_a_weight_is_rejected(write: Callable[[Any], Any]) -> None:
    with pytest.raises(PrunusError, match="cannot be written, because it is a copy: change the"):
        write(SparseLinear(nn.Linear(6, 4)).weight)
    with pytest.raises(PrunusError, match="has no address"):
        SparseLinear(nn.Linear(6, 4)).weight.data_ptr()


class Reader(nn.Module):
    """A network that reads the attributes of its layers, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(8, 8, bias=False)
        self.norm.running_mean = torch.randn(8)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.conv.weight.dtype).to(next(self.parameters()).device)
        assert x.shape[1] == self.conv.in_channels
        length = (x.shape[2] + self.conv.stride[0] - 1) // self.conv.stride[0]
        x = self.relu(self.norm(self.conv(input=x)))
        assert (x.shape[2], self.norm.num_features, self.relu.inplace) == (length, 8, True)
        x = self.linear(input=x.mean(-1).view(-1, self.linear.in_features))
        decay = (self.linear.weight**2).sum() + self.conv.weight.sum() + self.norm.bias.sum()
        return x + decay if self.linear.bias is None else x


@pytest.mark.usefixtures("_always_faster")
def test_network_that_reads_attributes_of_its_layers_keeps_its_outputs() -> None:
    torch.manual_seed(0)
    model = sparsified(Reader(), 0.5)
    for x in (torch.randn(3, 4, 21), torch.randn(1, 4, 8)):
        fast, report = report_of(model, x)
        assert report.replaced == ("conv", "linear")
        assert_outputs_match(fast, model, x)


@pytest.mark.usefixtures("_always_faster")
def test_attributes_are_those_before_a_norm_is_folded_or_inputs_are_selected() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    with torch.no_grad():
        model.get_parameter("1.weight")[0] = 0  # the folded row is zero, that of the layer is not
        model.get_parameter("4.weight")[:, 10:50] = 0
    x = torch.randn(3, 4, 6, 6)
    model = sparsified(model, 0.6)
    small = compact(model, x)
    for network in (model, small):
        fast, report = report_of(network, x)
        assert report.replaced == ("0", "4")
        assert_outputs_match(fast, model, x)
        for name in report.replaced:
            assert_attributes_equal(fast.get_submodule(name), network.get_submodule(name))
        for name in ("weight", "bias", "running_mean", "running_var", "eps", "num_features"):
            found, expected = (getattr(m.get_submodule("1"), name) for m in (fast, network))
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected)), name


def test_layers_that_are_not_supported_are_rejected_by_name_and_reason() -> None:
    class Own(nn.Linear):
        pass

    cases: list[tuple[Any, Any, str]] = [
        (SparseLinear, nn.Linear(3, 2).double(), "its weight is torch.float64 on cpu"),
        (SparseLinear, nn.Linear(3, 2, device="meta"), "its weight is torch.float32 on meta"),
        (SparseLinear, Own(3, 2), "is of type Own"),
        (SparseLinear, nn.Conv1d(3, 2, 1), "is of type Conv1d"),
        (SparseConv, nn.ConvTranspose2d(3, 2, 1), "is of type ConvTranspose2d"),
        (SparseConv, nn.Conv3d(3, 2, 1), "is of type Conv3d"),
        (SparseConv, nn.Conv2d(3, 2, 3, padding_mode="reflect"), "padding_mode is 'reflect'"),
    ]
    for sparse_type, layer, reason in cases:
        with pytest.raises(ArgumentError, match=rf"{reason}.*: keep it dense"):
            sparse_type(layer)


@pytest.mark.usefixtures("_always_faster")
def test_layer_whose_forward_is_replaced_is_left_dense() -> None:
    model: Any = sparsified(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), 0.5)
    model[0].forward = lambda x: x + 1
    x = torch.randn(2, 6)
    fast, report = report_of(model, x)
    assert report.replaced == ("1",)
    assert report.excluded == {"0": "its forward is replaced by another function"}
    assert_outputs_match(fast, model, x)


@pytest.mark.parametrize(
    ("convert", "found"),
    [(lambda m: m.double(), "torch.float64 on cpu"), (lambda m: m.bfloat16(), "torch.bfloat16")],
)
def test_sparse_layer_converted_to_another_type_is_rejected(
    convert: Callable[[nn.Module], nn.Module], found: str
) -> None:
    sparse = SparseLinear(nn.Linear(6, 4))
    sparse(torch.randn(3, 6))
    convert(sparse)
    with pytest.raises(PrunusError, match=rf"converted to {found}.*: convert the dense network"):
        sparse(torch.randn(3, 6))
    assert sparse.weight.dtype == next(sparse.parameters()).dtype


def test_state_with_other_positions_takes_effect_in_a_layer_that_has_run() -> None:
    torch.manual_seed(0)
    one, other = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        one.weight[:, 0] = 0
        other.weight[:, 1] = 0
    sparse, x = SparseConv(one), torch.randn(2, 2, 8, 8)
    assert_layer_matches_float64(sparse, one, x)
    sparse.load_state_dict(SparseConv(other).state_dict())
    assert_layer_matches_float64(sparse, other, x)
