"""Tracing of a model with ``torch.export`` into a graph of operator calls.

The traced calls are executed once on the example, so that the analysis knows the value of each
tensor.
"""

from __future__ import annotations

import contextlib
import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunus._inference.outputs import returning_tensors
from prunus._utils.tied import first_names, named_tensors
from prunus.compaction.graph import Call, Graph, Value
from prunus.errors import PrunusError, first_line

__all__ = ["trace"]

_DATA_DEPENDENT = (
    "The operators that a model calls must not depend on the values of tensors: use torch.where "
    "instead of if, and keep .item() and loops over data out of forward"
)

_UNTRACEABLE = (
    "Change its forward, or the example inputs, so that torch.export.export accepts them; "
    "prunus.save_sparse stores the model as it is, without zeros"
)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Return the graph of a model's operator calls on example inputs.

    Args:
        model: The model, in evaluation mode.
        args: The positional arguments of its forward.
        kwargs: The keyword arguments of its forward.

    Raises:
        PrunusError: ``torch.export`` cannot trace the model.
    """
    return _Interpreter(model, _export(model, args, kwargs), args, kwargs).run()


class _Interpreter:
    """Execution of an exported program, recording each call in a :class:`Graph`."""

    def __init__(
        self, model: nn.Module, program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._program = program
        self._tensors = named_tensors(model)
        self._graph = Graph([], {}, first_names(self._tensors), [], [], [])
        self._input_specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._user_inputs = iter(pytree.tree_leaves((args, dict(kwargs))))
        self._results: dict[fx.Node, Any] = {}

    def run(self) -> Graph:
        """Execute all nodes and return the graph."""
        graph, results = self._graph, self._results
        with torch.no_grad():
            for node in self._program.graph.nodes:
                if node.op == "placeholder":
                    results[node] = self._placeholder(node)
                elif node.op == "get_attr":
                    results[node] = operator.attrgetter(node.target)(self._program.graph_module)
                elif node.op == "call_function":
                    results[node] = self._call(node)
                else:
                    graph.outputs = [v for v in self._resolve(node.args) if isinstance(v, Value)]
        buffers = self._program.graph_signature.buffers_to_mutate.values()
        mutated = {graph.first_names[name] for name in buffers}
        graph.mutated = [value for name, value in graph.parameters.items() if name in mutated]
        found = [*graph.parameters.values(), *pytree.tree_leaves(list(results.values()))]
        graph.values = list(dict.fromkeys(value for value in found if isinstance(value, Value)))
        return graph

    def _placeholder(self, node: fx.Node) -> Any:
        """Return the value of an input of the program: a user input, parameter or constant."""
        spec = self._input_specs[node.name]
        if spec.kind.name == "USER_INPUT":
            user_input = next(self._user_inputs)
            return Value(user_input) if isinstance(user_input, torch.Tensor) else user_input
        if spec.kind.name in ("PARAMETER", "BUFFER"):
            parameters, name = self._graph.parameters, self._graph.first_names[spec.target]
            if name not in parameters:
                parameters[name] = Value(self._tensors[name].detach(), name, static=True)
            return parameters[name]
        constant = self._program.constants.get(spec.target)
        return Value(constant, static=True) if isinstance(constant, torch.Tensor) else constant

    def _resolve(self, arguments: Any) -> list[Any]:
        """Return the leaves of a node's arguments, with results in place of nodes."""
        resolved = fx.node.map_arg(arguments, lambda node: self._results[node])
        return list(pytree.tree_leaves(resolved))

    def _call(self, node: fx.Node) -> Any:
        """Execute a call, append it to the graph and return its result."""
        args: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda other: self._results[other])
        target: Any = node.target
        if target is operator.getitem:
            return target(*args)

        def data(leaf: Any) -> Any:
            return leaf.data if isinstance(leaf, Value) else leaf

        returned = target(*pytree.tree_map(data, args), **pytree.tree_map(data, kwargs))
        op, arguments = _bind_arguments(target, args, kwargs)
        static = all(
            leaf.static
            for leaf in self._resolve(list(arguments.values()))
            if isinstance(leaf, Value)
        )
        wrapped = pytree.tree_map(
            lambda leaf: Value(leaf, static=static) if isinstance(leaf, torch.Tensor) else leaf,
            returned,
        )
        outputs = [leaf for leaf in pytree.tree_leaves(wrapped) if isinstance(leaf, Value)]
        call = Call(op, arguments, outputs, _module_name(node), _location(node), target)
        for value in call.inputs:
            value.consumers.append(call)
        self._graph.calls.append(call)
        return wrapped


def _bind_arguments(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return an operator's name, and its arguments by name, including defaults."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        by_position: dict[str, Any] = {str(index): value for index, value in enumerate(args)}
        return str(target), by_position | dict(kwargs)
    bound = {parameter.name: parameter.default_value for parameter in schema.arguments}
    bound |= {p.name: value for p, value in zip(schema.arguments, args, strict=False)}
    return schema.name.removeprefix("aten::"), bound | dict(kwargs)


def _module_name(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    # A module that is called again has "@1" appended to its name.
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def _location(node: fx.Node) -> str:
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    return frames[-1] if frames else ""


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    from torch.export import export  # slow to import

    try:
        with _without_fused_attention(), returning_tensors(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The empty table only removes in-place operators: the rules know whole operators.
            return export(model, args, dict(kwargs)).run_decompositions({})
    except Exception as error:
        reason = first_line(error).rstrip(".")[:300] or type(error).__name__
        fix = _DATA_DEPENDENT if "data-dependent" in str(error) else _UNTRACEABLE
        raise PrunusError(
            f"{type(model).__name__} cannot be traced by torch.export{_source_of(error)}: "
            f"{reason}. {fix}"
        ) from error


@contextlib.contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Disable the fused attention operator, which hides the layers it consists of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _source_of(error: BaseException) -> str:
    """Return the last frame of a traceback that is neither in torch nor in this package."""
    torch_itself = Path(torch.__file__).parent
    package = Path(__file__).parents[1]
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    found = [
        f"{frame.filename}:{frame.lineno}, in {frame.name}, `{frame.line}`"
        for frame in frames
        if not {torch_itself, package} & set(Path(frame.filename).parents)
        and Path(frame.filename).suffix == ".py"
        and "contextlib" not in frame.filename
    ]
    return f", at {found[-1]}" if found else ""
