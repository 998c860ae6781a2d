"""The calls that a model makes, one after the other, and what each of them reads and writes.

The model is traced by ``torch.export`` and its calls are then made once, so that the values of all
tensors are known: which of them do not depend on the input is for the analysis to say.
"""

from __future__ import annotations

import contextlib
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunus.errors import PrunusError

__all__ = ["Call", "Graph", "Value", "alike", "anywhere", "trace"]


def alike(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return where two tensors are equal but for rounding, as averages of one constant are."""
    if not one.is_floating_point():
        return one == other
    close = (one - other).abs() <= 16 * torch.finfo(one.dtype).eps * other.abs()
    return (one == other) | close


def anywhere(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Return for each position of a dimension whether the mask is True anywhere."""
    return mask.movedim(dim, 0).flatten(1).any(1) if mask.dim() > 1 else mask


@dataclass(eq=False)
class Value:
    """A tensor of the graph, and what is known of it.

    Attributes:
        data: The tensor, as recorded in one run.
        name: The first name of the parameter or buffer that it is, if it is one.
        static: Whether it is computed from parameters, buffers and constants alone.
        units: The units of those of its dimensions that can become smaller.
        varies: True where the element may differ from input to input or from place to place.
        needed: True where the element has to be there for the outputs to be right.
        calls: The calls that read it.
    """

    data: torch.Tensor
    name: str | None = None
    static: bool = False
    units: dict[int, torch.Tensor] = field(default_factory=dict)
    varies: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    needed: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    calls: list[Call] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.data.shape

    @property
    def nonzero(self) -> torch.Tensor:
        """True where the element may be other than 0."""
        return self.varies | (self.data != 0).cpu()

    def forget(self) -> None:
        """Forget what is known of it but for its tensor."""
        self.units = {}
        self.varies = torch.ones(self.shape, dtype=torch.bool)
        self.needed = torch.zeros(self.shape, dtype=torch.bool)


@dataclass(eq=False)
class Call:
    """One call of an ATen operator.

    Attributes:
        op: The operator's name without namespace and overload.
        arguments: Its arguments by name, defaults too, with values in place of tensors.
        outputs: The tensors it returns.
        module: The name of the innermost module that makes it.
        line: Where in whose code it is made.
        target: The operator.
        facts: What a rule remembers between its two passes.
    """

    op: str
    arguments: dict[str, Any]
    outputs: list[Value]
    module: str
    line: str
    target: Callable[..., Any]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Value:
        """The tensor it returns first."""
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
        """Return an argument that the operator may not have."""
        return self.arguments.get(name, default)

    def replay(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Make the call with another tensor in place of the only one that it reads."""
        schema: Any = self.target
        positional, keywords = [], {}
        for argument in schema._schema.arguments:
            given = self.arguments[argument.name]
            given = tensor if isinstance(given, Value) else given
            if argument.kwarg_only:
                keywords[argument.name] = given
            else:
                positional.append(given)
        made = self.target(*positional, **keywords)
        return list(made) if isinstance(made, list | tuple) else [made]

    def __str__(self) -> str:
        return f"{self.op} in {self.module or 'the model'}"


@dataclass(eq=False)
class Graph:
    """What a model does with its inputs.

    Attributes:
        calls: What it calls, in order.
        parameters: Its parameters and buffers that take part, tied ones once.
        names: The first name of each parameter and buffer by all its names.
        values: All tensors.
        outputs: What it returns, and what it writes into its buffers.
        written: Buffers that it changes.
    """

    calls: list[Call]
    parameters: dict[str, Value]
    names: dict[str, str]
    values: list[Value]
    outputs: list[Value]
    written: list[Value]


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Export a model and make its calls once.

    Args:
        model: The model, in evaluation mode.
        args: The positional arguments of its forward.
        kwargs: The keyword arguments.

    Raises:
        PrunusError: It cannot be traced.
    """
    program = _exported(model, args, kwargs)
    tensors: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    given = iter(pytree.tree_leaves((args, dict(kwargs))))
    parameters: dict[str, Value] = {}
    names = {name: first[id(tensor)] for name, tensor in tensors.items()}
    graph = Graph([], parameters, names, [], [], [])

    def placed(node: fx.Node) -> Any:
        spec = kinds[node.name]
        kind = spec.kind.name
        if kind == "USER_INPUT":
            held = next(given)
            return Value(held) if isinstance(held, torch.Tensor) else held
        if kind in ("PARAMETER", "BUFFER"):
            name = names[spec.target]
            if name not in parameters:
                parameters[name] = Value(tensors[name].detach(), name, static=True)
            return parameters[name]
        held = program.constants.get(spec.target)
        return Value(held, static=True) if isinstance(held, torch.Tensor) else held

    made: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                made[node] = placed(node)
            elif node.op == "get_attr":
                made[node] = operator.attrgetter(node.target)(program.graph_module)
            elif node.op == "call_function":
                made[node] = _called(node, made, graph)
            else:
                graph.outputs = [v for v in _read(node.args, made) if isinstance(v, Value)]
    writes = program.graph_signature.buffers_to_mutate.values()
    written = {names[name] for name in writes}
    graph.written = [value for name, value in parameters.items() if name in written]
    graph.values = list(
        dict.fromkeys(
            v for v in [*parameters.values(), *pytree.tree_leaves(list(made.values()))]
            if isinstance(v, Value)
        )
    )  # fmt: skip
    return graph


def _read(arguments: Any, made: Mapping[fx.Node, Any]) -> list[Any]:
    found = fx.node.map_arg(arguments, lambda node: made[node])
    return list(pytree.tree_leaves(found))


def _called(node: fx.Node, made: Mapping[fx.Node, Any], graph: Graph) -> Any:
    args: Any
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda other: made[other])
    target: Any = node.target
    if target is operator.getitem:
        return target(*args)

    def data(held: Any) -> Any:
        return held.data if isinstance(held, Value) else held

    returned = target(*pytree.tree_map(data, args), **pytree.tree_map(data, kwargs))
    schema = getattr(target, "_schema", None)
    if schema is None:
        bound = {str(place): held for place, held in enumerate(args)} | dict(kwargs)
        op = str(target)
    else:
        bound = {argument.name: argument.default_value for argument in schema.arguments}
        bound |= {a.name: held for a, held in zip(schema.arguments, args, strict=False)}
        bound |= kwargs
        op = schema.name.removeprefix("aten::")
    static = all(v.static for v in _read(list(bound.values()), made) if isinstance(v, Value))
    wrapped = pytree.tree_map(
        lambda held: Value(held, static=static) if isinstance(held, torch.Tensor) else held,
        returned,
    )
    outputs = [v for v in pytree.tree_leaves(wrapped) if isinstance(v, Value)]
    call = Call(op, bound, outputs, _module(node), _line(node), target)
    for value in call.inputs:
        value.calls.append(call)
    graph.calls.append(call)
    return wrapped


def _module(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    # A module that is called again has "@1" behind its name.
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def _line(node: fx.Node) -> str:
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    return places[-1] if places else ""


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    from torch.export import export  # takes a while to import

    try:
        with _as_written(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # No decomposition but that of what writes in place: whole operators say more.
            return export(model, args, dict(kwargs)).run_decompositions({})
    except Exception as error:
        place = _place(error, model)
        raise PrunusError(
            f"{type(model).__name__} cannot be traced by torch.export{place}: "
            f"{_first_lines(error)}. What a model calls must not hang on the values of tensors: "
            "choose with torch.where instead of if, and keep .item() and loops over data out of "
            "forward"
        ) from error


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Keep torch from taking fused paths, of which the parts cannot be seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].rstrip(".") if lines else type(error).__name__)[:300]


def _place(error: BaseException, model: nn.Module) -> str:
    """Say where in someone's own code an error arose."""
    torch_itself = Path(torch.__file__).parent
    ours = Path(__file__).parent
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    found = [
        f"{frame.filename}:{frame.lineno}, in {frame.name}, `{frame.line}`"
        for frame in frames
        if not {torch_itself, ours} & set(Path(frame.filename).parents)
        and Path(frame.filename).suffix == ".py"
        and "contextlib" not in frame.filename
    ]
    return f", at {found[-1]}" if found else ""
