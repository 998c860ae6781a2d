"""What of a model can go: dead units, the constants they leave, and features that nobody reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from prunus.compaction.contraction import Layer, Operands
from prunus.compaction.graph import Call, Graph, alike, anywhere
from prunus.compaction.rules import Rule, rule_of
from prunus.compaction.selecting import SELECTING
from prunus.compaction.units import FROZEN, Reconsider, Units

__all__ = ["Plan", "Resize", "analyse"]

_SIZED = frozenset(
    ("view", "_unsafe_view", "reshape", "unflatten", "flatten", "expand", "repeat", "split",
     "split_with_sizes", "chunk", "tensor_split", "tile")
)  # fmt: skip
"""Operators to which a model gives sizes, which it may have written down as numbers."""


@dataclass(frozen=True)
class Resize:
    """A size that a module gives to an operator, and what it has to become."""

    module: str
    before: int
    after: int


@dataclass
class Plan:
    """What is to be done to a model.

    Attributes:
        kept: Of parameters and buffers by name: the positions to keep, by dimension.
        biases: What is added to a bias, by its name.
        created: The biases that layers get which had none, by the layer's name.
        selected: The features that a layer selects, of those that it is given, by its name.
        aliases: The first name of each parameter and buffer by all its names.
        resizes: Sizes that modules write down.
        sized: The places in the code where sizes are given of dimensions that become smaller.
        reasons: Why units stay whatever they hold.
    """

    kept: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    created: dict[str, torch.Tensor] = field(default_factory=dict)
    selected: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    resizes: list[Resize] = field(default_factory=list)
    sized: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.kept or self.selected)


def analyse(model: nn.Module, graph: Graph, held: Collection[str] = ()) -> Plan:
    """Find what can go.

    Two passes suffice. Forward: which units vary with the input, or from place to place; a unit
    that does not is a constant. Backward: which are needed by someone who is needed. A class of
    units goes if none of it is needed anywhere.

    Args:
        model: The model of which the graph was made.
        graph: Its calls.
        held: Places in the code, of :attr:`Plan.sized`, at which sizes have to stay.

    Returns:
        What to do.
    """
    rules = [(call, rule_of(call)) for call in graph.calls]
    layers = [call for call, rule in rules if isinstance(rule, Layer)]
    keys = {id(call): _fold_key(model, graph, call) for call in layers}
    for call in layers:
        call.facts["foldable"] = keys[id(call)] is not None
        call.facts["resizable"] = isinstance(_module(model, call), nn.modules.conv._ConvNd)
        call.facts.pop("spoiled", None)
    choices: dict[str, int] = {}
    while True:
        try:
            units = Units(choices)
            _forward(graph, rules, units, held)
        except Reconsider:
            continue
        if not _spoil(layers, keys):
            break
    _backward(graph, rules)
    gone = _gone(graph, units)
    return _plan(model, graph, units, gone, layers, keys)


def _forward(
    graph: Graph, rules: list[tuple[Call, Rule]], units: Units, held: Collection[str]
) -> None:
    for value in graph.values:
        value.forget()
    for value in graph.parameters.values():
        value.varies = _hangs_on_place(value.data.cpu())
        if value.calls:
            value.units = {dim: units.fresh(size) for dim, size in enumerate(value.shape)}
    for value in graph.values:
        if value.static and value.name is None and value.data.dim() == 0:
            value.varies = torch.zeros((), dtype=torch.bool)
    for call, rule in rules:
        rule.forward(call, units)
        if call.op in _SIZED and call.line in held:
            for value in (*call.inputs, *call.outputs):
                for own in value.units.values():
                    units.freeze(own, f"{call}: sizes are written down there as numbers")
    for value in (*graph.outputs, *graph.written):
        for own in value.units.values():
            units.freeze(own)


def _hangs_on_place(data: torch.Tensor) -> torch.Tensor:
    """Return which elements of a parameter, added to features, vary from place to place.

    A table of positions, of which a longer input reads more, is not constant along them but where
    it is 0. A vector has one element per feature.
    """
    wide = [dim for dim, size in enumerate(data.shape) if size > 1]
    varies = torch.full(data.shape, len(wide) > 1)
    for dim in wide:
        others = [other for other in range(data.dim()) if other != dim]
        varies = varies & (data != 0).any(dim=others, keepdim=True) if others else varies
    return varies


def _backward(graph: Graph, rules: list[tuple[Call, Rule]]) -> None:
    for value in graph.outputs:
        value.needed |= True
    for call, rule in reversed(rules):
        rule.backward(call)


def _fold_key(model: nn.Module, graph: Graph, call: Call) -> tuple[str, str] | None:
    """Return where constants that a layer is given can go: to which bias, or to which module's."""
    given: Operands = call.facts["operands"]
    if given.bias is not None:
        readers = given.bias.calls
        shared = all(
            (other := reader.facts.get("operands")) is not None
            and other.bias is given.bias
            and other.weight is given.weight
            for reader in readers
        )
        ours = given.bias.name is not None and shared and readers.count(call) == 1
        return ("bias", str(given.bias.name)) if ours else None
    module = _module(model, call)
    plain = nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward
    if type(module).forward not in plain or "bias" not in module._parameters:
        return None
    if graph.names.get(f"{call.module}.weight".lstrip(".")) != given.weight.name:
        return None
    first = next(name for name, other in model.named_modules() if other is module)
    return "module", first


def _module(model: nn.Module, call: Call) -> nn.Module:
    try:
        return model.get_submodule(call.module)
    except AttributeError:
        return model


def _spoil(layers: list[Call], keys: dict[int, tuple[str, str] | None]) -> bool:
    """Tell whether a layer that is called several times is given different constants.

    Its bias is one, so that a feature counts as varying where its constants differ.
    """
    shared: dict[tuple[str, str], list[Call]] = {}
    for call in layers:
        if (key := keys[id(call)]) is not None:
            shared.setdefault(key, []).append(call)
    found = False
    for calls in shared.values():
        varies = torch.stack([call.facts["varies"] for call in calls])
        constants = torch.stack([call.facts["constant"] for call in calls])
        differ = (varies.any(0) | ~alike(constants, constants[:1]).all(0)) & ~varies.all(0)
        if bool(differ.any()):
            found = True
            for call in calls:
                call.facts["spoiled"] = call.facts.get("spoiled", torch.tensor(False)) | differ
    return found


def _gone(graph: Graph, units: Units) -> torch.Tensor:
    """Return for each unit whether it goes."""
    root = units.classes()
    needed = torch.zeros(len(root), dtype=torch.bool)
    needed[FROZEN] = True
    places = [(value, dim, own) for value in graph.values for dim, own in value.units.items()]
    for value, dim, own in places:
        needed[root[own[anywhere(value.needed, dim)]]] = True
    gone = ~needed[root]
    for _, _, own in places:
        # No dimension becomes empty: one unit more is kept, with what is tied to it.
        if len(own) and bool(gone[own].all()):
            gone[root == root[own[0]]] = False
    return gone


def _plan(
    model: nn.Module,
    graph: Graph,
    units: Units,
    gone: torch.Tensor,
    layers: list[Call],
    keys: dict[int, tuple[str, str] | None],
) -> Plan:
    plan = Plan(reasons=units.reasons, aliases=graph.names)
    for name, value in graph.parameters.items():
        kept = {
            dim: (~gone[own]).nonzero().flatten()
            for dim, own in value.units.items()
            if bool(gone[own].any())
        }
        if kept:
            plan.kept[name] = kept
    dropped: dict[int, torch.Tensor] = {}
    for call in layers:
        given: Operands = call.facts["operands"]
        own = given.source.units.get(given.source_dim)
        count = given.source.shape[given.source_dim]
        dropped[id(call)] = torch.zeros(count, dtype=torch.bool) if own is None else gone[own]
    for name, calls in _alone(model, graph, layers).items():
        extra = torch.stack([~c.facts["columns"] & ~dropped[id(c)] for c in calls]).all(0)
        kept_before = ~dropped[id(calls[0])]
        if bool((extra == kept_before).all()):
            extra[int(extra.nonzero()[0])] = False
        weight = calls[0].facts["operands"].weight
        rows = plan.kept.get(str(weight.name), {}).get(0)
        height = len(weight.data) if rows is None else len(rows)
        kernel = weight.data[0, 0].numel()
        saved = height * kernel * int(extra.sum()) * weight.data.element_size()
        left = kept_before & ~extra
        if saved > 8 * int(left.sum()):  # the index takes 8 bytes a feature
            plan.selected[name] = left[kept_before].nonzero().flatten()
            kept_by_dim = plan.kept.setdefault(str(weight.name), {})
            kept_by_dim[1] = left.nonzero().flatten()
            for call in calls:
                dropped[id(call)] = dropped[id(call)] | extra
    for call in layers:
        _fold(plan, call, keys[id(call)], dropped[id(call)])
    _note_sizes(plan, graph, gone)
    return plan


def _alone(model: nn.Module, graph: Graph, layers: list[Call]) -> dict[str, list[Call]]:
    """Return the calls of each layer that may select features: whose weight is all its own."""
    modules = dict(model.named_modules())
    first = {id(module): name for name, module in reversed(modules.items())}
    found: dict[str, list[Call]] = {}
    for name, module in modules.items():
        if type(module) not in SELECTING or first[id(module)] != name:
            continue
        own = f"{name}.weight".lstrip(".")
        value = graph.parameters.get(graph.names.get(own, ""))
        if value is None or "weight" not in module._parameters or getattr(module, "groups", 1) > 1:
            continue
        owners = [
            other for other in modules.values()
            if any(p is module.weight for p in other._parameters.values())
        ]  # fmt: skip
        calls = [call for call in value.calls if call in layers]
        ours = all(
            call.facts["operands"].weight is value and _module(model, call) is module
            for call in calls
        )
        if len(owners) == 1 and calls and ours and len(calls) == len(value.calls):
            found[name] = calls
    return found


def _fold(plan: Plan, call: Call, key: tuple[str, str] | None, dropped: torch.Tensor) -> None:
    """Note what the constants that go add to a layer's bias; the same for all of its calls."""
    given: Operands = call.facts["operands"]
    constant = call.facts["constant"].double()
    folded = dropped & ~call.facts["varies"] & (constant != 0)
    if key is None or given.groups > 1 or given.uneven or not bool(folded.any()):
        return
    added = given.weights()[:, folded] @ constant[folded]
    if bool(added.any()):
        kind, name = key
        (plan.biases if kind == "bias" else plan.created)[name] = added


def _note_sizes(plan: Plan, graph: Graph, gone: torch.Tensor) -> None:
    resizes: dict[Resize, None] = {}
    places: dict[str, None] = {}
    for call in graph.calls:
        if call.op not in _SIZED and "norm" not in call.op:
            continue
        for value in (*call.outputs, *call.inputs):
            for own in value.units.values():
                if bool(gone[own].any()):
                    if call.op in _SIZED:
                        places[call.line] = None
                    resizes[Resize(call.module, len(own), int((~gone[own]).sum()))] = None
    plan.resizes, plan.sized = list(resizes), list(places)
