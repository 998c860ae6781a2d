"""Clipping by single calls: factors and gradients computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.peers import PeerGroup
from prunus import PrunusError
from prunus._distributed.process_group import SINGLE_PROCESS, ProcessGroup
from prunus._engine.clipping import GradientClipping


def layer_with_gradients(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Return a layer whose gradients have the norm 5 times ``scale``."""
    layer = nn.Linear(2, 1).to(dtype)
    layer.weight.grad = torch.tensor([[3.0, 0.0]], dtype=dtype) * scale
    layer.bias.grad = torch.tensor([-4.0], dtype=dtype) * scale
    return layer


def clipping(model: nn.Module, limit: float, group: ProcessGroup = SINGLE_PROCESS) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return GradientClipping(model, optimizer, limit, group)


def clip_(clipping: GradientClipping, loss_scale: float | None) -> torch.Tensor:
    """Clip the gradients, and return the factor."""
    factor = clipping.factor(clipping.norm(), loss_scale)
    clipping.clip_(factor, loss_scale)
    return factor if loss_scale is None else factor * loss_scale


def gradients(layer: nn.Linear) -> list[float]:
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return [*layer.weight.grad.flatten().tolist(), *layer.bias.grad.tolist()]


GROUPS = [SINGLE_PROCESS, PeerGroup()]
"""A process by itself, and one whose peers hold nothing."""


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
def test_gradients_above_the_limit_are_scaled_down_to_it(group: ProcessGroup) -> None:
    layer = layer_with_gradients()
    factor = clip_(clipping(layer, 2.5, group), None)
    assert factor.item() == pytest.approx(0.5, rel=1e-6)
    assert factor.item() < 0.5  # by 1e-6 in 5, as torch does
    assert gradients(layer) == pytest.approx([1.5, 0.0, -2.0], rel=1e-6)


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
def test_gradients_within_the_limit_are_unchanged(group: ProcessGroup) -> None:
    layer = layer_with_gradients()
    assert clip_(clipping(layer, 10.0, group), None).item() == 1.0
    assert gradients(layer) == [3.0, 0.0, -4.0]


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
def test_the_limit_is_that_of_gradients_without_the_loss_scale(group: ProcessGroup) -> None:
    layer = layer_with_gradients(scale=4.0)
    factor = clip_(clipping(layer, 2.5, group), 4.0)
    assert factor.item() == pytest.approx(0.5 * 4.0, rel=1e-6)
    assert gradients(layer) == pytest.approx([6.0, 0.0, -8.0], rel=1e-6)


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_factor_of_an_infinite_norm_is_not_above_zero(
    group: ProcessGroup, value: float
) -> None:
    layer = layer_with_gradients()
    layer.bias.grad = torch.tensor([value])
    assert not clip_(clipping(layer, 1.0, group), None).item() > 0


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
def test_tensors_without_a_gradient_are_left_out(group: ProcessGroup) -> None:
    layer = layer_with_gradients()
    layer.weight.grad = None
    assert clip_(clipping(layer, 2.0, group), None).item() == pytest.approx(0.5, rel=1e-6)
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == pytest.approx([-2.0], rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("group", GROUPS, ids=["single", "sharded"])
def test_the_norm_of_float16_gradients_may_exceed_their_range(group: ProcessGroup) -> None:
    layer = layer_with_gradients(15_360.0, torch.float16)  # 46,080 and 61,440: the norm is 76,800
    factor = clip_(clipping(layer, 7_680.0, group), None)
    assert factor.dtype == torch.float32
    assert factor.item() == pytest.approx(0.1, rel=1e-6)
    assert gradients(layer) == pytest.approx([4_608.0, 0.0, -6_144.0], rel=1e-3)
    layer = layer_with_gradients(15_360.0, torch.float16)
    layer.bias = nn.Parameter(layer.bias.detach().float())
    layer.bias.grad = torch.tensor([-61_440.0])
    factor = clip_(clipping(layer, 7_680.0, group), None)
    assert factor.item() == pytest.approx(0.1, rel=1e-6)


def test_the_norm_of_float64_gradients_is_computed_in_their_type() -> None:
    for group in GROUPS:
        layer = layer_with_gradients(dtype=torch.float64)
        factor = clip_(clipping(layer, 2.5, group), None)
        assert factor.dtype == torch.float64
        assert factor.item() == pytest.approx(2.5 / (5 + 1e-6), rel=1e-14)


def test_the_norm_is_that_of_all_processes() -> None:
    layer = layer_with_gradients()
    layer.bias.grad = None
    group = PeerGroup(others=torch.tensor(16.0, dtype=torch.float64))
    factor = clip_(clipping(layer, 2.5, group), None)
    assert factor.item() == pytest.approx(0.5, rel=1e-6)
    assert layer.weight.grad.tolist()[0] == pytest.approx([1.5, 0.0], rel=1e-6)  # type: ignore[union-attr]


def test_a_shard_that_another_process_counts_is_clipped_but_not_counted() -> None:
    layer = layer_with_gradients()
    group = PeerGroup(counted=(True, False))
    assert clip_(clipping(layer, 1.5, group), None).item() == pytest.approx(0.5, rel=1e-6)
    assert gradients(layer) == pytest.approx([1.5, 0.0, -2.0], rel=1e-6)


def test_shards_are_assigned_again_only_if_the_tensors_change() -> None:
    calls = []

    class Recorded(PeerGroup):
        def shards_counted_here(self, boxes: Any) -> list[bool]:
            calls.append([box.shape for box in boxes])
            return [True] * len(boxes)

    layer = layer_with_gradients()
    optimizer = torch.optim.SGD([layer.weight], lr=0.1)
    clip = GradientClipping(layer, optimizer, 1.0, Recorded())
    clip_(clip, None)
    clip_(clip, None)
    assert calls == [[(1, 2)]]
    optimizer.add_param_group({"params": [layer.bias]})
    clip_(clip, None)
    assert calls == [[(1, 2)], [(1, 2), (1,)]]


def test_the_norm_is_summed_in_the_order_of_the_model_and_then_of_the_optimizer() -> None:
    model: Any = nn.ParameterList(nn.Parameter(torch.zeros(7)) for _ in range(9))
    outside = [nn.Parameter(torch.zeros(7)) for _ in range(2)]
    for seed, parameter in enumerate([*model, *outside]):
        parameter.grad = normal(7, seed=seed)
    reference = [p.grad.clone() for p in [*model, *outside]]
    groups = [{"params": [outside[0], *reversed(list(model))]}, {"params": [outside[1]]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    clip_(GradientClipping(model, optimizer, 1.0, SINGLE_PROCESS), None)
    norm = torch.nn.utils.get_total_norm(reference)
    for order in ([9, *range(8, -1, -1), 10], [*range(9), 10, 9]):  # which differ in the last bit
        assert not torch.equal(norm, torch.nn.utils.get_total_norm([reference[i] for i in order]))
    for parameter, before in zip([*model, *outside], reference, strict=True):
        assert torch.equal(parameter.grad, before * (1.0 / (norm + 1e-6)))


def test_a_sparse_gradient_is_rejected() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(PrunusError, match="^weight has a sparse gradient"):
        clip_(clipping(model, 1.0), None)


def test_a_process_that_counts_nothing_adds_a_zero_of_64_bits() -> None:
    class Recorded(PeerGroup):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            assert counts.dtype == torch.float64
            return super().sum(counts)

    layer = layer_with_gradients()
    group = Recorded(others=torch.tensor(9.0, dtype=torch.float64), counted=(False, False))
    assert clip_(clipping(layer, 1.5, group), None).item() == pytest.approx(0.5, rel=1e-6)


def test_a_single_float16_gradient_is_clipped() -> None:
    layer = layer_with_gradients(dtype=torch.float16)
    layer.weight.grad = None
    assert clip_(clipping(layer, 2.0), None).item() == pytest.approx(0.5, rel=1e-6)


def test_the_norm_of_whole_tensors_has_the_type_that_torch_gives_it() -> None:
    layer = layer_with_gradients(dtype=torch.bfloat16)
    assert clip_(clipping(layer, 2.5), None).dtype == torch.bfloat16
    layer = layer_with_gradients(dtype=torch.bfloat16)
    assert clip_(clipping(layer, 2.5, PeerGroup()), None).dtype == torch.float32


def test_the_factor_of_shards_is_rounded_to_the_type_of_their_gradients() -> None:
    values = torch.arange(1.0, 200.0, dtype=torch.bfloat16).reshape(1, -1)
    layer = nn.Linear(199, 1, bias=False, dtype=torch.bfloat16)
    layer.weight.grad = values.clone()
    factor = clip_(clipping(layer, 700.0, PeerGroup()), None)
    expected = values * factor.bfloat16()
    assert torch.equal(layer.weight.grad, expected)
    assert not torch.equal((values.float() * factor).bfloat16(), expected)
