"""The wheel: what it contains, and its use in an environment that does not have the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

VARIABLES = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The environment variables, without the sources on the path."""

QUICKSTART = """
import torch
import prunus

torch.manual_seed(0)
model = torch.nn.Linear(20, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
pruner = prunus.Pruner(model, optimizer, floor=0.5, mode="min")
for _ in range(30):
    for _ in range(10):
        x = torch.randn(64, 20)
        loss = (model(x)[:, 0] - x[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pruner.step(loss.item())
pruner.finish()
print(prunus.__file__, pruner.sparsity)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from the sources."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel, whose dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # Python does not process the .pth files there, among them that of the editable prunus.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "prunus/py.typed" in names
    roots = {name.split("/")[0] for name in names}
    assert {root.partition("-")[0] for root in roots} == {"prunus"}
    sources = {
        path.relative_to(REPOSITORY / "src").as_posix()
        for path in (REPOSITORY / "src" / "prunus").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)


@pytest.mark.slow
def test_the_wheel_prunes_in_a_loop_and_by_the_command(environment: Path, tmp_path: Path) -> None:
    bin_folder = environment / "bin"
    command = [str(bin_folder / "python"), "-W", "error", "-c", QUICKSTART]
    shown = subprocess.run(
        command, cwd=tmp_path, env=VARIABLES, check=True, capture_output=True, text=True
    )
    path, sparsity = shown.stdout.split()
    assert Path(path).is_relative_to(environment)
    assert float(sparsity) > 0.5

    run = [str(bin_folder / "prunus"), "run", "digits", "--out", "runs/digits"]
    run += ["--set", "dense_epochs=3", "--set", "epochs=6", "--set", "ratio=4"]
    subprocess.run(run, cwd=tmp_path, env=VARIABLES, check=True, capture_output=True)
    assert (tmp_path / "runs/digits/summary.json").exists()
