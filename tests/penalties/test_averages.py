"""Moving averages of gradient magnitudes: values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.data import normal
from prunus._utils.chunks import CPU_CHUNK
from prunus.penalties.averages import MagnitudeAverages


def test_the_first_gradients_are_averaged_plainly_and_later_ones_exponentially() -> None:
    averages = MagnitudeAverages(smoothing=0.75)  # plainly over the first 1 / (1 − 0.75) = 4
    expected = [4.0, 3.0, 7 / 3, 2.0, 3.0, 2.25]  # 2 + (6 − 2) / 4, then 3 + (0 − 3) / 4
    for count, (gradient, average) in enumerate(
        zip([4.0, -2.0, 1.0, -1.0, 6.0, 0.0], expected, strict=True), start=1
    ):
        averages.update({"w": torch.tensor([gradient])})
        torch.testing.assert_close(averages.tensors["w"], torch.tensor([average]))
        assert averages.counts == {"w": count}


def test_each_tensor_has_an_average_of_its_own() -> None:
    averages = MagnitudeAverages(smoothing=0.5)
    averages.update({"a": torch.tensor([1.0, -3.0])})
    averages.update({"b": torch.tensor([[5.0]])})
    averages.update({"b": torch.tensor([[1.0]])})
    assert averages.tensors["a"].tolist() == [1.0, 3.0]
    assert averages.tensors["b"].tolist() == [[3.0]]
    assert averages.counts == {"a": 1, "b": 2}


@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0)])
def test_the_scale_is_divided_out_and_the_gradient_unchanged(scale: torch.Tensor | float) -> None:
    averages = MagnitudeAverages(smoothing=0.5)
    gradient = torch.tensor([8.0, -2.0])
    averages.update({"w": gradient}, scale)
    assert averages.tensors["w"].tolist() == [2.0, 0.5]
    assert gradient.tolist() == [8.0, -2.0]


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_averages_have_at_least_32_bits(dtype: torch.dtype, wide: torch.dtype) -> None:
    averages = MagnitudeAverages(smoothing=0.5)
    for gradient in (3.0, 1.0):
        averages.update({"w": torch.tensor([gradient], dtype=dtype)})
        assert averages.tensors["w"].dtype == wide
    assert averages.tensors["w"].tolist() == [2.0]
    averages.tensors["w"] = torch.tensor([4.0], dtype=torch.float64)  # of a wider model
    averages.update({"w": torch.tensor([2.0], dtype=dtype)})
    assert averages.tensors["w"].dtype == wide
    assert averages.tensors["w"].tolist() == [3.0]


def test_a_tensor_of_several_chunks_is_averaged_whole() -> None:
    averages = MagnitudeAverages(smoothing=0.5)
    one, two = (normal(CPU_CHUNK + 5, seed=seed) for seed in (1, 2))
    averages.update({"w": one})
    averages.update({"w": two})
    torch.testing.assert_close(averages.tensors["w"], (one.abs() + two.abs()) / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad_step", [0, 1, 4])
def test_a_gradient_that_is_not_finite_is_left_out(bad_step: int, value: float) -> None:
    expected, found = MagnitudeAverages(smoothing=0.75), MagnitudeAverages(smoothing=0.75)
    for step in range(6):
        if step == bad_step:
            found.update({"w": torch.tensor([1.0, value, 2.0])})
        expected.update({"w": normal(3, seed=step)})
        found.update({"w": normal(3, seed=step)})
    assert found.counts == expected.counts
    torch.testing.assert_close(found.tensors["w"], expected.tensors["w"], rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_shard_whose_gradient_is_not_finite_keeps_its_average(value: float) -> None:
    averages = MagnitudeAverages(smoothing=0.5, sharded=True)
    averages.update({"w": torch.tensor([2.0, 4.0])})
    averages.update({"w": torch.tensor([6.0, value])})
    assert averages.tensors["w"].tolist() == [2.0, 4.0]
    averages.update({"w": torch.tensor([4.0, 0.0])})
    assert averages.tensors["w"].tolist() == [3.0, 2.0]
    averages.update({"empty": torch.empty(0)})


def test_finite_numbers_whose_sum_overflows_are_averaged() -> None:
    averages = MagnitudeAverages(smoothing=0.5)
    averages.update({"w": torch.tensor([3e38, 3e38])})
    assert averages.counts == {"w": 1}


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_one_flag_on_a_device_keeps_all_averages(names: list[str]) -> None:
    known, flagged = MagnitudeAverages(smoothing=0.75), MagnitudeAverages(smoothing=0.75)
    for step in range(3):
        gradients = {name: torch.tensor([step + 1.0, -2.0]) for name in names}
        known.update(gradients)
        flagged.update(gradients, measurable=torch.tensor(True))
        counts = dict(flagged.counts)
        bad = {name: torch.tensor([math.nan, 1.0]) for name in names}
        flagged.update(bad, measurable=torch.tensor(False))
        assert flagged.counts == {name: count + 1 for name, count in counts.items()}
        flagged.counts = counts
    for name in names:
        torch.testing.assert_close(flagged.tensors[name], known.tensors[name], rtol=0, atol=0)
