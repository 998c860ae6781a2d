"""Pages in a browser: both themes, narrow and wide screens, and paper."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from helpers.browser import Browser, headless_browser
from helpers.reports import HISTORY, sample_run, summary
from prunus.report import write_report

VISIBLE = "element => element.getClientRects().length > 0"


@pytest.mark.slow
def test_pages_fit_every_screen_without_errors(tmp_path: Path) -> None:
    names = {"long.name" * 30: {"prunable": 3, "nonzero": 1}, "b": {"prunable": 4, "nonzero": 4}}
    one = sample_run(tmp_path / "one", history=HISTORY, finished=summary(layer_types=names))
    other = sample_run(tmp_path / ("long-name" * 20), history=HISTORY[:4])
    page = write_report([one, other], tmp_path / "report.html")
    with headless_browser() as browser:
        for width in (400, 1400):
            for dark in (False, True):
                browser.open(page, width=width, dark=dark)
                check(browser, width, dark=dark)
        assert browser.problems == []
        printed = browser.call("Page.printToPDF", printBackground=True)
        assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def check(browser: Browser, width: int, *, dark: bool) -> None:
    """Check widths, contrast and which of the two drawings of each figure is visible."""
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    visible = f"[...document.querySelectorAll('figure svg')].filter({VISIBLE})"
    assert browser.evaluate(f"{visible}.length") == browser.evaluate(
        "document.querySelectorAll('figure').length"
    )
    assert browser.evaluate(f"{visible}.every(e => e.getBoundingClientRect().right <= innerWidth)")
    # Texts are neither tiny nor pale: of 11 pixels or more, and of a contrast of 4.5.
    scales = f"{visible}.map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)"
    assert 12 * browser.evaluate(f"Math.min(...{scales})") >= 11
    page = color(browser, "document.body", "backgroundColor")
    assert (luminance(page) < 0.1) == dark
    for element in ("document.body", "document.querySelector('figcaption')"):
        assert contrast(color(browser, element, "color"), page) >= 4.5
    fills = browser.evaluate(
        f"[...new Set({visible}.flatMap(e => [...e.querySelectorAll('text')])"
        ".map(e => getComputedStyle(e).fill))]"
    )
    assert len(fills) >= 3
    for fill in fills:
        assert contrast(channels(fill), page) >= 4.5, fill


def color(browser: Browser, element: str, name: str) -> list[float]:
    return channels(browser.evaluate(f"getComputedStyle({element}).{name}"))


def channels(text: str) -> list[float]:
    """Return red, green and blue of "rgb(1, 2, 3)"."""
    return [float(part) for part in text.split("(")[1].rstrip(")").split(",")[:3]]


def luminance(rgb: list[float]) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    """Return the contrast ratio of two colours, as WCAG 2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
