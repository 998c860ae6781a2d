"""Tests of the parts of error messages."""

from __future__ import annotations

import pytest

from prunus.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("", ""), (" \n\n", ""), ("one", "one"), ("\n  one \ntwo", "one"), ("one\r\ntwo", "one")],
)
def test_first_line_that_is_not_blank_is_returned(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
