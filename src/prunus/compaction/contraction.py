"""Rules for operators that sum products: layers, matrix products, attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunus.compaction.elementwise import broadcast, gathered
from prunus.compaction.graph import Call, Value, alike, anywhere
from prunus.compaction.layout import spread
from prunus.compaction.units import Units

__all__ = ["Attention", "Layer", "Operands", "Product", "operands"]


@dataclass(frozen=True)
class Operands:
    """A call that multiplies features by weights.

    Attributes:
        source: The features.
        weight: The weights.
        bias: What is added to each output, if anything.
        source_dim: The dimension of the features.
        out_dim: That of the outputs.
        weight_in: The dimension of the weights along the features.
        weight_out: That along the outputs.
        uneven: Whether a constant input gives outputs that differ from place to place.
        groups: Of how many independent parts it consists.
    """

    source: Value
    weight: Value
    bias: Value | None
    source_dim: int
    out_dim: int
    weight_in: int = 1
    weight_out: int = 0
    uneven: bool = False
    groups: int = 1

    @property
    def links(self) -> torch.Tensor:
        """True where a weight from a feature (column) to an output (row) is not 0."""
        kept = (self.weight.data != 0).cpu()
        first, second = self.weight_out, self.weight_in
        return kept.movedim((first, second), (0, 1)).flatten(2).any(2) if kept.dim() > 2 else (
            kept if (first, second) == (0, 1) else kept.T
        )  # fmt: skip

    def weights(self) -> torch.Tensor:
        """Return the weights in float64, summed over the kernel: outputs by features."""
        whole = self.weight.data.double().cpu().movedim(
            (self.weight_out, self.weight_in), (0, 1)
        )  # fmt: skip
        return whole.flatten(2).sum(2) if whole.dim() > 2 else whole


def operands(call: Call) -> Operands | None:
    """Return what a call multiplies, or None if it multiplies no features by fixed weights."""
    found: Operands | None = None
    if call.op == "linear":
        found = Operands(call["input"], call["weight"], call["bias"], -1, -1)
    elif call.op == "addmm" and call["beta"] == call["alpha"] == 1:
        if isinstance(call["mat2"], Value) and call["self"].data.dim() == 1:
            found = Operands(call["mat1"], call["mat2"], call["self"], -1, -1, 0, 1)
    elif call.op in ("mm", "matmul"):
        other = call.get("mat2", call.get("other"))
        found = Operands(call["self"], other, None, -1, -1, 0, 1)
    elif call.op in ("conv1d", "conv2d", "conv3d"):
        rank = int(call.op[4])
        dim = call["input"].data.dim() - rank - 1
        padding = call["padding"]
        padded = padding == "same" if isinstance(padding, str) else any(padding)
        found = Operands(
            call["input"], call["weight"], call["bias"], dim, dim,
            uneven=padded, groups=call["groups"],
        )  # fmt: skip
    elif call.op.startswith("conv_transpose") and call["groups"] == 1:
        dim = call["input"].data.dim() - int(call.op[14]) - 1
        found = Operands(call["input"], call["weight"], call["bias"], dim, dim, 0, 1, uneven=True)
    if found is None:
        return None
    # Features may be of any rank but 0; weights of one have no outputs.
    if found.weight.data.dim() < 2 or not found.weight.static or found.source.data.dim() < 1:
        return None
    if call.op in ("mm", "matmul") and found.weight.data.dim() != 2:
        return None
    if found.bias is not None and not found.bias.static:
        return None
    rank = found.source.data.dim()
    return Operands(**{**vars(found), "source_dim": found.source_dim % rank,
                       "out_dim": found.out_dim % call.out.data.dim()})  # fmt: skip


def _reaches(links: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return which rows are linked to a column where the mask is True."""
    return (links.float() @ mask.float()) > 0


class Layer:
    """Features times fixed weights, plus a bias.

    An output is constant if all its weights on features that vary are 0. What constant features
    add to it goes into the bias; ``foldable`` says whether there is one to go to.
    """

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        given: Operands = call.facts["operands"]
        source, weight, out = given.source, given.weight, call.out
        self._constants(call, given)
        varies = call.facts["varies"]
        constant = call.facts["constant"]
        foldable = call.facts["foldable"] and not given.uneven and given.groups == 1
        if given.groups > 1 and not given.uneven:
            reads = varies  # constants need not go anywhere: they are removed with what they reach
        else:
            reads = varies if foldable else varies | (constant != 0)
        links = given.links
        call.facts.update(links=links, reads=reads)
        if given.groups == 1:
            reached = _reaches(links, reads)
            self._tie(call, given, units)
        else:
            parts = links.view(given.groups, -1, links.shape[1]).float()
            reached = ((parts @ reads.view(given.groups, -1, 1).float()) > 0).flatten()
            self._tie_groups(call, given, units)
        out.varies = spread(reached, given.out_dim, out.shape).contiguous()
        for dim, held in source.units.items():
            if dim == given.source_dim:
                continue
            if dim < given.source_dim:
                out.units[dim] = held
            else:
                units.freeze(held, f"{call}: mixes neighbours")
        if weight.data.dim() > 2:
            for dim, held in weight.units.items():
                if dim > 1:
                    units.freeze(held)

    def _constants(self, call: Call, given: Operands) -> None:
        """Find which features vary, and the values of those that do not."""
        values = given.source.data.cpu().movedim(given.source_dim, 0)
        values = values.flatten(1) if values.dim() > 1 else values[:, None]
        constant = values[:, 0] if values.shape[1] else torch.zeros(len(values))
        even = alike(values, constant[:, None]).all(1) & constant.isfinite()
        varies = anywhere(given.source.varies, given.source_dim) | ~even
        varies |= call.facts.get("spoiled", torch.tensor(False))
        call.facts.update(varies=varies, constant=constant)

    def _tie(self, call: Call, given: Operands, units: Units) -> None:
        one = given.source.units.get(given.source_dim)
        other = given.weight.units.get(given.weight_in)
        if one is not None and other is not None:
            units.tie(one, other)
        elif one is not None:
            units.freeze(one)
        elif other is not None:
            units.freeze(other)
        self._tie_outputs(call, given, units)

    def _tie_outputs(self, call: Call, given: Operands, units: Units) -> None:
        made = given.weight.units.get(given.weight_out)
        bias = given.bias
        if made is not None and bias is not None:
            own = bias.units.get(0)
            if own is None:
                units.freeze(made)
                made = None
            else:
                units.tie(made, own)
        elif bias is not None:
            for own in bias.units.values():
                units.freeze(own)
        if made is not None:
            call.out.units[given.out_dim] = made

    def _tie_groups(self, call: Call, given: Operands, units: Units) -> None:
        """Tie all channels of a group: it goes as a whole or stays."""
        self._tie_outputs(call, given, units)
        within = given.weight.units.get(given.weight_in)
        if within is not None:
            units.freeze(within)
        into = given.source.units.get(given.source_dim)
        out = call.out.units.get(given.out_dim)
        if into is None or out is None or not call.facts["resizable"]:
            for held in (into, out):
                if held is not None:
                    units.freeze(held, f"{call}: its groups stay")
            call.out.units.pop(given.out_dim, None)
            return
        into, out = into.view(given.groups, -1), out.view(given.groups, -1)
        units.tie(into, into[:, :1])
        units.tie(out, into[:, :1])

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        given: Operands = call.facts["operands"]
        links, reads = call.facts["links"], call.facts["reads"]
        live = call.out.needed & call.out.varies
        rows = anywhere(live, given.out_dim)
        if given.groups == 1:
            columns = _reaches(links.T, rows) & reads
        else:
            parts = links.view(given.groups, -1, links.shape[1]).float()
            columns = ((parts.mT @ rows.view(given.groups, -1, 1).float()) > 0).flatten() & reads
        call.facts.update(columns=columns, rows=rows)
        needed = spread(columns, given.source_dim, given.source.shape)
        if call.op in ("linear", "addmm", "mm", "matmul"):
            needed = needed & live.any(given.out_dim, keepdim=True)
        given.source.needed |= needed
        kept = (given.weight.data != 0).cpu()
        kept &= spread(rows, given.weight_out, kept.shape)
        if given.groups == 1:
            kept &= spread(reads, given.weight_in, kept.shape)
        given.weight.needed |= kept
        if given.bias is not None:
            needed = anywhere(call.out.needed, given.out_dim)
            given.bias.needed |= needed.expand(given.bias.shape)


class Product:
    """``matmul`` and ``bmm`` of two tensors that may both vary."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        one, other = self._factors(call)
        out = call.out
        broadcast(units, [one, other], out, dims=2)
        for value, kept, contracted in ((one, -2, -1), (other, -1, -2)):
            rank = value.data.dim()
            if (held := value.units.get(contracted % rank)) is not None:
                # The number of features is commonly used to scale the result.
                units.regret(held)
                units.freeze(held, f"{call}: multiplies two tensors that vary")
            if (held := value.units.get(kept % rank)) is not None:
                out.units[kept % out.data.dim()] = held
        product = one.nonzero.float() @ other.nonzero.float()
        out.varies = product > 0

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        one, other = self._factors(call)
        live = (call.out.needed & call.out.varies).float()
        left, right = one.nonzero.float(), other.nonzero.float()
        one.needed |= ((live @ right.mT).sum_to_size(one.shape) > 0) & one.nonzero
        other.needed |= ((left.mT @ live).sum_to_size(other.shape) > 0) & other.nonzero

    def _factors(self, call: Call) -> tuple[Any, Any]:
        return call["self"], call.get("mat2", call.get("other"))


class Attention:
    """``scaled_dot_product_attention``: of values, weighted by queries and keys."""

    def forward(self, call: Call, units: Units) -> None:
        """Say what is known of the output."""
        query, key, value, mask = self._parts(call)
        out = call.out
        rank = out.data.dim()
        heads = rank - 3
        if call.get("enable_gqa") and query.shape[-3] != key.shape[-3]:
            share = query.shape[-3] // key.shape[-3]
            spreads = [
                None if (held := one.units.get(heads)) is None else held.repeat_interleave(times)
                for one, times in ((query, 1), (key, share), (value, share))
            ]
            present = [held for held in spreads if held is not None]
            for held in present:
                units.tie(held, present[0])
            if len(present) == 3:
                out.units[heads] = present[0]
            elif present:
                units.freeze(present[0])
        else:
            inputs = [query, key, value, *([mask] if mask is not None else [])]
            broadcast(units, inputs, out, dims=2)
        if (held := value.units.get(value.data.dim() - 1)) is not None:
            out.units[rank - 1] = held
        for one, dims in ((query, (-2, -1)), (key, (-2, -1)), (value, (-2,)), (mask, (-2, -1))):
            for dim in dims if one is not None else ():
                if (held := one.units.get(dim % one.data.dim())) is not None:
                    units.regret(held)
                    units.freeze(held, f"{call}: multiplies two tensors that vary")
        # The weights of a row sum to 1, so that a constant value stays what it is; but for rows
        # of which a mask leaves nothing.
        even = alike(value.data, value.data[..., :1, :]).all(-2, keepdim=True).cpu()
        source = value.nonzero if mask is not None else value.varies | ~even
        lasting = source.any(-2, keepdim=True)
        if lasting.dim() > 2 and lasting.shape[-3] != out.shape[-3]:
            lasting = lasting.repeat_interleave(out.shape[-3] // lasting.shape[-3], -3)
        out.varies = lasting.expand(out.shape).contiguous()

    def backward(self, call: Call) -> None:
        """Say what the call needs of its inputs."""
        query, key, value, mask = self._parts(call)
        live = call.out.needed & call.out.varies
        features, whole = live.any(-2, keepdim=True), live.any(-1, keepdim=True).any(-2, True)
        value.needed |= self._onto(features, value)
        query.needed |= self._onto(whole, query)
        key.needed |= self._onto(whole, key)
        if mask is not None:
            rows = live.any(-1, keepdim=True).expand(*call.out.shape[:-1], key.shape[-2])
            mask.needed |= gathered(rows, mask.shape)

    @staticmethod
    def _onto(mask: torch.Tensor, value: Value) -> torch.Tensor:
        count = value.shape[-3]
        if count not in (1, mask.shape[-3]):  # several heads of queries share one of keys
            shape = (*mask.shape[:-3], count, -1, *mask.shape[-2:])
            mask = mask.reshape(shape).any(-3)
        return gathered(mask, torch.Size((*value.shape[:-2], *mask.shape[-2:]))).expand(value.shape)

    @staticmethod
    def _parts(call: Call) -> tuple[Any, Any, Any, Any]:
        return call["query"], call["key"], call["value"], call.get("attn_mask")
