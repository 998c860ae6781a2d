"""Figures: the values that they draw, compared with values worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from helpers.reports import epoch
from prunus.bench import BenchReport, BenchRow
from prunus.export.inspection import TensorDensity
from prunus.recipes.run.progress import Epoch
from prunus.report.figures.densities import tensor_densities_figure, type_densities_figure
from prunus.report.figures.drawing import HALF, NARROW, inline_svg
from prunus.report.figures.heads import head_densities, heads_figure
from prunus.report.figures.latencies import latencies_figure
from prunus.report.figures.masks import density_maps, first_layer_images, input_map
from prunus.report.figures.sizes import sizes_figure
from prunus.report.figures.training import removals, returns, training_curve


def epochs(*changes: dict[str, object]) -> list[Epoch]:
    return [Epoch(**epoch("prune", n, **each)) for n, each in enumerate(changes, 1)]


def texts(figure: Figure) -> list[str]:
    """Return the texts in a figure, of which the backend draws each."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def points(line: Line2D) -> NDArray[np.float64]:
    """Return the points of a line, one in each row."""
    return np.asarray(line.get_xydata(), dtype=float)


def rectangles(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def pixels(figure: Figure) -> Iterator[NDArray[np.float64]]:
    """Yield the opacity of each image in a figure."""
    for axes in figure.axes:
        for image in axes.images:
            yield np.asarray(image.get_array())[..., 3]


def test_removals_are_found_after_and_between_validations() -> None:
    # After the first and the third validation, and between the fourth and the fifth.
    history = epochs(
        {"removed": 5},
        {"sparsity": 0.1},
        {"sparsity": 0.1, "removed": 3},
        {"sparsity": 0.2},
        {"sparsity": 0.3},
        {"sparsity": 0.3},
        {"sparsity": 0.1},  # the pruner returned to an earlier state
    )
    assert removals(history) == [0, 2, 4]
    assert removals(epochs({"sparsity": 0.5})) == [0]


def test_training_curve_draws_metric_floor_and_sparsity() -> None:
    history = epochs(
        {"validation": 0.9, "floor": 0.8, "removed": 1},
        {"validation": float("nan"), "floor": 0.8, "sparsity": 0.5},
        {"validation": 0.7, "floor": 0.8, "sparsity": 0.5},
    )
    drawing = training_curve(history, "accuracy", "floor", delivered=2)
    upper, lower = drawing.draw(HALF).axes
    lines = {len(points(line)): points(line)[:, 1] for line in upper.lines}
    np.testing.assert_array_equal(lines[3], [0.9, np.nan, 0.7])
    np.testing.assert_array_equal(lines[6], [0.8] * 6)
    np.testing.assert_array_equal(points(lower.lines[0])[:, 1], [0, 0.5, 0.5])
    shown = texts(drawing.draw(HALF))
    assert {"pruning", "floor 0.8000", "delivered 0.7000", "50.0%"} <= set(shown)
    low, high = upper.get_ylim()
    assert low < 0.7
    assert high > 0.9


def test_returns_to_the_best_state_are_marked() -> None:
    history = epochs(
        {"validation": 0.9, "floor": 0.8, "removed": 1},
        {"validation": 0.7, "floor": 0.8, "sparsity": 0.5, "restored": True, "removed": 1},
        {"validation": float("nan"), "floor": 0.8, "sparsity": 0.3, "restored": True},
        {"validation": 0.85, "floor": 0.8, "sparsity": 0.2},
    )
    assert returns(history) == [1, 2]
    drawing = training_curve(history, "accuracy", "floor", delivered=None)
    axes = drawing.draw(HALF).axes[0]
    (marks,) = [points(line) for line in axes.lines if line.get_marker() == "v"]
    np.testing.assert_array_equal(marks, [[2, 0.7], [3, axes.get_ylim()[0]]])
    assert "and 2 after which the pruner returned to the best state." in drawing.alt
    assert "Triangles mark" in drawing.caption
    without = training_curve(history[:1], "accuracy", "floor", delivered=None)
    assert "returned" not in without.alt + without.caption


def test_early_values_outside_the_axis_are_counted() -> None:
    dense = [Epoch(**epoch("dense", n, validation=v)) for n, v in enumerate((0.1, 0.2, 0.97, 0.98))]
    drawing = training_curve(dense, "accuracy", "floor", None)
    assert "2 early validations lie outside" in drawing.caption
    assert "outside" not in training_curve(dense[2:], "accuracy", "floor", None).caption


def test_densities_are_those_of_the_tensors() -> None:
    tensors = [
        TensorDensity("a", (2, 4), "float32", 8, 2),
        TensorDensity("b", (2, 2), "float32", 4, 0),
    ]
    drawing = tensor_densities_figure(tensors)
    assert "from 0% in b to 25.0% in a" in drawing.alt
    lengths = [patch.get_bbox().width for patch in rectangles(drawing.draw(NARROW).axes[0])]
    assert lengths == [1.0, 0.25, 1.0, 0.0]
    many = tensor_densities_figure(tensors * 10)
    (axes,) = many.draw(NARROW).axes
    drawn = {x: y for line in axes.lines for x, y in points(line).tolist()}
    assert [drawn[1], drawn[3], drawn[19]] == [0.25] * 3
    assert drawn[2] == drawn[20] == 0.125  # at the bottom, half of the smallest that is not 0
    assert len(drawn) == 20


def test_densities_by_type_are_fractions_of_the_prunable_weights() -> None:
    drawing = type_densities_figure({"linear": (200, 50), "norm": (10, 10)})
    assert drawing.alt.endswith("linear 25.0% of 200; norm 100% of 10")


def test_images_of_the_first_layer_have_a_pixel_for_each_weight() -> None:
    weight = torch.zeros(3, 16)
    weight[1, 5], weight[2, 0], weight[2, 15] = -2.0, 1.0, 0.5
    drawing = first_layer_images({"1.weight": weight, "3.weight": torch.ones(2, 3)})
    assert drawing is not None
    first, second, third = pixels(drawing.draw(HALF))
    assert (first == 0).all()
    assert np.argwhere(second).tolist() == [[1, 1]]
    assert np.argwhere(third).tolist() == [[0, 0], [3, 3]]
    assert third[0, 0] == 1
    assert 0.3 < third[3, 3] < 1
    counts = input_map({"1.weight": weight})
    assert counts is not None
    assert counts.caption.startswith("3 of 16 pixels are read; the strongest colour stands for 1 ")


def test_filters_of_a_convolution_are_images_and_matrices_are_not() -> None:
    convolution = first_layer_images({"conv.weight": torch.ones(4, 3, 5, 5)})
    assert convolution is not None
    assert [image.shape for image in pixels(convolution.draw(HALF))] == [(5, 5)] * 4
    assert input_map({"conv.weight": torch.ones(4, 3, 5, 5)}) is None
    for shape in ((4, 15), (4, 3, 1, 1), (0, 16)):
        assert first_layer_images({"a.weight": torch.ones(shape)}) is None
    assert first_layer_images({"attn.weight": torch.ones(4, 16)}) is None


def test_density_map_averages_the_weights_of_a_cell() -> None:
    weight = torch.zeros(192, 96)
    weight[:2, 0] = 1  # both weights of the first cell
    weight[2, 1] = 1  # one of two of another cell
    drawing = density_maps({"a": weight})
    assert drawing is not None
    (opacity,) = pixels(drawing.draw(HALF))
    assert opacity.shape == (96, 96)
    assert np.argwhere(opacity).tolist() == [[0, 0], [1, 1]]
    assert opacity[0, 0] == 1
    assert opacity[1, 1] == pytest.approx(0.3 + 0.7 / 2)
    assert f"192×96, {3 / (192 * 96):.3%}" in drawing.alt
    assert density_maps({"a": torch.ones(3)}) is None


def test_heads_are_rows_or_columns_of_each_projection() -> None:
    """Two heads of two units each, in both layouts of the weights."""
    rows = torch.zeros(4, 6)
    rows[2:] = 1  # the second head
    assert head_densities({"attn.q_proj.weight": rows}, {"n_head": 2}) == {"attn": [0.0, 1.0]}
    # An output projection reads the heads in its columns; GPT-2 stores it transposed.
    columns = torch.zeros(6, 4)
    columns[:, :2] = 1
    expected = {"attn": [1.0, 0.0]}
    assert head_densities({"attn.out_proj.weight": columns}, {"num_heads": 2}) == expected
    assert head_densities({"attn.c_proj.weight": columns.T}, {"num_heads": 2}) == expected
    # Queries, keys and values side by side, and the keys of the second head alone are left.
    packed = torch.zeros(6, 12)
    packed[:, 6:8] = 1
    found = head_densities({"h.0.attn.c_attn.weight": packed}, {"n_head": 2})
    assert found["h.0.attn"] == pytest.approx([0.0, 1 / 3])
    assert head_densities({"a.attn.in_proj_weight": packed.T}, {"n_head": 2})["a.attn"] == (
        pytest.approx([0.0, 1 / 3])
    )


@pytest.mark.parametrize(
    "architecture", [{}, {"n_head": 3}, {"n_head": 0}, {"n_head": 4, "num_key_value_heads": 2}]
)
def test_heads_that_are_not_known_have_no_figure(architecture: dict[str, int]) -> None:
    assert heads_figure({"attn.q_proj.weight": torch.ones(4, 4)}, architecture) is None


def test_sizes_are_compared_with_the_dense_network() -> None:
    drawing = sizes_figure(1000, {"sparse file": 100.0, "onnx": 1600.0}, 80.0)
    assert drawing.alt.endswith(
        "dense network 1.00 kB; sparse file 100 bytes, 10.0× smaller; onnx 1.60 kB, 1.6× larger; "
        "lower bound of any file 80 bytes, 12.5× smaller"
    )
    assert "bound" not in sizes_figure(1000, {"sparse file": 100.0}, 0.0).alt


def test_latencies_name_what_other_processes_disturbed() -> None:
    times = {"median_ms": 2.0, "quartile_1_ms": 1.0, "quartile_3_ms": 3.0}
    fast = {"median_ms": 0.5, "quartile_1_ms": 0.5, "quartile_3_ms": 0.5}
    rows = [BenchRow(8, 2, {"dense": times, "sparse": fast}, {}, (), ("sparse",))] * 2
    drawing = latencies_figure(BenchReport(tuple(rows), {}, {}, {}))
    assert drawing.caption.endswith("disturbed the timings of: sparse.")
    shown = texts(drawing.draw(NARROW))
    assert shown.count("batch of 8, 2 threads") == 2
    assert "0.500 ms, 4.00×" in shown


def test_settings_of_the_user_do_not_change_a_figure_and_stay() -> None:
    drawing = sizes_figure(1000, {}, 0.0)
    before = inline_svg(drawing, NARROW, "a")
    with mpl.rc_context({"font.size": 40, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert inline_svg(drawing, NARROW, "a") == before
        assert mpl.rcParams["font.size"] == 40


def test_dollar_signs_are_no_formula() -> None:
    drawing = sizes_figure(1, {"$x^2$": 1}, 0.0)
    _, _, content = inline_svg(drawing, NARROW, "a").partition(">")
    assert ">$x^2$<" in content
