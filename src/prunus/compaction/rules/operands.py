"""The operands of layers: features, fixed weights and bias, with the dimensions they share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prunus.compaction.graph import Call, Value

__all__ = ["LayerOperands", "layer_operands"]


@dataclass(frozen=True)
class LayerOperands:
    """The operands of a call that multiplies features by weights.

    Attributes:
        source: The features.
        weight: The weights.
        bias: The term added to each output, if any.
        source_dim: The feature dimension of ``source``.
        out_dim: The feature dimension of the output.
        weight_in: The dimension of ``weight`` along the input features.
        weight_out: The dimension of ``weight`` along the output features.
        position_dependent: Whether a constant input gives outputs that differ between positions,
            as zero padding does.
        groups: The number of independent groups of a grouped convolution.
    """

    source: Value
    weight: Value
    bias: Value | None
    source_dim: int
    out_dim: int
    weight_in: int = 1
    weight_out: int = 0
    position_dependent: bool = False
    groups: int = 1

    @property
    def connections(self) -> torch.Tensor:
        """True where a weight from an input feature (column) to an output (row) is not 0."""
        nonzero = self._outputs_by_inputs((self.weight.data != 0).cpu())
        return nonzero.flatten(2).any(2) if nonzero.dim() > 2 else nonzero

    def summed_weights(self) -> torch.Tensor:
        """Return the weights in float64, outputs by inputs, summed over the kernel."""
        weights = self._outputs_by_inputs(self.weight.data.double().cpu())
        return weights.flatten(2).sum(2) if weights.dim() > 2 else weights

    def _outputs_by_inputs(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.movedim((self.weight_out, self.weight_in), (0, 1))


def layer_operands(call: Call) -> LayerOperands | None:
    """Return the operands of a call, or None if it does not multiply features by fixed weights."""
    found = _matrix_operands(call) or _convolution_operands(call)
    if found is None:
        return None
    source, weight, bias = found.source, found.weight, found.bias
    # Features may have any rank but 0. A weight of rank 1 has no output dimension.
    if weight.rank < 2 or not weight.static or source.rank < 1:
        return None
    if call.op in ("mm", "matmul") and weight.rank != 2:
        return None
    if bias is not None and not bias.static:
        return None
    return replace(
        found,
        source_dim=found.source_dim % source.rank,
        out_dim=found.out_dim % call.out.rank,
    )


def _matrix_operands(call: Call) -> LayerOperands | None:
    if call.op == "linear":
        return LayerOperands(call["input"], call["weight"], call["bias"], -1, -1)
    if call.op == "addmm":
        plain_sum = call["beta"] == call["alpha"] == 1
        if plain_sum and isinstance(call["mat2"], Value) and call["self"].rank == 1:
            return LayerOperands(
                call["mat1"], call["mat2"], call["self"], -1, -1, weight_in=0, weight_out=1
            )
    elif call.op in ("mm", "matmul"):
        weight = call.get("mat2", call.get("other"))
        return LayerOperands(call["self"], weight, None, -1, -1, weight_in=0, weight_out=1)
    return None


def _convolution_operands(call: Call) -> LayerOperands | None:
    transposed = call.op.startswith("conv_transpose")
    if not (transposed or call.op in ("conv1d", "conv2d", "conv3d")):
        return None
    spatial_dims = int(call.op[-2])
    channel_dim = call["input"].rank - spatial_dims - 1
    plain = LayerOperands(call["input"], call["weight"], call["bias"], channel_dim, channel_dim)
    if transposed:
        if call["groups"] != 1:
            return None
        return replace(plain, weight_in=0, weight_out=1, position_dependent=True)
    padding = call["padding"]
    padded = padding == "same" if isinstance(padding, str) else any(padding)
    return replace(plain, position_dependent=padded, groups=call["groups"])
