"""The public surface, its documentation, and what importing prunus brings along."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import prunus

ROOT = Path(prunus.__file__).parent

PYPROJECT = tomllib.loads(
    (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
)

PLACE = {
    package: place
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
    if contract["id"] == "packages"
    for place, layer in enumerate(contract["layers"])
    for package in layer.split(" | ")
}
"""The layer of each package, counted from the top."""


def imported_packages(code: str) -> list[str]:
    """Return the packages of prunus that the code imports, and "prunus" for the root itself."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names if name.split(".")[0] == "prunus"]
    return [part[1] if len(part) > 1 and part[1] in PLACE else "prunus" for part in parts]


def test_the_public_names_are_exactly_these() -> None:
    assert prunus.__all__ == sorted(prunus.__all__)
    assert set(prunus.__all__) == {
        "Allocation",
        "AlternatingGrowth",
        "ArgumentError",
        "ArgumentTypeError",
        "AutomaticStrength",
        "Block",
        "CautiousRelevance",
        "Channels",
        "CheckpointError",
        "Coefficient",
        "Columns",
        "ConstantRelevance",
        "ConstantStrength",
        "DataError",
        "ErdosRenyiAllocation",
        "ExponentialRelevance",
        "FisherScore",
        "FloorNotReachedError",
        "GlobalAllocation",
        "GradientGrowth",
        "GradualPruning",
        "Growth",
        "Heads",
        "History",
        "IterativePruning",
        "LearningRateStrength",
        "LinearDecayStrength",
        "LinearRelevance",
        "MagnitudeScore",
        "Masks",
        "Method",
        "MissingExtraError",
        "MovementScore",
        "NM",
        "NonFiniteError",
        "OneShot",
        "Pattern",
        "PeerError",
        "PenaltyReport",
        "Pruner",
        "PruningStatus",
        "PrunusError",
        "RandomGrowth",
        "RandomScore",
        "RecipeError",
        "RelevancePenalty",
        "Restore",
        "Rows",
        "Schedule",
        "Score",
        "Selection",
        "SensitivityScore",
        "SoftGrowth",
        "SparseFile",
        "SparseFileError",
        "SparseTraining",
        "Strength",
        "StrengthStep",
        "TargetAllocation",
        "TaylorScore",
        "ThresholdSearch",
        "UniformAllocation",
        "UpdateStrength",
        "Validation",
        "__version__",
        "compact",
        "fit",
        "load_sparse",
        "method",
        "methods",
        "save_sparse",
        "select",
        "sensitivity",
        "speed_up",
    }


def constructible() -> list[str]:
    """Public names that a user calls; the others are received, and need no example."""
    received = {
        "Coefficient",
        "Growth",
        "Method",
        "methods",
        "Pattern",
        "PenaltyReport",
        "PruningStatus",
        "Restore",
        "Score",
        "Strength",
        "Validation",
    }
    return [
        name
        for name in prunus.__all__
        if name not in received and not name.endswith("Error") and not name.startswith("_")
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


def test_the_layers_name_every_package_and_no_other() -> None:
    assert sorted(PLACE) == sorted({name.partition(".")[0] for name in modules()})


def test_the_architecture_page_lists_the_packages_in_their_order() -> None:
    page = (ROOT.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert listed == list(PLACE)


@pytest.mark.parametrize("name", modules())
def test_dependencies_point_down(name: str) -> None:
    source = importlib.util.find_spec(f"prunus.{name}")
    assert source is not None
    assert source.origin is not None
    package = name.partition(".")[0]
    upward = [
        imported
        for imported in imported_packages(Path(source.origin).read_text())
        if imported != package and PLACE.get(imported, -1) <= PLACE[package]
    ]
    assert upward == [], f"{name} imports a package of its own layer or of one above"


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("import prunus.masks as m", "masks"),
        ("from prunus.masks import Masks", "masks"),
        ("from prunus import masks", "masks"),
        ("import prunus", "prunus"),
        ("from prunus import select", "prunus"),
        ("def f():\n    from prunus._utils.files import read", "_utils"),
    ],
)
def test_every_form_of_import_is_found(line: str, package: str) -> None:
    assert imported_packages(line) == [package]


@pytest.mark.slow
def test_importing_prunus_imports_no_extra() -> None:
    code = (
        "import sys, prunus, prunus.integrations.common; "
        "print(*sorted({'typer', 'rich', 'datasets', 'sklearn', 'PIL', 'pyarrow', 'transformers', "
        "'accelerate', 'lightning', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    code = """
import importlib, sys
extras = {
    "integrations.accelerate": ["accelerate"],
    "integrations.lightning": ["lightning", "pytorch_lightning"],
    "integrations.transformers": ["transformers"],
    "report": ["matplotlib", "jinja2"],
}
sys.modules.update(dict.fromkeys(sum(extras.values(), [])))
for module in extras:
    extra = module.removeprefix("integrations.")
    try:
        importlib.import_module(f"prunus.{module}")
    except ImportError as error:
        expected = f"prunus.{module} needs the extra '{extra}': pip install"
        assert type(error).__name__ == "MissingExtraError", type(error)
        assert str(error).startswith(f"{expected} 'prunus[{extra}]' ("), error
    else:
        raise AssertionError(extra)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
