"""Import of a recipe's Python file, by its path."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from prunus.errors import RecipeError
from prunus.recipes.custom.user_code import reporting_errors
from prunus.recipes.recipe import CodeFile

__all__ = ["CodeModule", "code_file", "import_file"]


@dataclass(frozen=True)
class CodeModule:
    """An imported module.

    Attributes:
        module: The module.
        file: The file that it was imported from.
    """

    module: ModuleType
    file: CodeFile


_imported: dict[CodeFile, CodeModule] = {}


def code_file(path: Path) -> CodeFile:
    """Return the absolute path and the digest of a file, without importing it.

    Raises:
        RecipeError: It cannot be read.
    """
    return CodeFile(path.resolve(), hashlib.sha256(_content(path)).hexdigest())


def import_file(path: Path) -> CodeModule:
    """Import a Python file; a file that did not change is imported once.

    Its folder is added to ``sys.path``, as Python does for a script, so that it may import modules
    beside it; and it may import them relatively too, ``from .module import name``.

    Args:
        path: The file.

    Raises:
        RecipeError: It cannot be read, is not valid Python, or fails; with the line.
    """
    content = _content(path)
    file = CodeFile(path.resolve(), hashlib.sha256(content).hexdigest())
    if file not in _imported:
        _imported[file] = CodeModule(_execute(file.path, content), file)
    return _imported[file]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"the recipe {path} cannot be read: {error.strerror or error}; pass the path of a "
            "Python file"
        ) from error


def _execute(path: Path, content: bytes) -> ModuleType:
    """Return the module of a file's content."""
    try:
        code = compile(content, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        raise RecipeError(_syntax_message(path, error)) from error
    module = _module(path)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[module.__name__] = module
    try:
        with reporting_errors(f"the recipe {path.name}", path):
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _module(path: Path) -> ModuleType:
    """Return an empty module within a package of the file's folder, for relative imports.

    The package has a name of its own, so that a file may have the name of an installed module.
    """
    package_name = f"prunus_recipe_{hashlib.sha256(bytes(path.parent)).hexdigest()[:12]}"
    if package_name not in sys.modules:
        package = ModuleType(package_name, "The folder of a recipe.")
        package.__path__ = [str(path.parent)]
        sys.modules[package_name] = package
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{package_name}.{stem}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    return module


def _syntax_message(path: Path, error: Exception) -> str:
    if not isinstance(error, SyntaxError) or error.lineno is None:
        return f"the recipe {path.name} is not valid Python: {error}"
    line = f":\n    {error.text.strip()}" if error.text else ""
    return f"the recipe {path.name} is not valid Python: {error.msg} in line {error.lineno}{line}"
