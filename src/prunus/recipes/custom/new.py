"""A recipe file to start from."""

from __future__ import annotations

from pathlib import Path

from prunus.errors import PrunusError
from prunus.recipes.custom import template

__all__ = ["write_recipe"]


def write_recipe(path: Path) -> Path:
    """Write a recipe that runs as it is, with comments on what to change.

    Args:
        path: The file to write; ``.py`` is added to a name without it.

    Returns:
        The path of the file.

    Raises:
        PrunusError: It exists already, or cannot be written.
    """
    file = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    text = Path(template.__file__).read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text.replace("FILE", str(file)))
    except FileExistsError as error:
        raise PrunusError(f"{file} exists already: choose another name") from error
    except OSError as error:
        raise PrunusError(f"cannot write {file}: {error.strerror or error}") from error
    return file
