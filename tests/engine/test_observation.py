"""The score's view of the gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import MagnitudeScore, Selection, TaylorScore, select
from prunus._engine.observation import GradientObserver


def two_layers(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Selection]:
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    model.to(dtype)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
    return model, select(model)


def test_the_memory_of_each_tensor_is_updated_by_each_gradient() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(smoothing=0.5), selection)
    assert observer.active
    assert observer.memory == {}
    a, b = (tensor.parameter for tensor in selection.values())
    a.grad = torch.tensor([[1.0, -3.0]])
    observer.observe(None)
    assert {name: m.tolist() for name, m in observer.memory.items()} == {"a.weight": [[2.0, 6.0]]}
    a.grad, b.grad = None, torch.tensor([[4.0]])
    observer.observe(None)
    a.grad = torch.tensor([[3.0, 1.0]])
    observer.observe(None)
    # |w · g| is 6 and 2: the averages with 2 and 6 are 4 and 4.
    assert observer.memory["a.weight"].tolist() == [[4.0, 4.0]]
    assert observer.memory["b.weight"].tolist() == [[8.0]]


def test_sparse_gradients_are_left_out_and_later_tensors_observed() -> None:
    _, selection = two_layers()
    observer = GradientObserver(TaylorScore(), selection)
    a, b = (tensor.parameter for tensor in selection.values())
    a.grad, b.grad = torch.ones(1, 2).to_sparse(), torch.tensor([[4.0]])
    observer.observe(None)
    assert list(observer.memory) == ["b.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_loss_scale_is_divided_out_in_at_least_32_bits(dtype: torch.dtype) -> None:
    _, selection = two_layers(dtype)
    observer = GradientObserver(TaylorScore(), selection)
    for tensor in selection.values():
        tensor.parameter.grad = torch.full_like(tensor.parameter, 2.0**-20)
    observer.observe(2.0**12)
    for memory in observer.memory.values():
        # 2 · 2^-20 / 2^12 is below the smallest number of float16.
        assert memory.flatten()[0].item() == 2.0**-31
        assert memory.dtype == torch.promote_types(dtype, torch.float32)
    assert selection["b.weight"].parameter.grad.item() == 2.0**-20  # type: ignore[union-attr]


def test_a_score_without_memory_leaves_nothing_to_keep() -> None:
    _, selection = two_layers()
    observer = GradientObserver(MagnitudeScore(), selection)
    assert not observer.active
    selection["b.weight"].parameter.grad = torch.ones(1, 1)
    observer.observe(None)
    assert observer.memory == {}
