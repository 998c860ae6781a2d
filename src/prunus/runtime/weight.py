"""The weight of a sparse layer as a tensor, whose elements are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from prunus.errors import PrunusError
from prunus.runtime.rows import SparseRows

__all__ = ["SparseWeight"]


def _write_error() -> PrunusError:
    return PrunusError(
        "the weight of a sparse layer cannot be written, because it is a copy: change the dense "
        "network, and call speed_up on it again"
    )


class SparseWeight(torch.Tensor):
    """The weight of a sparse layer, with zeros where it has no element, for reading.

    Its type, device, shape and other properties are known without computing it. Every operation
    that reads elements first builds the dense matrix, which takes the memory of the dense weight
    and the time of filling it, each time again: a caller that reads often clones it once.

    Args:
        rows: The non-zero elements.
        shape: Shape of the weight.

    Raises:
        PrunusError: If an operation writes into it.

    Example:
        >>> weight = SparseWeight(SparseRows(torch.tensor([[0.0, 2.0]]), None), (1, 2))
        >>> weight.dtype, tuple(weight.shape), weight.sum()
        (torch.float32, (1, 2), tensor(2.))
    """

    _rows: SparseRows

    @staticmethod
    def __new__(cls, rows: SparseRows, shape: Sequence[int]) -> SparseWeight:
        """Return a tensor without storage."""
        weight: SparseWeight = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=rows.dense_dtype, device=rows.values.device
        )
        weight._rows = rows
        return weight

    def __init__(self, rows: SparseRows, shape: Sequence[int]) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as a method of tensors
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation on the dense weight."""
        kwargs = kwargs or {}
        written = [
            kwargs[each.name] if each.name in kwargs else args[i] if i < len(args) else None
            for i, each in enumerate(func._schema.arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ]
        if any(isinstance(each, SparseWeight) for each in written):
            raise _write_error()
        if func is torch.ops.aten.detach.default:
            return SparseWeight(args[0]._rows, args[0].shape)
        args, kwargs = pytree.tree_map_only(SparseWeight, SparseWeight.dense, (args, kwargs))
        return func(*args, **kwargs)

    def dense(self) -> torch.Tensor:
        """Return the weight as a dense tensor."""
        return self._rows.dense().view(self.shape)

    def numpy(self, *, force: bool = False) -> npt.NDArray[np.float32]:
        """Return the weight as an array."""
        return self.dense().numpy(force=force)

    def tolist(self) -> Any:
        """Return the weight as nested lists."""
        return self.dense().tolist()

    def __setitem__(self, index: Any, value: Any) -> None:
        """Raise an error, because the weight is for reading."""
        raise _write_error()

    def data_ptr(self) -> int:
        """Raise an error, because no memory holds the weight."""
        raise PrunusError(
            "the weight of a sparse layer has no address, because it is computed when it is read: "
            "clone it first"
        )

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        """Return the weight as a dense tensor."""
        return self.dense()

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return how to pickle the weight, as a dense tensor."""
        return torch.clone, (self.dense(),)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return the representation of the dense tensor."""
        return repr(self.dense())
