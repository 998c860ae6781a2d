"""Scores: values computed by hand, and averages computed from their definitions in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from helpers.data import normal
from prunus import (
    FisherScore,
    MagnitudeScore,
    MovementScore,
    PrunusError,
    RandomScore,
    Score,
    SensitivityScore,
    TaylorScore,
)

WEIGHT = torch.tensor([2.0, -1.0, 0.5])


def remembered(
    score: Score, weight: torch.Tensor, *gradients: torch.Tensor | Sequence[float]
) -> dict[str, torch.Tensor]:
    """Return the memory after gradients of one weight tensor."""
    memory = {name: torch.zeros_like(weight) for name in score.memory_names}
    for count, gradient in enumerate(gradients, start=1):
        score.observe(weight, torch.as_tensor(gradient).to(weight), memory, count=count)
    return memory


def scores_of(
    score: Score, weight: torch.Tensor, *gradients: torch.Tensor | Sequence[float]
) -> list[float]:
    memory = remembered(score, weight, *gradients)
    computed: list[float] = score.compute(weight, memory, uniform=torch.empty).tolist()
    return computed


def test_a_magnitude_score_is_the_absolute_weight_and_remembers_nothing() -> None:
    assert MagnitudeScore().memory_names == ()
    assert remembered(MagnitudeScore(), WEIGHT, [1.0, 1.0, 1.0]) == {}
    assert scores_of(MagnitudeScore(), WEIGHT) == [2.0, 1.0, 0.5]


def test_a_taylor_score_is_the_moving_average_of_the_absolute_product() -> None:
    score = TaylorScore(smoothing=0.75)
    assert score.memory_names == ("product",)
    first = [1.0, 4.0, -8.0]
    assert scores_of(score, WEIGHT, first) == [2.0, 4.0, 4.0]  # |w · g|
    # 3/4 of the first and 1/4 of [6, 0, 4]
    assert scores_of(score, WEIGHT, first, [3.0, 0.0, 8.0]) == [3.0, 3.0, 4.0]


def test_a_taylor_score_keeps_nine_tenths_of_the_past_by_default() -> None:
    (average, *_) = scores_of(TaylorScore(), WEIGHT, [0.5, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert average == pytest.approx(0.9)


def test_a_fisher_score_is_the_squared_weight_times_the_mean_squared_gradient() -> None:
    score = FisherScore(smoothing=0.5, every=1)
    assert score.memory_names == ("fisher",)
    gradients = [1.0, 4.0, -8.0], [3.0, 0.0, 0.0]
    # The plain means of two squares are [5, 8, 32], and w² is [4, 1, 1/4].
    assert scores_of(score, WEIGHT, *gradients) == [20.0, 8.0, 8.0]
    # From the third on the new square has half the weight: [3, 4, 16] + [2, 0, 8].
    assert scores_of(score, WEIGHT, *gradients, [1.0, 0.0, 0.0]) == [12.0, 4.0, 4.0]


def test_the_fisher_average_is_that_of_its_definition_in_float64() -> None:
    weight, smoothing = normal(50, seed=1), 0.9
    gradients = [normal(50, seed=seed) for seed in range(2, 42)]
    squares = torch.stack(gradients).double().square()
    expected = squares[:10].mean(dim=0)  # of the first 1 / (1 − 0.9)
    for square in squares[10:]:
        expected = 0.9 * expected + 0.1 * square
    memory = remembered(FisherScore(smoothing, every=1), weight, *gradients)
    torch.testing.assert_close(memory["fisher"].double(), expected, rtol=1e-5, atol=0)


def test_the_smoothing_of_a_fisher_score_is_per_step_whatever_every_is() -> None:
    score, memory = FisherScore(smoothing=0.5, every=2), {"fisher": torch.tensor([4.0])}
    # From one observed gradient to the next the average falls by ½².
    score.observe(WEIGHT[:1], torch.zeros(1), memory, count=100)
    assert memory["fisher"].item() == 1.0
    # The plain mean covers 1 / (1 − 0.9⁴) = 2.9 observed gradients, of 12 steps.
    gradients = [[1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0]]
    (mean, *_) = remembered(FisherScore(smoothing=0.9), WEIGHT, *gradients)["fisher"].tolist()
    assert mean == pytest.approx(0.9**4)


def test_a_fisher_score_averages_about_the_last_1000_steps_by_default() -> None:
    score, memory = FisherScore(), {"fisher": torch.tensor([8.0])}
    assert (score.smoothing, score.exponent, score.every) == (0.999, 1.0, 4)
    score.observe(WEIGHT[:1], torch.zeros(1), memory, count=5000)
    assert memory["fisher"].item() == pytest.approx(8.0 * 0.999**4, rel=1e-5)


def test_the_exponent_of_a_fisher_score_weighs_the_gradient() -> None:
    gradient = [4.0, 0.0, 1.0]
    assert scores_of(FisherScore(exponent=0.5), WEIGHT, gradient) == [16.0, 0.0, 0.25]
    assert scores_of(FisherScore(exponent=0.0), WEIGHT, gradient) == [4.0, 1.0, 0.25]
    assert scores_of(FisherScore(exponent=2.0), WEIGHT, gradient) == [1024.0, 0.0, 0.25]


def test_a_fisher_score_of_16_bit_weights_is_computed_in_float32() -> None:
    weight = torch.tensor([1.0078125, 300.0], dtype=torch.bfloat16)
    memory = {"fisher": torch.tensor([1.0, 1e-30])}
    computed = FisherScore().compute(weight, memory, uniform=torch.empty)
    torch.testing.assert_close(computed, torch.tensor([1.0078125**2, 9e-26]))
    half = FisherScore().compute(weight.half(), memory, uniform=torch.empty)
    torch.testing.assert_close(half, torch.tensor([1.0078125**2, 9e-26]))


def test_computing_a_score_changes_neither_weights_nor_memory() -> None:
    others = TaylorScore(), SensitivityScore(), MovementScore()
    scores: list[Score] = [*others, *(FisherScore(exponent=e) for e in (0.0, 1.0, 0.5))]
    for score in scores:
        weight = WEIGHT.clone()
        memory = remembered(score, weight, [1.0, 4.0, -8.0])
        before = {name: tensor.clone() for name, tensor in memory.items()}
        score.compute(weight, memory, uniform=torch.empty)
        assert torch.equal(weight, WEIGHT)
        assert all(torch.equal(memory[name], before[name]) for name in before)


def test_gradients_whose_squares_no_float32_holds_give_the_least_and_the_largest_average() -> None:
    memory = remembered(FisherScore(), torch.ones(3), [1e-30, 1.0, 1e30], [1e-30, 1.0, 1e30])
    largest = torch.finfo(torch.float32).max
    assert memory["fisher"].tolist() == [0.0, 1.0, largest]
    nan = remembered(FisherScore(), torch.ones(1), [float("nan")])
    assert nan["fisher"].isnan().all()  # for the error of the removal


def test_a_sensitivity_score_is_the_mean_sensitivity_times_its_uncertainty() -> None:
    score = SensitivityScore(smoothing=0.75, uncertainty_smoothing=0.5)
    assert score.memory_names == ("sensitivity", "uncertainty")
    first, second = [2.0, -16.0, 0.0], [6.0, 0.0, 32.0]
    # I is [4, 16, 0]: a quarter of it is Ī, and half of the rest, 3/4 of it, is Ū.
    assert scores_of(score, WEIGHT, first) == [1.0 * 1.5, 4.0 * 6.0, 0.0]
    # I is [12, 0, 16]: Ī is 3/4 of [1, 4, 0] and a quarter of it, [3.75, 3, 4];
    # |I − Ī| is [8.25, 3, 12], and Ū the mean of it and [1.5, 6, 0].
    assert scores_of(score, WEIGHT, first, second) == [3.75 * 4.875, 3.0 * 4.5, 4.0 * 6.0]


def test_the_sensitivity_is_that_of_its_definition_in_float64() -> None:
    weight = normal(50, seed=1)
    gradients = [normal(50, seed=seed) for seed in range(2, 42)]
    products = [(weight.double() * gradient.double()).abs() for gradient in gradients]
    # The paper's defaults, written out: I_t weighs 0.15 · 0.85^(T − t) in Ī_T.
    means = [
        sum(0.15 * 0.85 ** (end - t) * products[t] for t in range(end + 1)) for end in range(40)
    ]
    distances = [(now - mean).abs() for now, mean in zip(products, means, strict=True)]
    uncertainty = sum(0.05 * 0.95 ** (39 - t) * distances[t] for t in range(40))
    memory = remembered(SensitivityScore(), weight, *gradients)
    computed = SensitivityScore().compute(weight, memory, uniform=torch.empty)
    torch.testing.assert_close(computed.double(), means[-1] * uncertainty, rtol=1e-5, atol=0)


def test_a_movement_score_sums_the_steps_away_from_zero() -> None:
    assert MovementScore().memory_names == ("movement",)
    # A positive gradient moves a positive weight towards zero.
    first, second = [1.0, 4.0, -8.0], [3.0, 0.0, 2.0]
    assert scores_of(MovementScore(), WEIGHT, first) == [-2.0, 4.0, 4.0]
    assert scores_of(MovementScore(), WEIGHT, first, second) == [-8.0, 4.0, 3.0]


def test_a_random_score_draws_by_its_seed_and_remembers_nothing() -> None:
    def uniform(seed: int) -> torch.Tensor:
        return torch.full((3,), seed / 8)

    assert RandomScore().memory_names == ()
    assert RandomScore().seed == 0
    assert RandomScore(seed=5).compute(WEIGHT, {}, uniform=uniform).tolist() == [0.625] * 3


@pytest.mark.parametrize("score", [TaylorScore, FisherScore])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_must_be_from_0_to_below_1(
    score: type[TaylorScore | FisherScore], smoothing: float
) -> None:
    assert score(smoothing=0.0).smoothing == 0.0
    with pytest.raises(PrunusError, match="smoothing must be "):
        score(smoothing=smoothing)


def test_the_smoothings_of_a_sensitivity_must_be_below_1_and_leave_an_uncertainty() -> None:
    assert SensitivityScore(uncertainty_smoothing=0.0).smoothing == 0.85
    with pytest.raises(
        PrunusError,
        match="^smoothing must be above 0 .*, but is 0; uncertainty_smoothing .*, but is 1$",
    ):
        SensitivityScore(smoothing=0, uncertainty_smoothing=1)


def test_an_exponent_must_be_at_least_0() -> None:
    with pytest.raises(PrunusError, match="exponent must be at least 0, but is -1"):
        FisherScore(exponent=-1)


def test_every_must_be_a_whole_number_of_at_least_1() -> None:
    assert FisherScore(every=1).every == 1
    for every in (0, 1.5):
        with pytest.raises(PrunusError, match="^every must be "):
            FisherScore(every=every)  # type: ignore[arg-type]


def test_a_seed_must_be_a_whole_number() -> None:
    assert RandomScore(seed=-1).seed == -1
    with pytest.raises(PrunusError, match="seed must be a whole number, but is 1.5"):
        RandomScore(seed=1.5)  # type: ignore[arg-type]
