"""The pruner as a whole: real training, the floor, and the delivered state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.pruning import INPUTS, LABELS, accuracy, classifier, epoch, sgd
from helpers.states import same, states_equal
from prunus import (
    ExponentialRelevance,
    FloorNotReachedError,
    GradualPruning,
    Growth,
    IterativePruning,
    LearningRateStrength,
    MagnitudeScore,
    Masks,
    OneShot,
    Pruner,
    PrunusError,
    RelevancePenalty,
    Schedule,
    SoftGrowth,
    TaylorScore,
    select,
)
from prunus.penalties.relevance import Apply
from prunus.schedules import PruningStatus, Restore


def test_iterative_pruning_delivers_the_sparsest_state_above_the_floor() -> None:
    model = classifier()
    optimizer = sgd(model)
    for _ in range(15):
        epoch(model, optimizer)
    pruner = magnitude_pruner(
        model,
        optimizer,
        RelevancePenalty(
            LearningRateStrength(0.02), ExponentialRelevance(0.2, relative=True), apply="decoupled"
        ),
        IterativePruning(fraction=0.2),
        floor="dense-0.03",
    )
    met: list[tuple[int, float]] = []
    dense = accuracy(model)
    for _ in range(40):
        kept, metric = pruner.masks.kept, accuracy(model)
        seen = pruner.step(metric)
        assert seen.met == (metric >= dense - 0.03)
        assert seen.removed == (round(0.2 * kept) if seen.met else 0)
        assert pruner.masks.kept == kept - seen.removed
        if seen.met:
            met.append((kept, -metric))
        epoch(model, optimizer)
    assert any(kept < 736 for kept, _ in met)
    pruner.finish()
    kept, negative = min(met)
    assert pruner.masks.kept == kept
    assert accuracy(model) == -negative >= dense - 0.03
    weights = [model[0].weight, model[4].weight]
    assert sum(int(w.count_nonzero()) for w in weights) == kept
    # It found out which inputs matter: nearly all that is left of the first layer reads those.
    assert pruner.sparsity > 0.8
    assert model[0].weight[:, :5].count_nonzero() > 3 * model[0].weight[:, 5:].count_nonzero()


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_weights_that_the_loss_does_not_depend_on_are_removed_first(apply: Apply) -> None:
    """Of ten inputs five are always zero; magnitude alone cannot tell which."""

    def kept_dead(strength: float) -> int:
        torch.manual_seed(0)
        model = nn.Linear(10, 40)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty = RelevancePenalty(
            LearningRateStrength(strength), ExponentialRelevance(0.01), apply=apply
        )
        pruner = magnitude_pruner(model, optimizer, penalty)
        inputs = torch.randn(64, 10) * (torch.arange(10) < 5)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), torch.arange(64) % 40).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pruner.prune(sparsity=0.5)
        return int(model.weight[:, 5:].count_nonzero())

    assert kept_dead(0.0) > 40
    assert kept_dead(0.5 if apply == "decoupled" else 5.0) == 0


def test_a_minimised_metric_may_not_exceed_its_floor() -> None:
    model = classifier()
    schedule = IterativePruning(fraction=0.1)
    pruner = magnitude_pruner(model, sgd(model), schedule=schedule, floor="dense*1.1", mode="min")
    assert pruner.floor is None
    assert pruner.step(2.0).met
    assert pruner.floor == pytest.approx(2.2)
    seen = pruner.step(2.3)
    assert (seen.met, seen.removed, seen.best) == (False, 0, False)
    assert pruner.step(2.1).met


def test_of_equally_sparse_states_the_best_is_delivered() -> None:
    model = nn.Linear(4, 1, bias=False)
    pruner = magnitude_pruner(model, sgd(model), schedule=Schedule(), floor=0.5)
    for value, metric in ((1.0, 0.6), (2.0, 0.9), (3.0, 0.7), (4.0, 0.4)):
        model.weight.data.fill_(value)
        pruner.step(metric)
    pruner.finish()
    assert model.weight.tolist() == [[2.0] * 4]


def test_a_denser_state_never_replaces_a_sparser_one() -> None:
    model = nn.Linear(4, 1, bias=False)
    pruner = magnitude_pruner(model, sgd(model), schedule=Schedule(), floor=0.5)
    pruner.prune(sparsity=0.5)
    assert pruner.step(0.6).best
    pruner.masks.load_packed({"weight": torch.tensor([[255]], dtype=torch.uint8)})
    assert not pruner.step(0.9).best


def test_finishing_without_a_state_that_met_the_floor_is_rejected() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.9)
    before = copy.deepcopy(model.state_dict())
    assert pruner.step(0.8).removed == 0
    message = (
        r"no validation met the floor 0\.9: the only metric is 0\.8; lower the floor, "
        r"train longer, or remove less$"
    )
    with pytest.raises(FloorNotReachedError, match=message):
        pruner.finish()
    assert same(model.state_dict(), before)


def test_a_pruner_without_floor_and_schedule_that_removes_nothing_warns() -> None:
    model = classifier()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, score=MagnitudeScore())
    pruner.step(0.9)
    with pytest.warns(UserWarning, match=r"no weight, because it has neither a floor nor a sch"):
        pruner.finish()
    pruner.prune(sparsity=0.5)
    pruner.step(0.9)
    pruner.finish()  # warnings are errors in the tests
    pruner.detach()
    Pruner(model, optimizer, masks=Masks.from_zeros(select(model))).finish()
    for arguments in (
        {"schedule": Schedule()},
        {"penalty": RelevancePenalty(0.1)},
        {"penalty": None},
    ):
        dense = classifier()
        Pruner(dense, sgd(dense), **arguments).finish()


def test_finishing_before_a_validation_of_the_last_removal_warns_without_a_floor() -> None:
    model = nn.Linear(4, 1, bias=False)
    pruner = magnitude_pruner(model, sgd(model), schedule=Schedule())
    pruner.step(0.9)
    pruner.prune(sparsity=0.5)
    with pytest.warns(
        UserWarning, match=r"from a sparsity of 0\.5 to 0, because no validation foll"
    ):
        pruner.finish()
    assert pruner.sparsity == 0
    pruner.prune(sparsity=0.5)
    pruner.step(0.8)
    pruner.finish()  # warnings are errors in the tests
    assert pruner.sparsity == 0.5


def test_finishing_without_a_state_that_met_the_ceiling_advises_to_raise_it() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.9, mode="min")
    assert not pruner.step(1.0).met
    message = (
        r"no validation met the ceiling 0\.9: the only metric is 1; raise the ceiling, "
        r"train longer, or remove less$"
    )
    with pytest.raises(FloorNotReachedError, match=message):
        pruner.finish()


def test_without_a_fraction_the_pruner_returns_to_the_best_state_and_removes_less() -> None:
    model = classifier()
    optimizer = sgd(model)
    pruner = magnitude_pruner(model, optimizer, schedule=IterativePruning(), floor=0.5)
    prunable = pruner.selection.prunable
    epoch(model, optimizer)
    best = copy.deepcopy(model.state_dict())
    outcomes = [pruner.step(1.0)]  # removes a tenth
    # The first change is the noise of the next 20 validations; ten more are below the floor.
    for _ in range(30):
        epoch(model, optimizer)
        outcomes.append(pruner.step(0.4))
    assert [outcome.restored for outcome in outcomes] == [*[False] * 30, True]
    assert [outcome.removed > 0 for outcome in outcomes] == [*[True] * 21, *[False] * 9, True]
    assert [outcome.change for outcome in outcomes] == [None, 0.4 - 1.0, *[0.0] * 29]
    assert pruner.masks.kept == prunable - round(0.05 * prunable)
    for name, mask in pruner.masks.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), best[name] * mask)
    epoch(model, optimizer)
    assert not pruner.masks.revived()
    pruner.finish()
    assert pruner.sparsity == 0.0
    assert same(model.state_dict(), best)


def test_no_change_is_reported_from_the_state_that_a_return_abandons() -> None:
    class Return(Schedule):
        def after_validation(self, status: PruningStatus) -> Restore | None:
            return None if status.met else Restore(status.prunable)

    model = nn.Linear(4, 1)
    pruner = magnitude_pruner(model, sgd(model), schedule=Return(), floor=0.5)
    seen = [pruner.step(metric) for metric in (0.75, 0.25, 0.625, 0.75)]
    assert [outcome.restored for outcome in seen] == [False, True, False, False]
    assert [outcome.change for outcome in seen] == [None, -0.5, None, 0.125]


def test_weights_that_a_return_brings_back_have_cleared_optimizer_state() -> None:
    class Return(Schedule):
        def after_validation(self, status: PruningStatus) -> Restore | None:
            return None if status.met else Restore(status.prunable)

    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruner = magnitude_pruner(model, optimizer, schedule=Return(), floor=0.5)

    def train() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()

    train()
    assert pruner.step(0.75).best
    pruner.prune(sparsity=0.5)
    train()
    kept = pruner.masks["weight"].clone()
    state = optimizer.state[model.weight]
    # Whatever is in the state of removed weights, such as a second moment for the sake of speed.
    for value in (state["exp_avg"], state["exp_avg_sq"]):
        value[~kept] = 7.0
    assert pruner.step(0.25).restored
    assert pruner.sparsity == 0.0
    for value in (state["exp_avg"], state["exp_avg_sq"]):
        assert not value[~kept].any()
        assert value[kept].all()


def test_gradual_pruning_reaches_the_exact_count_while_training() -> None:
    model = classifier()
    optimizer = sgd(model)
    pruner = magnitude_pruner(
        model, optimizer, schedule=GradualPruning(kept=77, begin=5, end=40, every=7)
    )
    history = []
    for _ in range(6):
        epoch(model, optimizer)
        history.append(pruner.masks.kept)
    assert history[-1] == history[-2] == 77
    assert history == sorted(history, reverse=True)
    assert sum(int(w.count_nonzero()) for w in (model[0].weight, model[4].weight)) == 77
    assert pruner.done


def losses_of_training(seed: int, epochs: int) -> tuple[float, float]:
    """Prune over half of a training; return the loss when the schedule is done and the final one.

    The learning rate falls to 0 over all epochs.
    """
    model = classifier()
    torch.manual_seed(seed)
    optimizer = sgd(model, lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    schedule = GradualPruning(sparsity=0.97, epochs=epochs, steps_per_epoch=10)
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, mode="min")

    @torch.no_grad()
    def loss() -> float:
        return float(F.cross_entropy(model.eval()(INPUTS[500:]), LABELS[500:]))

    at_done = []
    for _ in range(epochs):
        epoch(model, optimizer)
        scheduler.step()
        pruner.step(loss())
        at_done += [loss()] * pruner.done
    assert len(at_done) == epochs // 2 + 1
    pruner.finish()
    assert pruner.sparsity == pytest.approx(0.97, abs=1e-3)
    assert loss() == min(at_done)
    return at_done[0], loss()


@pytest.mark.slow
def test_training_past_the_last_removal_recovers_the_loss() -> None:
    at_done, final = map(
        sum, zip(*(losses_of_training(seed, 16) for seed in range(4)), strict=True)
    )
    assert final < 0.9 * at_done


def test_a_step_counts_once_with_a_closure_and_the_penalty_acts_on_each_call() -> None:
    def trained(wrapped: bool) -> torch.Tensor:
        model = nn.Linear(5, 1, bias=False)
        model.weight.data.copy_(torch.arange(1.0, 6.0))
        optimizer = sgd(model)
        pruner = magnitude_pruner(
            model, optimizer, coupled_penalty(0.1), OneShot(sparsity=0.4, at=2)
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(torch.ones(1, 5)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for number in range(3):
            if not wrapped:
                closure()
                optimizer.step()
            elif number % 2:
                optimizer.step(closure)  # type: ignore[arg-type]
            else:
                optimizer.step(closure=closure)  # type: ignore[arg-type]
            assert pruner.sparsity == (0.4 if number >= 1 else 0.0)
        return model.weight.detach()

    assert torch.equal(trained(wrapped=True), trained(wrapped=False))


def test_minimum_density_limits_manual_and_scheduled_pruning() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), min_density=0.5)
    with pytest.raises(PrunusError, match="cannot keep only 74 weights: min_density=0.5 keeps at"):
        pruner.prune(sparsity=0.9)
    assert pruner.sparsity == 0.0
    for schedule in (
        IterativePruning(fraction=0.4, target=0.9),
        IterativePruning(fraction=0.4),
    ):
        model = classifier()
        pruner = magnitude_pruner(model, sgd(model), schedule=schedule, floor=0.5, min_density=0.5)
        for _ in range(10):
            pruner.step(0.9)
        assert pruner.done
        assert pruner.sparsity == 0.5


def test_iterative_pruning_never_removes_the_last_weight() -> None:
    model = classifier()
    pruner = magnitude_pruner(
        model, sgd(model), schedule=IterativePruning(), min_density=0.0, floor=0.5
    )
    for _ in range(200):
        pruner.step(0.9)
    assert pruner.done
    assert pruner.masks.kept == 1


def test_a_schedule_may_serve_several_pruners() -> None:
    schedule = OneShot(sparsity=0.5)
    for _ in range(2):
        model = classifier()
        assert magnitude_pruner(model, sgd(model), schedule=schedule).step(0.5).removed == 368


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_model_may_change_its_type_between_steps(
    apply: Apply, dtype: torch.dtype, smoothing: float
) -> None:
    model = nn.Linear(20, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # without state of its own to convert
    penalty = coupled_penalty(0.01, apply=apply, smoothing=smoothing)
    Pruner(model, optimizer, penalty, OneShot(sparsity=0.5, at=3), score=TaylorScore())
    for step in range(5):
        if step == 1:
            model.to(dtype)
        optimizer.zero_grad()
        model(torch.ones(3, 20, dtype=model.weight.dtype)).square().sum().backward()
        optimizer.step()
    assert int(model.weight.count_nonzero()) == 50


def test_a_metric_of_revived_weights_is_refused() -> None:
    model = classifier()
    dense = copy.deepcopy(model.state_dict())
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    pruner.prune(sparsity=0.5)
    model.load_state_dict(dense)
    with pytest.raises(PrunusError, match=r"removed weights are not zero in 0.weight \(\d+\)"):
        pruner.step(0.9)
    pruner.masks.apply_()
    assert pruner.step(0.9).met


def test_the_average_moves_on_while_the_strength_is_zero() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    penalty = coupled_penalty(LearningRateStrength(1.0), apply="decoupled", smoothing=0.5)
    pruner = magnitude_pruner(layer, optimizer, penalty)
    for gradient in (4.0, 2.0, 1.0):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    # (4 + 2) / 2, then half way to 1.
    torch.testing.assert_close(pruner.state_dict()["averages"]["weight"], torch.full((1, 2), 2.0))


class Lookahead(torch.optim.Optimizer):
    """Steps an optimizer and after every second step goes back half the way."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer
        self.slow = [p.detach().clone() for p in self.parameters()]
        self.steps = 0

    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for slow, fast in zip(self.slow, self.parameters(), strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


def test_an_optimizer_around_another_keeps_the_zeros_that_it_makes() -> None:
    model = classifier()
    optimizer = Lookahead(sgd(model))
    pruner = magnitude_pruner(model, optimizer)
    epoch(model, optimizer)
    pruner.prune(sparsity=0.75)
    for _ in range(2):
        epoch(model, optimizer)
        assert pruner.masks.revived() == {}


def test_state_of_a_wrapped_optimizer_is_cleared_too() -> None:
    model = classifier()
    within = torch.optim.AdamW(model.parameters())
    optimizer = Lookahead(within)
    pruner = magnitude_pruner(model, optimizer)
    epoch(model, optimizer)
    pruner.prune(sparsity=0.75)
    for name, mask in pruner.masks.items():
        average = within.state[model.get_parameter(name)]["exp_avg"]
        assert not average[~mask].any()
        assert average[mask].all()


def test_an_infinite_gradient_norm_limit_clips_nothing() -> None:
    limits: Any = (None, math.inf, np.float32(math.inf))
    one, *others = (classifier() for _ in limits)
    for model, limit in zip((one, *others), limits, strict=True):
        optimizer = sgd(model)
        magnitude_pruner(model, optimizer, max_grad_norm=limit)
        torch.manual_seed(0)
        epoch(model, optimizer)
    assert all(states_equal(one, other) for other in others)


def test_no_layer_is_emptied_by_default() -> None:
    model = classifier()
    model[0].weight.data.mul_(1e-6)
    pruner = magnitude_pruner(model, sgd(model))
    pruner.prune(sparsity=0.99)
    assert [int(mask.sum()) for mask in pruner.masks.values()] == [1, 6]


def test_no_penalty_and_no_schedule_is_the_dense_baseline_to_the_bit() -> None:
    plain, watched = classifier(), classifier()
    one, two = sgd(plain), sgd(watched)
    pruner = magnitude_pruner(watched, two)
    for model, optimizer in ((plain, one), (watched, two)):
        torch.manual_seed(5)
        for _ in range(2):
            epoch(model, optimizer)
    pruner.step(0.5)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )


def test_attention_and_recurrent_layers_prune_and_train() -> None:
    cases: tuple[tuple[nn.Module, Callable[[Any], torch.Tensor]], ...] = (
        (nn.MultiheadAttention(8, 2), lambda m: m(*[torch.randn(5, 2, 8)] * 3)[0]),
        (nn.LSTM(8, 6, num_layers=2), lambda m: m(torch.randn(5, 2, 8))[0]),
        (nn.GRU(8, 6), lambda m: m(torch.randn(5, 2, 8))[0]),
        (nn.ConvTranspose1d(8, 4, 3), lambda m: m(torch.randn(2, 8, 5))),
    )
    for layer, run in cases:
        optimizer = sgd(layer)
        pruner = magnitude_pruner(layer, optimizer, coupled_penalty(1e-3))
        pruner.prune(sparsity=0.7)
        for _ in range(3):
            optimizer.zero_grad()
            run(layer).square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        nonzero = sum(int(t.parameter.count_nonzero()) for t in pruner.selection.values())
        assert (
            nonzero
            == pruner.masks.kept
            == pruner.selection.prunable - round(0.7 * pruner.selection.prunable)
        )
        clone = copy.deepcopy(layer)
        assert all(
            torch.equal(a, b) for a, b in zip(clone.parameters(), layer.parameters(), strict=True)
        )


def test_masks_given_at_the_start_are_in_force_at_once() -> None:
    model = classifier()
    selection = select(model)
    masks = Masks(selection)
    masks["0.weight"][:, 5:] = False
    pruner = magnitude_pruner(model, sgd(model), selection=selection, masks=masks)
    assert not model[0].weight[:, 5:].any()
    assert pruner.masks.kept == 32 * 5 + 96


def test_pruners_with_floors_may_not_take_turns_at_one_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = sgd(model)
    first, second = (
        magnitude_pruner(
            model,
            optimizer,
            schedule=IterativePruning(fraction=0.5),
            floor=floor,
            selection=select(model, include=name),
        )
        for name, floor in (("0", 0.5), ("1", None))
    )
    first.step(0.9)
    second.step(0.9)
    with pytest.raises(PrunusError, match="several pruners with a floor validate this model by"):
        first.step(0.9)


def test_pruner_may_follow_another_of_the_same_model() -> None:
    model = classifier()
    for _ in range(2):  # as in a notebook whose cell is run twice
        pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
        for _ in range(3):
            pruner.step(0.9)


def test_pruners_without_floors_share_a_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = sgd(model)
    pruners = [
        magnitude_pruner(
            model, optimizer, schedule=OneShot(sparsity=0.5), selection=select(model, include=name)
        )
        for name in "01"
    ]
    for _ in range(3):
        for pruner in pruners:
            pruner.step(0.9)
    assert [pruner.sparsity for pruner in pruners] == [0.5, 0.5]


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_expanded_gradients_train_as_their_copies(apply: Apply, limit: float | None) -> None:
    def trained(*, copied: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(8, 6)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        penalty = RelevancePenalty(0.1, apply=apply)
        pruner = Pruner(layer, optimizer, penalty, max_grad_norm=limit)
        for step in range(4):
            loss = (layer.weight.sum(0) * torch.arange(8.0)).sum() + layer.bias.sum()
            gradients = torch.autograd.grad(loss, [layer.weight, layer.bias])
            layer.weight.grad, layer.bias.grad = (
                (each.clone(memory_format=torch.contiguous_format) for each in gradients)
                if copied
                else gradients
            )
            optimizer.step()
            if step == 1:
                layer.weight.grad = gradients[0]  # a removal clears gradients, too
                pruner.prune(sparsity=0.5)
        assert torch.count_nonzero(layer.weight) == 24
        return [each.detach() for each in layer.parameters()]

    torch.testing.assert_close(trained(copied=False), trained(copied=True), rtol=0, atol=0)


@pytest.mark.parametrize("growth", [None, SoftGrowth(until=100)])
def test_a_pruner_may_be_built_and_used_in_inference_mode(growth: Growth | None) -> None:
    def trained(*, inference: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(2, 2)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        penalty = RelevancePenalty(0.1, smoothing=0.9)
        x = torch.randn(16, 8)

        def train(steps: int, used: int = 3) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                y = x
                for layer in model[:used]:
                    y = layer(y)
                y.square().mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        with torch.inference_mode(inference):
            pruner = Pruner(model, optimizer, penalty, growth=growth)
        train(100, used=2)
        with torch.inference_mode(inference), pytest.warns(UserWarning, match="had no gradient"):
            pruner.prune(sparsity=0.5)
        assert pruner.sparsity == pytest.approx(0.5)
        train(2)  # writes to what the removal has made
        with torch.inference_mode(inference):
            pruner.load_state_dict(pruner.state_dict())
            pruner.step(0.5)
        train(3)
        pruner.prune(sparsity=0.7)
        train(1)
        assert pruner.sparsity == pytest.approx(0.7, abs=0.02)
        return [each.detach() for each in model.parameters()]

    torch.testing.assert_close(trained(inference=True), trained(inference=False), rtol=0, atol=0)
