"""Tables of plain text."""

from __future__ import annotations

from prunus._utils.text_table import text_table


def test_columns_are_aligned() -> None:
    table = text_table(
        ["layer", "type", "ms"],
        [["a", "Linear", "1"], ["block.10", "Conv", "12.5"]],
        footer=["all", "", "13.5"],
        text_columns=2,
    )
    assert table.splitlines() == [
        "layer     type      ms",
        "a         Linear     1",
        "block.10  Conv    12.5",
        "all               13.5",
    ]


def test_rows_in_the_middle_of_a_long_table_are_counted() -> None:
    rows = [[str(number)] for number in range(100)]
    lines = text_table(["n"], rows, footer=["sum"], most=5).splitlines()
    # Three at the beginning and two at the end.
    assert [line.strip() for line in lines] == [
        *("n", "0", "1", "2", "… 95 more", "98", "99", "sum"),
    ]
    assert text_table(["n"], rows[:5], most=5).count("\n") == 5
    assert text_table(["n"], rows, most=1).splitlines() == ["n", "0", "… 99 more"]
    assert text_table(["n", "m"], []) == "n  m"
