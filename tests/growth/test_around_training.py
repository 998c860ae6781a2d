"""Growth with closures, scalers, clipping, penalties, and the pruner's other calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from growth.reference import INPUTS, TARGETS, network
from helpers.errors import message_of
from helpers.pruners import magnitude_pruner
from helpers.states import same
from helpers.training import squared_error, train
from prunus import (
    AlternatingGrowth,
    ArgumentError,
    ArgumentTypeError,
    ExponentialRelevance,
    FisherScore,
    GradientGrowth,
    GradualPruning,
    Growth,
    IterativePruning,
    LinearDecayStrength,
    Masks,
    MovementScore,
    NonFiniteError,
    OneShot,
    Pruner,
    PrunusError,
    RandomGrowth,
    RandomScore,
    RelevancePenalty,
    Schedule,
    SoftGrowth,
    TargetAllocation,
    ThresholdSearch,
    select,
)
from prunus.penalties.relevance import Apply

BATCH = INPUTS, TARGETS

GROWTHS: dict[str, Growth] = {
    "soft": SoftGrowth(until=14, every=2),
    "random": RandomGrowth(every=2, fraction=0.4, until=14),
    "gradient": GradientGrowth(every=2, fraction=0.4, until=14),
    "alternating": AlternatingGrowth(sparse=3, dense=2, until=14),
}

FIXED = {name: growth for name, growth in GROWTHS.items() if name != "alternating"}
"""Those that keep the number of weights."""


def started(
    growth: Growth | None, optimizer: Any = None, **arguments: Any
) -> tuple[nn.Sequential, Any, Pruner]:
    """Return a network, an optimizer and a pruner that has removed 90 of 120 weights."""
    model = network()
    optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9))
    built = optimizer(model.parameters())
    arguments.setdefault("schedule", OneShot(sparsity=0.75))
    pruner = magnitude_pruner(model, built, growth=growth, **arguments)
    if isinstance(pruner.schedule, OneShot) and not arguments.get("score"):
        pruner.step(0.5)
    return model, built, pruner


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_zeros(pruner: Pruner) -> None:
    for name, mask in pruner.masks.items():
        removed = pruner.selection[name].weight[~mask]
        assert not removed.count_nonzero()
        assert not torch.signbit(removed).any()


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_removed_weights_are_exactly_zero_and_return_until_the_end(
    growth: Growth, apply: Apply
) -> None:
    penalty = RelevancePenalty(1e-2, ExponentialRelevance(0.2, True), apply=apply)
    model, optimizer, pruner = started(growth, penalty=penalty, max_grad_norm=0.5)
    kept, changed = [pruner.masks.kept], []
    for _ in range(20):
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        train(model, optimizer, BATCH, 1)
        changed.append(sum(pruner.masks.differences(before).values()))
        kept.append(pruner.masks.kept)
        assert_zeros(pruner)
    assert sum(changed[:14]) > 0
    assert sum(changed[14:]) == 0
    if growth is GROWTHS["alternating"]:
        assert set(kept) == {30, 120}
    else:
        assert set(kept) == {30}


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_closure_takes_the_same_steps_as_gradients_before_the_step(growth: Growth) -> None:
    one, other = started(growth), started(growth)

    def closure() -> torch.Tensor:
        other[1].zero_grad()
        assert_zeros(other[2])  # the forward pass sees the sparse network
        loss = squared_error(other[0], BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(18):
        train(one[0], one[1], BATCH, 1)
        other[1].step(closure)
        assert same(weights(one[0]), weights(other[0]))


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_optimizer_that_calls_the_closure_often_sees_the_sparse_network(
    growth: Growth, search: str | None
) -> None:
    model, optimizer, pruner = started(
        growth, lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3, line_search_fn=search)
    )
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        assert growth is not GROWTHS["soft"] or pruner.masks.kept == 30
        if growth is GROWTHS["soft"]:
            assert_zeros(pruner)
        loss = squared_error(model, BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    losses = []
    for _ in range(18):
        losses.append(optimizer.step(closure).item())
        assert_zeros(pruner)
    assert calls > 36
    assert losses[-1] < losses[0]
    assert pruner.masks.kept == 30


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_step_that_a_scaler_skips_changes_nothing(growth: Growth) -> None:
    model, optimizer, pruner = started(
        growth, lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, fused=True)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(squared_error(model, BATCH) * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        step(1.0)
    before = pruner.state_dict(), weights(model)
    before[0]["latent"] = {name: each.clone() for name, each in before[0]["latent"].items()}
    step(float("inf"))
    assert same((pruner.state_dict(), weights(model)), before)
    step(1.0)
    assert pruner.state_dict()["steps"] == 4
    assert not same(weights(model), before[1])
    assert_zeros(pruner)


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_loss_scale_accumulation_and_clipping_do_not_change_the_choice(growth: Growth) -> None:
    plain, other = started(growth), started(growth, max_grad_norm=1e9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for _ in range(16):
        train(plain[0], plain[1], BATCH, 1)
        other[1].zero_grad()
        for x, y in zip(INPUTS.chunk(4), TARGETS.chunk(4), strict=True):
            scaler.scale(squared_error(other[0], (x, y)) / 4).backward()  # type: ignore[no-untyped-call]
        scaler.step(other[1])
        scaler.update()
        assert not any(other[2].masks.differences(plain[2].masks).values())
    for one, two in zip(weights(plain[0]), weights(other[0]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_soft_growth_scores_dense_weights_by_gradients_of_the_sparse_network() -> None:
    for score in (FisherScore(), MovementScore(), RandomScore()):
        model, optimizer, pruner = started(GROWTHS["soft"], score=score)
        train(model, optimizer, BATCH, 1)
        assert pruner.prune(sparsity=0.75) == 90
        train(model, optimizer, BATCH, 15)
        assert_zeros(pruner)
        assert pruner.masks.kept == 30


def test_soft_growth_shrinks_dense_weights_by_a_decoupled_penalty() -> None:
    # Without gradients only the penalty moves weights: w ← w − 2 · 0.1 · w, three times.
    model, optimizer, pruner = started(
        SoftGrowth(until=9), penalty=RelevancePenalty(0.1, apply="decoupled"), schedule=Schedule()
    )
    before = weights(model)
    pruner.prune(sparsity=0.5)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    state = pruner.state_dict()["latent"]
    for (name, parameter), start in zip(model.named_parameters(), before, strict=True):
        torch.testing.assert_close(parameter + state[name], start * 0.8**3)


def test_soft_growth_keeps_kept_weights_that_the_caller_changed() -> None:
    model, optimizer, pruner = started(SoftGrowth(until=9))
    with torch.no_grad():
        for name, mask in pruner.masks.items():
            pruner.selection[name].weight.add_(mask.double() * 5)
    optimizer.zero_grad(set_to_none=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all((weight[weight != 0].abs() > 3).all() for weight in weights(model))


def test_removal_by_hand_is_of_the_dense_weights_with_soft_growth() -> None:
    model, optimizer, pruner = started(SoftGrowth(until=20, every=20), schedule=Schedule())
    pruner.prune(kept=30)
    train(model, optimizer, BATCH, 4)
    latent = pruner.state_dict()["latent"]
    dense = torch.cat([(p.detach() + latent[n]).flatten() for n, p in model.named_parameters()])
    assert pruner.prune(kept=20) == 10
    expected = torch.zeros_like(dense)
    chosen = dense.abs().topk(20).indices
    expected[chosen] = dense[chosen]
    torch.testing.assert_close(torch.cat([w.flatten() for w in weights(model)]), expected)
    assert pruner.prune(kept=25) == 0  # never more than the schedule has left
    assert pruner.masks.kept == 20


def test_removal_in_a_dense_phase_takes_place_at_its_end() -> None:
    model, optimizer, pruner = started(AlternatingGrowth(sparse=1, dense=2, until=9))
    train(model, optimizer, BATCH, 1)
    assert pruner.sparsity == 0
    assert pruner.prune(kept=12) == 0
    assert pruner.step(0.5).sparsity_after == 0
    train(model, optimizer, BATCH, 2)
    assert pruner.masks.kept == 12
    train(model, optimizer, BATCH, 9)
    assert pruner.masks.kept == 12
    assert pruner.done


def test_removal_in_a_dense_phase_respects_the_least_density_at_once() -> None:
    model, optimizer, pruner = started(
        AlternatingGrowth(sparse=1, dense=2, until=9), min_density=0.1
    )
    train(model, optimizer, BATCH, 1)
    # A tenth of 96 and of 24, rounded up.
    with pytest.raises(PrunusError, match="cannot keep only 5 weights: min_density=0.1 keeps at "):
        pruner.prune(kept=5)
    train(model, optimizer, BATCH, 2)
    assert pruner.masks.kept == 30


def in_a_dense_phase(**arguments: Any) -> tuple[nn.Sequential, Any, Pruner]:
    """Return a network without removed weights, in the first of two dense steps."""
    growth = AlternatingGrowth(sparse=1, dense=2, until=9)
    parts = started(growth, schedule=Schedule(), **arguments)
    train(parts[0], parts[1], BATCH, 1)
    return parts


def test_removal_in_a_dense_phase_respects_the_allocation_at_once() -> None:
    model, optimizer, pruner = in_a_dense_phase(allocation=TargetAllocation({"0": 0}))
    expected = r"cannot keep only 12 weights: the targets of TargetAllocation keep at least 97 over"
    with pytest.raises(PrunusError, match=expected):
        pruner.prune(sparsity=0.9)
    assert pruner.prune(kept=97) == 0
    train(model, optimizer, BATCH, 2)
    assert [pruner.masks.kept_in(name) for name in pruner.masks] == [96, 1]


def test_removal_in_a_dense_phase_needs_observed_gradients_at_once() -> None:
    growth = AlternatingGrowth(sparse=1, dense=2, until=9)
    model, optimizer, pruner = started(growth, schedule=Schedule(), score=FisherScore())
    for _ in range(3):
        optimizer.zero_grad()
        squared_error(model, BATCH).backward()  # type: ignore[no-untyped-call]
        model[2].weight.grad = None
        optimizer.step()
        if pruner.state_dict()["steps"] == 1:
            expected = r"FisherScore needs the gradient of at least one .* but 2\.weight had none"
            with pytest.raises(PrunusError, match=expected):
                pruner.prune(sparsity=0.5)
    assert pruner.masks.kept == 120
    assert pruner.prune(sparsity=0) == 0


def test_best_state_is_compared_by_the_weights_that_it_has() -> None:
    model, optimizer, pruner = started(AlternatingGrowth(sparse=1, dense=1, until=9), floor=0.1)
    assert pruner.consider(0.5)
    sparse = weights(model)
    train(model, optimizer, BATCH, 1)
    assert pruner.sparsity == 0
    assert not pruner.step(0.9).best  # better, but dense
    pruner.finish()
    assert same(weights(model), sparse)
    assert pruner.sparsity == 0.75


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_nothing_returns_after_finish(growth: Growth) -> None:
    model, optimizer, pruner = started(growth)
    train(model, optimizer, BATCH, 5)
    pruner.step(0.9)
    pruner.finish()
    kept = {name: mask.clone() for name, mask in pruner.masks.items()}
    assert pruner.sparsity == 0.75
    assert pruner.done
    train(model, optimizer, BATCH, 5)
    assert not any(pruner.masks.differences(kept).values())
    assert_zeros(pruner)
    assert pruner.state_dict()["latent"] == {}


@pytest.mark.parametrize("keep_best", [True, False])
def test_finish_without_a_best_state_ends_a_dense_phase(keep_best: bool) -> None:
    model, optimizer, pruner = started(
        AlternatingGrowth(sparse=1, dense=9, until=90), schedule=Schedule(), keep_best=keep_best
    )
    pruner.prune(kept=30)
    train(model, optimizer, BATCH, 3)
    assert pruner.sparsity == 0
    if not keep_best:
        pruner.step(0.5)
    magnitudes = torch.cat([weight.flatten().abs() for weight in weights(model)])
    pruner.finish()
    kept = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert kept.nonzero().flatten().tolist() == sorted(magnitudes.topk(30).indices.tolist())
    assert_zeros(pruner)
    train(model, optimizer, BATCH, 20)
    assert pruner.masks.kept == 30
    assert_zeros(pruner)


def test_finish_delivers_a_dense_state_as_it_was_validated() -> None:
    # Only dense phases met the floor.
    model, optimizer, pruner = started(
        AlternatingGrowth(sparse=1, dense=9, until=90), schedule=Schedule(), floor=0.6
    )
    pruner.prune(kept=30)
    train(model, optimizer, BATCH, 3)
    assert pruner.step(0.9).best
    validated = weights(model)
    train(model, optimizer, BATCH, 2)
    pruner.finish()
    assert same(weights(model), validated)
    assert pruner.sparsity == 0


@pytest.mark.parametrize("growth", FIXED.values(), ids=FIXED)
def test_detached_pruner_leaves_the_sparse_network(growth: Growth) -> None:
    model, optimizer, pruner = started(growth)
    train(model, optimizer, BATCH, 5)
    pruner.detach()
    assert_zeros(pruner)
    assert sum(int(weight.count_nonzero()) for weight in weights(model)) <= 30
    train(model, optimizer, BATCH, 3)  # nothing acts any more
    assert all(weight.all() for weight in weights(model))


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_growth_may_start_from_masks(growth: Growth) -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 0.2] = 0
    masks = Masks.from_zeros(select(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    pruner = magnitude_pruner(model, optimizer, masks=masks, growth=growth)
    assert pruner.masks.kept == masks.kept < 100
    train(model, optimizer, BATCH, 15)
    assert pruner.masks.kept == masks.kept
    assert sum(pruner.masks.differences(masks).values()) > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_random_growth_depends_on_its_seed_alone(seed: int) -> None:
    def masks(of: int) -> Any:
        model, optimizer, pruner = started(RandomGrowth(every=1, fraction=0.4, seed=of))
        torch.manual_seed(torch.seed())
        train(model, optimizer, BATCH, 1)
        return {name: mask.clone() for name, mask in pruner.masks.items()}

    assert same(masks(seed), masks(seed))
    assert not same(masks(seed), masks(seed + 1))


def test_random_growth_is_uniform_over_removed_positions() -> None:
    layer = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pruner = magnitude_pruner(layer, optimizer, growth=RandomGrowth(every=1, fraction=0.5))
    pruner.prune(kept=2000)
    counts = torch.zeros(100, 100)
    for _ in range(100):
        before = pruner.masks["weight"].clone()
        optimizer.step()
        counts += pruner.masks["weight"] & ~before
    assert pruner.masks.kept == 2000
    # 100 · 1000 returns over 10,000 positions; each quarter of the rows gets a quarter, with a
    # standard deviation of at most √(100,000 · ¼ · ¾) = 137.
    quarters = counts.view(4, -1).sum(1)
    assert quarters.sum() == 100_000
    assert (quarters - 25_000).abs().max() < 5 * 137


def test_no_more_return_than_were_removed() -> None:
    model, optimizer, pruner = started(
        RandomGrowth(every=1, fraction=0.9), schedule=OneShot(sparsity=0.1)
    )
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    train(model, optimizer, BATCH, 1)
    assert sum(pruner.masks.differences(before).values()) == 2 * 12
    assert pruner.masks.kept == 108


def test_tensor_without_gradient_is_left_alone_by_gradient_growth() -> None:
    model, optimizer, pruner = started(GradientGrowth(every=1, fraction=0.4, until=9))
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    optimizer.zero_grad()
    squared_error(model, BATCH).backward()  # type: ignore[no-untyped-call]
    model[2].weight.grad = None
    optimizer.step()
    changed = pruner.masks.differences(before)
    assert changed["0.weight"] > 0
    assert changed["2.weight"] == 0


@pytest.mark.parametrize("growth", [GROWTHS["gradient"], GROWTHS["soft"]])
def test_gradient_that_is_not_a_number_is_an_error_that_changes_no_mask(growth: Growth) -> None:
    model, optimizer, pruner = started(growth)
    train(model, optimizer, BATCH, 1)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    with pytest.raises(NonFiniteError, match=r"the scores of 0\.weight.* contain NaN"):
        optimizer.step()
    assert not any(pruner.masks.differences(before).values())
    assert_zeros(pruner)


@pytest.mark.parametrize(
    "schedule",
    [IterativePruning(), ThresholdSearch(evaluate=lambda: 1.0)],
    ids=["iterative", "threshold search"],
)
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_schedule_that_relies_on_removed_weights_is_rejected(
    growth: Growth, schedule: Schedule
) -> None:
    message = message_of(lambda: started(growth, schedule=schedule), ArgumentError)
    assert message == (
        "schedule must be one with which removed weights may return, with growth="
        f"{type(growth).__name__}, but is {type(schedule).__name__}, which delivers the sparsest "
        "state that met the floor and relies on removed weights staying removed: pass "
        "GradualPruning, OneShot or Schedule(), or growth=None"
    )


def test_default_schedule_with_a_floor_is_rejected() -> None:
    message = message_of(lambda: started(GROWTHS["random"], schedule=None, floor=0.5))
    assert "but is IterativePruning, which delivers" in message


def test_penalty_that_would_not_shrink_removed_weights_is_rejected() -> None:
    penalty = RelevancePenalty(0.1, apply="loss")
    message = message_of(lambda: started(SoftGrowth(until=9), penalty=penalty), ArgumentError)
    assert message.startswith('apply must not be "loss" with growth=SoftGrowth, because the loss')
    for growth in (GROWTHS["random"], GROWTHS["gradient"], GROWTHS["alternating"]):
        model, optimizer, pruner = started(growth, penalty=penalty)
        train(model, optimizer, BATCH, 15, term=pruner.penalty)
        assert pruner.masks.kept == 30


def test_growth_of_another_type_is_rejected() -> None:
    for wrong in ("soft", SoftGrowth, 3):
        message = message_of(lambda wrong=wrong: started(wrong), ArgumentTypeError)  # type: ignore[misc]
        assert message.startswith("growth must be a Growth or None, but is ")
        assert message.endswith(": prunus.SoftGrowth(until=...)")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftGrowth(until=0), "until must be at least 1, but is 0"),
        (
            lambda: SoftGrowth(until=0.5, every=0),  # type: ignore[arg-type]
            "until must be a whole number of at least 1, but is 0.5; every must be at least 1, but "
            "is 0",
        ),
        (lambda: RandomGrowth(fraction=1), "fraction must be above 0 and below 1, but is 1"),
        (lambda: RandomGrowth(until=0), "until must be at least 1 or None, but is 0"),
        (
            lambda: GradientGrowth(until=9, fraction=30),
            "fraction must be above 0 and below 1, but is 30: pass fraction=0.3 for 30 percent",
        ),
        (
            lambda: AlternatingGrowth(sparse=0, dense=-1, until=2),
            "sparse must be at least 1, but is 0; dense must be at least 1, but is -1",
        ),
    ],
)
def test_settings_out_of_range_are_rejected(build: Any, message: str) -> None:
    assert message_of(build, ArgumentError) == message


def test_second_pruner_of_the_same_tensors_is_rejected() -> None:
    for one, other in ((SoftGrowth(until=9), None), (None, SoftGrowth(until=9))):
        model, optimizer, pruner = started(one)
        expected = "with growth a tensor may have one Pruner only, because"
        with pytest.raises(PrunusError, match=expected):
            magnitude_pruner(model, optimizer, growth=other)
        pruner.detach()
        magnitude_pruner(model, optimizer, growth=other)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    magnitude_pruner(model, optimizer, selection=select(model, "0"), growth=SoftGrowth(until=9))
    magnitude_pruner(model, optimizer, selection=select(model, "2"))  # of other tensors


def test_schedule_removes_before_weights_return() -> None:
    # With both after every step, weights that return at zero would be removed at once.
    growth = RandomGrowth(every=1, fraction=0.5)
    schedule = GradualPruning(sparsity=0.75, end=10, every=1)
    model, optimizer, pruner = started(growth, schedule=schedule)
    for step in range(1, 11):
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        train(model, optimizer, BATCH, 1)
        if step > 1:
            returned = sum(int((m & ~before[n]).sum()) for n, m in pruner.masks.items())
            assert returned >= 10


def test_state_of_returned_weights_is_cleared_whatever_the_optimizer_did_to_it() -> None:
    model, optimizer, pruner = started(
        RandomGrowth(every=3, fraction=0.4), lambda p: torch.optim.Rprop(p, lr=0.01)
    )
    train(model, optimizer, BATCH, 2)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    for parameter, mask in zip(model.parameters(), before.values(), strict=True):
        assert optimizer.state[parameter]["step_size"][~mask].all()  # Rprop's smallest step
    train(model, optimizer, BATCH, 1)
    for parameter, (name, mask) in zip(model.parameters(), before.items(), strict=True):
        returned = pruner.masks[name] & ~mask
        assert returned.any()
        assert not optimizer.state[parameter]["step_size"][returned].any()


def test_removal_at_the_end_of_a_dense_phase_counts_as_one() -> None:
    growth = AlternatingGrowth(sparse=1, dense=2, until=30)
    penalty = RelevancePenalty(LinearDecayStrength(0.01, steps=6))
    model, optimizer, pruner = started(
        growth, penalty=penalty, score=FisherScore(every=1), schedule=Schedule()
    )
    train(model, optimizer, BATCH, 1)
    assert pruner.prune(kept=30) == 0  # the dense phase of steps 2 and 3 has begun
    counts = []
    for _ in range(6):
        train(model, optimizer, BATCH, 1)
        state = pruner.state_dict()
        counts.append((state["prunings"], state["strength"]["steps_since_pruning"]))
    # The removals follow the third and the sixth step.
    assert counts == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    predicted_cost = pruner.step(0.5).predicted_cost
    assert predicted_cost is not None
    assert predicted_cost > 0


def test_random_removals_at_the_ends_of_dense_phases_differ() -> None:
    growth = AlternatingGrowth(sparse=1, dense=1, until=30)
    model, optimizer, pruner = started(growth, score=RandomScore(), schedule=Schedule())
    train(model, optimizer, BATCH, 1)
    pruner.prune(kept=30)
    train(model, optimizer, BATCH, 1)
    first = {name: mask.clone() for name, mask in pruner.masks.items()}
    assert pruner.masks.kept == 30
    train(model, optimizer, BATCH, 2)
    assert pruner.masks.kept == 30
    assert sum(pruner.masks.differences(first).values()) > 30
