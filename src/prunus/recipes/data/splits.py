"""Data sets from the Hugging Face Hub, or from a folder with the same layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus._utils.extras import missing_extra
from prunus.errors import DataError, first_line, listing

__all__ = ["get_split", "load_splits"]


def load_splits(source: str, name: str | None = None) -> Any:
    """Load all splits of a data set.

    Args:
        source: A name on the Hub, or the path of a folder.
        name: The configuration to load, for a set on the Hub that has several.

    Raises:
        DataError: The set is missing, empty or damaged.
        MissingExtraError: The libraries of the hub extra are not installed.
    """
    try:
        import datasets
        import PIL  # noqa: F401
    except ImportError as error:
        raise missing_extra("a recipe on data from the Hub or a folder", "hub", error) from error
    folder = Path(source).expanduser()
    looks_local = folder.exists() or source.startswith((".", "/", "~"))
    if looks_local and not folder.is_dir():
        raise DataError(f"the data folder {source} does not exist or is not a folder")
    if looks_local and not any(path.is_file() for path in folder.rglob("*")):
        raise DataError(f"the data folder {source} is empty; expected parquet files as on the Hub")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # errors are reported once, below
    try:
        named = [] if looks_local or name is None else [name]
        return datasets.load_dataset(str(folder) if looks_local else source, *named)
    except Exception as error:  # the library raises whatever its readers do
        local = "a file may be empty, truncated, or of another format than its name"
        remote = (
            "there is no such folder here; and the Hub may be unreachable, lack it, or have it "
            "with a custom script, which is not run: pass a local folder with --data"
        )
        hint = local if looks_local else remote
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"cannot load {source}: {hint} ({cause})") from error


def get_split(
    loaded: Any,
    source: str,
    split: str,
    columns: Sequence[str],
    splits: Sequence[str] = ("train", "test"),
) -> Any:
    """Return a split, checked to have rows and columns.

    Args:
        loaded: The splits that :func:`load_splits` returned.
        source: The name or path that they were loaded from, for messages.
        split: The name of the split.
        columns: The names of the required columns.
        splits: The names of all required splits, for messages.

    Raises:
        DataError: The split is missing or empty, or lacks columns.
    """
    if split not in loaded:
        raise DataError(
            f"{source} has no {split} split; expected {' and '.join(splits)}, found "
            f"{listing(list(loaded))}; add the split, or choose another --data"
        )
    found = loaded[split]
    missing = [name for name in columns if name not in found.column_names]
    if missing:
        raise DataError(
            f"the {split} split of {source} lacks the columns {listing(missing)}; expected "
            f"{listing(columns)}, found {listing(found.column_names)}; rename or add them"
        )
    if len(found) == 0:
        raise DataError(
            f"the {split} split of {source} is empty; add rows, or choose another --data"
        )
    return found
