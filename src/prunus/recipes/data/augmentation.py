"""Random changes of training images, drawn for a whole batch at once."""

from __future__ import annotations

import torch

__all__ = ["flip_images", "shift_images"]


def shift_images(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Return images shifted by random numbers of pixels.

    The same as a random crop of images padded by ``most`` pixels on each side. The padding has the
    darkest value of each channel in the batch.

    Args:
        images: Of shape (n, channels, height, width).
        most: The largest shift in each direction, in pixels; with 0 the images are returned
            unchanged.
        generator: The random numbers of the shifts.

    Example:
        >>> shift_images(torch.ones(2, 1, 3, 3), 1, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 3, 3])
    """
    if most == 0:
        return images
    count, channels, height, width = images.shape
    darkest = images.amin(dim=(0, 2, 3)).reshape(1, channels, 1, 1)
    padded = darkest.repeat(count, 1, height + 2 * most, width + 2 * most)
    padded[:, :, most : most + height, most : most + width] = images
    down, across = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height))[:, :, None]
    columns = (across + torch.arange(width))[:, None, :]
    # Indices on both sides of the channels move those to the end.
    return padded[torch.arange(count)[:, None, None], :, rows, columns].movedim(-1, 1)


def flip_images(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images of which each is mirrored, left to right, with a probability of one half.

    Args:
        images: Of shape (n, channels, height, width).
        generator: The random numbers of the choice.

    Example:
        >>> images = torch.tensor([1.0, 2.0]).expand(4, 1, 1, 2)
        >>> flip_images(images, torch.Generator().manual_seed(0)).flatten(1).tolist()
        [[1.0, 2.0], [2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]
    """
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator) == 1
    return torch.where(flipped, images.flip(-1), images)
