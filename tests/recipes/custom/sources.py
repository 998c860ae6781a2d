"""A small recipe as text, which tests change line by line."""

from __future__ import annotations

from pathlib import Path

# It draws from everything that a resumed run must restore: the order and the augmentation of the
# batches, dropout, and random numbers of Python and NumPy in the loss.
SOURCE = '''\
"""A perceptron that learns which of two numbers is larger."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

settings = dict(dense_epochs=2, epochs=3, batch_size=32, dense_lr=0.02, lr=0.02, ratio=3, width=32)


class Pairs(Dataset):
    def __init__(self, count, noise):
        self.inputs, self.noise = torch.rand(count, 2), noise

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        pair = self.inputs[index]
        drawn = torch.rand(2) * self.noise + random.random() * np.random.rand() * self.noise
        return pair + drawn, (pair[0] > pair[1]).long()


def network(width):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2))


def loaders(batch_size):
    own = torch.Generator().manual_seed(5)
    train = DataLoader(Pairs(200, 0.01), batch_size, shuffle=True, generator=own)
    return train, DataLoader(Pairs(100, 0), 50, shuffle=True), DataLoader(Pairs(100, 0), 50)


def loss(model, batch):
    inputs, labels = batch
    factor = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
    return factor * F.cross_entropy(model(inputs), labels)


def accuracy(model, loader):
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


metric = accuracy
'''

STEPS = 7
"""The number of steps in an epoch."""


def write(path: Path, *changes: tuple[str, str]) -> Path:
    """Write the recipe with parts of its text replaced; return its path."""
    text = SOURCE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)
    return path
