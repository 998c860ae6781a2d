"""Networks that compute in bfloat16 or int8, as modules with the inputs of the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunus.export.onnx_session import OnnxSession

__all__ = ["Autocast", "Converted", "InSession"]


class Autocast(nn.Module):
    """A network under ``torch.autocast("cpu", torch.bfloat16)``.

    Args:
        network: The network in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(*args, **kwargs)


class Converted(nn.Module):
    """A copy of a network with weights and inputs in bfloat16.

    Args:
        network: The network in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(torch.bfloat16)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output, its floating-point inputs converted."""
        args, kwargs = pytree.tree_map(_converted, (args, kwargs))
        return self.network(*args, **kwargs)


def _converted(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.to(torch.bfloat16)
    return value


class InSession(nn.Module):
    """A network in onnxruntime, for its metric.

    Args:
        session: Returns the session for batches of a size.
        output: Returns the output in the form of the original network's, given its tensors.
    """

    def __init__(
        self,
        session: Callable[[int], OnnxSession],
        output: Callable[[list[torch.Tensor]], Any],
    ) -> None:
        super().__init__()
        self._session = session
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the session's output."""
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        return self._output(self._session(len(tensors[0])).outputs(args, kwargs))
