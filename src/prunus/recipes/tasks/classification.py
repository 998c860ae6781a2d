"""The image-classification task, measured by accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from prunus._utils.fields import number, setting
from prunus.recipes.config import Config
from prunus.recipes.data.augmentation import flip_images, shift_images
from prunus.recipes.data.images import Images, Split
from prunus.recipes.setting_marks import Affects
from prunus.recipes.tasks.losses import Teacher, cross_entropy
from prunus.recipes.tasks.task import Evaluation, Task, fingerprint

__all__ = ["Classification", "ImageConfig"]

_Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """The settings of image classification, in addition to those of :class:`Config`."""

    validation: Annotated[float, Affects.DENSE_NETWORK] = number(
        1 / 12, above=0, below=1, help="Fraction of the training split to set apart for validation."
    )
    shift: Annotated[int, Affects.DENSE_NETWORK] = number(
        0,
        whole=True,
        least=0,
        help="Largest number of pixels by which training images are shifted each way, drawn again "
        "at every step, for both networks; 0 for no shift.",
    )
    flip: Annotated[bool, Affects.DENSE_NETWORK] = setting(
        False,
        help="Whether half of the training images, chosen again at every step, are mirrored left "
        "to right, for both networks.",
    )
    channels_last: Annotated[bool, Affects.DENSE_NETWORK] = setting(
        False,
        help="Whether images are stored pixel by pixel instead of channel by channel, which makes "
        "the convolutions of residual networks faster; results differ by rounding.",
    )
    momentum: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.9, least=0, below=1, help="Nesterov momentum of SGD, for both trainings."
    )
    weight_decay: Annotated[float, Affects.DENSE_NETWORK] = number(
        0.0,
        least=0,
        help="Weight decay of SGD in the dense training, for all parameters; the penalty takes its "
        "place in the pruning epochs.",
    )


class Classification(Task):
    """A task for a network that assigns images to classes.

    Args:
        config: The settings.
        images: The data.
        build: Builds the network.
    """

    metric = "accuracy"

    def __init__(self, config: ImageConfig, images: Images, build: Callable[[], nn.Module]) -> None:
        self._config, self._images, self._build = config, images, build
        self._weight_decay = config.weight_decay
        self.steps_per_epoch = math.ceil(len(images.train) / config.batch_size)
        splits = (images.train, images.validation, images.test)
        self.fingerprint = fingerprint(t for split in splits for t in (split.inputs, split.labels))

    def network(self) -> nn.Module:
        """Build the network."""
        return self._build()

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build SGD with Nesterov's momentum, and with weight decay for the dense training."""
        momentum = self._config.momentum
        return torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=momentum,
            nesterov=momentum > 0,
            weight_decay=self._weight_decay,
        )

    def prepare_pruning(self, model: nn.Module) -> None:
        """Replace weight decay by the penalty."""
        self._weight_decay = 0.0

    def batches(self, generator: torch.Generator) -> Iterator[Sequence[_Batch]]:
        """Yield each image once, shifted and flipped at random, in random order."""
        train = self._images.train
        for batch in torch.split(
            torch.randperm(len(train), generator=generator), self._config.batch_size
        ):
            inputs = shift_images(train.inputs[batch], self._config.shift, generator)
            if self._config.flip:
                inputs = flip_images(inputs, generator)
            yield [(self._laid_out(inputs), train.labels[batch])]

    def size(self, batch: _Batch) -> int:
        """Return the number of images."""
        return len(batch[1])

    def loss(self, model: nn.Module, batch: _Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Return the cross-entropy."""
        inputs, labels = batch
        return cross_entropy(lambda network: (network(inputs), labels), model, teacher)

    def validate(self, model: nn.Module) -> Evaluation:
        """Evaluate on the validation images."""
        return self._evaluate(model, self._images.validation)

    def test(self, model: nn.Module) -> Evaluation:
        """Evaluate on the test images."""
        return self._evaluate(model, self._images.test)

    def calibration_inputs(self) -> Sequence[torch.Tensor]:
        """Return eight batches of training images, as they are."""
        return [self._laid_out(part) for part in torch.split(self._images.train.inputs[:512], 64)]

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, split: Split) -> Evaluation:
        model.eval()
        loss, correct = 0.0, 0
        for inputs, labels in zip(
            torch.split(split.inputs, 1000), torch.split(split.labels, 1000), strict=True
        ):
            outputs = model(self._laid_out(inputs))
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += int((outputs.argmax(dim=1) == labels).sum())
        model.train()
        return Evaluation(loss / len(split), correct / len(split))

    def _laid_out(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs in the memory format of the settings, which a network's layers follow."""
        last = self._config.channels_last
        return inputs.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
