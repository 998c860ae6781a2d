"""Batches of tensors: what they cover, and that packing changes no result."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import normal
from prunus import GradualPruning, Pruner, method
from prunus._utils import batches as batching
from prunus._utils.batches import Batch, batches, same_device_and_type
from prunus.masks import clear_all_


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of up to four elements share batches of up to six."""
    monkeypatch.setattr(batching, "CPU_SMALL", 4)
    monkeypatch.setattr(batching, "CPU_BATCH", 6)


@pytest.mark.usefixtures("small")
def test_small_tensors_share_batches_up_to_the_bound() -> None:
    tensors = [torch.ones(n) for n in (2, 3, 5, 0, 4, 1)]
    found = list(batches(tensors))
    assert [batch.indices for batch in found] == [[2], [0, 1], [4, 5]]
    assert [batch.packed for batch in found] == [False, True, True]


@pytest.mark.usefixtures("small")
def test_tensors_of_other_types_and_keys_do_not_share_a_batch() -> None:
    tensors = [torch.ones(2), torch.ones(2).double(), torch.ones(2), torch.ones(2)]
    others = [torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2).bool()]
    assert sorted(list(b.indices) for b in batches(tensors)) == [[0, 2, 3], [1]]
    assert sorted(list(b.indices) for b in batches(tensors, others)) == [[0, 2], [1], [3]]
    assert sorted(list(b.indices) for b in batches(tensors, together="abcc")) == [[0], [1], [2, 3]]
    assert all(not batch.packed for batch in batches(tensors, pack=False))
    assert list(same_device_and_type(tensors)) == [[0, 2, 3], [1]]


def test_operands_of_one_order_of_memory_are_packed_in_it() -> None:
    one, other = normal(2, 3, seed=0).T, normal(2, 3, seed=1).T
    (batch,) = batches([one, torch.zeros(1)], [other, torch.zeros(1)])
    block, second = batch.load(0, 1)
    assert batch.packed
    torch.testing.assert_close(batch.views(block)[0], one.T.reshape(-1), rtol=0, atol=0)
    batch.store([0, 1], [second, block + 1])
    torch.testing.assert_close(one, normal(2, 3, seed=1).T, rtol=0, atol=0)
    torch.testing.assert_close(other, normal(2, 3, seed=0).T + 1, rtol=0, atol=0)


def test_operands_of_other_orders_of_memory_are_batches_of_their_own() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(4), torch.zeros(2)]
    others = [normal(3, 2, seed=0).T, torch.ones(4), torch.ones(2)]
    for batch in batches(tensors, others):
        batch.store([0], batch.load(1))
    for tensor, other in zip(tensors, others, strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=0)


def test_the_scalars_of_tensors_reach_all_their_elements() -> None:
    tensors = [torch.zeros(n) for n in (1, 300, 128, 129)]
    scalars = list(torch.arange(4.0))

    def add(batch: Batch) -> None:
        (block,) = batch.load(0)
        batch.store([0], [block + batch.spread(scalars)])

    for batch in batches(tensors):
        add(batch)
    for number, tensor in enumerate(tensors):
        assert tensor.tolist() == [float(number)] * tensor.numel()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_removed_values_are_positive_zeros_whatever_they_were(
    dtype: torch.dtype, inverted: bool
) -> None:
    values = [[-1.0, torch.nan, torch.inf, 2.0], [-0.0, 3.0]]
    masks = [torch.tensor([False, False, False, True]), torch.tensor([False, True])]
    tensors = [torch.tensor(v, dtype=dtype) for v in values]
    clear_all_(tensors, [~mask for mask in masks] if inverted else masks, inverted=inverted)
    assert [tensor.tolist() for tensor in tensors] == [[0.0, 0.0, 0.0, 2.0], [0.0, 3.0]]
    assert not torch.cat(tensors).signbit().any()


METHODS: dict[str, dict[str, Any]] = {
    "prunus": {},
    "paper": {"steps_per_epoch": 8},
    "lobster": {},
    "l1": {"strength": 1e-2},
    "taylor": {},
    "sensitivity": {},
    "movement": {},
    "soft": {"total_steps": 8},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")  # of 16-bit weights
def test_packed_tensors_train_as_single_ones(
    name: str, max_grad_norm: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(small: int) -> list[torch.Tensor]:
        monkeypatch.setattr(batching, "CPU_SMALL", small)
        sizes = [5, 7, 6, 9, 1]
        layers = [nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(sizes)]
        model = nn.Sequential(*layers)
        for number, parameter in enumerate(model.parameters()):
            parameter.data.copy_(normal(*parameter.shape, seed=number))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        pruner = Pruner(
            model,
            optimizer,
            **method(name).arguments(**METHODS[name]),
            schedule=GradualPruning(sparsity=0.5, begin=2, end=6, every=2),
            max_grad_norm=max_grad_norm,
        )
        for step in range(8):
            optimizer.zero_grad()
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = normal(*parameter.shape, seed=100 * step + number).to(dtype)
            optimizer.step()
        assert pruner.sparsity == pytest.approx(0.5, abs=0.01)
        return [parameter.detach() for parameter in model.parameters()]

    for packed, single in zip(trained(1 << 10), trained(0), strict=True):
        # exp2 of a vector's last elements may differ from that of the others in the last bit.
        torch.testing.assert_close(packed, single, rtol=1e-5, atol=1e-7)
        assert bool((packed == 0).eq(single == 0).all())
