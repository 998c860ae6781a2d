"""The pipeline around a step: its order, its closures and its exceptions, computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from helpers.growth import NO_GROWTH
from helpers.peers import PeerGroup, single_process_mesh
from helpers.pruners import coupled_penalty
from prunus import (
    LinearRelevance,
    MagnitudeScore,
    Masks,
    PrunusError,
    RelevancePenalty,
    TaylorScore,
    select,
)
from prunus._engine.optimizers import Optimizers
from prunus._engine.step_hooks import StepHooks

# With α = 2 the coefficients 1 − |g| / 2 of these gradients are 1, 1/2 and 0. With γ = 1/2 the
# penalty's gradient c · w is 4, −2 and 0.
WEIGHT, GRADIENT = [4.0, -4.0, 4.0], [0.0, -1.0, 5.0]
PENALIZED = [4.0, -3.0, 5.0]


def penalty_of(**arguments: Any) -> RelevancePenalty:
    return coupled_penalty(0.5, LinearRelevance(2.0), **arguments)


def layer_of(values: list[float]) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([values]))
    return layer


class Hooked:
    """A model of one or two layers, its optimizer of learning rate 1, and the hooks on it."""

    def __init__(
        self,
        *weights: list[float],
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        group: PeerGroup | None = None,
        strengths: Mapping[str, float] | None = None,
        **arguments: Any,
    ) -> None:
        self.model = nn.ModuleList(layer_of(values) for values in weights or [WEIGHT])
        self.optimizer = optimizer(self.model.parameters(), lr=1.0)
        self.selection = select(self.model)
        if group is not None:
            self.selection.process_group = group
        self.masks = Masks(self.selection)
        self.strengths = dict(strengths or dict.fromkeys(self.selection, 0.5))
        self.steps = 0
        options = {"penalty": None, "score": MagnitudeScore(), "max_grad_norm": None} | arguments
        penalty, score = options.pop("penalty"), options.pop("score")
        self.hooks = StepHooks(
            self.model,
            Optimizers([self.optimizer], self.selection),
            self.masks,
            penalty,
            score,
            NO_GROWTH,
            strengths=lambda: self.strengths,
            steps_since_pruning=lambda: self.steps,
            optimizer_stepped=lambda index: None,
            stepped=self._count,
            **options,
        )

    def _count(self) -> None:
        self.steps += 1

    def weight(self, index: int = 0) -> list[float]:
        values: list[float] = self.parameter(index).detach().flatten().tolist()
        return values

    def parameter(self, index: int = 0) -> Any:
        return self.model[index].weight

    def moved(self, *gradients: list[float] | None) -> list[float]:
        """Take a step and return how far the first weight moved: its gradient at that time."""
        before = torch.tensor(self.weight())
        for index, gradient in enumerate(gradients or [GRADIENT]):
            value = None if gradient is None else torch.tensor([gradient])
            self.parameter(index).grad = value
        self.optimizer.step()
        distance: list[float] = (before - torch.tensor(self.weight())).tolist()
        return distance


def test_the_gradient_of_the_penalty_is_added_before_the_step() -> None:
    hooked = Hooked(penalty=penalty_of())
    assert hooked.moved() == PENALIZED
    assert hooked.steps == 1
    hooked.hooks.remove()
    assert hooked.moved() == GRADIENT
    assert hooked.steps == 1


def test_the_decoupled_penalty_is_applied_after_the_step() -> None:
    hooked = Hooked(penalty=penalty_of(apply="decoupled"), optimizer=torch.optim.SGD)
    hooked.moved([0.0, -1.0, 5.0])
    # w − g is 4, −3 and −1; of these 2γ · c = 1, 1/2 and 0 are subtracted.
    assert hooked.weight() == [0.0, -1.5, -1.0]


def test_without_a_penalty_only_removed_weights_change() -> None:
    hooked = Hooked()
    assert hooked.hooks.application is None
    hooked.masks["0.weight"][0, 1] = False
    assert hooked.moved() == [0.0, -4.0, 5.0]
    assert hooked.weight() == [4.0, 0.0, -1.0]
    assert hooked.parameter().grad.tolist() == [[0.0, 0.0, 5.0]]


@pytest.mark.parametrize("strength", [0.0, -1.0])
def test_a_strength_that_is_not_above_zero_leaves_masks_in_force(strength: float) -> None:
    hooked = Hooked(
        WEIGHT, WEIGHT, penalty=penalty_of(), strengths={"0.weight": strength, "1.weight": 0.5}
    )
    assert hooked.moved(GRADIENT, GRADIENT) == GRADIENT
    assert hooked.parameter(1).grad.flatten().tolist() == PENALIZED
    hooked.masks["0.weight"][0, 2] = False
    hooked.moved(GRADIENT, GRADIENT)
    assert hooked.parameter().grad.tolist() == [[0.0, -1.0, 0.0]]
    assert hooked.weight()[2] == 0.0
    hooked.masks["1.weight"][0, 2] = False
    hooked.moved([-0.0, 0.0, 0.0], GRADIENT)
    assert hooked.parameter(1).grad[0, 2].item() == 0.0
    assert torch.signbit(hooked.parameter().grad[0, 0])  # unchanged to the bit


def test_removed_weights_are_zero_after_a_step_that_moves_them() -> None:
    hooked = Hooked(
        optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5), penalty=penalty_of()
    )
    hooked.moved()
    hooked.masks["0.weight"][0] = torch.tensor([True, True, False])
    hooked.moved([0.0, 0.0, 0.0])  # the momentum of the last weight is 5
    assert hooked.weight()[2] == 0.0


class Scaled(torch.optim.Optimizer):
    """An optimizer of learning rate 1 that a gradient scaler may tell its findings."""

    found_inf: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(parameter.grad)


class Recorder(torch.optim.Optimizer):
    """An optimizer that computes its loss by a closure, twice, and keeps its arguments."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.seen: list[Any] = []

    def step(self, closure: Any = None, *rest: Any, **options: Any) -> Any:
        self.seen.append((rest, options))
        losses = [closure(), closure()]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad)
        return losses


@pytest.mark.parametrize(
    ("rest", "options"), [((), {}), (("more",), {"fast": True}), (None, {}), (None, {"fast": True})]
)
def test_gradients_of_a_closure_are_edited_after_each_of_its_calls(
    rest: tuple[str, ...] | None, options: dict[str, bool]
) -> None:
    hooked = Hooked(penalty=penalty_of(), optimizer=Recorder)
    gradients = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        if hooked.parameter().grad is not None:
            gradients.append(hooked.parameter().grad.flatten().tolist())
        hooked.parameter().grad = torch.tensor([GRADIENT])
        return 0.25

    step: Any = hooked.optimizer.step
    losses = step(closure=closure, **options) if rest is None else step(closure, *rest, **options)
    assert losses == [0.25, 0.25]
    assert gradients == [PENALIZED]
    assert hooked.weight() == [0.0, -1.0, -1.0]
    assert hooked.optimizer.seen == [(rest or (), options)]  # type: ignore[attr-defined]
    assert hooked.steps == 1


def test_an_optimizer_may_leave_its_closure_uncalled() -> None:
    class Idle(Scaled):
        def step(self, closure: Any = None) -> Any:
            assert closure is not None

    hooked = Hooked(penalty=penalty_of(), optimizer=Idle)
    hooked.optimizer.step(lambda: 0.0)
    assert (hooked.steps, hooked.weight()) == (1, WEIGHT)


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_nothing_happens_at_a_step_that_a_scaler_skips(apply: Any) -> None:
    hooked = Hooked(penalty=penalty_of(apply=apply), score=TaylorScore(), optimizer=Scaled)
    hooked.masks["0.weight"][0, 0] = False
    hooked.optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    assert hooked.moved() == GRADIENT
    assert (hooked.steps, hooked.hooks.observer.memory) == (0, {})
    hooked.optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    hooked.moved()
    assert hooked.steps == 1


def test_the_penalty_is_scaled_as_the_loss_is() -> None:
    hooked = Hooked(penalty=penalty_of(), score=TaylorScore(smoothing=0.0), optimizer=Scaled)
    hooked.optimizer.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]
    assert hooked.moved([0.0, -8.0, 40.0]) == [8 * value for value in PENALIZED]
    # |w · g| with the gradients of the loss
    assert hooked.hooks.observer.memory["0.weight"]["product"].tolist() == [[0.0, 4.0, 20.0]]


def test_only_scores_that_use_gradients_observe_them() -> None:
    seen: list[str] = []

    class Idle(MagnitudeScore):
        def observe(self, *_: Any, **__: Any) -> None:
            seen.append("observed")

    Hooked(score=Idle()).moved()
    assert seen == []


def test_gradients_are_clipped_between_score_and_penalty() -> None:
    limit = (26**0.5) / 2
    hooked = Hooked(penalty=penalty_of(), score=TaylorScore(), max_grad_norm=limit)
    # Half the gradients of the loss, and the penalty of the whole ones.
    assert hooked.moved() == pytest.approx([4.0, -2.5, 2.5], rel=1e-5)
    assert hooked.hooks.observer.memory["0.weight"]["product"].tolist() == [[0.0, 4.0, 20.0]]
    smooth = Hooked(penalty=penalty_of(smoothing=0.5), max_grad_norm=limit)
    assert smooth.moved() == pytest.approx([4.0, -2.5, 2.5], rel=1e-5)


def test_the_limit_of_the_norm_is_that_of_gradients_without_loss_scale() -> None:
    hooked = Hooked(optimizer=Scaled, max_grad_norm=(26**0.5) / 2)
    hooked.optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    assert hooked.moved([0.0, -4.0, 20.0]) == pytest.approx([0.0, -2.0, 10.0], rel=1e-5)


def test_the_state_has_a_place_for_what_the_penalty_remembers() -> None:
    state = Hooked().hooks.state.state_dict(complete=True)
    assert not any(state.values())
    layer = layer_of(WEIGHT).bfloat16()
    selection = select(layer)
    hooks = StepHooks(
        layer,
        Optimizers([torch.optim.SGD(layer.parameters(), lr=1.0)], selection),
        Masks(selection),
        penalty_of(apply="decoupled", smoothing=0.5),
        TaylorScore(),
        NO_GROWTH,
        max_grad_norm=None,
        strengths=dict,
        steps_since_pruning=lambda: 0,
        optimizer_stepped=lambda index: None,
        stepped=lambda: None,
    )
    state = hooks.state.state_dict(complete=True)
    for key in ("score", "averages", "remainders"):
        assert list(state[key]) == ["weight"]


def test_all_tensors_of_the_optimizer_are_clipped_together() -> None:
    hooked = Hooked([1.0], [1.0], max_grad_norm=2.5)
    hooked.selection.process_group = PeerGroup()
    assert hooked.moved([3.0], [4.0]) == pytest.approx([1.5], rel=1e-5)


def test_a_norm_that_overflows_suspends_the_penalty_but_not_the_masks() -> None:
    for apply in ("gradient", "decoupled"):
        hooked = Hooked(penalty=penalty_of(apply=apply, smoothing=0.5), max_grad_norm=1.0)
        hooked.masks["0.weight"][0, 1] = False
        assert hooked.moved([0.0, 1e30, 1e30]) == [0.0, -4.0, 0.0]
        assert hooked.parameter().grad.tolist() == [[0.0, 0.0, 0.0]]
        assert hooked.hooks.state.state_dict(complete=False)["averages"] == {}


def test_moving_averages_replace_the_gradients_in_the_coefficients() -> None:
    hooked = Hooked(penalty=penalty_of(smoothing=0.5))
    assert hooked.moved() == PENALIZED
    hooked.parameter().data.copy_(torch.tensor([WEIGHT]))
    # The means of both steps' |g| are 1, 1/2 and 5/2: c is 1/2, 3/4 and 0.
    assert hooked.moved([2.0, 0.0, 0.0]) == [2.0 + 2.0, -3.0, 0.0]
    state = hooked.hooks.state.state_dict(complete=False)
    assert state["averages"]["0.weight"].tolist() == [[1.0, 0.5, 2.5]]
    assert state["averaged"] == {"0.weight": 2}


def test_averages_are_of_gradients_without_loss_scale() -> None:
    hooked = Hooked(penalty=penalty_of(smoothing=0.5), optimizer=Scaled)
    hooked.optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    assert hooked.moved([0.0, -4.0, 20.0]) == [4 * value for value in PENALIZED]


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_a_tensor_without_a_gradient_takes_no_part(apply: Any, smoothing: float) -> None:
    hooked = Hooked(WEIGHT, [4.0], penalty=penalty_of(apply=apply, smoothing=smoothing))
    hooked.moved(GRADIENT, [0.0])
    first, second = hooked.weight(0), hooked.weight(1)
    assert second == [0.0]
    hooked.parameter(1).data.fill_(4.0)
    hooked.moved(None, [1.0])
    assert hooked.weight(0) == first
    # With the average of 0 and 1 the coefficient is 3/4, else 1/2.
    c = 0.75 if smoothing else 0.5
    expected = 4.0 - 1.0 - c * 4.0 if apply == "gradient" else 3.0 * (1 - c)
    assert hooked.weight(1) == [expected]


@pytest.mark.parametrize("penalty", [None, penalty_of(), penalty_of(smoothing=0.5)])
def test_a_sparse_gradient_is_named(penalty: RelevancePenalty | None) -> None:
    hooked = Hooked(WEIGHT, WEIGHT, penalty=penalty)
    hooked.parameter(0).grad = torch.tensor([GRADIENT])
    hooked.parameter(1).grad = torch.tensor([GRADIENT]).to_sparse()
    with pytest.raises(PrunusError, match=r"^1\.weight has a sparse gradient"):
        hooked.optimizer.step()


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_relative_coefficients_of_shards_use_the_mean_of_all_processes(smoothing: float) -> None:
    # |g| sums to 6 here and to 6 elsewhere; of 3 weights in all the mean is 4, and α · 4 is 2.
    group = PeerGroup(others=torch.tensor([6.0], dtype=torch.float64))
    penalty = coupled_penalty(0.5, LinearRelevance(0.5, relative=True), smoothing=smoothing)
    hooked = Hooked(group=group, penalty=penalty)
    assert hooked.moved() == PENALIZED
    hooked.parameter().data.copy_(torch.tensor([WEIGHT]))
    # With smoothing, the averages 0, 1/2 and 5/2 sum to 3 here; the mean is 3 and the unit 3/2.
    # Without it, the mean is 2 and the unit 1.
    expected = [4.0, -4.0 * 2 / 3, 0.0] if smoothing else [4.0, -4.0, 4.0]
    assert hooked.moved([0.0, 0.0, 0.0]) == pytest.approx(expected)


def test_absolute_coefficients_of_shards_need_no_other_process() -> None:
    class Silent(PeerGroup):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            raise AssertionError("nothing has to be summed")

    assert Hooked(group=Silent(), penalty=penalty_of()).moved() == PENALIZED


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_shards_are_edited_in_place(apply: Any, clipped: bool) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    with single_process_mesh() as mesh:
        layer = nn.Linear(3, 1)
        values = DTensor.from_local(torch.tensor([WEIGHT]), mesh, [Shard(0)])
        layer.weight = nn.Parameter(values)
        layer.bias = nn.Parameter(DTensor.from_local(torch.tensor([1.0]), mesh, [Shard(0)]))
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        masks = Masks(select(layer))
        masks["weight"][0, 2] = False
        masks.recount()
        StepHooks(
            layer,
            Optimizers([optimizer], masks.selection),
            masks,
            penalty_of(apply=apply),
            MagnitudeScore(),
            NO_GROWTH,
            max_grad_norm=1e6 if clipped else None,
            strengths=lambda: {"weight": 0.5},
            steps_since_pruning=lambda: 0,
            optimizer_stepped=lambda index: None,
            stepped=lambda: None,
        )
        gradient = DTensor.from_local(torch.tensor([GRADIENT]), mesh, [Replicate()])
        layer.weight.grad = gradient
        layer.bias.grad = DTensor.from_local(torch.tensor([2.0]), mesh, [Replicate()])
        optimizer.step()
        weight: Any = layer.weight
        of_weight: Any = layer.weight.grad
        of_bias: Any = layer.bias.grad
        assert of_weight.placements == (Shard(0),)
        # Only clipping reads the gradients of tensors that are not pruned.
        assert of_bias.placements == ((Shard(0),) if clipped else (Replicate(),))
        expected = [0.0, -1.0, 0.0] if apply == "gradient" else [0.0, -1.5, 0.0]
        assert weight.to_local().flatten().tolist() == expected
