"""The example for torchrun, and its resumption by another number of processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.states import same
from prunus import load_sparse

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


def test_the_example_prunes_and_resumes_with_equal_weights(tmp_path: Path) -> None:
    def torchrun(count: int) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [str(ROOT / "examples" / "fully_sharded.py"), "--checkpoint", str(tmp_path)]
        done = subprocess.run(
            [*command, f"--nproc-per-node={count}", *script],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = re.findall(r"step (\d+)  loss ([\d.]+)  sparsity ([\d.]+)", torchrun(2))
    assert [step for step, _, _ in lines] == ["20", "40", "60"]
    assert float(lines[-1][1]) < 0.5 * float(lines[0][1])
    assert [sparsity for _, _, sparsity in lines] == ["0.7000", "0.8000", "0.8000"]
    kept = load_sparse(tmp_path / "model.sparse.safetensors")
    zeros = sum(int((tensor == 0).sum()) for name, tensor in kept.items() if "norm" not in name)
    assert zeros / sum(tensor.numel() for tensor in kept.values()) > 0.78
    output = torchrun(1)
    assert "step" not in output  # the checkpoint is of the last step
    assert "written to" in output
    other = load_sparse(tmp_path / "model.sparse.safetensors")
    assert same(kept, other)
