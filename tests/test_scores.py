"""Scores: values computed by hand."""

from __future__ import annotations

import pytest
import torch

from prunus import MagnitudeScore, PrunusError, RandomScore, Score, TaylorScore

WEIGHT = torch.tensor([2.0, -1.0, 0.5])


def observe_once(score: Score) -> torch.Tensor | None:
    return score.observe(WEIGHT, torch.ones(3), None)


def test_a_magnitude_score_is_the_absolute_weight_and_remembers_nothing() -> None:
    score = MagnitudeScore()
    assert not score.uses_gradient
    assert observe_once(score) is None
    assert score.compute(WEIGHT, None, uniform=torch.empty).tolist() == [2.0, 1.0, 0.5]


def test_a_taylor_score_is_the_moving_average_of_the_absolute_product() -> None:
    score = TaylorScore(smoothing=0.75)
    assert score.uses_gradient
    weight = WEIGHT.clone().requires_grad_()
    first = score.observe(weight, torch.tensor([1.0, 4.0, -8.0]), None)
    assert first.tolist() == [2.0, 4.0, 4.0]  # |w · g|
    second = score.observe(weight, torch.tensor([3.0, 0.0, 8.0]), first)
    assert second.tolist() == [3.0, 3.0, 4.0]  # 3/4 of the first and 1/4 of [6, 0, 4]
    assert not second.requires_grad
    assert score.compute(weight, second, uniform=torch.empty) is second


def test_a_taylor_score_keeps_nine_tenths_of_the_past_by_default() -> None:
    memory = TaylorScore().observe(WEIGHT, torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(memory, torch.full((3,), 0.9))


def test_a_taylor_score_converts_its_memory_to_the_type_of_the_weights() -> None:
    weight = WEIGHT.double()
    memory = TaylorScore(smoothing=0.5).observe(weight, weight, torch.zeros(3))
    assert memory.dtype == torch.float64
    assert memory.tolist() == [2.0, 0.5, 0.125]


def test_a_taylor_score_without_a_gradient_is_rejected() -> None:
    with pytest.raises(PrunusError, match=r"needs the gradient of at least one .* shape \(3,\)"):
        TaylorScore().compute(WEIGHT, None, uniform=torch.empty)


def test_a_random_score_draws_by_its_seed_and_remembers_nothing() -> None:
    def uniform(seed: int) -> torch.Tensor:
        return torch.full((3,), seed / 8)

    assert not RandomScore().uses_gradient
    assert RandomScore().seed == 0
    assert observe_once(RandomScore()) is None
    assert RandomScore(seed=5).compute(WEIGHT, None, uniform=uniform).tolist() == [0.625] * 3


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_must_be_from_0_to_below_1(smoothing: float) -> None:
    assert TaylorScore(smoothing=0.0).smoothing == 0.0
    with pytest.raises(PrunusError, match="smoothing must be "):
        TaylorScore(smoothing=smoothing)


def test_a_seed_must_be_a_whole_number() -> None:
    assert RandomScore(seed=-1).seed == -1
    with pytest.raises(PrunusError, match="seed must be a whole number, but is 1.5"):
        RandomScore(seed=1.5)  # type: ignore[arg-type]
