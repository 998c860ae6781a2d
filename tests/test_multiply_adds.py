"""Multiply-adds against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus._inference.multiply_adds import MultiplyAdds, multiply_adds
from prunus.errors import PrunusError


def keep(weight: torch.Tensor, count: int) -> None:
    """Set all but the first elements of a weight to zero."""
    with torch.no_grad():
        weight.flatten()[count:] = 0


def test_convolutions_and_linear_layers_by_hand() -> None:
    convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 4, bias=False)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear)
    x = torch.rand(1, 3, 4, 4)
    # 16 pixels of 8·3·9 products each, and 128·4.
    dense = 16 * 216 + 512
    assert multiply_adds(model, x) == MultiplyAdds(dense, dense)
    keep(convolution.weight, 10)
    keep(linear.weight, 3)
    assert multiply_adds(model, x) == MultiplyAdds(dense, 16 * 10 + 3)
    # Twice for two examples.
    assert multiply_adds(model, x.repeat(2, 1, 1, 1)) == MultiplyAdds(2 * dense, 2 * 163)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * dense


def test_products_of_activations_count_in_full() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.rand(1, 5, 8)
    # Four projections of 5·8·8, and for each of two heads twice 5·5·4.
    dense = 4 * 320 + 2 * 2 * 100
    assert multiply_adds(model, (x, x, x)) == MultiplyAdds(dense, dense)
    keep(model.in_proj_weight, 0)
    keep(model.out_proj.weight, 4)
    # 4 of the 64 elements of the last projection are left: 5·4.
    assert multiply_adds(model, (x, x, x)) == MultiplyAdds(dense, 2 * 2 * 100 + 20)


def test_fused_attention_counts_like_that_of_products() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = F.linear(x, self.weight)
            return F.scaled_dot_product_attention(q, q, q)

    x = torch.rand(1, 2, 5, 4)
    # 10·4·4, and for two heads twice 5·5·4.
    assert multiply_adds(Attention(), x) == MultiplyAdds(160 + 400, 160 + 400)


def test_tied_weights_count_where_they_multiply() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(self.embedding(tokens), self.embedding.weight)

    model = Tied()
    keep(model.embedding.weight, 10)
    # The look-up multiplies nothing; the output layer has 3·4·10, of which a quarter is left.
    assert multiply_adds(model, torch.tensor([[1, 2, 3]])) == MultiplyAdds(120, 30)


def test_model_inputs_and_mode_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    multiply_adds(model, torch.rand(2, 3, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before)
    torch.testing.assert_close(torch.get_rng_state(), random)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(PrunusError, match="no formula for the multiply-adds of aten.*"):
        multiply_adds(nn.LSTM(4, 3), torch.rand(2, 1, 4))
    with pytest.raises(PrunusError, match="the network fails on the inputs"):
        multiply_adds(nn.Linear(4, 3), torch.rand(2, 5))
