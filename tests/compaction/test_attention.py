"""Tests of ``compact`` on attention: whole heads are removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.sparse_models import zero
from prunus import PrunusError

from .networks import FunctionalModel, Heads, PackedHeads
from .round_trips import compact_and_reload, compact_with_report


@pytest.mark.slow
def test_attention_heads_are_removed_whole() -> None:
    model: Any = Heads()
    zero(model.v.weight, slice(4, 8))  # the second head outputs a constant
    zero(model.out.weight, slice(None), slice(12, 16))  # no weights from the fourth head
    zero(model.out.weight, slice(None), slice(0, 3))  # nor from most of the first
    small = compact_and_reload(model, torch.randn(2, 5, 16))
    assert small.h == 2
    for layer in (small.q, small.k, small.v):
        assert layer.weight.shape == (8, 16)
    assert small.out.weight.shape == (16, 5)  # it skips 3 of the two heads' 8 features
    assert_outputs_match(small, model, torch.randn(3, 7, 16))


@pytest.mark.slow
def test_sizes_hardcoded_in_forward_are_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16), Heads(literal=True))
    zero(model[0].weight, slice(0, 5))
    zero(model[3].v.weight, slice(4, 8))
    small, report = compact_with_report(model, torch.randn(2, 5, 16))
    assert small[0].weight.shape == (15, 16)
    assert small[3].q.weight.shape == (16, 16)
    assert report.protected == ("view in 3: its sizes are hard-coded",)
    assert_outputs_match(small, model, torch.randn(2, 5, 16))


@pytest.mark.slow
def test_heads_of_a_packed_projection_are_removed() -> None:
    model: Any = PackedHeads()
    zero(model.proj.weight, slice(None), slice(8, 16))
    small = compact_and_reload(model, torch.randn(2, 5, 32))
    assert small.num_heads == 3
    assert small.qkv.weight.shape == (72, 32)
    assert small.proj.weight.shape == (32, 24)
    assert_outputs_match(small, model, torch.randn(2, 5, 32))


@pytest.mark.slow
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention_loses_unused_heads(batch_first: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    model: Any = FunctionalModel(
        lambda m, x: m.a(x, x, x, need_weights=need_weights)[0], a=attention
    )
    zero(attention.out_proj.weight, slice(None), slice(4, 8))
    x = torch.randn(3, 5, 16)
    small = compact_and_reload(model, x)
    assert small.a.in_proj_weight.shape == (36, 16)
    assert small.a.num_heads == 3
    assert_outputs_match(small, model, x)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, -1] = True
    y = x if batch_first else x.transpose(0, 1)
    options: dict[str, Any] = {"attn_mask": mask, "key_padding_mask": padding}
    for need in (False, True):
        right = attention.eval()(y, y, y, need_weights=need, **options)[0]
        torch.testing.assert_close(small.a(y, y, y, need_weights=need, **options)[0], right)


@pytest.mark.slow
def test_encoder_layer_loses_dead_neurons_and_heads() -> None:
    model: Any = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    zero(model.linear1.weight, slice(0, 20))
    zero(model.self_attn.out_proj.weight, slice(None), slice(0, 4))
    small = compact_and_reload(model, torch.randn(2, 5, 16))
    assert small.linear1.weight.shape == (12, 16)
    assert small.self_attn.in_proj_weight.shape == (36, 16)
    assert_outputs_match(small, model, torch.randn(2, 5, 16))


class PaddedEncoder(nn.Module):
    """An encoder of padded items, whose outputs at padded positions are 0 where that is asked."""

    def __init__(self, *, masked: bool = True, **options: Any) -> None:
        super().__init__()
        nested = options.pop("enable_nested_tensor")
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.out = nn.Linear(16, 3)
        self.masked = masked

    def forward(self, x: torch.Tensor, padded: torch.Tensor | None = None) -> torch.Tensor:
        y: torch.Tensor = self.out(self.encoder(x, src_key_padding_mask=padded))
        if padded is None or not self.masked:
            return y
        return y.masked_fill(padded[..., None], 0.0)


def padding(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("smaller", ["heads", "selected inputs"])
def test_padded_encoder_keeps_its_outputs(
    smaller: str, nested: bool, activation: str, norm_first: bool
) -> None:
    model: Any = PaddedEncoder(
        norm_first=norm_first, activation=activation, enable_nested_tensor=nested
    ).eval()
    layer = model.encoder.layers[1]
    if smaller == "heads":
        zero(layer.self_attn.out_proj.weight, slice(None), slice(0, 4))
    else:
        zero(layer.linear1.weight, slice(None), slice(0, 12))
    example = torch.randn(3, 7, 16)
    # Heads are removed only where the example has no mask, which is of the original heads' number.
    small = compact_and_reload(
        model, example if smaller == "heads" else (example, padding(4, 7, 6))
    )
    layer = small.encoder.layers[1]
    if smaller == "heads":
        assert layer.self_attn.in_proj_weight.shape == (36, 16)
    else:
        assert layer.linear1.weight.shape == (32, 4)
    for lengths in ((4, 7, 6), (11, 3), (5, 5)):
        x = torch.randn(len(lengths), max(lengths), 16)
        with torch.no_grad():
            expected = model(x, padding(*lengths))
            torch.testing.assert_close(small(x, padding(*lengths)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_whose_padded_positions_are_returned_as_zeros_is_rejected() -> None:
    model: Any = PaddedEncoder(masked=False, enable_nested_tensor=True).eval()
    zero(model.encoder.layers[1].linear1.weight, slice(None), slice(0, 12))
    example = torch.randn(3, 7, 16), padding(4, 7, 6)
    with pytest.raises(PrunusError, match=r"; encoder may return 0 at .* use_nested_tensor to F"):
        compact_and_reload(model, example)
    model.encoder.use_nested_tensor = False
    small = compact_and_reload(model, example)
    torch.testing.assert_close(small(*example), model(*example), atol=1e-5, rtol=1e-5)
