"""A few of the benchmark's disturbances: kills at its calls, no room, a damaged checkpoint.

Those of ``test_resume`` raise an exception within the process, upon which it still tidies up; here
the process is gone at once, and a file may be half written.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def kills() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        yield importlib.import_module("benchmarks.robustness.kills")


@pytest.fixture(scope="module")
def bench(kills: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kills.Bench(tmp_path_factory.mktemp("kills"))


def survives(trial: Any) -> bool:
    """Say whether a disturbance met the run, nothing was lost, and it ended as if undisturbed."""
    return bool(trial.hits) and not trial.lost and not trial.unequal


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_a_run_killed_at_a_call_ends_with_the_same_bits(
    kills: Any, bench: Any, share: float
) -> None:
    trial = kills.at_a_call(bench, random.Random(1), round(share * bench.calls))
    assert survives(trial), trial


@pytest.mark.parametrize("share", [0.01, 0.4])
def test_a_run_out_of_room_says_so_and_loses_nothing(kills: Any, bench: Any, share: float) -> None:
    trial = kills.full_disk(bench, random.Random(1), max(1, round(share * bench.calls)))
    assert survives(trial), trial


def test_a_damaged_checkpoint_gives_way_to_the_one_before(kills: Any, bench: Any) -> None:
    trial = kills.damaged(bench, random.Random(1), 0)
    assert survives(trial), trial


def test_the_bench_tells_what_is_lost_and_what_is_unequal(kills: Any, bench: Any) -> None:
    trial = bench.trial()
    bench.watched(trial, kills.Disturbance("kill", bench.calls // 2))
    trial.look()
    assert trial.saved > (0, 0)
    trial.last.write_bytes(trial.previous.read_bytes())
    trial.look()
    assert "was saved, of which" in trial.lost[0]
    bench.finish(trial)
    assert not trial.unequal
    (trial.out / "stray").touch()
    metrics = trial.out / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss"', '"lost"', 1))
    found = kills.differences(trial.out, bench.undisturbed)
    assert found == ["only one of them has stray", "metrics.jsonl differs"]
