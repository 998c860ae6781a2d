"""The image-classification task: its batches, memory format and optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from helpers.data import normal
from prunus.recipes.data.images import Images, Split
from prunus.recipes.tasks.classification import Classification, ImageConfig


def image_task(**changes: Any) -> Classification:
    config = ImageConfig(
        **{
            "dense_epochs": 1,
            "epochs": 1,
            "batch_size": 4,
            "dense_lr": 0.1,
            "lr": 0.1,
            "strength": 0.0,
            "ratio": 2.0,
            **changes,
        }
    )
    split = Split(normal(8, 3, 6, 6, seed=1), torch.arange(8))
    return Classification(config, Images(split, split, split), nn.Flatten)


def test_batches_and_evaluations_have_the_memory_format_of_the_settings() -> None:
    class Recorder(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            formats.append(images.is_contiguous(memory_format=torch.channels_last))
            return images.flatten(1)

    for last in (True, False):
        for shift in (0, 2):
            formats: list[bool] = []
            task, model = image_task(channels_last=last, shift=shift, flip=True), Recorder()
            for ((images, _),) in task.batches(torch.Generator()):
                model(images)
            task.validate(model)
            task.test(model)
            assert formats == [last] * 4


def test_flip_changes_no_other_random_number_of_the_first_batch() -> None:
    """So that images of a run without flips are the same as before there was the setting."""
    plain, flipped = (
        next(iter(image_task(shift=1, flip=flip).batches(torch.Generator().manual_seed(1))))[0]
        for flip in (False, True)
    )
    assert torch.equal(plain[1], flipped[1])
    for one, other in zip(plain[0], flipped[0], strict=True):
        assert torch.equal(one, other) or torch.equal(one, other.flip(-1))
    assert not torch.equal(plain[0], flipped[0])


def test_weight_decay_applies_to_the_dense_training_alone() -> None:
    task, model = image_task(weight_decay=5e-4), nn.Linear(2, 2)

    def decay() -> float:
        return float(task.optimizer(model, 0.1).param_groups[0]["weight_decay"])

    assert decay() == 5e-4
    task.prepare_pruning(model)
    assert decay() == 0
