"""The graph of a model's operator calls, with the tensors that each call reads and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Call", "Graph", "Value"]


@dataclass(eq=False)
class Value:
    """A tensor of the graph and the results of the analysis for it.

    Attributes:
        data: The tensor, as computed for the example inputs.
        name: The first name of the parameter or buffer, or None for other tensors.
        static: Whether it is computed from parameters, buffers and constants only.
        units: The units of each removable dimension, by dimension.
        varies: True where the element may differ between inputs or between positions.
        needed: True where the element is needed to compute the model's outputs.
        consumers: The calls that read it.
    """

    data: torch.Tensor
    name: str | None = None
    static: bool = False
    units: dict[int, torch.Tensor] = field(default_factory=dict)
    varies: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    needed: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    consumers: list[Call] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.data.shape

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.data.dim()

    @property
    def nonzero(self) -> torch.Tensor:
        """True where the element may be other than 0."""
        return self.varies | (self.data != 0).cpu()

    def reset(self) -> None:
        """Discard the results of the analysis."""
        self.units = {}
        self.varies = torch.ones(self.shape, dtype=torch.bool)
        self.needed = torch.zeros(self.shape, dtype=torch.bool)


@dataclass(eq=False)
class Call:
    """One call of an ATen operator.

    Attributes:
        op: The operator's name without namespace and overload.
        arguments: All arguments by name, including defaults, with a ``Value`` for each tensor.
        outputs: The tensors it returns.
        module: The name of the innermost module that makes the call.
        location: The line of source code that makes the call.
        target: The operator.
    """

    op: str
    arguments: dict[str, Any]
    outputs: list[Value]
    module: str
    location: str
    target: Callable[..., Any]

    @property
    def out(self) -> Value:
        """The first tensor it returns."""
        return self.outputs[0]

    @property
    def inputs(self) -> list[Value]:
        """The tensors it reads, in order."""
        leaves = pytree.tree_leaves(list(self.arguments.values()))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def __getitem__(self, name: str) -> Any:
        """Return an argument."""
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default if the operator has no such argument."""
        return self.arguments.get(name, default)

    def replay(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of the call with its only input tensor replaced by another tensor."""
        schema: Any = self.target
        positional, keywords = [], {}
        for parameter in schema._schema.arguments:
            argument = self.arguments[parameter.name]
            argument = tensor if isinstance(argument, Value) else argument
            if parameter.kwarg_only:
                keywords[parameter.name] = argument
            else:
                positional.append(argument)
        returned = self.target(*positional, **keywords)
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    def __str__(self) -> str:
        return f"{self.op} in {self.module or 'the model'}"


@dataclass(eq=False)
class Graph:
    """The operator calls of a model's forward, for one example.

    Attributes:
        calls: The calls, in order.
        parameters: The parameters and buffers that the calls read, by first name; tied ones once.
        first_names: The first name of each parameter and buffer, by each of its names.
        values: All tensors.
        outputs: The tensors that the model returns, and those it writes into its buffers.
        mutated: The buffers that the model writes into.
    """

    calls: list[Call]
    parameters: dict[str, Value]
    first_names: dict[str, str]
    values: list[Value]
    outputs: list[Value]
    mutated: list[Value]
