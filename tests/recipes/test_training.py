"""Runs of the digits recipe: summary, metrics, delivered network, and errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from helpers.commands import SHORT, metrics, prunus, settings, summary
from helpers.runs import HARD
from prunus._utils.files import load_tree
from prunus.recipes.data.images import Split, load_digits
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.classification import ImageConfig as Config


def accuracy(path: Path, split: Split) -> float:
    """Return the accuracy of a saved network, computed by NumPy."""
    weights = load_file(path)
    x = split.inputs.numpy().reshape(len(split), 64)
    for layer in ("1", "3", "5"):
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = np.maximum(x, 0) if layer != "5" else x
    return float((x.argmax(axis=1) == split.labels.numpy()).mean())


def test_summary_has_exactly_these_keys(finished_hard_run: Path) -> None:
    def keys(value: Any) -> Any:
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None

    splits = dict.fromkeys(("validation", "validation_loss", "test", "test_loss"))
    held = keys(summary(finished_hard_run))
    assert set(held.pop("environment")) == {
        *("prunus", "python", "torch", "platform", "processor", "cores", "threads"),
    }
    assert held == {
        "recipe": None,
        "method": None,
        "method_name": None,
        "seed": None,
        "parameters": None,
        "nonzero": None,
        "sparsity": None,
        "compression_ratio": None,
        "multiply_adds": {"dense": None, "sparse": None},
        "metric": {"name": None, "mode": None},
        "dense": splits,
        "sparse": splits,
        "layer_types": {"linear": {"prunable": None, "nonzero": None}},
        "seconds": {"dense": None, "prune": None, "total": None},
        "bytes": {"dense": None, "sparse": None},
    }


def test_summary_matches_the_files(finished_hard_run: Path) -> None:
    held = summary(finished_hard_run)
    names = [key.removeprefix("test_") for key in held["sparse"] if key.startswith("test_")]
    assert (held["metric"]["name"], *names) == RECIPES["digits"].metrics
    model = load_file(finished_hard_run / "model.safetensors")
    parameters = sum(tensor.size for tensor in model.values())
    nonzero = sum(int(np.count_nonzero(tensor)) for tensor in model.values())
    assert parameters == 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert (held["parameters"], held["nonzero"]) == (parameters, nonzero)
    # Each weight of a linear layer is multiplied once; biases are added.
    weights = [tensor for tensor in model.values() if tensor.ndim == 2]
    dense, sparse = sum(w.size for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
    assert held["multiply_adds"] == {"dense": dense, "sparse": sparse}
    inspected = prunus("inspect", finished_hard_run).out
    assert f"multiply-adds of an example: {sparse:,} of {dense:,}" in inspected
    assert f"{parameters:,} parameters, of which {nonzero:,} are non-zero" in inspected
    assert nonzero < parameters / 5, "the network is hardly sparse"
    assert held["sparsity"] == pytest.approx(1 - nonzero / parameters)
    assert held["compression_ratio"] == parameters / nonzero
    assert held["bytes"] == {
        "dense": (finished_hard_run / "checkpoints" / "dense.safetensors").stat().st_size,
        "sparse": (finished_hard_run / "model.safetensors").stat().st_size,
    }
    assert held["metric"] == {"name": "accuracy", "mode": "max"}
    assert (held["recipe"], held["seed"]) == ("digits", 0)
    assert held["method"] == "relevance (decoupled), iterative, fisher"
    assert held["environment"]["torch"] == torch.__version__


def test_accuracies_match_the_saved_networks(finished_hard_run: Path) -> None:
    held, images = summary(finished_hard_run), load_digits(0.2, 0)
    for kind, file in (("dense", "checkpoints/dense.safetensors"), ("sparse", "model.safetensors")):
        for split in ("validation", "test"):
            measured = accuracy(finished_hard_run / file, getattr(images, split))
            assert held[kind][split] == pytest.approx(measured, abs=1e-12), (kind, split)


def test_delivered_network_is_the_sparsest_that_met_the_floor(finished_hard_run: Path) -> None:
    held, lines = summary(finished_hard_run), metrics(finished_hard_run)
    floor = held["dense"]["validation"] - 0.02
    assert held["sparse"]["validation"] >= floor
    pruning = [line for line in lines if line["phase"] == "prune"]
    assert any(line["validation"] < floor for line in pruning), (
        "some validations are below the floor"
    )
    met = [line for line in pruning if line["validation"] >= floor]
    sparsest = max(line["sparsity"] for line in met)
    assert held["sparsity"] == pytest.approx(sparsest, abs=1e-12)
    best = max(line["validation"] for line in met if line["sparsity"] == sparsest)
    assert held["sparse"]["validation"] == best


def test_metrics_have_a_line_per_epoch_in_order(finished_hard_run: Path) -> None:
    lines = metrics(finished_hard_run)
    assert [(line["phase"], line["epoch"]) for line in lines] == [
        *(("dense", epoch) for epoch in range(1, 5)),
        *(("prune", epoch) for epoch in range(1, 9)),
    ]
    for line in lines:
        assert set(line) == {
            *("phase", "epoch", "loss", "validation_loss", "validation", "extra_metrics"),
            *("floor", "sparsity", "removed", "penalty", "predicted_cost", "seconds"),
            *("lr", "restored"),
        }
        assert all(math.isfinite(line[key]) for key in ("loss", "validation_loss", "validation"))
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert summary(finished_hard_run)["seconds"]["total"] >= seconds[-1]
    assert summary(finished_hard_run)["dense"]["validation"] == lines[3]["validation"]


def test_removals_add_up_and_happen_only_at_or_above_the_floor(finished_hard_run: Path) -> None:
    pruning = [line for line in metrics(finished_hard_run) if line["phase"] == "prune"]
    kept = 50_610
    for line in pruning:
        assert line["sparsity"] == pytest.approx(1 - kept / 50_610, abs=1e-12)
        assert (line["removed"] > 0) == (line["validation"] >= line["floor"])
        if line["removed"]:
            assert line["removed"] == min(round(0.6 * kept), kept - 253)
        kept -= line["removed"]


def test_config_file_contains_every_setting(finished_hard_run: Path) -> None:
    held = json.loads((finished_hard_run / "config.json").read_text())
    assert {key: held[key] for key in ("recipe", "seed", "data")} == {
        "recipe": "digits",
        "seed": 0,
        "data": None,
    }
    assert held["config"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert {key: held["config"][key] for key in HARD} == HARD


def test_printed_summary_matches_the_file(tmp_path: Path) -> None:
    outcome = prunus("run", "digits", *SHORT, "--out", tmp_path / "run")
    held = summary(tmp_path / "run")
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in outcome.out.splitlines()
        if line.startswith("│")
    ]
    for row in (
        ["validation accuracy", *(f"{held[kind]['validation']:.4f}" for kind in KINDS)],
        ["test accuracy", *(f"{held[kind]['test']:.4f}" for kind in KINDS)],
        ["parameters", "50,610", "50,610"],
        ["non-zero", "50,610", f"{held['nonzero']:,}"],
        ["compression ratio", "1.0", f"{held['compression_ratio']:.1f}"],
        ["bytes on disk, zeros stored", *(f"{held['bytes'][kind]:,}" for kind in KINDS)],
    ):
        assert row in rows
    assert f"written to {tmp_path / 'run'}\n" in outcome.out
    for line in metrics(tmp_path / "run"):
        shown = f"epoch {line['epoch']}/{2 if line['phase'] == 'dense' else 3}"
        assert (
            f"{shown}  loss {line['loss']:.4f}  validation accuracy {line['validation']:.4f}"
            in (outcome.out)
        )


KINDS = ("dense", "sparse")


@pytest.mark.slow
def test_network_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> bytes:
        path = tmp_path / name
        assert prunus("run", "digits", *SHORT, "--seed", str(seed), "--out", path).code == 0
        return (path / "model.safetensors").read_bytes()

    first = run("a", 1)
    assert run("b", 1) == first
    assert run("c", 2) != first


# Every choice reaches a ratio of 5 within three epochs.
FAST: dict[str, Any] = {
    "dense_epochs": 1,
    "epochs": 2,
    "floor": "none",
    "fraction": 0.9,
    "ratio": 5,
}


def choices() -> list[dict[str, str]]:
    hints = get_type_hints(Config)

    def options(key: str) -> tuple[str, ...]:
        return get_args(hints[key])

    # The automatic strength and the default score do not go with every penalty.
    common = {"strength": "0.01", "score": "magnitude"}
    penalties = [
        {"penalty": p, "apply": a, **common} for p in options("penalty") for a in options("apply")
    ]
    schedules = [{"schedule": s, "score": c} for s in options("schedule") for c in options("score")]
    strengths = [{"strength_schedule": s, "strength": "0.01"} for s in options("strength_schedule")]
    others = [{"relative": "false"}, {"momentum": "0"}, {"warmup": "0"}, {"min_density": "0.01"}]
    return penalties + schedules + strengths + others


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices(), ids=lambda choice: "-".join(choice.values()))
def test_run_with_any_choice_reaches_its_ratio(tmp_path: Path, choice: dict[str, str]) -> None:
    outcome = prunus("run", "digits", *settings(**{**FAST, **choice}), "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    held = summary(tmp_path / "run")
    # 50,610 / 5 weights are kept, all of them non-zero except those that L1 has just zeroed.
    assert held["sparsity"] == pytest.approx(0.8, abs=1e-12)
    assert held["nonzero"] <= 10_122
    assert held["nonzero"] > (5_000 if choice.get("penalty") == "l1" else 10_000)
    assert held["sparse"]["validation"] > 0.2, "better than chance"


def test_run_without_biases_removes_only_weights_and_reaches_its_ratio(tmp_path: Path) -> None:
    chosen = settings(**{**FAST, "biases": "false"})
    assert prunus("run", "digits", *chosen, "--out", tmp_path / "run").code == 0
    model = load_file(tmp_path / "run" / "model.safetensors")
    assert all(np.count_nonzero(model[f"{layer}.bias"]) > 0 for layer in ("1", "3", "5"))
    weights = sum(int(np.count_nonzero(model[f"{layer}.weight"])) for layer in ("1", "3", "5"))
    assert weights == 10_122 - 410
    assert summary(tmp_path / "run")["nonzero"] <= 10_122


def test_every_tensor_keeps_its_smallest_density(tmp_path: Path) -> None:
    chosen = settings(**{**FAST, "ratio": 100, "fraction": 0.99, "min_density": 0.005})
    assert prunus("run", "digits", *chosen, "--out", tmp_path / "run").code == 0
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        if name.endswith("weight"):
            assert np.count_nonzero(tensor) >= 0.005 * tensor.size, name
    assert summary(tmp_path / "run")["nonzero"] <= 506


@pytest.mark.slow
def test_run_with_n_of_m_ends_at_exactly_that(tmp_path: Path) -> None:
    chosen = settings(**{**FAST, "schedule": "gradual", "pattern": "2:4", "ratio": 2})
    assert prunus("run", "digits", *chosen, "--out", tmp_path / "run").code == 0
    model = load_file(tmp_path / "run" / "model.safetensors")
    for layer in ("1", "3", "5"):
        kept = np.count_nonzero(model[f"{layer}.weight"].reshape(-1, 4), axis=1)
        assert kept.max() == 2
        assert (kept == 2).mean() > 0.999  # a weight may be zero by chance
    held = summary(tmp_path / "run")
    assert held["sparsity"] == 0.5
    assert held["method"].endswith(", 2:4")


@pytest.mark.slow
def test_run_with_channels_recovers_although_it_is_less_than_a_channel_from_its_ratio(
    tmp_path: Path,
) -> None:
    chosen = settings(**{**FAST, "epochs": 6, "pattern": "channels"})
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "was not reached" not in outcome.out
    assert [line["epoch"] for line in metrics(tmp_path / "run") if line["phase"] == "prune"] == [
        *range(1, 7)
    ]
    model = load_file(tmp_path / "run" / "model.safetensors")
    removed = {name: ~model[f"{name}.weight"].any(axis=1) for name in ("1", "3", "5")}
    kept = sum(int((~rows).sum()) * model[f"{n}.weight"].shape[1] for n, rows in removed.items())
    biases = sum(np.count_nonzero(model[f"{name}.bias"]) for name in removed)
    assert 10_122 <= kept + biases < 10_122 + 300
    assert sum(map(np.sum, removed.values())) > 100


@pytest.mark.parametrize(
    ("chosen", "parts"),
    [
        ({"pattern": "2:4"}, ("ratio=5 with pattern=2:4 cannot be reached: ", "at least 25,100")),
        ({"pattern": "1x99"}, ("Block(rows=1, columns=99) needs a matrix of at least 1×99",)),
    ],
)
def test_pattern_that_does_not_fit_is_rejected_before_training(
    tmp_path: Path, chosen: dict[str, Any], parts: tuple[str, ...]
) -> None:
    outcome = prunus("run", "digits", *settings(**{**FAST, **chosen}), "--out", tmp_path / "run")
    outcome.refused(*parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_iterative_run_recovers_after_reaching_its_target(tmp_path: Path) -> None:
    chosen = settings(**{**FAST, "epochs": 20})
    assert prunus("run", "digits", *chosen, "--out", tmp_path / "run").code == 0
    pruning = [line for line in metrics(tmp_path / "run") if line["phase"] == "prune"]
    assert [line["epoch"] for line in pruning] == list(range(1, 21))
    # One epoch removes; of the others, all equally sparse, the best is delivered.
    assert [line["removed"] > 0 for line in pruning] == [True] + 19 * [False]
    best = max(line["validation"] for line in pruning[1:])
    assert summary(tmp_path / "run")["sparse"]["validation"] == best


def test_iterative_run_ends_when_patience_is_exhausted(tmp_path: Path) -> None:
    chosen = settings(
        dense_epochs=4, epochs=30, fraction=0.999, ratio=0, patience=2, floor="dense-0.03"
    )
    assert prunus("run", "digits", *chosen, "--out", tmp_path / "run").code == 0
    pruning = [line for line in metrics(tmp_path / "run") if line["phase"] == "prune"]
    assert len(pruning) < 30
    assert [line["validation"] < line["floor"] for line in pruning[-2:]] == [True, True]


@pytest.mark.parametrize(
    ("chosen", "phase", "advice"),
    [
        ({"dense_lr": 1e30}, "dense", "lower dense_lr"),
        ({"lr": 1e30}, "prune", "lower lr or strength"),
        ({"strength": 1e30, "apply": "gradient"}, "prune", "lower lr or strength"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_loss_that_is_not_finite_stops_the_run_with_its_step(
    tmp_path: Path, chosen: dict[str, Any], phase: str, advice: str
) -> None:
    path = tmp_path / "run"
    outcome = prunus("run", "digits", *SHORT, *settings(**chosen), "--out", path)
    outcome.refused(" at step ", f"(epoch 1) of the {phase} training: {advice}", str(path))
    assert any(f"the loss is {value} at" in outcome.err for value in ("nan", "inf"))
    if phase == "prune":
        held = load_tree(path / "checkpoints" / "last.safetensors")
        assert (held["phase"], held["epoch"]) == ("dense", 2)
        assert all(tensor.isfinite().all() for tensor in held["model"].values())
        assert [line["epoch"] for line in metrics(path)] == [1, 2]
    again = prunus("run", "digits", *SHORT, *settings(**chosen), "--out", path, "--resume")
    again.refused(f"of the {phase} training")


@pytest.mark.parametrize("phase", ["dense", "prune"])
def test_network_broken_by_the_last_step_of_an_epoch_is_detected(
    tmp_path: Path, phase: str
) -> None:
    """Of two steps both losses are finite, but the loss after the second step is not."""
    chosen = settings(
        dense_epochs=1,
        epochs=1,
        batch_size=600,
        schedule="oneshot",
        ratio=2,
        floor="none",
        **{"dense_lr" if phase == "dense" else "lr": 1e8},
    )
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    outcome.refused("lower dense_lr" if phase == "dense" else "lower lr")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for line in metrics(tmp_path / "run"):
        assert math.isfinite(line["validation_loss"])
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    if last.exists():
        held = load_tree(last)["model"]
        assert all(tensor.isfinite().all() for tensor in held.values())


def test_floor_above_the_dense_metric_is_rejected_with_both_numbers(tmp_path: Path) -> None:
    chosen = settings(dense_epochs=1, epochs=1, floor=0.9999)
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    reached = metrics(tmp_path / "run")[-1]["validation"]
    outcome.refused(
        f"the dense network reaches a validation accuracy of {reached:.4f}, which does not "
        "meet the floor 0.9999, so nothing may be removed: lower it or raise dense_epochs"
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    percent = prunus("run", "digits", *settings(dense_epochs=1, epochs=1, floor=98))
    percent.refused("as if their units differed: pass floor=0.98")


def test_dense_network_is_delivered_if_no_sparse_one_meets_the_floor(tmp_path: Path) -> None:
    chosen = settings(dense_epochs=3, epochs=2, schedule="oneshot", ratio=5000, floor="dense-0.001")
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "the ratio 5000 was not reached: no network sparser" in outcome.out
    delivered = load_file(tmp_path / "run" / "model.safetensors")
    dense = load_file(tmp_path / "run" / "checkpoints" / "dense.safetensors")
    assert delivered.keys() == dense.keys()
    for name in dense:
        np.testing.assert_array_equal(delivered[name], dense[name], strict=True)


def test_floor_that_random_weights_never_meet_is_reported(tmp_path: Path) -> None:
    chosen = settings(
        dense_epochs=3,
        epochs=2,
        schedule="oneshot",
        ratio=5000,
        floor="dense-0.001",
        initial_weights="random",
    )
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    outcome.refused(
        "no validation met the floor 'dense-0.001'",
        "lower the floor, train longer, or remove less",
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
