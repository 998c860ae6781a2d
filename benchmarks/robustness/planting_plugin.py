"""Pytest plugin that plants the fault named by the environment variable ``PLANTED_FAULT``."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.robustness.kernel_faults import FAULTS
from benchmarks.robustness.planting import PlantingFinder
from benchmarks.robustness.training_faults import TRAINING_FAULTS


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Plant the fault before any test imports its module."""
    if name := os.environ.get("PLANTED_FAULT"):
        (fault,) = (each for each in (*FAULTS, *TRAINING_FAULTS) if each.name == name)
        assert not any(f"{each}.".startswith(f"{fault.package}.") for each in sys.modules)
        sys.meta_path.insert(0, PlantingFinder(fault))
        # A failure is not shrunk, for which Numba would compile a kernel for each attempt.
        from hypothesis import Phase, settings

        settings.register_profile("planted", phases=[Phase.explicit, Phase.generate])
        settings.load_profile("planted")
