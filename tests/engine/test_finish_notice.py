"""The notice that a training ended without ``finish()``, in programs of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch, prunus
torch.manual_seed(0)
model = torch.nn.Linear(10, 10, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
pruner = prunus.Pruner(
    model, optimizer, None, prunus.IterativePruning(fraction=0.5), floor=0.9,
    score=prunus.MagnitudeScore(),
)
{training}
"""

LOST = "pruner.step(0.95); pruner.step(0.92); pruner.step(0.7)"


def errors_of(training: str) -> str:
    """Return what a program with this training writes to stderr."""
    script = SCRIPT.format(training=training)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "notice"),
    [
        (
            LOST,
            "of metric 0.7, with a sparsity of 0.7500; finish() loads the sparsest state that met "
            "the floor of 0.9, of sparsity 0.5000 and metric 0.92\n",
        ),
        (LOST + "; del pruner, optimizer; import gc; gc.collect(); torch.ones(1)", "of metric 0.7"),
        ("pruner.step(0.95)", "which no validation has measured, with a sparsity of 0.5"),
        ("pruner.step(0.5)", "the floor of 0.9 was not met by any validation\n"),
    ],
)
def test_a_training_without_finish_is_reported(training: str, notice: str) -> None:
    errors = errors_of(training)
    assert errors.startswith("the training ended without pruner.finish(): the model is in its last")
    assert notice in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        LOST + "; pruner.finish()",
        LOST + "; pruner.detach()",
        LOST + "; state = pruner.state_dict()",  # to resume
        "pruner.prune(sparsity=0.5)",  # without a validation
    ],
)
def test_a_training_that_is_completed_or_continued_is_not_reported(training: str) -> None:
    assert errors_of(training) == ""


@pytest.mark.slow
def test_an_error_is_not_followed_by_the_notice() -> None:
    errors = errors_of(LOST + "; raise KeyError('data')")
    assert "KeyError" in errors
    assert "finish()" not in errors
