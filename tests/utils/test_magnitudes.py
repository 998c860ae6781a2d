"""Sums of magnitudes against float64."""

from __future__ import annotations

import pytest
import torch

from helpers.data import normal
from prunus._utils.chunks import CPU_CHUNK
from prunus._utils.magnitudes import magnitude_sum


@pytest.mark.parametrize("size", [1, 1000, 2 * CPU_CHUNK + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_that_of_all_chunks(size: int, dtype: torch.dtype) -> None:
    values = normal(size, seed=1)
    total = magnitude_sum(values, dtype)
    assert (total.shape, total.dtype) == ((), dtype)
    expected = values.double().abs().sum()
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=0)


def test_the_sum_of_16_bit_numbers_may_exceed_their_range() -> None:
    assert magnitude_sum(torch.full((4,), -60000.0, dtype=torch.float16), torch.float32) == 240000


def test_a_shard_without_elements_has_the_sum_zero() -> None:
    assert magnitude_sum(torch.empty(0, 3), torch.float64).item() == 0.0
