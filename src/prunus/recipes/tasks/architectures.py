"""The image networks of the recipes, in the sizes that the literature compares."""

from __future__ import annotations

import itertools

from torch import nn

__all__ = ["lenet5", "lenet300", "perceptron"]


def lenet300() -> nn.Sequential:
    """Build LeNet-300-100 for 28×28 images: 266,610 parameters.

    Example:
        >>> sum(p.numel() for p in lenet300().parameters())
        266610
    """
    return perceptron(784, 300, 100, 10)


def lenet5() -> nn.Sequential:
    """Build LeNet-5 with Caffe's widths 20-50-500-10 for 1×28×28 images: 431,080 parameters.

    A ReLU follows each convolution.

    Example:
        >>> sum(p.numel() for p in lenet5().parameters())
        431080
    """
    return nn.Sequential(
        nn.Conv2d(1, 20, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def perceptron(*widths: int) -> nn.Sequential:
    """Build fully connected layers of these widths with ReLUs between them.

    Example:
        >>> sum(p.numel() for p in perceptron(64, 100, 10).parameters())
        7510
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
