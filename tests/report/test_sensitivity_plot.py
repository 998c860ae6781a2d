"""The heat map of sensitivities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import prunus
from prunus import ArgumentError, ArgumentTypeError
from prunus.report import plot_sensitivity
from prunus.sensitivity import Sensitivities, Sensitivity

FOUND = Sensitivities(
    0.9,
    tuple(
        Sensitivity(name, 10, sparsity, 0.9 + change, change)
        for name, sparsity, change in (
            ("a.weight", 0.5, 0.001),
            ("a.weight", 0.9, -0.2),
            ("b.weight", 0.5, 0.0),
            ("b.weight", 0.9, math.nan),
        )
    ),
)


def test_cells_have_the_changes_of_their_tensors_and_sparsities() -> None:
    (axes,) = plot_sensitivity(FOUND, metric="accuracy").axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), [[0.001, -0.2], [0.0, math.nan]])
    assert image.get_clim() == (-0.2, 0.2)
    assert [text.get_text() for text in axes.texts] == ["0.00", "−0.20", "0.00", "–"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "0.9"]


def test_what_cannot_be_plotted_is_rejected() -> None:
    with pytest.raises(ArgumentError, match="must have a record"):
        plot_sensitivity(Sensitivities(0.9, ()))
    with pytest.raises(ArgumentTypeError, match=r"found must be Sensitivities"):
        plot_sensitivity([0.9])  # type: ignore[arg-type]


def test_command_writes_the_heat_map(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    options = ("--sparsities", "0.5,0.9", "--plot")
    outcome = prunus("sensitivity", finished_run, *options, file)
    assert outcome.code == 0, outcome.err
    assert f"written to {file}" in outcome.out
    assert "sparsity of the tensor" in file.read_text()
    refused = prunus("sensitivity", finished_run, *options, tmp_path / "map.jpg")
    refused.refused("must end with .svg, .pdf, .png")
