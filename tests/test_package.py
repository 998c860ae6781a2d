"""The public surface, its documentation, and what importing prunus brings along."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent

CONTRIBUTING = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"

# What a row of the table of modules names, and what it says of it, the highest layer first.
ROWS = [
    (re.findall(r"`(\w+)(?:\.py|/)`", first), re.findall(r"`(\w+)\.py`", second))
    for first, second in re.findall(
        r"^\| (`.*?) \| (.*) \|$", CONTRIBUTING.read_text(), flags=re.MULTILINE
    )
]


def test_the_public_names_are_exactly_these() -> None:
    assert prunus.__all__ == sorted(prunus.__all__)
    assert set(prunus.__all__) == {
        "CheckpointError",
        "Coefficient",
        "Constant",
        "ConstantStrength",
        "DataError",
        "Exponential",
        "FloorNotReachedError",
        "FollowLearningRate",
        "GradualPruning",
        "IterativePruning",
        "Linear",
        "LinearDecay",
        "Magnitude",
        "Masks",
        "NonFiniteError",
        "OneShot",
        "PeerError",
        "Pruner",
        "Random",
        "RelevancePenalty",
        "Schedule",
        "Score",
        "Selection",
        "SparseFile",
        "SparseFileError",
        "Strength",
        "Taylor",
        "PrunusError",
        "Validation",
        "__version__",
        "compact",
        "load_sparse",
        "save_sparse",
        "select",
        "speed_up",
    }


def constructible() -> list[str]:
    """Public names that a user calls; the others are received, and need no example."""
    kinds = {"Coefficient", "Score", "Strength", "Validation"}
    return [
        name
        for name in prunus.__all__
        if name not in kinds and not name.endswith("Error") and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", constructible())
def test_every_public_object_has_a_running_example(name: str) -> None:
    documentation = inspect.getdoc(getattr(prunus, name)) or ""
    assert ">>>" in documentation or name == "Schedule"


@pytest.mark.parametrize("name", [n for n in prunus.__all__ if inspect.isclass(getattr(prunus, n))])
def test_every_public_method_is_documented(name: str) -> None:
    kind = getattr(prunus, name)
    undocumented = [
        attribute
        for attribute, value in inspect.getmembers(kind)
        if not attribute.startswith("_")
        and (callable(value) or isinstance(value, property))
        and getattr(value, "__module__", "prunus").startswith("prunus")
        and not inspect.getdoc(value)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", constructible())
def test_every_argument_has_a_line_of_its_own(name: str) -> None:
    value = getattr(prunus, name)
    documentation = "\n".join(
        inspect.getdoc(kind) or ""
        for kind in (inspect.getmro(value) if inspect.isclass(value) else [value])
    )
    missing = [
        argument
        for argument in inspect.signature(value).parameters
        if not re.search(rf"^ +{argument}: ", documentation, flags=re.MULTILINE)
    ]
    assert missing == []


def modules() -> list[str]:
    return [m.name.removeprefix("prunus.") for m in pkgutil.walk_packages([str(ROOT)], "prunus.")]


def test_contributing_names_every_module_and_no_other() -> None:
    named = [part for parts, _ in ROWS for part in parts]
    for (folder, *others), inside in ROWS:
        if not others and (ROOT / folder).is_dir():
            named += [f"{folder}.{module}" for module in inside]
    assert sorted(named) == sorted(modules())


@pytest.mark.parametrize("name", modules())
def test_dependencies_point_down(name: str) -> None:
    source = importlib.util.find_spec(f"prunus.{name}")
    assert source is not None
    assert source.origin is not None
    # A module may import from its own row and those below.
    place = {part: -row for row, (parts, _) in enumerate(ROWS) for part in parts}
    own = place[name.partition(".")[0]]
    for line in Path(source.origin).read_text().splitlines():
        found = re.match(
            r"\s*(?:from prunus\.(\w+)|import prunus\.(\w+)|from prunus import (\w+))", line
        )
        if found:
            other = next(filter(None, found.groups()))
            assert place[other] <= own, f"{name} imports {other}, which stands above it"


def test_importing_prunus_imports_no_extra() -> None:
    code = (
        "import sys, prunus, prunus.integrations.common; "
        "print(*sorted({'typer', 'rich', 'datasets', 'sklearn', 'PIL', 'pyarrow', 'transformers', "
        "'accelerate', 'lightning', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_missing_extra_is_named() -> None:
    code = """
import importlib, sys
extras = {
    "accelerate": ["accelerate"],
    "lightning": ["lightning", "pytorch_lightning"],
    "transformers": ["transformers"],
}
sys.modules.update(dict.fromkeys(sum(extras.values(), [])))
for extra in extras:
    try:
        importlib.import_module(f"prunus.integrations.{extra}")
    except ImportError as error:
        assert f"pip install 'prunus[{extra}]'" in str(error), error
    else:
        raise AssertionError(extra)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
