"""Schedules: when weights are removed and how many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus import (
    GradualPruning,
    IterativePruning,
    OneShot,
    PruningStatus,
    PrunusError,
    Restore,
    Schedule,
)
from prunus.constraint import Constraint


def test_iterative_drops_a_fraction_of_what_is_left_only_above_the_floor() -> None:
    schedule = IterativePruning(fraction=0.2)
    history = [
        schedule.after_validation(PruningStatus(met=met, prunable=1000, kept=kept))
        for met, kept in ((True, 1000), (False, 800), (False, 800), (True, 800), (True, 640))
    ]
    assert history == [800, None, None, 640, 512]
    assert not schedule.done


def test_iterative_stops_exactly_at_the_target_once_the_floor_is_met_there() -> None:
    schedule = IterativePruning(fraction=0.5, target=0.8)
    assert schedule.after_validation(PruningStatus(met=True, prunable=100, kept=100)) == 50
    assert schedule.after_validation(PruningStatus(met=True, prunable=100, kept=50)) == 25
    assert schedule.after_validation(PruningStatus(met=True, prunable=100, kept=25)) == 20
    assert schedule.after_validation(PruningStatus(met=False, prunable=100, kept=20)) is None
    assert not schedule.done
    assert schedule.after_validation(PruningStatus(met=True, prunable=100, kept=20)) is None
    assert schedule.done


def test_iterative_removes_at_least_one_weight() -> None:
    schedule = IterativePruning(fraction=0.1)
    assert schedule.after_validation(PruningStatus(met=True, prunable=10, kept=2)) == 1


def test_patience_counts_validations_in_a_row() -> None:
    schedule = IterativePruning(patience=2)
    for met, done in ((False, False), (True, False), (False, False), (False, True)):
        schedule.after_validation(PruningStatus(met=met, prunable=10, kept=10))
        assert schedule.done == done


def test_iterative_removes_no_more_than_one_weight_of_few() -> None:
    schedule = IterativePruning(fraction=0.1)
    assert schedule.after_validation(PruningStatus(met=True, prunable=10, kept=4)) == 3
    # A tenth of 16 is 1.6, which rounds to 2.
    assert schedule.after_validation(PruningStatus(met=True, prunable=20, kept=16)) == 14


def test_iterative_stops_at_the_least_that_the_guard_keeps() -> None:
    schedule = IterativePruning(fraction=0.5)
    assert (
        schedule.after_validation(PruningStatus(met=True, prunable=100, kept=100, least=70)) == 70
    )
    assert (
        schedule.after_validation(PruningStatus(met=True, prunable=100, kept=70, least=70)) is None
    )
    assert schedule.done
    last = IterativePruning(fraction=0.5)
    assert last.after_validation(PruningStatus(met=True, prunable=100, kept=1, least=0)) is None
    assert last.done


def test_gradual_removes_every_hundred_steps_or_a_hundredth_of_the_training() -> None:
    by_step = removal_steps(GradualPruning(sparsity=0.5, end=250), 250)
    assert list(by_step) == [0, 100, 200, 250]
    by_training = removal_steps(GradualPruning(sparsity=0.5, total_steps=250), 125)
    assert list(by_training) == [*range(0, 125, 2), 125]


def margins(schedule: IterativePruning, values: list[float], best: int | None) -> list[Any]:
    """Return the decisions for these distances from the floor, with 1,000 of 2,000 weights kept."""
    return [
        schedule.after_validation(
            PruningStatus(met=margin >= 0, margin=margin, prunable=2000, kept=1000, best_kept=best)
        )
        for margin in values
    ]


def test_without_a_fraction_weights_are_removed_within_the_noise_below_the_floor() -> None:
    # Two standard deviations of the metric are √2 times the root mean square of its changes. These
    # are 0.05, 0.11 and 0.10, so that the noise is 0.071, then 0.121, then 0.128.
    values = [0.01, -0.04, -0.15, -0.05]
    assert margins(IterativePruning(), values, best=1100) == [900, 900, None, 900]
    assert margins(IterativePruning(fraction=0.1), values, best=1100) == [900, None, None, None]
    # Of the changes 3 and 4 it is √(9 + 16) = 5, which is still within.
    assert margins(IterativePruning(), [2.0, -1.0, -5.0], best=1100) == [900, 900, 900]
    assert margins(IterativePruning(), [2.0, -1.0, -6.0], best=1100) == [900, 900, None]


def test_the_last_twenty_changes_count_as_noise_except_those_of_zero() -> None:
    # The only change, the first, is among the last 20 at the validations from 1 to 20.
    values = [0.01] + [-0.02] * 21
    assert margins(IterativePruning(), values, best=1100) == [*[900] * 21, None]


def test_without_a_fraction_it_returns_to_the_best_state_and_removes_less_from_there() -> None:
    schedule = IterativePruning()
    below = [-0.5] * 10
    assert margins(schedule, below, best=1100) == [*[None] * 9, Restore(1100 - 55)]
    assert margins(schedule, below, best=1100) == [*[None] * 9, Restore(1100 - 28)]
    assert margins(schedule, [0.5], best=1100) == [1000 - 25]  # a fortieth


def test_the_fraction_is_not_halved_below_a_hundredth() -> None:
    schedule = IterativePruning()
    for fraction in (0.05, 0.025, 0.0125, 0.01, 0.01):
        (*_, decision) = margins(schedule, [-0.5] * 10, best=2000)
        assert decision == Restore(2000 - round(fraction * 2000))


def test_without_a_best_state_that_keeps_more_it_trains_on() -> None:
    for best in (None, 1000, 900):
        assert margins(IterativePruning(), [-0.5] * 25, best=best) == [None] * 25


def test_a_validation_near_the_floor_starts_the_recovery_anew() -> None:
    schedule = IterativePruning()
    assert margins(schedule, [-0.5] * 9, best=1100) == [None] * 9
    # The change to 0.1 and back is within the noise for the next 20 validations.
    assert margins(schedule, [0.1], best=1100) == [900]
    assert margins(schedule, [-0.5] * 20, best=1100) == [900] * 20
    assert margins(schedule, [-0.5] * 10, best=1100) == [*[None] * 9, Restore(1100 - 55)]


def test_after_a_return_weights_are_removed_within_half_of_the_noise_only() -> None:
    schedule = IterativePruning()
    # Changes of 0.1 and a last one of 1.1, of which two standard deviations are √2 · 0.26 = 0.36.
    assert margins(schedule, [0.1, 0.0] * 10, best=1100) == [900] * 20
    assert margins(schedule, [-1.1] * 10, best=1100) == [*[None] * 9, Restore(1100 - 55)]
    noise = math.sqrt(2 * (0.1**2 * 9 + 1.1**2 + 0.9**2) / 11)
    assert margins(schedule, [-0.2], best=1100) == [1000 - 50]
    assert 0.2 < noise / 2 < 0.35 < noise
    assert margins(schedule, [-0.35], best=1100) == [None]


def at_target(descent: int) -> IterativePruning:
    """Return a schedule that has removed weights so many times below the floor."""
    schedule = IterativePruning(target=0.5)
    for margin in (0.1, *[-0.1] * descent):
        decision = schedule.after_validation(
            PruningStatus(met=margin > 0, margin=margin, prunable=2000, kept=1900, best_kept=1900)
        )
        assert decision == 1710
    return schedule


@pytest.mark.parametrize(("descent", "recovery"), [(1, 20), (6, 20), (8, 24)])
def test_at_the_target_a_metric_within_the_noise_has_longer_to_recover(
    descent: int, recovery: int
) -> None:
    waiting = [None] * (recovery - 1)
    found = margins(at_target(descent), [-0.05, -0.2] * 20, best=1900)
    assert found[:recovery] == [*waiting, Restore(1900 - 95)]


def test_at_the_target_a_metric_below_the_noise_does_not() -> None:
    found = margins(at_target(8), [-5.0, *[-20.0] * 9], best=1900)
    assert found == [*[None] * 9, Restore(1900 - 95)]


def test_at_the_target_a_metric_that_meets_the_floor_ends_the_recovery() -> None:
    schedule = IterativePruning(target=0.5)
    assert margins(schedule, [*[-0.05] * 9, 0.1], best=1100) == [None] * 10
    assert schedule.done


def test_the_target_is_reached_only_where_the_floor_is_met() -> None:
    schedule = IterativePruning(target=0.5)
    # Within the noise, which is 0.28, but below the floor.
    assert margins(schedule, [0.1, -0.1], best=1100) == [None, None]
    assert schedule.done
    schedule = IterativePruning(target=0.5)
    assert margins(schedule, [-0.1], best=1100) == [None]
    assert not schedule.done


def test_without_a_floor_the_first_fraction_is_removed_each_time() -> None:
    schedule = IterativePruning()
    status = PruningStatus(met=True, prunable=2000, kept=1000)
    assert [schedule.after_validation(status) for _ in range(3)] == [900] * 3


def test_schedules_start_with_nothing_done() -> None:
    iterative = IterativePruning(fraction=0.3).state_dict()
    assert iterative == {
        "waited": 0,
        "reached": False,
        "fraction": 0.3,
        "recovering": 0,
        "descent": 0,
        "margins": [],
    }
    assert GradualPruning(sparsity=0.5, end=1).state_dict() == {"step": 0}
    assert not GradualPruning(sparsity=0.5, end=1).done
    assert OneShot(sparsity=0.5).state_dict() == {"done": False}


def test_a_schedule_that_reached_its_target_is_restored_as_done() -> None:
    restored = IterativePruning(target=0.5)
    found = {"fraction": 0.05, "recovering": 2, "descent": 3, "margins": [0.1, -0.2]}
    restored.load_state_dict({"waited": 0, "reached": True, **found})
    assert restored.done
    restored.load_state_dict({"waited": 3, "reached": False, **found})
    assert restored.state_dict() == {"waited": 3, "reached": False, **found}


@given(
    prunable=st.integers(2, 10**9),
    sparsity=st.floats(0.001, 0.999),
    begin=st.integers(0, 50),
    length=st.integers(1, 300),
    every=st.integers(1, 120),
    power=st.sampled_from([1.0, 3.0]),
)
def test_gradual_never_regrows_and_ends_exactly(
    prunable: int, sparsity: float, begin: int, length: int, every: int, power: float
) -> None:
    end = begin + length
    schedule = GradualPruning(sparsity=sparsity, begin=begin, end=end, every=every, power=power)
    kept = prunable
    for step in range(1, end + 20):
        answer = schedule.after_step(step=step, prunable=prunable)
        assert schedule.done == (step >= end)
        if answer is not None:
            assert begin <= step <= end
            assert (step - begin) % every == 0 or step == end
            assert answer <= kept
            kept = answer
    assert kept == prunable - round(sparsity * prunable)


def removal_steps(schedule: Schedule, steps: int) -> dict[int, int]:
    """Return how many of 1,000 weights are kept after each step that removes some."""
    answers = {step: schedule.after_step(step=step, prunable=1000) for step in range(steps + 1)}
    return {step: kept for step, kept in answers.items() if kept is not None}


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        # Half of the training by default, with a removal at each hundredth of it.
        ({"total_steps": 400}, range(0, 201, 4)),
        ({"epochs": 4, "steps_per_epoch": 100}, range(0, 201, 4)),
        ({"total_steps": 100_000}, range(0, 50_001, 100)),
        ({"total_steps": 400, "begin": 0.25, "end": 0.75, "every": 50}, range(100, 301, 50)),
        ({"total_steps": 10, "end": 1}, range(11)),
        ({"total_steps": 10, "begin": 0.33, "end": 0.66}, range(3, 8)),
        # At least one step, however short the training.
        ({"total_steps": 1}, range(2)),
        ({"total_steps": 2, "begin": 0.99, "end": 1.0}, range(1, 3)),
        ({"total_steps": 1000, "begin": 0.5, "end": 0.5001}, range(500, 502)),
    ],
)
def test_gradual_prunes_between_fractions_of_the_training(
    arguments: dict[str, Any], steps: range
) -> None:
    removals = removal_steps(GradualPruning(sparsity=0.875, **arguments), steps[-1] + 5)
    assert list(removals) == list(steps)
    assert removals[steps[-1]] == 125


@given(
    total=st.integers(1, 5000),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda b: b[0] < b[1]),
)
def test_gradual_ends_exactly_within_any_training(total: int, bounds: tuple[float, float]) -> None:
    begin, end = bounds
    schedule = GradualPruning(kept=7, total_steps=total, begin=begin, end=end)
    removals = removal_steps(schedule, total)
    last = max(removals)
    assert removals[last] == 7
    assert schedule.done
    assert begin * total - 1 <= min(removals) < last <= max(end * total, begin * total + 1) + 1
    assert list(removals.values()) == sorted(removals.values(), reverse=True)


def test_gradual_keeps_the_counts_computed_by_hand() -> None:
    # kept = 100 + 900 (1 − f)³ at f = 0, 1/4, 1/2, 3/4, 1
    schedule = GradualPruning(kept=100, begin=10, end=30, every=5)
    answers = [schedule.after_step(step=s, prunable=1000) for s in (10, 15, 20, 25, 30)]
    assert answers == [1000, 480, 212, 114, 100]


def test_one_shot_removes_at_its_step_or_at_the_first_validation() -> None:
    at_step = OneShot(sparsity=0.9, at=3)
    answers = [at_step.after_step(step=s, prunable=50) for s in range(1, 6)]
    assert answers == [None, None, 5, None, None]
    assert at_step.after_validation(PruningStatus(met=True, prunable=50, kept=5)) is None
    first = OneShot(sparsity=0.9)
    assert first.after_step(step=1, prunable=50) is None
    assert first.after_validation(PruningStatus(met=True, prunable=50, kept=50)) == 5
    assert first.after_validation(PruningStatus(met=True, prunable=50, kept=5)) is None


@pytest.mark.parametrize(
    "make",
    [
        Schedule,
        lambda: IterativePruning(patience=3, target=0.5),
        lambda: IterativePruning(fraction=0.2),
        lambda: GradualPruning(sparsity=0.5, end=10, every=3),
        lambda: GradualPruning(sparsity=0.5, epochs=2, steps_per_epoch=5),
        lambda: OneShot(sparsity=0.5, at=4),
    ],
)
@pytest.mark.parametrize("stop", range(6))
def test_a_restored_schedule_goes_on_as_the_original(
    make: Callable[[], Schedule], stop: int
) -> None:
    def tell(schedule: Schedule, step: int) -> tuple[object, object, bool]:
        return (
            schedule.after_step(step=step, prunable=100),
            schedule.after_validation(PruningStatus(met=step % 3 == 0, prunable=100, kept=60)),
            schedule.done,
        )

    original, restored = make(), make()
    for step in range(1, stop + 1):
        tell(original, step)
    restored.load_state_dict(original.state_dict())
    assert restored.done == original.done
    for step in range(stop + 1, 12):
        assert tell(restored, step) == tell(original, step)


def test_the_state_of_another_schedule_is_refused() -> None:
    with pytest.raises(PrunusError, match=r"not the state of a OneShot: expected \['done'\], got"):
        OneShot(sparsity=0.5).load_state_dict(GradualPruning(sparsity=0.5, end=1).state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: IterativePruning(fraction=0.0),
            "fraction must be above 0 and below 1 or None, but is 0",
        ),
        (
            lambda: IterativePruning(target=1.0),
            "target must be above 0 and below 1 or None, but is",
        ),
        (lambda: IterativePruning(patience=0), "patience must be at least 1 or None, but is 0"),
        (lambda: GradualPruning(end=5), "either sparsity or kept.*sparsity=None and kept=None"),
        (lambda: GradualPruning(sparsity=0.5, kept=3, end=5), "either sparsity or kept"),
        (lambda: GradualPruning(kept=0, end=5), "kept must be at least 1 or None, but is 0"),
        (
            lambda: GradualPruning(sparsity=0.5, begin=5, end=5),
            "begin must be from 0 to below 5, but is 5",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, end=100.5),
            "end must be a whole number of at least 1, but is 100.5",
        ),
        (lambda: GradualPruning(sparsity=0.5, end=9, every=2.5), "every must be a whole number"),  # type: ignore[arg-type]
        (lambda: OneShot(sparsity=0.5, at=2.5), "at must be a whole number of at least 1 or None"),  # type: ignore[arg-type]
        (lambda: IterativePruning(fraction="0.1"), "fraction must be a finite number .* is '0.1'"),  # type: ignore[arg-type]
        (lambda: IterativePruning(patience=1.5), "patience must be a whole number"),  # type: ignore[arg-type]
        (lambda: Constraint(True), "floor must be a number, .* but is True"),
        (
            lambda: Constraint("dense-0.1", dense_metric=math.nan),
            "dense_metric must be a finite number or None, but is nan",
        ),
        (
            lambda: GradualPruning(sparsity=0.5),
            "^pass total_steps, or epochs and steps_per_epoch, or the step end, but got none of "
            "them$",
        ),
        (lambda: GradualPruning(sparsity=0.5, end=1.0), "is 1.0; fractions of the training need"),
        (lambda: GradualPruning(sparsity=0.5, end=1.5), "but is 1.5$"),
        (lambda: GradualPruning(sparsity=0.5, begin=0.0, end=9), "but is 0.0$"),  # no hint
        (
            lambda: GradualPruning(sparsity=0.5, epochs=3),
            "^pass the length .* either total_steps, or epochs and .*, but got epochs=3$",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, total_steps=9, epochs=3, steps_per_epoch=3),
            "but got total_steps=9 and epochs=3 and steps_per_epoch=3$",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, total_steps=9000, end=4500),
            "^as a fraction of the training, end must be above 0 and at most 1, but is 4,500: "
            "divide steps by those of the training$",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, total_steps=100, begin=25, end=75),
            "end must be .* is 75: pass end=0.75 for 75 percent; as .* begin=0.25 for 25 percent$",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, total_steps=100, begin=0.5),
            "^as a fraction of the training, begin must be from 0 to below 0.5, but is 0.5",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, begin=0.25, end=0.75),
            "^end must be a whole number of at least 1, but is 0.75; fractions of the training "
            "need total_steps, too; begin must be a whole number .*, too$",
        ),
        (
            lambda: GradualPruning(sparsity=0.5, epochs="3", steps_per_epoch="x"),  # type: ignore[arg-type]
            "^epochs must be a whole number of at least 1 or None, but is '3'; steps_per_epoch",
        ),
        (
            lambda: GradualPruning(sparsity=90, total_steps=0),
            "=0.9 for 90 percent; total_steps must",
        ),
        (lambda: GradualPruning(sparsity=0.0, end=5), "sparsity must be above 0 and below 1 or"),
        (lambda: GradualPruning(sparsity=1.0, end=5), "sparsity must be above 0 and below 1 or"),
        (lambda: GradualPruning(kept=2, end=0), "^end must be at least 1, but is 0$"),
        (lambda: GradualPruning(kept=2, end=1, begin=1), "^begin must be .* below 1, but is 1$"),
        (lambda: GradualPruning(kept=2, end=5, begin=-1), "^begin must be at least 0, but is -1$"),
        (lambda: GradualPruning(kept=2.5, end=5), "kept must be a whole number of at least 1 or"),  # type: ignore[arg-type]
        (
            lambda: GradualPruning(kept=2, begin=1.5, end=5),
            "begin must be a whole number",
        ),
        (
            lambda: OneShot(sparsity=90),
            "sparsity must be above 0 and below 1, but is 90: pass sparsity=0.9 for 90 percent",
        ),
        (
            lambda: IterativePruning(fraction=10, target=97.5),
            "but is 10: pass fraction=0.1 for 10 percent; .* target=0.975 for 97.5 percent$",
        ),
        (
            lambda: OneShot(sparsity=100),
            "^sparsity must be above 0 and below 1, but is 100$",
        ),
        (lambda: OneShot(sparsity=0.5, at=0), "at must be at least 1 or None, but is 0"),
        (lambda: Constraint(mode="up"), "mode must be 'max' or 'min', but is 'up'"),  # type: ignore[arg-type]
        (lambda: Constraint("dense/2"), 'floor must be a number, or "dense-0.005"'),
    ],
)
def test_invalid_arguments_are_rejected(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        make()


@pytest.mark.parametrize(
    ("bound", "mode", "dense", "value"),
    [
        (0.98, "max", None, 0.98),
        ("0.98", "max", None, 0.98),
        ("dense", "max", 0.9, 0.9),
        (" dense - 0.25 ", "max", 0.75, 0.5),
        ("dense+0.5", "min", 2.0, 2.5),
        ("dense*1.5", "min", 2.0, 3.0),
        ("dense-1e-2", "max", 1.01, 1.0),
        ("dense-0.5%", "max", 0.98, 0.9751),
        ("dense - 0.5 %", "max", 50.0, 49.75),
        ("dense+2%", "min", 25.0, 25.5),
        ("dense*99%", "max", 2.0, 1.98),
        # A log-likelihood: 10 percent of its size below it.
        ("dense-10%", "max", -2.0, -2.2),
        ("dense+10%", "min", -2.0, -1.8),
    ],
)
def test_a_floor_has_the_value_computed_by_hand(
    bound: float | str, mode: Any, dense: float | None, value: float
) -> None:
    floor = Constraint(bound, mode, dense)
    assert floor.bound == pytest.approx(value)
    worse, better = (-1e-6, 1e-6) if mode == "max" else (1e-6, -1e-6)
    exact = floor.bound
    assert floor.met(exact)
    assert floor.met(exact + better)
    assert not floor.met(exact + worse)
    assert floor.better(exact + better, exact)
    assert not floor.better(exact, exact)


@pytest.mark.parametrize(
    "bound",
    [
        "",
        "nan",
        "inf",
        "dense-",
        "dense-x",
        "dens",
        float("nan"),
        "98%",
        "dense-%",
        "dense%",
        "dense-5%%",
    ],
)
def test_invalid_floors_are_rejected(bound: Any) -> None:
    with pytest.raises(PrunusError, match="floor must be a number, or"):
        Constraint(bound)


def test_a_relative_floor_needs_the_dense_metric() -> None:
    with pytest.raises(PrunusError, match="needs the metric of the dense network"):
        Constraint("dense-0.1").bound  # noqa: B018


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(
        PrunusError,
        match="^every must be at least 1 or None, but is 0; power must be above 0, but is -1; pass "
        "either .*; end must be at least 1, but is 0; begin must be at least 0, but is -1$",
    ):
        GradualPruning(end=0, begin=-1, every=0, power=-1)
    with pytest.raises(
        PrunusError,
        match="^floor must be a number.*; mode must be 'max' or 'min', but is 'most'; dense_metric "
        "must be .* but is 'y'$",
    ):
        Constraint("x", mode="most", dense_metric="y")  # type: ignore[arg-type]
