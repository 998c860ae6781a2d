"""Paths of files to export and of exported files."""

from __future__ import annotations

import os
from pathlib import Path

from prunus._utils.checks import raise_problems, type_problem
from prunus.errors import PrunusError

__all__ = ["as_path", "model_file", "output_path", "path_problem"]


def path_problem(name: str, value: object) -> str | None:
    """Return what is wrong with an argument that must be a path, or None."""
    return type_problem(name, value, (str, os.PathLike), "a path")


def as_path(path: str | Path, name: str = "path") -> Path:
    """Return an argument as a path.

    Raises:
        ArgumentTypeError: It is neither a string nor a path.
    """
    raise_problems(path_problem(name, path))
    return Path(path)


def model_file(path: Path) -> Path:
    """Return a safetensors file: the path itself, or the model in the directory of a run.

    Raises:
        PrunusError: There is no such file.
    """
    if path.is_dir():
        model = path / "model.safetensors"
        if not model.is_file():
            raise PrunusError(
                f"{path} holds no model.safetensors: the run may not be complete, or this may not "
                "be the directory of a run"
            )
        return model
    if not path.is_file():
        raise PrunusError(f"there is no file or directory {path}: pass the path of an existing one")
    return path


def output_path(source: Path, out: Path | None, form: str) -> Path:
    """Return the file to write.

    Args:
        source: The file to export.
        out: The file to write, if the caller chose one.
        form: The form of the export, which is part of the default name: a file beside the source.

    Raises:
        PrunusError: The file to write is the source.

    Example:
        >>> output_path(Path("run/model.safetensors"), None, "csr").as_posix()
        'run/model.csr.safetensors'
    """
    suffix = "" if form.endswith("onnx") else ".safetensors"
    out = out or source.with_name(f"{source.name.removesuffix('.safetensors')}.{form}{suffix}")
    if out.exists() and out.samefile(source):
        raise PrunusError(f"{out} is the file to read: choose another --out")
    return out
