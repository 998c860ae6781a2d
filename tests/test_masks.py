"""Masks: counting, packing, comparing, clearing."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.peers import PeerGroup, second_of_two_processes
from prunus import ArgumentError, CheckpointError, Masks, PrunusError, select
from prunus._utils.chunks import CPU_CHUNK
from prunus.masks import IntegerMasks, candidates, clear_, clear_all_


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
    right = masks.packed()
    with pytest.raises(CheckpointError, match="missing weight1; unknown none"):
        masks.load_packed({"weight0": right["weight0"]})
    with pytest.raises(CheckpointError, match="missing none; unknown other"):
        masks.load_packed({**right, "other": right["weight0"]})
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
    with pytest.raises(ArgumentError, match=r"weight0 must be .* \(4,\), but is torch.float32"):
        masks.intersect_({"weight0": torch.ones(4), "weight1": torch.ones(3, 2).bool()})


def linear_masks(**attributes: Any) -> tuple[Any, Masks]:
    """Return a layer of 2 × 4 ones and masks of it; its process group may be replaced."""
    layer = nn.Linear(4, 2, bias=False)
    nn.init.ones_(layer.weight)
    selection = select(layer)
    for name, value in attributes.items():
        setattr(selection, name, value)
    return layer, Masks(selection)


def test_a_mask_has_the_memory_order_of_its_weight_and_counts_as_full() -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False)
    layer.weight = nn.Parameter(layer.weight.to(memory_format=torch.channels_last))
    masks = Masks(select(layer))
    assert masks["weight"].stride() == layer.weight.stride()
    assert masks["weight"].dtype == torch.bool
    assert masks.kept_in("weight") == 54
    assert repr(masks) == "Masks(1 tensors, sparsity 0.0000)"


def test_masks_stay_in_force_until_their_last_user_detaches() -> None:
    layer = nn.Linear(2, 1, bias=False)
    one, two = Masks.attached(select(layer)), Masks.attached(select(layer))
    one["weight"][0, 0] = False
    one.detach()
    three = Masks.attached(select(layer))
    assert three["weight"] is two["weight"]
    assert three.kept == 1
    two.detach()
    three.detach()
    three.detach()  # has no effect
    fresh = Masks.attached(select(layer))
    assert fresh.kept == 2
    three.detach()
    assert Masks.attached(select(layer))["weight"] is fresh["weight"]


def test_masks_that_are_not_attached_have_no_effect_on_others() -> None:
    layer = nn.Linear(2, 1, bias=False)
    Masks(select(layer))["weight"][0, 0] = False
    assert Masks.attached(select(layer)).kept == 2


def test_counts_of_sharded_masks_are_those_of_all_processes() -> None:
    _, masks = linear_masks(process_group=PeerGroup(others=torch.tensor([5])))
    assert masks.kept == 8  # as long as nothing was removed
    masks["weight"][0, :3] = False
    with pytest.raises(PrunusError, match="the mask of weight, which several processes hold"):
        masks.kept_in("weight")
    masks.recount()
    assert masks.kept_in("weight") == 5 + 5
    _, masks = linear_masks(process_group=PeerGroup(others=torch.tensor([3]), counted=(False,)))
    masks["weight"][0, :3] = False
    masks.recount()
    assert masks.kept == 3


def test_weights_that_returned_are_counted_over_all_processes() -> None:
    layer, masks = linear_masks()
    assert masks.revived() == {}
    masks["weight"][0, :3] = False
    masks["weight"][1] = False
    assert masks.revived() == {"weight": 7}
    masks.apply_()
    assert masks.revived() == {}
    layer.weight.data[0, 1:] = 2.0  # of which the last is kept
    assert masks.revived() == {"weight": 2}
    for counted, count in ((True, 7 + 4), (False, 4)):
        group = PeerGroup(others=torch.tensor([4]), counted=(counted,))
        layer, masks = linear_masks(process_group=group)
        masks["weight"][0, :3] = False
        masks["weight"][1] = False
        masks.recount()
        assert masks.revived() == {"weight": count}


def test_only_tensors_that_lost_weights_are_active() -> None:
    masks = masks_of((2,), (3,), (4,))
    assert masks.active() == {}
    assert masks.active() == {}
    masks["weight1"][0] = False
    for _ in range(2):
        assert list(masks.active()) == ["weight1"]
        assert masks.active()["weight1"] is masks["weight1"]
    masks["weight2"][0] = False
    assert list(masks.active()) == ["weight1", "weight2"]
    masks["weight1"][0] = True
    assert list(masks.active()) == ["weight2"]


def move_to_meta(parameter: nn.Parameter) -> None:
    moved = nn.Parameter(torch.empty_like(parameter, device="meta"))
    torch.utils.swap_tensors(parameter, moved)  # type: ignore[no-untyped-call]


def test_a_mask_follows_its_tensor_to_another_device_with_its_count() -> None:
    layer, masks = linear_masks()
    masks["weight"][0, 0] = False
    assert masks.kept == 7
    # The meta device is the only second device of every machine. It has no values to count again.
    move_to_meta(layer.weight)
    assert masks["weight"].device.type == "meta"
    assert masks.kept == 7
    layer, masks = linear_masks()
    masks["weight"][0, 0] = False
    move_to_meta(layer.weight)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        _ = masks.kept  # has to be counted again


def test_padding_rows_are_kept_by_masks_of_zeros_only_where_there_are_any() -> None:
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Embedding(2, 1, padding_idx=1)])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    masks = Masks.from_zeros(select(model))
    assert masks["0.weight"].tolist() == [[False, False]]
    assert masks["1.weight"].tolist() == [[False], [True]]
    assert (masks.kept, masks.density, masks.sparsity) == (0, 0.0, 1.0)


def test_every_entry_that_does_not_fit_is_named() -> None:
    masks = masks_of((4,), (3, 2), (2,))
    right = torch.zeros(2, 1, dtype=torch.uint8)
    with pytest.raises(
        CheckpointError,
        match=r"^the masks are of another model: weight0: \(4,\) needs torch.uint8 of shape "
        r"\(4, 1\), got 3, weight1: \(3, 2\) needs .*, got torch.float32 of shape \(3, 1\)$",
    ):
        masks.check_packed({"weight0": 3, "weight1": torch.zeros(3, 1), "weight2": right})  # type: ignore[dict-item]
    build = r"; build them with Masks\.from_zeros\(selection\)$"
    with pytest.raises(ArgumentError, match="^masks must fit the selection: unknown other" + build):
        masks.differences({**masks, "other": right})
    with pytest.raises(ArgumentError, match="^masks must fit .*: missing weight1, weight2" + build):
        masks.intersect_({"weight0": masks["weight0"]})
    with pytest.raises(
        ArgumentError, match=": missing weight0; unknown x; weight1 must be .*, wei"
    ):
        masks.intersect_({"x": right, "weight1": right, "weight2": right})
    bad = torch.ones(3, dtype=torch.bool)
    with pytest.raises(
        ArgumentError,
        match=r"^masks must fit the selection: weight0 must be torch.bool of shape \(4,\), but is "
        r"None, weight2 must be .* \(2,\), but is torch.bool of shape \(3,\)" + build,
    ):
        masks.differences({"weight0": None, "weight1": masks["weight1"], "weight2": bad})  # type: ignore[dict-item]
    assert masks.kept == 12


def test_a_selection_is_required() -> None:
    with pytest.raises(
        PrunusError, match=r"^selection must be a Selection.* Linear: prunus\.select\(model\)$"
    ):
        Masks(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_intersecting_with_masks_of_a_full_tensor_changes_nothing() -> None:
    masks = masks_of((3, 2))
    masks["weight0"][0] = False
    masks.intersect_({"weight0": torch.ones(3, 2, dtype=torch.bool)})
    assert masks["weight0"].tolist() == [[False, False], [True, True], [True, True]]


def test_candidates_are_the_kept_weights_outside_of_the_padding_row() -> None:
    embedding = nn.Embedding(3, 2, padding_idx=1)
    masks = Masks(select(embedding))
    masks["weight"][0, 0] = False
    found = candidates(masks.selection["weight"], masks["weight"])
    assert found.tolist() == [[False, True], [False, False], [True, True]]
    assert masks["weight"][1].all()
    plain = masks_of((2,))
    mask = plain["weight0"]
    assert candidates(plain.selection["weight0"], mask) is mask


def test_unchanged_masks_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = masks_of((2,), (3,))
    masks["weight1"][0] = False
    active = masks.active()
    counted: list[str] = []
    count = Masks.kept_in

    def kept_in(self: Masks, name: str) -> int:
        counted.append(name)
        return count(self, name)

    monkeypatch.setattr(Masks, "kept_in", kept_in)
    assert masks.active() == active
    assert counted == []
    masks["weight0"][0] = False
    assert list(masks.active()) == ["weight0", "weight1"]
    assert counted == ["weight0", "weight1"]


def test_masks_of_shards_are_packed_by_the_rows_of_the_whole_tensor() -> None:
    from torch.distributed.tensor import DTensor, Shard

    with second_of_two_processes() as mesh:
        layer = nn.Linear(9, 4, bias=False)
        shard = DTensor.from_local(torch.ones(2, 9), mesh, [Shard(0)])
        layer.weight = nn.Parameter(shard)
        selection = select(layer)
        selection.process_group = PeerGroup()
        masks = Masks(selection)
        masks["weight"][0, 1:] = False
        packed: Any = masks.packed()["weight"]
        assert packed.shape == (4, 2)
        assert packed.placements == (Shard(0),)
        assert packed.to_local().tolist() == [[0b10000000, 0], [0b11111111, 0b10000000]]
        restored = Masks(selection)
        restored.load_packed({"weight": packed})
        assert torch.equal(restored["weight"], masks["weight"])
        # Of the masks of a whole model, this process reads the last two rows.
        whole = torch.tensor([[255, 128], [255, 128], [0b01000000, 0], [0, 128]], dtype=torch.uint8)
        restored.load_packed({"weight": whole})
        rows = [[False, True, *[False] * 7], [*[False] * 8, True]]
        assert restored["weight"].tolist() == rows
        assert restored.kept == 2


def integer_masks_of(
    *sizes: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return tensors of these sizes, with NaN and negative numbers, and masks of every second."""
    tensors = {str(n): torch.full((n,), -1.0, dtype=dtype) for n in sizes}
    for tensor in tensors.values():
        tensor[0] = math.nan
    return tensors, {name: torch.arange(t.numel()) % 2 == 1 for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_integer_masks_clear_as_boolean_ones_do(dtype: torch.dtype) -> None:
    # The second one stays boolean.
    tensors, masks = integer_masks_of(5, CPU_CHUNK + 1, dtype=dtype)
    converted = IntegerMasks().of(masks, tensors)
    assert converted["5"].element_size() == dtype.itemsize
    assert [mask.dtype is torch.bool for mask in converted.values()] == [False, True]
    clear_all_(list(tensors.values()), list(converted.values()))
    for name, tensor in tensors.items():
        assert torch.equal(tensor, -masks[name].to(dtype))
        assert not torch.signbit(tensor[~masks[name]]).any()


def test_integer_masks_are_converted_once_after_each_change() -> None:
    tensors, masks = integer_masks_of(4)
    integers = IntegerMasks()
    first = integers.of(masks, tensors)["4"]
    assert integers.of(dict(masks), tensors)["4"] is first
    masks["4"][1] = False
    assert integers.of(masks, tensors)["4"].tolist() == [0, 0, 0, 1]
    replaced = {"4": torch.tensor([True, False, False, False])}
    assert integers.of(replaced, tensors)["4"].tolist() == [1, 0, 0, 0]
    assert integers.of(replaced, {"4": tensors["4"].half()})["4"].dtype is torch.int16
    assert integers.of({}, tensors) == {}


def test_integer_masks_have_a_bound_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.masks.ACCELERATOR_BATCH", 6)
    tensors, masks = integer_masks_of(4, 3, 2)
    types = [mask.dtype for mask in IntegerMasks().of(masks, tensors).values()]
    assert types == [torch.int32, torch.bool, torch.int32]


def test_the_active_masks_are_one_object_until_a_mask_changes() -> None:
    masks = Masks(select(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))
    masks["0.weight"][0, 0] = False
    active = masks.active()
    assert masks.active() is active
    masks["1.weight"][0, 0] = False
    assert list(active) == ["0.weight"]
    assert list(masks.active()) == ["0.weight", "1.weight"]
