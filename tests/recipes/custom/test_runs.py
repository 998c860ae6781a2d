"""Runs of recipe files: training, resumption, and what a run does not execute by itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.commands import metrics, prunus, settings, summary
from helpers.runs import KilledError, assert_same_run, at_step, terminated_at_step
from prunus import load_sparse
from prunus.recipes.run.loading import load_trained
from recipes.custom.sources import STEPS, write


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a recipe file own.py, with its finished run."""
    folder = tmp_path_factory.mktemp("own")
    path = write(folder / "own.py")
    outcome = prunus("run", path, "--out", folder / "run")
    assert outcome.code == 0, outcome
    return folder


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run, whose recipe has moved with it."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    config = folder / "run" / "config.json"
    config.write_text(config.read_text().replace(str(finished), str(folder)))
    return folder


def test_run_reports_the_metric_by_its_name_and_reaches_the_ratio(finished: Path) -> None:
    result = summary(finished / "run")
    assert result["recipe"] == "own.py"
    assert result["metric"] == {"name": "accuracy", "mode": "max"}
    assert result["compression_ratio"] >= 3
    assert result["sparse"]["validation"] > 0.7


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", path, "--out", whole).code == 0
    # In the second dense epoch, and then in the second pruning epoch.
    for fatal, resume in ((STEPS + 3, []), (STEPS + STEPS + 4, ["--resume"])):
        with at_step(fatal, KilledError), pytest.raises(KilledError):
            prunus("run", path, "--out", stopped, *resume)
    assert [line["phase"] for line in metrics(stopped)] == ["dense", "dense", "prune"]
    assert prunus("run", path, "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_terminated_run_resumes_within_the_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus("run", path, "--out", whole).code == 0
    for fatal in (3, STEPS, 5, STEPS, 4):
        resume = ["--resume"] if (stopped / "config.json").exists() else []
        with terminated_at_step(fatal):
            outcome = prunus("run", path, "--out", stopped, *resume)
        assert outcome.code == 143
        assert f"resume with: prunus run {path} --out {stopped} --resume\n" in outcome.out
    assert prunus("run", path, "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, whole)


def test_dense_network_of_another_run_gives_the_same_bits(own: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    assert prunus("run", own / "own.py", "--out", second, "--dense", own / "run").code == 0
    assert metrics(second)[-1]["validation"] == metrics(own / "run")[-1]["validation"]
    assert (second / "model.safetensors").read_bytes() == (
        own / "run" / "model.safetensors"
    ).read_bytes()


def test_changed_file_is_refused_by_resumption_and_as_a_donor(own: Path, tmp_path: Path) -> None:
    path = write(own / "own.py", ("nn.Dropout(0.1)", "nn.Dropout(0.2)"))
    prunus("run", path, "--out", own / "run", "--resume").refused(
        f"the recipe own.py has changed since the run in {own / 'run'} began"
    )
    prunus("run", path, "--out", tmp_path / "second", "--dense", own / "run").refused(
        "because own.py has changed since then"
    )
    assert not (tmp_path / "second").exists()


def test_run_without_test_batches_states_it(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", (", DataLoader(Pairs(100, 0), 50)\n", "\n"))
    outcome = prunus("run", path, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "own.py has no batches to test on: the test figures are those of the" in outcome.out
    assert "test accuracy" not in outcome.out
    assert "test_split" in summary(tmp_path / "run")["metric"]


def test_run_without_a_metric_minimizes_the_loss(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", ("metric = accuracy\n", ""))
    assert prunus("run", path, "--out", tmp_path / "run").code == 0
    result = summary(tmp_path / "run")
    assert result["metric"] == {"name": "loss", "mode": "min"}
    assert result["sparse"]["test"] == result["sparse"]["test_loss"]


def test_loss_can_take_a_teacher_and_settings(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.py",
        ("width=32)", "width=32, weight=2.0)"),
        ("def loss(model, batch):", "def loss(model, batch, teacher, weight, seed=None):"),
        ("    return factor *", "    assert (weight, seed) == (3.0, 1)\n"
         "    if teacher:\n        print('fraction', teacher.fraction)\n    return factor *"),
    )  # fmt: skip
    changes = settings(weight=3.0, distillation=0.25)
    outcome = prunus("run", path, "--seed", 1, *changes, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert outcome.out.count("fraction 0.25\n") == 3 * STEPS


@pytest.mark.slow
def test_files_of_a_run_are_exported_and_reported(own: Path) -> None:
    run = own / "run"
    said = f"running the recipe {own / 'own.py'}\n"
    outcome = prunus("export", run, "--to", "compact")
    assert outcome.code == 0, outcome
    assert said in outcome.out
    assert said in prunus("sensitivity", run, "--sparsities", "0.5").out
    inspected = prunus("inspect", run)
    assert inspected.code == 0
    assert said not in inspected.out
    assert prunus("report", run).code == 0
    assert "own.py, seed 0" in (run / "report.html").read_text()
    other = own / "model.sparse.safetensors"
    assert prunus("export", run, "--to", "sparse", "--out", other).code == 0
    prunus("export", other, "--to", "compact").refused(
        "was trained by the Python file own.py, of which nothing but the name is known here: pass "
        "it with --recipe FILE"
    )
    assert prunus("export", other, "--to", "compact", "--recipe", own / "own.py").code == 0


def test_own_settings_and_example_inputs_are_those_of_the_run(own: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.py",
        ("metric = accuracy\n", "metric = accuracy\n\n\ndef example_inputs(batch_size, width):\n"
         "    return torch.full((batch_size, 2), float(width))\n"),
    )  # fmt: skip
    assert prunus("run", path, *settings(width=24), "--out", tmp_path / "run").code == 0
    network = load_trained(tmp_path / "run" / "model.safetensors")
    assert network.model.get_parameter("0.weight").shape == (24, 2)
    torch.testing.assert_close(network.example_inputs(3), torch.full((3, 2), 24.0))
    network = load_trained(own / "run" / "model.safetensors")
    inputs = network.example_inputs(50)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (50, 2)


HEAD = """metric = accuracy


def selection(model, width):
    assert width == model[0].out_features
    return prunus.select(model, exclude=["3.*"])
"""


def test_own_selection_is_pruned_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.py",
        ("metric = accuracy\n", HEAD),
        ("import numpy as np\n", "import numpy as np\nimport prunus\n"),
    )
    run = tmp_path / "run"
    prunus("run", path, "--set", "biases=false", "--out", run).refused(
        "biases=false has no effect, because selection() of own.py takes no argument biases"
    )
    assert prunus("run", path, "--set", "ratio=1.3", "--out", run).code == 0
    tensors = load_sparse(run / "model.safetensors")
    assert (tensors["0.weight"] == 0).float().mean() > 0.5
    assert (tensors["3.weight"] == 0).sum() == 0
    wrong = ("metric = accuracy\n", "metric = accuracy\nselection = lambda model: ['0.weight']\n")
    write(path, wrong)
    prunus("run", path, "--out", tmp_path / "other").refused(
        "selection() of own.py must return a Selection, such as prunus.select(model), but returned "
        "['0.weight']"
    )


def planted(path: Path, marker: Path) -> None:
    """Append a line that leaves a marker when a recipe is run."""
    path.write_text(path.read_text() + f"\nopen({str(marker)!r}, 'w').close()\n")


COMMANDS = [
    ("export", "--to", "compact"),
    ("bench",),
    ("sensitivity",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_changed_file_is_run_only_if_it_is_passed(
    own: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    marker, path = tmp_path / "marker", own / "own.py"
    planted(path, marker)
    name, *options = command
    prunus(name, own / "run", *options).refused(
        f"the recipe {path} has changed since the run began: to use it as it is now, pass it with "
        "--recipe FILE"
    )
    assert not marker.exists()
    if name == "export":
        outcome = prunus(name, own / "run", *options, "--recipe", path)
        assert f"{path} is not the file that trained this network, or has changed" in outcome.out
        assert marker.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_file_within_the_directory_of_a_run_is_not_run(
    own: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    marker, hidden = tmp_path / "marker", own / "run" / "own.py"
    shutil.move(own / "own.py", hidden)
    planted(hidden, marker)
    config = own / "run" / "config.json"
    identity = json.loads(config.read_text())
    digest = hashlib.sha256(hidden.read_bytes()).hexdigest()
    name, *options = command
    for path in (hidden, Path("own.py"), own / "run" / ".." / "run" / "own.py"):
        identity["recipe_file"] |= {"path": str(path), "sha256": digest}
        config.write_text(json.dumps(identity))
        prunus(name, own / "run", *options).refused(
            f"the recipe {path} is part of the directory of the run, whose code is not run"
        )
    assert not marker.exists()


def test_name_in_a_damaged_file_runs_no_code(own: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.py"
    path.write_text(f"open({str(marker)!r}, 'w').close()\n")
    (own / "run" / "config.json").unlink()
    weights = own / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"own.py", b"./e.py"))
    prunus("bench", weights).refused("was trained by the Python file ./e.py, of which nothing but")
    identity = {"recipe": str(path), "seed": 0, "data": None, "dense": None, "config": {}}
    (own / "run" / "config.json").write_text(json.dumps(identity))
    prunus("sensitivity", own / "run").refused("was trained by the Python file")
    assert not marker.exists()


def test_missing_file_is_asked_for(own: Path) -> None:
    (own / "own.py").rename(own / "other.py")
    prunus("sensitivity", own / "run").refused(
        f"the recipe {own / 'own.py'} of this run does not exist: pass it with --recipe FILE"
    )
    outcome = prunus("sensitivity", own / "run", "--recipe", own / "other.py")
    assert outcome.code == 0
    assert "is not the file" not in outcome.out


def test_damaged_entry_of_the_recipe_is_reported(own: Path) -> None:
    config = own / "run" / "config.json"
    identity = json.loads(config.read_text())
    identity["recipe_file"] = {"path": 3}
    config.write_text(json.dumps(identity))
    prunus("sensitivity", own / "run").refused(
        "recipe_file must have path, sha256, mode, settings, but is {'path': 3}"
    )


@pytest.mark.slow
def test_methods_are_compared_on_a_recipe_file(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py")
    study = tmp_path / "study"
    arguments = ("compare", path, "--methods", "magnitude,random", "--seeds", "0", "--out", study)
    outcome = prunus(*arguments)
    assert outcome.code == 0, outcome
    assert outcome.out.count("own.py") == 0
    record = json.loads((study / "study.json").read_text())
    assert record["recipe"] == "own.py"
    assert str(tmp_path) not in (study / "study.json").read_text()
    write(path, ("nn.Dropout(0.1)", "nn.Dropout(0.2)"))
    prunus(*arguments, "--ratios", "8").refused("the recipe own.py has changed since the run of")
