"""Pruning of a convolutional network on CIFAR-10 by Lightning's Trainer, down to a floor.

python examples/lightning_cifar.py --floor dense-1%
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import lightning as pl
import numpy as np
import torch
from datasets import load_dataset
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import prunus
from prunus.integrations.lightning import PruningCallback


class Classifier(pl.LightningModule):
    """A convolutional network of 0.3 million weights.

    Args:
        steps: The number of optimizer steps of one training, over which the learning rate falls.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        widths = (3, 64, 128, 256)
        blocks = [
            nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for before, width in pairwise(widths)
        ]
        self.net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log the accuracy that the floor is compared with."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW with a learning rate that falls to 0."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main() -> None:
    """Train a dense network, and then prune it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="uoft-cs/cifar10", help="Hub name or folder")
    parser.add_argument("--floor", default="dense-1%")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    pl.seed_everything(0)
    rows = load_dataset(options.data, split="train")
    pixels = np.stack([np.asarray(image) for image in rows["img"]])
    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5
    data = TensorDataset(images, torch.tensor(rows["label"]))
    train, validation = (
        DataLoader(part, batch_size=128, shuffle=shuffle)
        for part, shuffle in zip(random_split(data, [0.9, 0.1]), (True, False), strict=True)
    )

    def trainer(*callbacks: pl.Callback) -> pl.Trainer:
        return pl.Trainer(
            max_epochs=options.epochs,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            logger=False,
            num_sanity_val_steps=0,
        )

    model = Classifier(options.epochs * len(train))
    dense = trainer()
    dense.fit(model, train)
    (measured,) = dense.validate(model, validation)
    pruning = PruningCallback(
        metric="val_accuracy", floor=options.floor, dense_metric=measured["val_accuracy"]
    )
    trainer(pruning).fit(model, train, validation)
    print(f"sparsity {prunus.Masks.from_zeros(prunus.select(model)).sparsity:.2%}")
    prunus.save_sparse(model, "cifar.safetensors")


if __name__ == "__main__":
    main()
