"""Scalars on the device of a tensor that they are combined with."""

from __future__ import annotations

import torch

__all__ = ["on_device"]


def on_device(scalar: torch.Tensor | float, device: torch.device) -> torch.Tensor | float:
    """Return a scalar on a device; a plain number as it is. The host does not wait for it.

    Example:
        >>> on_device(2.0, torch.device("cpu")), on_device(torch.tensor(3.0), torch.device("cpu"))
        (2.0, tensor(3.))
    """
    if isinstance(scalar, torch.Tensor) and scalar.device != device:
        return scalar.to(device)
    return scalar
