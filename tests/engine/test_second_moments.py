"""The optimizer's averages of squared gradients, filled where weights are removed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import normal
from helpers.pruners import magnitude_pruner
from helpers.states import same, states_equal
from prunus import Schedule
from prunus._engine import second_moments
from prunus._engine.second_moments import INTERVAL, LEAST_SIZE
from prunus.schedules import PruningStatus, Restore

Build = Callable[..., torch.optim.Optimizer]


def built(name: str, **options: Any) -> Build:
    return lambda parameters: getattr(torch.optim, name)(parameters, **options)


class Training:
    """A layer of 8,192 weights, a tenth of which is kept after three steps."""

    def __init__(
        self,
        build: Build,
        sparsity: float = 0.9,
        size: float = 1.0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(128, 64, dtype=dtype)
        self.optimizer = build(self.layer.parameters())
        self.pruner = magnitude_pruner(self.layer, self.optimizer, **options)
        self.steps, self.size = 0, size
        self.train(3)
        self.pruner.prune(sparsity=sparsity)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            self.optimizer.step()

    def backward(self) -> None:
        self.steps += 1
        self.optimizer.zero_grad()
        inputs = normal(16, 128, seed=self.steps).to(self.layer.weight.dtype)
        (self.size * self.layer(inputs).square().mean()).backward()

    @property
    def mask(self) -> torch.Tensor:
        return self.pruner.masks["weight"]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state that has one number per weight."""
        weight = self.layer.weight
        state = self.optimizer.state[weight]
        return {k: v for k, v in state.items() if getattr(v, "shape", None) == weight.shape}


FILLED = {
    "adamw": (built("AdamW"), {"exp_avg_sq"}),
    "fused": (built("AdamW", fused=True), {"exp_avg_sq"}),
    "foreach": (built("Adam", foreach=True, betas=(0.9, 0.98)), {"exp_avg_sq"}),
    "nadam": (built("NAdam"), {"exp_avg_sq"}),
    "rmsprop": (built("RMSprop", momentum=0.9), {"square_avg"}),
    "adagrad": (built("Adagrad"), {"sum"}),
    "adadelta": (built("Adadelta"), {"square_avg"}),
    "amsgrad": (built("Adam", amsgrad=True), {"exp_avg_sq"}),
    "coupled decay": (built("Adam", weight_decay=0.5), set[str]()),
    "sgd": (built("SGD", lr=0.1, momentum=0.9), set[str]()),
    "asgd": (built("ASGD"), set[str]()),
    "rprop": (built("Rprop"), set[str]()),
    "adamax": (built("Adamax"), set[str]()),
}


@pytest.mark.parametrize("name", FILLED)
def test_averages_of_squares_and_no_other_state_are_filled_with_the_mean(name: str) -> None:
    build, filled = FILLED[name]
    training = Training(build)
    training.train(1)
    for key, state in training.state().items():
        removed, mean = state[~training.mask], state[training.mask].mean()
        if key in filled:
            torch.testing.assert_close(removed, mean.expand_as(removed), rtol=1e-5, atol=0)
        elif key in ("step_size", "exp_inf"):  # the optimizer's least value is above zero
            assert (removed == removed[0]).all()
        else:
            assert not removed.any(), key


@pytest.mark.parametrize("name", FILLED)
def test_filling_changes_no_weight_and_no_state_of_kept_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, _ = FILLED[name]
    filled = Training(build)
    filled.train(5)
    monkeypatch.setattr(second_moments, "LEAST_SIZE", 1 << 20)
    plain = Training(build)
    plain.train(5)
    assert torch.equal(filled.layer.weight, plain.layer.weight)
    assert not filled.layer.weight[~filled.mask].any()
    mask = filled.mask
    for one, other in zip(filled.state().values(), plain.state().values(), strict=True):
        assert torch.equal(one[mask], other[mask])


class Return(Schedule):
    """Returns to the best state, and keeps a half of its weights, after a validation below 0.5."""

    def after_validation(self, status: PruningStatus) -> Restore | None:
        return None if status.met else Restore(status.prunable // 2)


@pytest.mark.parametrize("name", FILLED)
def test_filling_changes_nothing_that_follows_a_return_to_the_best_state(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, _ = FILLED[name]

    def returned() -> Training:
        training = Training(build, sparsity=0.0, schedule=Return(), floor=0.5)
        training.pruner.step(0.9)
        training.pruner.prune(sparsity=0.9)
        training.train(5)
        back = ~training.mask
        assert training.pruner.step(0.1).restored
        back &= training.mask
        assert back.sum() > 1000
        for key, state in training.state().items():
            assert not state[back].any(), key
        training.train(3)
        training.pruner.finish()  # returns to the same state, with other weights removed
        training.train(3)
        return training

    filled = returned()
    monkeypatch.setattr(second_moments, "LEAST_SIZE", 1 << 20)
    plain = returned()
    assert states_equal(filled.layer, plain.layer)
    assert same(filled.state(), plain.state())


def test_the_state_of_weights_that_stay_is_left_by_a_return_to_the_best_state() -> None:
    training = Training(built("AdamW"), sparsity=0.0, schedule=Return(), floor=0.5)
    training.pruner.step(0.9)
    training.pruner.prune(sparsity=0.4)
    training.train(2)
    stayed, before = training.mask.clone(), copy.deepcopy(training.state())
    training.pruner.step(0.1)
    stayed &= training.mask
    assert stayed.sum() > 1000
    for key, state in training.state().items():
        assert torch.equal(state[stayed], before[key][stayed])


def test_the_values_decay_until_they_are_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert INTERVAL == 100
    monkeypatch.setattr(second_moments, "INTERVAL", 4)
    training = Training(built("AdamW", betas=(0.9, 0.5)))
    removed = []
    for _ in range(5):
        training.train(1)
        removed.append(training.state()["exp_avg_sq"][~training.mask].max().item())
    assert removed[1:4] == [removed[0] / 2**n for n in (1, 2, 3)]
    assert removed[4] != removed[0] / 16


def test_values_that_would_decay_to_subnormal_numbers_are_not_filled() -> None:
    for decay, filled in ((0.99, True), (0.3, False)):  # 0.3^100 is 5e-53
        training = Training(built("AdamW", betas=(0.9, decay)))
        training.train(1)
        assert bool(training.state()["exp_avg_sq"][~training.mask].all()) is filled


def test_the_averages_of_gradients_that_are_zero_or_not_finite_stay_as_they_are() -> None:
    for size in (0.0, float("nan"), float("inf")):
        training = Training(built("AdamW"))
        training.size = size
        training.train(1)
        assert not training.state()["exp_avg_sq"][~training.mask].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_gradient_that_is_not_finite_does_not_stop_the_step(value: float) -> None:
    training = Training(built("AdamW"))
    training.backward()
    kept = training.mask.nonzero()[0]
    assert training.layer.weight.grad is not None
    training.layer.weight.grad[tuple(kept)] = value
    training.optimizer.step()
    assert not training.state()["exp_avg_sq"][~training.mask].any()


def test_values_whose_mean_is_zero_are_no_average() -> None:
    least = torch.full((16,), 5e-324, dtype=torch.float64) * (torch.arange(16) == 0)
    square = torch.arange(16, dtype=torch.float64)
    assert float(least.max()) > 0
    assert float(least.mean()) == 0
    assert second_moments._decay_of_average(least, least, square) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_momentum_of_equal_gradients_is_no_average_of_squares(sign: float) -> None:
    training = Training(built("SGD", lr=0.1, momentum=0.9))
    training.optimizer.zero_grad()
    training.layer.weight.grad = torch.full((64, 128), sign)
    training.optimizer.step()
    assert not training.state()["momentum_buffer"][~training.mask].any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_momentum_of_gradients_of_equal_size_is_no_average_of_squares(sign: float) -> None:
    before = torch.linspace(-1.0, 2.0, 32, dtype=torch.float64)
    gradient = torch.full((32,), sign, dtype=torch.float64)
    after = 0.9 * before + gradient
    assert second_moments._decay_of_average(before, after, gradient.square()) is None
    # The same with squares that differ, but too little to tell them from the gradient.
    gradient[::2] *= 1 + 1e-5
    before, after = before + 1, 0.9 * (before + 1) + gradient
    assert second_moments._decay_of_average(before, after, gradient.square()) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_16_bits_are_not_filled(dtype: torch.dtype) -> None:
    training = Training(built("AdamW", eps=1e-4), dtype=dtype)
    training.train(1)
    states = training.state()
    assert all(state.dtype is dtype for state in states.values())
    assert not states["exp_avg_sq"][~training.mask].any()


def test_small_tensors_and_tensors_with_few_kept_weights_are_not_filled() -> None:
    assert LEAST_SIZE == 4096
    training = Training(built("AdamW"), sparsity=0.999)
    training.train(1)
    assert not training.state()["exp_avg_sq"][~training.mask].any()


def test_a_state_that_a_step_leaves_as_it_was_is_no_average() -> None:
    training = Training(built("SGD", lr=0.1))
    scale = normal(64, 128, seed=0).abs() * training.mask
    training.optimizer.state[training.layer.weight]["scale"] = scale
    before = scale.clone()
    training.train(1)
    assert torch.equal(scale, before)


def test_a_scaled_gradient_that_the_optimizer_unscales_is_recognized() -> None:
    training = Training(built("AdamW", fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = training.layer(normal(16, 128, seed=9)).square().mean()
    training.optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(training.optimizer)
    assert training.state()["exp_avg_sq"][~training.mask].all()


def test_a_resumed_run_has_the_same_state_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_moments, "INTERVAL", 3)
    training = Training(built("AdamW"))
    training.train(4)
    saved = copy.deepcopy(
        (
            training.layer.state_dict(),
            training.optimizer.state_dict(),
            training.pruner.state_dict(),
        )
    )
    resumed = Training(built("AdamW"), sparsity=0.0)
    resumed.layer.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.pruner.load_state_dict(saved[2])
    resumed.steps = training.steps
    for one in (training, resumed):
        one.train(5)
    for key, state in training.state().items():
        assert torch.equal(state, resumed.state()[key])
