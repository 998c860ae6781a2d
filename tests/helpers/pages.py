"""Pages of the documentation: their code, run as a reader would, and the names in their prose."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^<!-- hidden (?P<hidden>code)\n(?P<setup>.*?)^-->$"
    r"|^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        language: The language of the fence; "hidden" for code in a comment, which a reader does
            not see: what the page's code presupposes.
        code: The text of the block.
        line: Its first line in the page, counted from 1.
    """

    language: str
    code: str
    line: int


def pages() -> list[str]:
    """Return the names of all pages, relative to the folder of the documentation."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page."""
    for match in _BLOCK.finditer(text):
        group = "setup" if match["hidden"] else "code"
        line = text.count("\n", 0, match.start(group)) + 1
        yield Block("hidden" if match["hidden"] else match["language"], match[group], line)


def run_page(path: Path) -> dict[str, Any]:
    """Run the code of a page from its top, compare the outputs that it shows, and return its names.

    A block of the language ``text`` is the output of the block before it. Numbers in it may
    differ, because they depend on the machine.
    """
    names: dict[str, Any] = {"__name__": "__main__", "ROOT": ROOT}
    output = ""
    for block in blocks(path.read_text()):
        if block.language in ("python", "hidden"):
            output = _run(block, path, names)
        elif block.language == "pycon":
            _run_examples(block, path, names)
        elif block.language == "text":
            assert _NUMBER.sub("0", output) == _NUMBER.sub("0", block.code), (path, block.line)
    return names


def _run(block: Block, path: Path, names: dict[str, Any]) -> str:
    """Run a block, and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        # The empty lines let a traceback name the line of the page.
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), names)
    return stream.getvalue()


def _run_examples(block: Block, path: Path, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.code, names, path.name, str(path), block.line)
    runner = doctest.DocTestRunner(verbose=False)
    report = io.StringIO()
    runner.run(test, out=report.write, clear_globs=False)
    assert not runner.failures, report.getvalue()
    names.update(test.globs)


_NAME = re.compile(r"\bprunus(?:\.[A-Za-z_]\w*)+")


def missing_names(text: str) -> list[str]:
    """Return the names after ``prunus.`` in a text that do not exist."""
    return [name for name in _NAME.findall(text) if not _exists(name)]


def _exists(name: str) -> bool:
    """Return whether a name is that of a module, or of an attribute of one.

    Each prefix is tried as the module, because a function may hide the module of its name.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError, AttributeError):
            found: Any = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                found = getattr(found, part)
            return True
    return False


_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Return the relative links of a page whose file or heading does not exist.

    Args:
        page: The page, to which links are relative.
        text: Its prose. Default: all of it.
    """
    broken = []
    for match in _LINK.finditer(page.read_text() if text is None else text):
        target = page.parent / match[1] if match[1] else page
        if not target.exists() or (match[2] and match[2] not in _anchors(target)):
            broken.append(match[0])
    return broken


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }
