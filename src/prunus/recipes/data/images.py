"""Image data sets, decoded once and kept in memory as tensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunus._utils.extras import missing_extra
from prunus.errors import DataError
from prunus.recipes.data.splits import get_split, load_splits

__all__ = ["Images", "Split", "load_digits", "load_hub_images"]


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs with their labels, each channel normalized by the training images.

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
    color: bool = False,
    classes: int = 10,
    columns: tuple[str, str] = ("image", "label"),
    validation: float,
    seed: int,
) -> Images:
    """Load images with labels from the Hugging Face Hub or a folder of the same layout.

    Args:
        source: A name on the Hub, or the path of a folder.
        size: Height and width that the images must have.
        color: Whether to read red, green and blue, instead of shades of grey.
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
            _undecoded(loaded, source, split, columns),
            source,
            split,
            size,
            color,
            classes,
            columns,
        )
        for split in ("train", "test")
    }
    return _images(raw["train"], raw["test"], 255.0, validation, seed)


def _decode(
    found: Any,
    source: str,
    split: str,
    size: tuple[int, int],
    color: bool,
    classes: int,
    columns: tuple[str, str],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from PIL import Image as Pillow

    mode, channels = ("RGB", (3,)) if color else ("L", ())
    images = np.empty((len(found), *size, *channels), dtype=np.uint8)
    for index, cell in enumerate(found[columns[0]]):
        try:
            content = cell["bytes"] or Path(cell["path"]).read_bytes()
            image = Pillow.open(io.BytesIO(content)).convert(mode)
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
    train_pixels, validation_pixels = pixels[rest], pixels[chosen]
    del pixels  # color images fill hundreds of megabytes
    test_pixels, test_labels = _tensors(test, scale)
    for channel in range(train_pixels.shape[1]):
        mean, deviation = train_pixels[:, channel].mean(), train_pixels[:, channel].std()
        if not deviation > 0:
            raise DataError(
                f"channel {channel} of the images of the train split has a single value "
                f"everywhere, {scale * mean:g}: choose another --data"
            )
        for part in (train_pixels, validation_pixels, test_pixels):
            part[:, channel].sub_(mean).div_(deviation)
    return Images(
        train=Split(train_pixels, labels[rest]),
        validation=Split(validation_pixels, labels[chosen]),
        test=Split(test_pixels, test_labels),
    )


def _tensors(raw: Sequence[Any], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = raw
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32).div_(scale)
    # Channels come last in a decoded image, and a grey one has no dimension for them.
    pixels = pixels.movedim(-1, 1).contiguous() if pixels.dim() == 4 else pixels.unsqueeze(1)
    return pixels, torch.from_numpy(np.ascontiguousarray(labels)).to(torch.int64)
