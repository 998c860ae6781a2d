"""Small image data sets in the layout of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image as Pillow

Pixels = np.ndarray[Any, Any]

CLASSES = [str(digit) for digit in range(10)]


def noise(count: int, seed: int, size: tuple[int, ...] = (28, 28)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def write(
    folder: Path,
    split: str,
    images: Sequence[Any] | Pixels,
    labels: Sequence[Any] | None = None,
    *,
    columns: tuple[str, str] = ("image", "label"),
    features: tuple[Any, Any] | None = None,
) -> Path:
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [Pillow.fromarray(cell) if isinstance(cell, np.ndarray) else cell for cell in images]
    labels = [index % 10 for index in range(len(cells))] if labels is None else list(labels)
    kinds = features or (datasets.Image(), datasets.ClassLabel(names=CLASSES))
    datasets.Dataset.from_dict(
        dict(zip(columns, (cells, labels), strict=True)),
        features=datasets.Features(dict(zip(columns, kinds, strict=True))),
    ).to_parquet(path)
    return path
