"""Calls of code in a recipe's file, whose errors are reported with the user's own lines alone."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from prunus.errors import PrunusError, RecipeError

__all__ = ["reporting_errors"]

_PRUNUS = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def reporting_errors(what: str, file: Path) -> Iterator[None]:
    """Raise any error of the block as a :class:`~prunus.RecipeError`, with lines of the user.

    Lines are the user's if they are in the folder of the recipe's file, and not in an installed
    package; those of prunus and of other libraries are left out.

    Args:
        what: What is called, such as "loss() of my_recipe.py".
        file: The recipe's file.

    Raises:
        RecipeError: The block raised an error that is not one of prunus.
    """
    try:
        yield
    except PrunusError:
        raise
    except (Exception, SystemExit) as error:
        raise RecipeError("\n".join([f"{what} failed:", *_lines(error, file)])) from error


def _lines(error: BaseException, file: Path) -> Iterator[str]:
    """Yield the user's part of a traceback, and the error as the last line, as Python prints it."""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if _is_own(path, file):
            yield f"  {path.relative_to(file.parent)}, line {frame.lineno}, in {frame.name}"
            if frame.line:
                yield f"    {frame.line}"
    yield from (line.rstrip() for line in traceback.format_exception_only(error))


def _is_own(path: Path, file: Path) -> bool:
    """Return whether a file of code belongs to the user of a recipe's file."""
    if path == file:
        return True
    if not path.is_relative_to(file.parent) or path.is_relative_to(_PRUNUS):
        return False
    return "site-packages" not in path.relative_to(file.parent).parts
