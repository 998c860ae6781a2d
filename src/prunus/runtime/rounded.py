"""Dense linear layers that round as sparse ones in bfloat16 or int8 do."""

from __future__ import annotations

import torch
from torch import nn

from prunus.runtime.modules import keep_settings, keep_tensors
from prunus.runtime.precision import Precision

__all__ = ["RoundedLinear"]


class RoundedLinear(nn.Module):
    """A linear layer that rounds its weights and inputs, and computes with them in float32.

    Args:
        linear: The layer to copy.
        precision: The type to round to.
        replaces: The layer whose attributes to have, if its weight differs from that of ``linear``,
            because it selects some of its inputs. Default None: ``linear``.

    Example:
        >>> from prunus.runtime.precision import BFloat16
        >>> linear = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(linear.weight, 1 + 2**-9)
        >>> RoundedLinear(linear, BFloat16())(torch.ones(1)).item()
        1.0
    """

    bias: nn.Parameter | None

    def __init__(
        self, linear: nn.Linear, precision: Precision, replaces: nn.Linear | None = None
    ) -> None:
        super().__init__()
        former = linear if replaces is None else replaces
        self.register_parameter("bias", None)
        keep_settings(self, former)
        keep_tensors(self, former, excluded=("weight",))
        rounded = [precision.rounded_weight(each.weight.detach()) for each in (former, linear)]
        self.weight, self._factors = (
            nn.Parameter(each.float(), requires_grad=False) for each in rounded
        )
        self.precision = precision

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """Return x Wᵀ + b of the rounded numbers."""
        x = self.precision.rounded_input(input).float()
        return nn.functional.linear(x, self._factors, self.bias)
