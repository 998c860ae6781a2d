"""Statistics and tables of a study against numbers worked by hand."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest

from prunus.errors import ArgumentError, PrunusError
from prunus.studies import Cell
from prunus.studies.statistics import Outcome, PairedDifference, paired_difference
from studies.stubs import study, summary


def outcome(seeds: tuple[int, ...], values: tuple[float, ...]) -> Outcome:
    return Outcome(seeds, (9.0,) * len(seeds), values, (0.9,) * len(seeds))


def by_hand() -> dict[Cell, dict[str, Any] | None]:
    """Return three seeds of two methods, of which the differences are 0.01, 0.03 and 0.02."""
    first, other = (0.96, 0.93, 0.95), (0.95, 0.90, 0.93)
    return {
        **{Cell("prunus", 10.0, seed): summary(seed, first[seed]) for seed in range(3)},
        **{Cell("l2", 10.0, seed): summary(seed, other[seed]) for seed in range(3)},
    }


def test_paired_difference_by_hand() -> None:
    # The differences are 1, 3 and 2: their variance is 1, and the error of the mean 1/√3.
    found = paired_difference(
        outcome((0, 1, 2), (8.0, 7.0, 7.0)), outcome((2, 1, 0), (5.0, 4.0, 7.0)), maximized=True
    )
    assert found is not None
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3), rel=1e-12)
    assert found.apart  # 2 is more than 2/√3 = 1.155


def test_first_method_is_better_where_its_smaller_metric_is() -> None:
    first, other = outcome((0, 1, 2), (2.25, 2.5, 9.0)), outcome((1, 0), (2.75, 3.0))
    found = paired_difference(first, other, maximized=False)
    assert found == PairedDifference(0.5, 0.25, 2)  # of 0.75 and 0.25
    assert not found.apart  # exactly two standard errors are not more than two


def test_fewer_than_two_shared_seeds_have_no_error() -> None:
    assert (
        paired_difference(outcome((0, 1), (1, 2)), outcome((1, 2), (1, 2)), maximized=True) is None
    )


def test_equal_differences_are_apart_and_none_is_not() -> None:
    ones = outcome((0, 1), (2.0, 3.0))
    same = paired_difference(ones, outcome((0, 1), (1.0, 2.0)), maximized=True)
    assert same == PairedDifference(1.0, 0.0, 2)
    assert same.apart
    nothing = paired_difference(ones, ones, maximized=True)
    assert nothing is not None
    assert not nothing.apart


def test_table_by_hand() -> None:
    # Dense: 0.97, 0.95, 0.96, whose deviation is 0.01. prunus: 0.96, 0.93, 0.95: the squares of
    # the distances from 0.94667 sum to 0.000467, the deviation is 0.0153. l2: 0.95, 0.90, 0.93
    # from 0.92667: 0.001267, 0.0252. The differences 0.01, 0.03, 0.02 deviate by 0.01, the error
    # of their mean is 0.00577. Spreads: 0.01, 0.0153, 0.0252: the lower quartile is 0.01, of which
    # two digits are three decimals; two digits of 0.00577 are four.
    table = study(by_hand()).table()
    assert table.to_markdown().splitlines() == [
        "| network | ratio | sparsity | test accuracy | against dense | prunus is better by |",
        "| --- | --- | --- | --- | --- | --- |",
        "| dense | 1 | 0 | 0.960 ± 0.010 |  |  |",
        "| prunus | 10 | 90.0% | 0.947 ± 0.015 | -0.013 ± 0.006 |  |",
        "| l2 | 10 | 90.0% | 0.927 ± 0.025 | -0.033 ± 0.015 | +0.0200 ± 0.0058* |",
    ]
    assert table.notes == ()
    assert "over 3 seeds" in table.legend


def test_numbers_of_seeds_are_shown_where_they_differ() -> None:
    runs = by_hand()
    runs[Cell("l2", 10.0, 2)] = None
    table = study(runs).table()
    assert table.header[2] == "seeds"
    assert [row[2] for row in table.cells] == ["3", "3", "2"]
    assert table.notes == ("5 of 6 runs are finished; the table has these alone.",)
    # Of 0.01 and 0.03 alone: the error is half of their distance.
    lead = table.rows[1].lead
    assert lead is not None
    assert lead.seeds == 2
    assert (lead.mean, lead.error) == pytest.approx((0.02, 0.01), rel=1e-9)


def test_csv_has_all_digits() -> None:
    rows = list(csv.DictReader(io.StringIO(study(by_hand()).table().to_csv())))
    assert [row["method"] for row in rows] == ["dense", "prunus", "l2"]
    last = rows[-1]
    assert float(last["mean"]) == pytest.approx(2.78 / 3, rel=1e-12)
    assert float(last["standard_deviation"]) == pytest.approx(
        math.sqrt((0.95**2 + 0.9**2 + 0.93**2 - 2.78**2 / 3) / 2), rel=1e-9
    )
    assert float(last["standard_error"]) == pytest.approx(0.01 / math.sqrt(3), rel=1e-9)
    assert (last["apart"], rows[1]["apart"], last["seeds"]) == ("True", "", "3")
    assert last.keys() == rows[0].keys()
    assert None not in last


def test_other_metrics_are_minimized() -> None:
    found = study(by_hand())
    assert found.metrics == ["accuracy", "loss"]
    assert found.maximized()
    assert not found.maximized("loss")
    assert found.table("loss").rows[0].outcome.values == (0.75, 0.75, 0.75)
    with pytest.raises(
        ArgumentError, match=r"no metric 'los'. Did you mean loss\? The metrics are"
    ):
        found.table("los")


def test_ratio_that_was_not_reached_is_noted() -> None:
    runs = by_hand()
    runs[Cell("l2", 10.0, 1)] = summary(1, 0.9, 7.5)
    runs[Cell("l2", 10.0, 2)] = summary(2, 0.9, 9.95)  # near enough, for whole weights
    table = study(runs).table()
    (note,) = table.notes
    assert note.startswith("† The ratio was not reached by l2 at 10 (7.5). These networks are den")
    assert [row[2][-1] for row in table.cells[1:]] == ["%", "†"]
    rows = csv.DictReader(io.StringIO(table.to_csv()))
    assert [row["ratio_reached"] for row in rows] == ["True", "True", "False"]


def test_labels_are_escaped_in_markdown() -> None:
    runs = {Cell("a|b", 10.0, 0): summary(0, 0.9)}
    assert "| a\\|b | 10 |" in study(runs).table().to_markdown()


def test_two_dense_networks_of_a_seed_are_rejected() -> None:
    found = study({Cell("prunus", 10.0, 0): summary(0, 0.9), Cell("l2", 10.0, 0): None})
    other = summary(0, 0.9, dense=0.9712)
    with pytest.raises(PrunusError, match="its dense network is not that of the seed's other runs"):
        found.with_summary(Cell("l2", 10.0, 0), other, "")
    rounded = summary(0, 0.9, dense=0.970001)  # to six digits, as in a result file
    assert not found.with_summary(Cell("l2", 10.0, 0), rounded, "").unfinished


def test_study_without_a_finished_run_has_no_table() -> None:
    with pytest.raises(PrunusError, match="no run of this study of digits is finished"):
        study({Cell("prunus", 10.0, 0): None}).table()
