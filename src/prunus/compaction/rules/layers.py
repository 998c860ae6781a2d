"""The rule for layers: features times fixed weights, plus a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call
from prunus.compaction.rules.base import Rule, operator_names
from prunus.compaction.rules.operands import layer_operands
from prunus.compaction.tensor_ops import any_along, equal_up_to_rounding, expand_along

__all__ = ["BiasTarget", "LayerContext", "LayerInputs", "WeightedLayer"]


@dataclass(frozen=True)
class BiasTarget:
    """The bias into which the constants that a layer reads can be folded.

    Attributes:
        name: The bias parameter, or the layer that can have a new bias.
        exists: Whether the bias exists.
    """

    name: str
    exists: bool


@dataclass(frozen=True)
class LayerContext:
    """Properties of the module that makes a layer's call.

    Attributes:
        bias_target: Where constants can be folded, or None if nowhere.
        groups_removable: Whether the module's number of groups can be changed.
    """

    bias_target: BiasTarget | None = None
    groups_removable: bool = False


@dataclass(frozen=True)
class LayerInputs:
    """The input features of a layer, as found by the forward pass.

    Attributes:
        varies: True for each feature that is not constant.
        constants: The value of each feature, valid where it is constant.
        read: True for each feature that the layer reads at run time: all but constants that can be
            folded into the bias.
        connections: True where a weight from a feature (column) to an output (row) is not 0.
    """

    varies: torch.Tensor
    constants: torch.Tensor
    read: torch.Tensor
    connections: torch.Tensor


class WeightedLayer(Rule):
    """Linear layers, convolutions and products with a fixed matrix.

    An output is constant if all its weights from varying features are 0. The contribution of
    constant features is folded into the bias where there is a target for it.

    Attributes:
        operands: The features, weights and bias.
        context: Set by the analysis, before the forward pass.
        conflicting: True for each feature that counts as varying because the calls that share a
            bias read different constants there. Set by the analysis.
        inputs: Set by the forward pass.
        used: True for each input feature that the needed outputs depend on. Set by the backward
            pass.
    """

    operators = operator_names(
        """
        linear addmm mm matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d
        conv_transpose3d
        """
    )

    inputs: LayerInputs
    used: torch.Tensor

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        operands = layer_operands(call)
        assert operands is not None
        self.operands = operands
        self.context = LayerContext()
        self.conflicting = torch.tensor(False)

    @classmethod
    def supports(cls, call: Call) -> bool:
        return layer_operands(call) is not None

    def forward(self, coupling: Coupling) -> None:
        operands, out = self.operands, self.call.out
        self.inputs = self._find_constants()
        if operands.groups == 1:
            self._couple_inputs(coupling)
            self._couple_outputs(coupling)
        else:
            self._couple_groups(coupling)
        reached = self._outputs_reached(self.inputs.read)
        out.varies = expand_along(reached, operands.out_dim, out.shape).contiguous()
        for dim, units in operands.source.units.items():
            if dim < operands.source_dim:
                out.units[dim] = units
            elif dim > operands.source_dim:
                coupling.protect(units, f"{self.call}: combines neighbouring positions")
        if operands.weight.rank > 2:
            for dim, units in operands.weight.units.items():
                if dim > 1:
                    coupling.protect(units)

    def backward(self) -> None:
        operands, out = self.operands, self.call.out
        live = out.needed & out.varies
        rows = any_along(live, operands.out_dim)
        self.used = self._inputs_reached(rows) & self.inputs.read
        needed = expand_along(self.used, operands.source_dim, operands.source.shape)
        if self.call.op in ("linear", "addmm", "mm", "matmul"):
            needed = needed & live.any(operands.out_dim, keepdim=True)
        operands.source.needed |= needed
        weights = (operands.weight.data != 0).cpu()
        weights &= expand_along(rows, operands.weight_out, weights.shape)
        if operands.groups == 1:
            weights &= expand_along(self.inputs.read, operands.weight_in, weights.shape)
        operands.weight.needed |= weights
        if operands.bias is not None:
            needed = any_along(out.needed, operands.out_dim)
            operands.bias.needed |= needed.expand(operands.bias.shape)

    def _find_constants(self) -> LayerInputs:
        operands = self.operands
        values = operands.source.data.cpu().movedim(operands.source_dim, 0)
        values = values.flatten(1) if values.dim() > 1 else values[:, None]
        constants = values[:, 0] if values.shape[1] else torch.zeros(len(values))
        uniform = equal_up_to_rounding(values, constants[:, None]).all(1) & constants.isfinite()
        varies = any_along(operands.source.varies, operands.source_dim) | ~uniform
        varies |= self.conflicting
        # Constants of a grouped layer need no bias: they are removed with all that they reach.
        grouped = operands.groups > 1
        foldable = grouped or self.context.bias_target is not None
        read = varies.clone()
        if not foldable or operands.position_dependent:
            read |= constants != 0
        return LayerInputs(varies, constants, read, operands.connections)

    def _outputs_reached(self, features: torch.Tensor) -> torch.Tensor:
        """Return which outputs have a weight other than 0 from one of the features."""
        return _reachable(self.inputs.connections, features, self.operands.groups)

    def _inputs_reached(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return which features have a weight other than 0 to one of the outputs."""
        groups = self.operands.groups
        connections = self.inputs.connections
        by_group = connections.reshape(groups, -1, connections.shape[1]).mT
        return _reachable(by_group.flatten(0, 1), outputs, groups)

    def _couple_inputs(self, coupling: Coupling) -> None:
        operands = self.operands
        coupling.merge(
            [
                operands.source.units.get(operands.source_dim),
                operands.weight.units.get(operands.weight_in),
            ]
        )

    def _couple_outputs(self, coupling: Coupling) -> None:
        operands = self.operands
        units = operands.weight.units.get(operands.weight_out)
        if operands.bias is not None:
            if units is None:
                for own in operands.bias.units.values():
                    coupling.protect(own)
            else:
                units = coupling.merge([units, operands.bias.units.get(0)])
        if units is not None:
            self.call.out.units[operands.out_dim] = units

    def _couple_groups(self, coupling: Coupling) -> None:
        """Couple all channels of each group, which is removed as a whole."""
        operands, out = self.operands, self.call.out
        self._couple_outputs(coupling)
        within = operands.weight.units.get(operands.weight_in)
        if within is not None:
            coupling.protect(within)
        incoming = operands.source.units.get(operands.source_dim)
        outgoing = out.units.get(operands.out_dim)
        if incoming is None or outgoing is None or not self.context.groups_removable:
            for units in (incoming, outgoing):
                if units is not None:
                    coupling.protect(units, f"{self.call}: its groups cannot be removed")
            out.units.pop(operands.out_dim, None)
            return
        by_group = incoming.view(operands.groups, -1)
        coupling.couple(by_group, by_group[:, :1])
        coupling.couple(outgoing.view(operands.groups, -1), by_group[:, :1])


def _reachable(connections: torch.Tensor, columns: torch.Tensor, groups: int) -> torch.Tensor:
    """Return which rows are connected with a selected column of their group."""
    by_group = connections.reshape(groups, -1, connections.shape[1]).float()
    return ((by_group @ columns.reshape(groups, -1, 1).float()) > 0).flatten()
