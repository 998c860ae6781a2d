"""Tests of sparse projections of attention: equal outputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import assert_outputs_match
from helpers.planted_timings import report_of
from helpers.sparse_models import sparsified
from prunus import PrunusError


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
    assert not report.excluded
    assert_outputs_match(fast, model, x)
    mask = torch.zeros((4, 6) if batch_first else (6, 4), dtype=torch.bool)
    mask[0, -2:] = True
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        found = fast(x, src_key_padding_mask=mask)
    kept = ~mask if batch_first else ~mask.t()
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-5)


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
    assert report.excluded["attention"] == "its weights are read by the code around it"
    assert report.excluded["hooked"] == "it has hooks"
    assert "keys and values of its own" in report.excluded["biased"]
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


@pytest.mark.slow
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
        assert "enable_nested_tensor=False" in report.excluded["layers.0.linear1"]
    else:
        assert "layers.0.self_attn.inputs" in report.replaced, report.excluded
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        found = fast(x, src_key_padding_mask=mask)
    torch.testing.assert_close(found[~mask], expected[~mask], rtol=0, atol=2e-5)
