"""Image data sets, decoded once and kept in memory as tensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from prunus._utils.extras import missing_extra
from prunus.errors import DataError
from prunus.recipes.data.splits import get_split, load_splits

__all__ = ["Images", "Split", "load_digits", "load_hub_images", "shift_images"]


@dataclass(frozen=True, eq=False)
class Split:
    """Normalized inputs with their labels.

    Attributes:
        inputs: Of shape (n, channels, height, width), float32.
        labels: Of shape (n,), int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Images:
    """The three splits of an image data set; validation is set apart from training.

    Attributes:
        train: The images to train on.
        validation: The images that decide when and how much is pruned, and which state is
            delivered.
        test: The images that decide nothing.
    """

    train: Split
    validation: Split
    test: Split


def load_digits(validation: float, seed: int) -> Images:
    """Load the 8×8 digits embedded in scikit-learn: 1,797 images, every fifth for testing.

    Args:
        validation: The fraction of the training images to set apart for validation.
        seed: The seed of that choice.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_extra("the recipe digits", "cli", error) from error
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    test = np.arange(len(labels)) % 5 == 4
    return _images(
        (images[~test], labels[~test]), (images[test], labels[test]), 16.0, validation, seed
    )


def load_hub_images(
    source: str,
    *,
    size: tuple[int, int],
    classes: int = 10,
    columns: tuple[str, str] = ("image", "label"),
    validation: float,
    seed: int,
) -> Images:
    """Load grey images with labels from the Hugging Face Hub or a folder of the same layout.

    Args:
        source: A name on the Hub, or the path of a folder.
        size: Height and width that the images must have.
        classes: The number of labels, which count from 0.
        columns: The names of the image and the label column.
        validation: The fraction of the training images to set apart for validation.
        seed: The seed of that choice.

    Raises:
        DataError: The set is missing, empty or damaged, or has other columns, splits or sizes.
    """
    loaded = load_splits(source)
    raw = {
        split: _decode(
            _undecoded(loaded, source, split, columns), source, split, size, classes, columns
        )
        for split in ("train", "test")
    }
    return _images(raw["train"], raw["test"], 255.0, validation, seed)


def shift_images(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Return images shifted by random numbers of pixels and filled with the darkest value.

    Args:
        images: Of shape (n, channels, height, width).
        most: The largest shift in each direction; with 0 the images are returned unchanged.
        generator: The random numbers of the shifts.

    Example:
        >>> shift_images(torch.ones(2, 1, 3, 3), 1, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 3, 3])
    """
    if most == 0:
        return images
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4, value=images.min().item())
    down, across = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height))[:, :, None]
    columns = (across + torch.arange(width))[:, None, :]
    # Indices on both sides of the colour channels move those to the end.
    return padded[torch.arange(count)[:, None, None], :, rows, columns].movedim(-1, 1)


def _decode(
    found: Any,
    source: str,
    split: str,
    size: tuple[int, int],
    classes: int,
    columns: tuple[str, str],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from PIL import Image as Pillow

    images = np.empty((len(found), *size), dtype=np.uint8)
    for index, cell in enumerate(found[columns[0]]):
        try:
            content = cell["bytes"] or Path(cell["path"]).read_bytes()
            image = Pillow.open(io.BytesIO(content)).convert("L")
        except Exception as error:  # the library raises whatever its decoders do
            raise DataError(
                f"image {index} of the {split} split of {source} cannot be decoded: {error}"
            ) from error
        if image.size != (size[1], size[0]):
            raise DataError(
                f"image {index} of the {split} split of {source} is "
                f"{image.size[1]}×{image.size[0]}, but this recipe reads {size[0]}×{size[1]}"
            )
        images[index] = np.asarray(image)
    labels = np.asarray(found[columns[1]])
    whole = np.issubdtype(labels.dtype, np.integer)
    wrong = labels[(labels < 0) | (labels >= classes)] if whole else labels
    if len(wrong):
        raise DataError(
            f"the column {columns[1]} of the {split} split of {source} must hold whole numbers "
            f"from 0 to {classes - 1}, but holds {labels.dtype} values such as "
            f"{wrong[:3].tolist()}"
        )
    return images, labels


def _undecoded(loaded: Any, source: str, split: str, columns: tuple[str, str]) -> Any:
    """Return a split whose images are still encoded."""
    import datasets

    found = get_split(loaded, source, split, columns)
    try:
        return found.cast_column(columns[0], datasets.Image(decode=False))
    except Exception as error:  # a cast may raise many types
        raise DataError(
            f"the column {columns[0]} of {source} holds {found.features[columns[0]]}, not images"
        ) from error


def _images(
    train: tuple[Any, Any], test: tuple[Any, Any], scale: float, validation: float, seed: int
) -> Images:
    pixels, labels = _tensors(train, scale)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    count = round(validation * len(labels))
    if not 0 < count < len(labels):
        raise DataError(
            f"validation={validation} leaves no images to train on or none to validate on: there "
            f"are {len(labels)} training images"
        )
    chosen, rest = order[:count], order[count:]
    mean, deviation = pixels[rest].mean(), pixels[rest].std()
    if not deviation > 0:
        raise DataError("the images of the train split all have the same single colour")
    test_pixels, test_labels = _tensors(test, scale)
    return Images(
        train=Split((pixels[rest] - mean) / deviation, labels[rest]),
        validation=Split((pixels[chosen] - mean) / deviation, labels[chosen]),
        test=Split((test_pixels - mean) / deviation, test_labels),
    )


def _tensors(raw: Sequence[Any], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = raw
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / scale
    return pixels.unsqueeze(1), torch.from_numpy(np.ascontiguousarray(labels)).to(torch.int64)
