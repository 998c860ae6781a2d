"""Rules for normalization layers."""

from __future__ import annotations

from abc import abstractmethod

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call, Value
from prunus.compaction.rules.base import Rule, operator_names
from prunus.compaction.tensor_ops import any_along, expand_along

__all__ = ["BatchNorm", "FeatureNorm", "GroupNorm", "LayerNorm"]


class BatchNorm(Rule):
    """Batch and instance normalization, which treat each channel separately."""

    operators = operator_names(
        """
        batch_norm instance_norm _native_batch_norm_legit_no_training _batch_norm_with_update
        """
    )

    @classmethod
    def supports(cls, call: Call) -> bool:
        return bool(call["input"].rank >= 2)

    def forward(self, coupling: Coupling) -> None:
        source, weight, out = self.call["input"], self.call["weight"], self.call.out
        vectors = self._channel_vectors()
        out.units = {dim: units for dim, units in source.units.items() if dim != 1}
        channels = coupling.merge([source.units.get(1), *(one.units.get(0) for one in vectors)])
        if channels is not None:
            out.units[1] = channels
        out.varies = source.varies
        if weight is not None:  # a gain of 0 leaves the bias only
            out.varies = out.varies & expand_along((weight.data != 0).cpu(), 1, source.shape)

    def backward(self) -> None:
        self.call["input"].needed |= self.call.out.needed & self.call.out.varies
        needed = any_along(self.call.out.needed, 1)
        for vector in self._channel_vectors():
            vector.needed |= needed

    def _channel_vectors(self) -> list[Value]:
        names = ("weight", "bias", "running_mean", "running_var")
        return [self.call[name] for name in names if isinstance(self.call.get(name), Value)]


class FeatureNorm(Rule):
    """Normalization whose statistics depend on every feature, none of which can be removed."""

    @classmethod
    def supports(cls, call: Call) -> bool:
        return call.get("input") is not None

    @abstractmethod
    def first_dim(self) -> int:
        """Return the first of the dimensions over which the statistics are computed."""

    @abstractmethod
    def gain(self, weight: Value) -> torch.Tensor:
        """Return where the gain is not 0, in a shape that broadcasts to the output's."""

    def forward(self, coupling: Coupling) -> None:
        source, out = self.call["input"], self.call.out
        for dim, units in source.units.items():
            if dim >= self.first_dim():
                coupling.protect(units, f"{self.call}: its statistics depend on every feature")
            else:
                out.units[dim] = units
        for parameter in self._parameters():
            for units in parameter.units.values():
                coupling.protect(units)
        for other in self.call.outputs:
            other.varies = torch.ones(other.shape, dtype=torch.bool)
        weight = self.call.get("weight")
        if weight is not None:
            out.varies = out.varies & self.gain(weight)

    def backward(self) -> None:
        source, out = self.call["input"], self.call.out
        dims = list(range(self.first_dim(), source.rank))
        source.needed |= (out.needed & out.varies).any(dim=dims, keepdim=True)
        for other in self.call.outputs[1:]:
            source.needed |= other.needed.any()
        for parameter in self._parameters():
            parameter.needed |= True

    def _parameters(self) -> list[Value]:
        found = (self.call.get("weight"), self.call.get("bias"))
        return [parameter for parameter in found if isinstance(parameter, Value)]


class LayerNorm(FeatureNorm):
    """Layer and RMS normalization over the last dimensions."""

    operators = frozenset(("layer_norm", "rms_norm", "native_layer_norm"))

    def first_dim(self) -> int:
        return int(self.call["input"].rank - len(self.call["normalized_shape"]))

    def gain(self, weight: Value) -> torch.Tensor:
        return (weight.data != 0).cpu()


class GroupNorm(FeatureNorm):
    """Group normalization, with one gain per channel."""

    operators = frozenset(("group_norm",))

    def first_dim(self) -> int:
        return 1

    def gain(self, weight: Value) -> torch.Tensor:
        return expand_along((weight.data != 0).cpu(), 1, self.call["input"].shape)
