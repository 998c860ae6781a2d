"""Loading data sets from the Hugging Face Hub, or from a folder laid out like it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.errors import DataError, PrunusError, listing

__all__ = ["get_split", "load_splits"]


def load_splits(source: str, name: str | None = None) -> Any:
    """Load all splits, once.

    Args:
        source: A name on the Hub, or the path of a folder.
        name: Which of several configurations a set on the Hub has.

    Raises:
        DataError: The set is absent, empty or damaged.
        PrunusError: The libraries for it are not installed.
    """
    try:
        import datasets
        import PIL  # noqa: F401
    except ImportError as error:
        raise PrunusError(
            "recipes on data from the Hub or a folder need the 'hub' extra: "
            "pip install 'prunus[hub]'"
        ) from error
    folder = Path(source).expanduser()
    looks_local = folder.exists() or source.startswith((".", "/", "~"))
    if looks_local and not folder.is_dir():
        raise DataError(f"the data folder {source} does not exist or is not a folder")
    if looks_local and not any(path.is_file() for path in folder.rglob("*")):
        raise DataError(f"the data folder {source} is empty; expected parquet files as on the Hub")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what fails is said once, below
    try:
        named = [] if looks_local or name is None else [name]
        return datasets.load_dataset(str(folder) if looks_local else source, *named)
    except Exception as error:  # the library raises whatever its readers do
        local = "a file may be empty, cut short or not be what its name says"
        remote = (
            "there is no such folder here; and the Hub may be out of reach, lack it, or have it "
            "with a program of its own, which is not run: give a local folder with --data"
        )
        hint = local if looks_local else remote
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot load {source}: {hint} ({cause})") from error


def get_split(
    loaded: Any,
    source: str,
    split: str,
    columns: Sequence[str],
    splits: Sequence[str] = ("train", "test"),
) -> Any:
    """Return a split, which must have rows and the given columns.

    Args:
        loaded: What :func:`load_splits` returned.
        source: What it was loaded from, for messages.
        split: Which split.
        columns: The names of the columns that are needed.
        splits: The names of all splits that are needed, for messages.

    Raises:
        DataError: The split is absent or empty, or lacks columns.
    """
    if split not in loaded:
        raise DataError(
            f"{source} has no {split} split; expected {' and '.join(splits)}, found "
            f"{listing(list(loaded))}"
        )
    found = loaded[split]
    missing = [name for name in columns if name not in found.column_names]
    if missing:
        raise DataError(
            f"the {split} split of {source} lacks the columns {listing(missing)}; expected "
            f"{listing(columns)}, found {listing(found.column_names)}"
        )
    if len(found) == 0:
        raise DataError(f"the {split} split of {source} is empty")
    return found
