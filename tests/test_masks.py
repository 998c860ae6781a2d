"""Masks: counting, packing, comparing, clearing."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus import CheckpointError, Masks, PrunusError, select
from prunus.masks import clear_


def masks_of(*shapes: tuple[int, ...]) -> Masks:
    model = nn.Module()
    for index, shape in enumerate(shapes):
        model.register_parameter(f"weight{index}", nn.Parameter(torch.randn(shape)))
    return Masks(select(model, "*"))


@settings(deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**31),
)
def test_packing_round_trips_and_is_one_bit_a_weight_of_a_row(
    shapes: list[tuple[int, ...]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks, again = masks_of(*shapes), masks_of(*shapes)
    for name in masks:
        masks[name].copy_(torch.rand(masks[name].shape, generator=generator) < 0.5)
    packed = masks.packed()
    for name, shape in zip(masks, shapes, strict=True):
        rows = shape[0] if shape else 1
        assert packed[name].numel() == rows * math.ceil(math.prod(shape[1:]) / 8)
    again.load_packed(packed)
    assert again.differences(masks) == dict.fromkeys(masks, 0)
    total = sum(math.prod(shape) for shape in shapes)
    assert masks.kept == sum(int(mask.sum()) for mask in masks.values())
    assert masks.sparsity == pytest.approx(1 - masks.kept / total)
    assert masks.density + masks.sparsity == 1


def test_intersecting_keeps_what_both_masks_keep() -> None:
    one, two = masks_of((4,)), masks_of((4,))
    one["weight0"][:2] = False
    two["weight0"][1:3] = False
    assert one.differences(two) == {"weight0": 2}
    one.intersect_(two)
    assert one["weight0"].tolist() == [False, False, False, True]


def test_padding_is_neither_counted_nor_removed() -> None:
    embedding = nn.Embedding(4, 3, padding_idx=0)
    masks = Masks.from_zeros(select(embedding))
    assert masks["weight"].all()
    assert (masks.kept, masks.sparsity, masks.selection.prunable) == (9, 0.0, 9)


def test_no_mask_reaches_the_padding_row() -> None:
    embedding = nn.Embedding(4, 3, padding_idx=0)
    embedding.weight.data.fill_(1.0)
    masks = Masks(select(embedding))
    masks.intersect_({"weight": torch.zeros(4, 3, dtype=torch.bool)})
    masks.apply_()
    assert (masks.kept, masks.sparsity) == (0, 1.0)
    assert embedding.weight.sum().item() == 3.0
    masks.load_packed({"weight": torch.zeros(4, 1, dtype=torch.uint8)})
    assert masks["weight"].sum() == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_clearing_gives_positive_zero_whatever_stood_there(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.0, math.nan, math.inf, -math.inf, -0.0, 7.0], dtype=dtype)
    kept = torch.tensor([True, False, False, False, False, False, True])
    clear_(values, kept)
    assert values.tolist() == [1.5, 0, 0, 0, 0, 0, 7.0]
    assert not torch.signbit(values).any()


def test_clearing_keeps_nan_payloads_and_signed_zeros_of_kept_weights() -> None:
    bits = torch.tensor([0x7FC00123, -0x80000000, 0x00000001], dtype=torch.int32)
    values = bits.view(torch.float32).clone()
    clear_(values, torch.ones(3, dtype=torch.bool))
    assert torch.equal(values.view(torch.int32), bits)


def test_clearing_works_with_any_strides() -> None:
    base = torch.randn(300, 500)
    mask = torch.rand(500, 300) < 0.5
    expected = torch.where(mask, base.t(), 0.0)
    view = base.t()
    clear_(view, mask)
    assert torch.equal(view, expected)


def test_counts_follow_every_write_to_a_shared_mask() -> None:
    layer = nn.Linear(4, 2, bias=False)
    one, two = Masks.attached(select(layer)), Masks.attached(select(layer))
    assert (one.kept, two.kept, two.active()) == (8, 8, {})
    one["weight"][0] = False
    assert (one.kept, two.kept) == (4, 4)
    assert two.active()["weight"] is one["weight"]
    two.load_packed({"weight": torch.tensor([[0b11110000]] * 2, dtype=torch.uint8)})
    assert (one.kept, one.active()) == (8, {})


def test_masks_do_not_keep_a_model_alive() -> None:
    layer = nn.Linear(3, 3)
    Masks.attached(select(layer))
    dead = weakref.ref(layer)
    del layer
    gc.collect()
    assert dead() is None


def test_foreign_masks_are_refused_and_change_nothing() -> None:
    masks = masks_of((4,), (3, 2))
    with pytest.raises(CheckpointError, match="missing weight1; unknown other"):
        masks.load_packed({"weight0": torch.zeros(1, dtype=torch.uint8), "other": torch.zeros(1)})
    wrong = {
        "weight0": torch.zeros(4, 1, dtype=torch.uint8),
        "weight1": torch.zeros(9, dtype=torch.uint8),
    }
    with pytest.raises(
        CheckpointError,
        match=r"weight1: \(3, 2\) needs torch.uint8 of shape \(3, 1\), "
        r"got torch.uint8 of shape \(9,\)",
    ):
        masks.load_packed(wrong)
    assert masks.kept == 10
    with pytest.raises(PrunusError, match=r"weight0: expected .* \(4,\), got torch.float32"):
        masks.intersect_({"weight0": torch.ones(4), "weight1": torch.ones(3, 2).bool()})
