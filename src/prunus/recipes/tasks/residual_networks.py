"""The residual networks for CIFAR-10 of He et al., arXiv 1512.03385, section 4.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CifarResNet", "cifar_resnet"]


class CifarResNet(nn.Module):
    """A residual network for 3×32×32 images.

    A 3×3 convolution, three stages of 16, 32 and 64 channels on maps of 32, 16 and 8 pixels a side,
    the mean over the map, and a linear layer. Shortcuts have no parameters (the paper's option A):
    between two stages, every second pixel, and zeros for the additional channels.

    Args:
        blocks: The number of residual blocks per stage.
        classes: The number of classes.

    Source: He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2.

    Example:
        >>> CifarResNet(blocks=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv = _conv(3, 16)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = _stage(blocks, 16, 16, stride=1)
        self.stage2 = _stage(blocks, 16, 32, stride=2)
        self.stage3 = _stage(blocks, 32, 64, stride=2)
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape (n, classes)."""
        features = F.relu(self.norm(self.conv(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def cifar_resnet(depth: int) -> CifarResNet:
    """Build the residual network for CIFAR-10 with new random weights.

    Args:
        depth: The number of layers with weights: 6 · blocks per stage + 2, so 20, 32, 44 and so on.

    Raises:
        ValueError: No number of blocks gives this depth.

    Example:
        >>> [sum(p.numel() for p in cifar_resnet(depth).parameters()) for depth in (20, 32)]
        [269722, 464154]
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6 · blocks + 2, as 20 or 32, but is {depth!r}")
    return CifarResNet(blocks)


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, outputs - inputs
        self.conv1 = _conv(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(features)))))
        if self.new_channels:
            features = features[:, :, :: self.stride, :: self.stride]
            features = F.pad(features, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(features + residual)


def _stage(blocks: int, inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution, initialized as in He et al., arXiv 1502.01852."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
