"""A word list for prose, messages, docstrings and comments: what to avoid, and what to write."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PLAINLY = {
    r"shall": "will, must, or the imperative",
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix",
    r"hangs? on|hung on": "depend on",
    r"nobody": "name the caller, layer or process",
    r"whoever|someone|somebody|anyone|everyone": "name the caller, layer or process",
    r"thereby|thereof|wherein|whereof": "name the thing",
    r"says? (?:so|which|what|whether|how|why|of|that|nothing)": "return, report or state",
    r"[Ss]ay (?:so|which|what|whether|how|why|of)": "return, report or state",
    r"makes? of": "compute from, return or build",
    r"made of": "computed from, built from",
    r"(?:goes|go|gone|going) on with": "continue or resume",
    r"lets? go of": "release",
    r"takes? over": "load, restore or adopt",
    r"other people's": "third-party",
    r"of one's own": "custom",
    r"for who|who has": "name the caller or user",
    r"reg[r]?ets?": "backtrack",
    r"lessons?": "teacher outputs",
    r"in a row,": "as a vector, consecutively",
    r"what is dead": "dead units",
    r"in force": "active, attached",
    r"be it": "even if",
    r"kinds? of tensor": "type of tensor",
    r"lies? in": "is stored in, is at",
    r"says? (?:more|less|little|much)": "has further rows, states the details",
    r"(?:is|are|was|were|be|been) held (?:against|up|to)": "is compared with",
    r"that made (?:it|them)": "that produced it",
    r"of any origin": "untrusted",
    r"some times": "several times",
}
"""Patterns of words, and what to write in their place."""

TOKENIZED = ("src/prunus/recipes/", "tests/recipes/")
"""Where a "word" is what a tokenizer makes, which is a token."""

NOT_A_HEADLINE = re.compile(r"(?:What|How|Who|Whose|Which|Where|Whether|When|Making|Turning)\b")
"""How the first line of a module does not begin: it is a noun phrase."""

NOT_AN_IMPERATIVE = re.compile(r"(?:Say|Tell|Hear|Know|Understand)\b")
"""How the first line of a function does not begin, though it is a verb."""


def prose_of(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that a person reads: of code, its comments and strings."""
    if suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def documents(*suffixes: str) -> list[str]:
    folders = ("src", "tests", "benchmarks", "examples", "docs")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    pages = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    files += [ROOT / name for name in (*pages, "pyproject.toml", "Makefile", ".ci/run")]
    names = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix in suffixes and path.is_file()
    ]
    return [name for name in names if name != Path(__file__).relative_to(ROOT).as_posix()]


def findings(name: str, text: str) -> list[str]:
    patterns = {**PLAINLY, **({r"words?": "token"} if name.startswith(TOKENIZED) else {})}
    return [
        f"{name}:{number}: {match[0]!r}, plainly: {plain}: {line.strip()}"
        for number, line in prose_of(text, Path(name).suffix)
        for pattern, plain in patterns.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", line)
    ]


def headline_findings(name: str, text: str) -> list[str]:
    tree = ast.parse(text)
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    found = [f"{name}: {first}"] if NOT_A_HEADLINE.match(first) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if NOT_AN_IMPERATIVE.match(first):
                found.append(f"{name}:{node.lineno}: {first}")
    return found


@pytest.mark.parametrize("name", documents(".py", ".md", ".toml", ""))
def test_prose_uses_plain_words(name: str) -> None:
    assert findings(name, (ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", documents(".py"))
def test_headlines_are_noun_phrases_and_summaries_imperatives(name: str) -> None:
    assert headline_findings(name, (ROOT / name).read_text()) == []


def test_findings_are_in_comments_and_strings_and_not_in_code() -> None:
    code = 'anew = 1  # computed anew\nsaid = "nobody"\nshall(anew)\n'
    found = findings("src/planted.py", code)
    assert [line.split(", ")[0] for line in found] == [
        "src/planted.py:1: 'anew'",
        "src/planted.py:2: 'nobody'",
    ]
    assert len(findings("docs/planted.md", code)) == 5


def test_build_files_are_read_too() -> None:
    assert {"pyproject.toml", "Makefile", ".ci/run"} <= set(documents(".toml", ""))
    assert len(findings("Makefile", "help:  ## list them anew\n")) == 1


def test_word_is_found_only_where_a_tokenizer_is_meant() -> None:
    assert findings("src/prunus/recipes/planted.py", "# each word\n") != []
    assert findings("src/prunus/planted.py", "# each word\n") == []


def test_headline_findings_name_modules_and_functions() -> None:
    code = '"""What it does."""\ndef f():\n    """Say what."""\ndef g():\n    """Return it."""\n'
    assert headline_findings("planted.py", code) == [
        "planted.py: What it does.",
        "planted.py:2: Say what.",
    ]
