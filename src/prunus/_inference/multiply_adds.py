"""Multiply-adds of a call of a network: dense, and of the weights that are not zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from prunus._inference.model_calls import ExampleInputs, copy_model, prepare_call
from prunus.errors import PrunusError, first_line

__all__ = ["MultiplyAdds", "multiply_adds"]

_UNCOUNTED = ("lstm", "gru", "rnn", "_native_multi_head_attention", "_transformer_encoder_layer")
"""Parts of the names of operators that multiply and have no formula in torch."""


@dataclass(frozen=True)
class MultiplyAdds:
    """The multiply-adds of a call.

    Attributes:
        dense: With all weights.
        sparse: With the weights that are not zero.
    """

    dense: int
    sparse: int


def multiply_adds(model: nn.Module, example_inputs: ExampleInputs) -> MultiplyAdds:
    """Count the multiply-adds of a call of a network in evaluation mode.

    Matrix products and convolutions count, by the formulas of ``torch.utils.flop_counter``, which
    include products with padding; biases, normalizations and activations do not. For the sparse
    count, a product with a weight counts times the density of the weight; a product of two
    activations, as in attention, counts in full.

    Args:
        model: The network.
        example_inputs: Its inputs, of one example for the count of one.

    Raises:
        PrunusError: The network fails on the inputs, or has an operator without a formula.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> _ = layer.weight.data[:, 2:].zero_()
        >>> multiply_adds(layer, torch.rand(1, 8))
        MultiplyAdds(dense=32, sparse=8)
    """
    model, args, kwargs = prepare_call(model, example_inputs)
    model = copy_model(model).eval()
    counter = _Counter(model)
    try:
        # With gradients no fused operator of inference hides the products, and MATH consists of
        # products too.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), counter:
            model(*args, **kwargs)
    except PrunusError:
        raise
    except Exception as error:
        raise PrunusError(
            f"the network fails on the inputs whose multiply-adds are to be counted: "
            f"{first_line(error)}"
        ) from error
    return MultiplyAdds(counter.dense, counter.sparse)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own gap
    """Counts the multiply-adds of each operator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dense = self.sparse = 0
        self._weights = {
            parameter.untyped_storage().data_ptr()
            for parameter in model.parameters()
            if parameter.dim() > 1
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call an operator, and count what it multiplies."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if any(part in str(packet) for part in _UNCOUNTED):
            raise PrunusError(f"torch has no formula for the multiply-adds of {packet}")
        formula: Callable[..., int] | None = flop_registry.get(packet)
        if formula is not None:
            count = formula(*args, **kwargs, out_val=result) // 2
            self.dense += count
            for weight in self._weights_in((args, kwargs)):
                count = count * int(torch.count_nonzero(weight)) // max(1, weight.numel())
            self.sparse += count
        return result

    def _weights_in(self, arguments: Any) -> Iterator[torch.Tensor]:
        """Yield the operands that are weights, or parts of one."""
        for leaf in pytree.tree_leaves(arguments):
            is_matrix = isinstance(leaf, torch.Tensor) and leaf.dim() > 1
            if is_matrix and leaf.untyped_storage().data_ptr() in self._weights:
                yield leaf
