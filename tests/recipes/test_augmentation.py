"""Random shifts and flips of training images."""

from __future__ import annotations

import pytest
import torch

from prunus.recipes.data.augmentation import flip_images, shift_images


def test_shifted_image_is_one_window_of_the_padded_image() -> None:
    images = torch.rand(50, 3, 5, 6) + torch.arange(3).reshape(3, 1, 1)
    moved = shift_images(images, 2, torch.Generator().manual_seed(0))
    room = torch.empty(50, 3, 9, 10)
    for channel in range(3):  # each with its darkest value, which differ by about 1
        room[:, channel] = images[:, channel].min()
    room[:, :, 2:7, 2:8] = images
    seen = set()
    for before, after in zip(room, moved, strict=True):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(before[:, y : y + 5, x : x + 6], after)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 15  # of 25, in 50 draws


def test_every_shift_is_about_as_frequent() -> None:
    images = torch.zeros(9000, 1, 3, 3)
    images[:, :, 1, 1] = 1
    places = shift_images(images, 1, torch.Generator().manual_seed(0)).sum(dim=(0, 1))
    # 1000 expected for each of nine places, with a standard deviation of 30.
    assert places.min() > 850
    assert places.sum() == 9000


def test_no_shift_returns_the_images_and_draws_nothing() -> None:
    images, generator = torch.rand(4, 3, 5, 6), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert shift_images(images, 0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    images = torch.rand(1000, 3, 4, 5)
    turned = flip_images(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(turned, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(turned, images, strict=True)]
    assert sum(mirrored) + sum(same) == 1000
    assert 420 < sum(mirrored) < 580  # 500 expected, with a standard deviation of 16


@pytest.mark.parametrize("change", [lambda x, g: shift_images(x, 4, g), flip_images])
def test_change_depends_on_the_generator_alone(change: object) -> None:
    assert callable(change)
    images = torch.rand(64, 3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    one = change(images, generator)
    torch.manual_seed(9)
    assert torch.equal(one, change(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(one, change(images, generator)), "the next draw differs"
