"""Runs of the command: messages, resumption, adopted dense networks and errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import SHORT, metrics, prunus, settings, summary
from helpers.runs import at_step
from prunus import __version__
from prunus._utils.files import load_tree, save_tree
from prunus.recipes.run.directory import RunDirectory

BRIEF: dict[str, Any] = {"dense_epochs": 2, "epochs": 3, "floor": "none", "batch_size": 200}


def test_resume_restores_the_settings(tmp_path: Path) -> None:
    chosen = settings(**BRIEF, schedule="gradual", ratio=7)
    whole = prunus("run", "digits", *chosen, "--seed", "3", "--out", tmp_path / "run")
    assert whole.code == 0
    again = prunus("run", "digits", "--out", tmp_path / "run", "--resume")
    assert again.code == 0
    assert "is complete; nothing is left to do" in again.out
    other = prunus("run", "digits", "--seed", "4", "--out", tmp_path / "run", "--resume")
    other.refused("seed was 3 and is 4")
    other = prunus("run", "digits", "--set", "ratio=8", "--out", tmp_path / "run", "--resume")
    other.refused("ratio was 7.0 and is 8.0")


def test_unreachable_ratio_is_rejected_before_training(tmp_path: Path) -> None:
    chosen = settings(**BRIEF, biases="false", ratio=200)
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    # 300 + 100 + 10 biases and at least one weight stay of 50,610.
    outcome.refused(
        "ratio=200 cannot be reached",
        "at least 411 of 50,610",
        "so the largest possible ratio is 123.1: lower ratio or set biases=true\n",
    )
    assert not (tmp_path / "run").exists()
    chosen = settings(**BRIEF, min_density=0.1, ratio=20)
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    outcome.refused(
        "ratio=20 cannot be reached",
        "so the largest possible ratio is 10.0: lower ratio or lower min_density\n",
    )


def test_setting_without_effect_is_reported(tmp_path: Path) -> None:
    chosen = settings(**BRIEF, schedule="gradual", patience=5)
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    message = "patience has no effect with schedule=gradual: set schedule=iterative, or leave it"
    assert (outcome.code, outcome.out.count(message)) == (0, 1), outcome


def test_reason_for_an_early_end_is_reported(tmp_path: Path) -> None:
    chosen = settings(
        **{**BRIEF, "dense_epochs": 9, "epochs": 9, "floor": "dense-0.01", "patience": 1},
        fraction=0.99,
        ratio=500,
    )
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "patience")
    assert outcome.code == 0
    assert "done before the last epoch: nothing more can be removed" in outcome.out
    assert "the ratio 500 was not reached" in outcome.out
    assert summary(tmp_path / "patience")["compression_ratio"] < 500


def test_run_that_keeps_a_single_weight_completes(tmp_path: Path) -> None:
    chosen = settings(**{**BRIEF, "epochs": 6}, fraction=0.99, ratio=0)
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    assert outcome.code == 0
    # Of 50,610 a hundredth is kept each time, rounded: 506, 5 and 1.
    assert summary(tmp_path / "run")["nonzero"] == 1


def test_version_is_printed() -> None:
    assert prunus("--version").out == f"{__version__}\n"


def test_settings_of_a_recipe_are_listed() -> None:
    out = prunus("recipes", "mnist-lenet5").out
    for part in (
        "ratio",
        "310.2",
        "relevance, lobster, l2, l1 or none",
        "initial_weights",
        "random",
    ):
        assert part in out
    prunus("recipes", "mnist").refused("there is no recipe 'mnist'")


@pytest.mark.parametrize("score", ["taylor", "fisher", "sensitivity", "movement"])
def test_gradient_scores_with_penalty_in_the_loss_are_rejected_before_training(
    score: str, tmp_path: Path
) -> None:
    chosen = settings(**BRIEF, score=score, apply="loss")
    prunus("run", "digits", *chosen, "--out", tmp_path / "run").refused(
        f"score={score} needs the gradient of the loss alone", "choose another apply or score"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe": "digits"}', "{"])
def test_damaged_config_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    outcome = prunus("run", "digits", "--out", tmp_path, "--resume")
    outcome.refused("config.json is damaged")


@pytest.mark.slow
def test_dense_network_of_another_run_is_adopted(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert prunus("run", "digits", *SHORT, "--out", first).code == 0
    outcome = prunus("run", "digits", *SHORT, "--dense", first, "--out", second, *OTHER)
    assert outcome.code == 0, outcome.err
    assert f"the dense network is that of {first}" in outcome.out
    name = "checkpoints/dense.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    one, other = summary(first), summary(second)
    assert one["dense"] == other["dense"]
    assert one["nonzero"] != other["nonzero"]
    assert {line["phase"] for line in metrics(second)} == {"prune"}
    # The first run is not needed any more.
    shutil.rmtree(first)
    assert "complete" in prunus("run", "digits", "--out", second, "--resume").out


@pytest.mark.slow
def test_pruning_an_adopted_dense_network_gives_the_same_bits(tmp_path: Path) -> None:
    whole, donor, adopted = tmp_path / "whole", tmp_path / "donor", tmp_path / "adopted"
    for path, more in (
        (whole, []),
        (donor, OTHER),
        (adopted, ["--dense", str(donor)]),
    ):
        assert prunus("run", "digits", *SHORT, *settings(shift=1), *more, "--out", path).code == 0
    assert (whole / "model.safetensors").read_bytes() == (
        adopted / "model.safetensors"
    ).read_bytes()
    assert (donor / "model.safetensors").read_bytes() != (
        adopted / "model.safetensors"
    ).read_bytes()


OTHER = settings(ratio=3, fraction=0.5, penalty="l2", strength=0.01)


def test_dense_network_of_another_seed_or_training_is_rejected(tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert prunus("run", "digits", *SHORT, "--out", first).code == 0
    changed = [*SHORT, "--seed", "1", *settings(momentum=0.5)]
    outcome = prunus("run", "digits", *changed, "--dense", first, "--out", tmp_path / "second")
    outcome.refused("momentum is 0.9 there and 0.5 here", "seed is 0 there and 1 here")
    outcome = prunus("run", "digits", "--dense", tmp_path / "no", "--out", tmp_path / "third")
    outcome.refused("there is no run in")


def test_dense_network_of_another_version_is_rejected(finished_run: Path, tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    shutil.copytree(finished_run, donor)
    file = RunDirectory(donor).after_dense_file
    after = load_tree(file)
    del after["random_state"], after["data_order"]
    save_tree(file, after)
    options = ("--dense", donor, "--out", tmp_path / "run")
    prunus("run", "digits", *SHORT, "--set", "floor=none", *options).refused(
        "written by another version: it lacks data_order, random_state"
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("errors_too", [False, True])
def test_output_that_cannot_be_written_is_reported(tmp_path: Path, errors_too: bool) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prunus", "run", "digits", *SHORT, "--out", tmp_path / "run"],
            stdout=full,
            stderr=full if errors_too else subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    if not errors_too:
        assert done.stderr.startswith("error: cannot write to the standard output: No space left")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists(), "the run had not started"


@pytest.mark.slow
def test_threads_are_those_of_the_option_the_environment_and_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, own = settings(dense_epochs=1, epochs=1), torch.get_num_threads()

    def used(name: str, *options: str) -> int:
        before = torch.get_num_threads()
        assert prunus("run", "digits", *short, "--out", tmp_path / name, *options).code == 0
        assert torch.get_num_threads() == before
        return int(summary(tmp_path / name)["environment"]["threads"])

    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert used("environment") == 2
        assert used("option", "--threads", "3") == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert used("recipe") == 1
    finally:
        torch.set_num_threads(own)


def test_command_that_resumes_has_the_options(tmp_path: Path) -> None:
    with at_step(40, KeyboardInterrupt):
        outcome = prunus("run", "digits", "--out", tmp_path / "run", "--threads", "2")
    assert outcome.out.rstrip().endswith(f"--out {tmp_path / 'run'} --resume --threads 2")
