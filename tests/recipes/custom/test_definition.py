"""Recipe files that are wrong: each ends the command with one message, and writes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.commands import prunus
from recipes.custom.sources import write

METRIC = "metric = accuracy\n"


def refusal(path: Path, *parts: str) -> None:
    """Check that the command refuses a recipe, and leaves no directory of a run behind."""
    out = path.parent / "run"
    prunus("run", path, "--out", out).refused(*parts)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("def network(", "def net(")],
            "own.py is not a recipe: it has no network(), which returns the network, a "
            "torch.nn.Module",
        ),
        (
            [("def loss(", "def cost(")],
            "own.py is not a recipe: it has no loss(model, batch), which returns the mean loss",
        ),
        (
            [("def loss(model, batch)", "def loss(batch)")],
            "loss(model, batch) must take model, batch, but it is loss(batch)",
        ),
        (
            [("def loaders(batch_size)", "def loaders(batch)")],
            "loaders(batch_size) must take batch_size, but it is loaders(batch)",
        ),
        (
            [("def network(width)", "def network(width, depth)")],
            "network() takes depth, which is no setting: give it a default, or add it to settings, "
            "as in settings = dict(depth=...)",
        ),
        ([("ratio=3", "ratio=0.5")], "its settings cannot be used: ratio must be above 1"),
        (
            [("ratio=3", "learning_rate=4")],
            "settings has 'learning_rate', but no function takes an argument of this name, and "
            "there is no setting 'learning_rate'; did you mean lr?",
        ),
        ([("width=32", "width=[32]")], "width must be a number, a text or true or false"),
        (
            [("settings = dict(", "settings = list(dict("), ("width=32)", "width=32))")],
            "settings must be values by name",
        ),
        ([(METRIC, METRIC + "mode = 'best'\n")], 'mode must be "max" or "min", but is \'best\''),
        ([(METRIC, "mode = 'min'\n")], "mode has no effect without metric()"),
        ([(METRIC, "metric = 'accuracy'\n")], "metric must be a function, but is 'accuracy'"),
    ],
)
def test_wrong_definition_is_refused(
    tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    refusal(write(tmp_path / "own.py", *changes), message)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.py",
        ("def network(width)", "def net(width)"),
        ("def loss(model, batch)", "def loss(batch)"),
    )
    refusal(path, "it has no network()", "; loss(model, batch) must take model, batch")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            [("    return pair + drawn", "    return pair +* drawn")],
            ["the recipe own.py is not valid Python: invalid syntax in line 24:\n    return "],
        ),
        (
            [("import numpy as np", "import numpy as np\nimport numpyy")],
            ["the recipe own.py failed:\n  own.py, line 6, in <module>\n    import numpyy\n"],
        ),
        (
            [("    inputs, labels = batch", "    inputs, labels, weights = batch")],
            [
                "loss() of own.py failed:\n  own.py, line 38, in loss\n    inputs, labels, weights",
                "\nValueError: not enough values to unpack (expected 3, got 2)",
            ],
        ),
        (
            [("nn.Linear(width, 2)", "nn.Linear(width + 1, 2)")],
            ["loss() of own.py failed:", "\nRuntimeError: mat1 and mat2 shapes"],
        ),
        (
            [("        pair = self.inputs[index]", "        raise OSError('no such file 7.png')")],
            [
                "the train batches of own.py failed:",
                "in __getitem__",
                "OSError: no such file 7.png",
            ],
        ),
        (
            [("return pair + drawn, (pair[0] > pair[1]).long()", "raise SystemExit(3)")],
            ["failed:", "SystemExit: 3"],
        ),
        (
            [
                (
                    "F.cross_entropy(model(inputs), labels)",
                    "model(inputs).exp().add_(1).sqrt().mul_(2).mean()",
                )
            ],
            ["the backward pass of loss() of own.py failed:", "modified by an inplace operation"],
        ),
        (
            [
                (
                    "metric = accuracy\n",
                    "metric = accuracy\n\n\ndef optimizer(model, lr):\n"
                    "    return torch.optim.LBFGS(model.parameters(), lr)\n",
                )
            ],
            ["a step of the optimizer of own.py failed:", "missing 1 required positional argument"],
        ),
    ],
)
def test_failing_code_is_reported_with_the_users_lines_alone(
    tmp_path: Path, changes: list[tuple[str, str]], parts: list[str]
) -> None:
    path = write(tmp_path / "own.py", *changes)
    refusal(path, *parts)
    message = prunus("run", path, "--out", tmp_path / "run").err
    files = re.findall(r"^  (\S+), line \d+, in", message, flags=re.MULTILINE)
    assert set(files) <= {"own.py"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("return nn.Sequential(", "return list(("), ("nn.Linear(width, 2))", "4))")],
            "network() of own.py must return a torch.nn.Module, but returned [Linear",
        ),
        (
            [("F.cross_entropy(model(inputs), labels)", "1.0")],
            "loss() of own.py must return the mean loss, a floating-point tensor of one element, "
            "but returned 1.",
        ),
        (
            [("(model(inputs), labels)", "(model(inputs), labels, reduction='none')")],
            "but returned shape (32,): take the mean over the batch",
        ),
        (
            [("(model(inputs), labels)", "(model(inputs).detach(), labels)")],
            "that depends on the network's parameters, but it has no gradient",
        ),
        (
            [("    return sum((", "    return 'high' or sum((")],
            "the value that metric() of own.py returns must be a number, but is 'high'",
        ),
        (
            [("    return sum((", "    sum((")],
            "the value that metric() of own.py returns must be a number, but is None",
        ),
        (
            [("return train, ", "return [], ")],
            "the train batches of own.py are empty: let loaders() return at least one",
        ),
        (
            [("DataLoader(Pairs(100, 0), 50, shuffle=True)", "[]")],
            "the validation batches of own.py are empty",
        ),
        (
            [("return train, ", "return iter(train), ")],
            "the train batches of own.py must be a DataLoader, a list, or another object over "
            "which each epoch can iterate again, but are a _SingleProcessDataLoaderIter, which "
            "runs out after one pass",
        ),
        (
            [("    return train, ", "    return train\n    return ")],
            "loaders() of own.py must return the batches to train on, to validate on and, if there "
            "are any, to test on: (train, validation) or (train, validation, test), but returned a "
            "DataLoader",
        ),
        (
            [(METRIC, METRIC + "def optimizer(model, lr):\n    return [model]\n")],
            "optimizer() of own.py must return a torch.optim.Optimizer, but returned [",
        ),
        (
            [
                (
                    METRIC,
                    METRIC + "def optimizer(model, lr):\n"
                    "    return torch.optim.SGD(model[0].parameters(), lr)\n",
                )
            ],
            "3.weight",
        ),
    ],
)
def test_wrong_values_are_refused_before_the_training(
    tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    refusal(write(tmp_path / "own.py", *changes), message)


def test_batches_that_run_out_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.py",
        ("class Pairs(", "class Fading(list):\n    passes = 0\n\n    def __iter__(self):\n"
         "        self.passes += 1\n        return iter(list(super().__iter__())[self.passes:])\n"
         "\n\nclass Pairs("),
        ("return train, ", "return Fading(train), "),
    )  # fmt: skip
    outcome = prunus("run", path, "--out", tmp_path / "run")
    outcome.refused(
        "the train batches of own.py must be as many in each epoch: they were to be 7, but are "
    )


def test_metric_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", ("    return sum((", "    return 1e999 * sum(("))
    outcome = prunus("run", path, "--out", tmp_path / "run")
    outcome.refused("metric() of own.py returned inf on the validation batches of own.py")


def test_unknown_file_names_the_one_that_is_probably_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own.py")
    prunus("recipes", "owm.py").refused("there is no file owm.py. Did you mean own.py?")
    prunus("recipes", "digit.py").refused("there is no file digit.py. Did you mean digits?")
    prunus("recipes", "own").refused("there is no recipe 'own'. Did you mean the file own.py?")
    prunus("recipes", "./").refused("the recipe . is a folder: pass a Python file")


@pytest.mark.parametrize("line", ["from beside import WIDTH", "from .beside import WIDTH"])
def test_module_beside_the_file_can_be_imported(tmp_path: Path, line: str) -> None:
    # A name of its own, because a module of this name stays imported.
    name = f"beside_{len(line)}_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text("WIDTH = 24\n")
    path = write(
        tmp_path / "own.py",
        ("import numpy as np", f"import numpy as np\n{line.replace('beside', name)}"),
        ("width=32", "width=WIDTH"),
    )
    assert "width" in (done := prunus("recipes", path)).out, done
    assert "24" in done.out


def test_settings_of_the_file_are_listed_with_its_own(tmp_path: Path) -> None:
    out = prunus("recipes", write(tmp_path / "own.py")).out
    assert "A setting of this recipe." in out
    assert "data: its own" in out


def test_data_are_refused_by_a_recipe_that_takes_none(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py")
    outcome = prunus("run", path, "--data", "elsewhere", "--out", tmp_path / "run")
    outcome.refused("loaders() of own.py takes no argument data: leave out --data elsewhere")


def test_data_without_a_default_are_required(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", ("loaders(batch_size)", "loaders(batch_size, data)"))
    refusal(path, "loaders() of own.py needs data: pass --data FOLDER")


def test_distillation_needs_a_loss_with_a_teacher(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py")
    outcome = prunus("run", path, "--set", "distillation=0.5", "--out", tmp_path / "run")
    outcome.refused("distillation=0.5 has no effect, because loss() of own.py takes no argument")
