"""Chunks of tensors cover every element once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus._utils.chunks import chunks


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
    size=st.integers(1, 40),
    data=st.data(),
)
def test_every_element_is_visited_once_at_the_same_place_of_both_tensors(
    shape: list[int], size: int, data: st.DataObject
) -> None:
    orders = [data.draw(st.permutations(range(len(shape)))) for _ in range(2)]
    numel = torch.Size(shape).numel()

    def laid_out(order: list[int]) -> torch.Tensor:
        permuted = torch.zeros([shape[i] for i in order], dtype=torch.int64)
        return permuted.permute([order.index(i) for i in range(len(shape))])

    one, two = (laid_out(order) for order in orders)
    one.copy_(torch.arange(numel).view(shape))
    two.copy_(one)
    seen = []
    for a, b in chunks(one, two, size=size):
        assert a.numel() <= size or len(shape) == 0 or a.dim() == one.dim() == 0 or numel <= size
        assert torch.equal(a, b)
        seen += a.reshape(-1).tolist()
        a += 1000  # chunks are views, not copies
    assert sorted(seen) == list(range(numel))
    assert torch.equal(one, two + 1000)


def test_a_channels_last_tensor_is_split_as_a_flat_vector() -> None:
    weight = torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)
    parts = [part for (part,) in chunks(weight, size=10_000)]
    assert [part.numel() for part in parts] == [10_000, 8432]


def test_no_chunk_exceeds_the_size_whatever_the_layout() -> None:
    weight = torch.randn(300, 200)
    parts = list(chunks(weight, torch.randn(200, 300).t(), size=1000))
    assert max(a.numel() for a, _ in parts) <= 1000
