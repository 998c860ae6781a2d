"""Making a sparse network run faster than the dense one, where it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn

from prunus._inference.model_calls import (
    ExampleInputs,
    call_model,
    copy_model,
    make_caller,
    prepare_call,
    reference_outputs,
)
from prunus._inference.outputs import TOLERANCE, relative_difference
from prunus._utils.timing import fitting_rounds, interleaved
from prunus.compaction.attention import SmallerAttention
from prunus.compaction.selecting import SELECTING, reading_all
from prunus.errors import PrunusError, listing
from prunus.runtime.attention import OpenAttention
from prunus.runtime.fusion import Chain, chains

__all__ = ["LayerTiming", "SpeedUpReport", "speed_up"]

_DENSEST = 0.7
"""Share of weights that are not zero from which on a sparse layer is not even tried."""

_SECONDS = 0.05
_MARGIN = 0.97


@dataclass(frozen=True)
class LayerTiming:
    """What became of one layer.

    Attributes:
        name: In the model; of a projection of attention that of the attention and, after a dot,
            "inputs" (query, key and value in one), "query", "key", "value" or "out".
        kind: Its class.
        shape: Of its weight.
        density: The share of its weight that is not zero.
        dense_ms: The median of a call, together with what was fused; NaN if it was not timed.
        sparse_ms: The same of the sparse layer.
        sparse: Whether it was replaced.
        fused: The layers whose work it does besides.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    dense_ms: float
    sparse_ms: float
    sparse: bool
    fused: tuple[str, ...]


@dataclass(frozen=True)
class SpeedUpReport:
    """What :func:`speed_up` measured, and what it replaced.

    Attributes:
        layers: What became of each layer of a known kind that the example went through.
        left: Why other layers with zeros among their weights were left as they are, by name.
        dense_ms: The median of a call of the network as it was.
        sparse_ms: The same of the faster one; of the dense one where nothing is faster.
        threads: With how many threads.
        error: The largest difference of an output, relative to the largest magnitude.
    """

    layers: tuple[LayerTiming, ...]
    left: Mapping[str, str]
    dense_ms: float
    sparse_ms: float
    threads: int
    error: float

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the layers that run sparse."""
        return tuple(layer.name for layer in self.layers if layer.sparse)


@overload
def speed_up(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: Literal[False] = False
) -> nn.Module: ...


@overload
def speed_up(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: Literal[True]
) -> tuple[nn.Module, SpeedUpReport]: ...


def speed_up(
    model: nn.Module, example_inputs: ExampleInputs, *, return_report: bool = False
) -> nn.Module | tuple[nn.Module, SpeedUpReport]:
    """Return a copy of a sparse network for inference on the CPU that is faster.

    Each ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d``, and each projection of a
    ``nn.MultiheadAttention``, is timed against a layer that computes with its non-zero weights
    only, on what the example brings it, with the number of threads that torch is set to, and is
    replaced where the sparse one is faster. Rectifiers, and batch norms and max poolings after a
    convolution, become a part of the replaced layer where the network can be traced. In the end
    the whole network is timed, and is left as it is where that is not slower.

    Args:
        model: Any network in float32 on the CPU, also one that was made by :func:`prunus.compact`,
            or within ``torch.compile`` or DistributedDataParallel. It is not changed. Sparse means
            that weights are zero; masks are not asked for.
        example_inputs: What the model is called with: a tensor, a tuple of positional arguments or
            a mapping of keyword arguments. The sizes are those to be fast at; others work too.
        return_report: Whether to return a :class:`SpeedUpReport` too, which takes the place of the
            warning. Default False.

    Returns:
        The copy, in evaluation mode, which takes no gradients. A copy of the network as it is,
        with a warning that says why, where nothing would be faster.

    Raises:
        PrunusError: It is no network, has no parameters, or fails on the example; Numba is missing.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        >>> _ = nn.init.sparse_(model[0].weight, 0.99)
        >>> fast = speed_up(model, torch.randn(64, 512))
        >>> [type(layer).__name__ for layer in fast]  # the first does the rectifier's work as well
        ['SparseLinear', 'Identity', 'Linear']
        >>> x = torch.randn(64, 512)
        >>> with torch.no_grad():
        ...     torch.allclose(fast(x), model(x), atol=1e-5)
        True
    """
    fast, report = _sped_up(model, example_inputs)
    if return_report:
        return fast, report
    if not report.replaced:
        tried = [f"{t.name or 'the layer'} ({t.density:.0%} non-zero)" for t in report.layers]
        others = [f"{name}: {reason}" for name, reason in report.left.items()]
        warnings.warn(
            f"{type(model).__name__} is returned as it is, for no sparse layer makes it faster on "
            f"this example: {listing([*tried, *others]) or 'there is none of a known kind'}. Prune "
            "further, or give a larger batch",
            stacklevel=2,
        )
    return fast


def _sped_up(model: nn.Module, example_inputs: ExampleInputs) -> tuple[nn.Module, SpeedUpReport]:
    try:
        import numba  # noqa: F401
    except ImportError as missing:
        raise PrunusError(
            "the sparse runtime needs Numba: pip install 'prunus[runtime]'"
        ) from missing
    model, args, kwargs = prepare_call(model, example_inputs)
    dense = copy_model(model)
    right = reference_outputs(dense, args, kwargs)
    opened, attentions, closed = _opened(model, dense, args, kwargs, right)
    seen, left = _inputs(opened, args, kwargs)
    left |= closed
    layers: list[LayerTiming] = []
    chosen: list[tuple[Chain, int]] = []
    with torch.inference_mode():
        for chain in chains(opened, seen):
            x = seen[chain.name]
            features = x.shape[1 - chain.layer.weight.dim()]
            timing = _timed(chain, features, x)
            layers.append(timing)
            if timing.sparse:
                chosen.append((chain, features))
        candidates = {"dense": dense}
        for by_item in (False, True) if chosen else ():
            candidates[str(by_item)] = _replaced(model, chosen, attentions, by_item)
        seconds = _medians(
            {name: make_caller(each, args, kwargs) for name, each in candidates.items()}
        )
    best = min(seconds, key=seconds.__getitem__)
    fastest = candidates[best]
    error = relative_difference(right, call_model(fastest, args, kwargs))
    if error > TOLERANCE:
        raise PrunusError(
            f"{type(model).__name__} cannot be sped up: its outputs would be off by {error:.2g} of "
            f"the largest ({TOLERANCE:g} is accepted). Is it random in evaluation mode?"
        )
    if best == "dense":
        layers = [replace(layer, sparse=False) for layer in layers]
    return fastest, SpeedUpReport(
        layers=tuple(layers),
        left=left,
        dense_ms=1e3 * seconds["dense"],
        sparse_ms=1e3 * seconds[best],
        threads=torch.get_num_threads(),
        error=error,
    )


def _opened(
    model: nn.Module,
    dense: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any],
    right: list[torch.Tensor],
) -> tuple[nn.Module, dict[str, bool], dict[str, str]]:
    """Return a copy whose sparse attentions have projections of their own.

    Args:
        model: The network.
        dense: A copy of it, which is returned where no attention is opened.
        args: The positional arguments of the example.
        kwargs: Its keyword arguments.
        right: What the network makes of them.

    Returns:
        The copy; of the name of each opened attention whether its inputs are one tensor; and why
        others with zeros among their weights stay closed.
    """
    attentions = {
        name: module
        for name, module in dense.named_modules()
        if type(module) in (nn.MultiheadAttention, SmallerAttention)
        and any(map(_sparse_itself, module.modules()))
    }
    closed = {name: why for name, module in attentions.items() if (why := _closed(module))}
    joint: dict[str, bool] = {}

    def note(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = dict(zip(("query", "key", "value"), given, strict=False)) | named
        same = inputs["query"] is inputs["key"] is inputs["value"]
        joint[name] = joint.get(name, True) and same

    free = {name: module for name, module in attentions.items() if name not in closed}
    _watched(dense, free, note, args, kwargs)
    if not joint:
        return dense, {}, closed

    def alike(names: Iterable[str]) -> nn.Module | None:
        opened = _with_open(copy_model(model), {name: joint[name] for name in names})
        try:
            apart = relative_difference(right, call_model(opened, args, kwargs))
        except Exception:  # whatever a model's own code raises that looks into an attention
            return None
        return opened if apart <= TOLERANCE else None

    opened = alike(joint)
    if opened is None:
        for name in [name for name in joint if alike([name]) is None]:
            closed[name] = "its weights are read by the code around it"
            del joint[name]
        opened = alike(joint)
    if opened is None:
        closed |= dict.fromkeys(joint, "opened together with others it does not say the same")
        return dense, {}, closed
    return opened, joint, closed


def _closed(attention: Any) -> str | None:
    """Return why the projections of an attention cannot be layers of their own."""
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it has keys and values of its own, by add_bias_kv or add_zero_attn"
    if attention._forward_hooks or attention._forward_pre_hooks:
        return "it has hooks"
    return _unsuitable_tensor(attention)


def _with_open(model: nn.Module, attentions: Mapping[str, bool]) -> nn.Module:
    """Open these attentions of a model, in place."""
    for name, joint in attentions.items():
        attention: Any = model.get_submodule(name)
        model = _put(model, name, OpenAttention(attention, joint=joint))
    for module in model.modules():
        # In evaluation mode these hand the weights of their layers to one fused dense kernel.
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return model


def _inputs(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return what each layer that can be replaced is called with, and why others cannot be."""
    seen: dict[str, torch.Tensor] = {}
    left: dict[str, str] = {}
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        reason = _unsuitable(module)
        if reason is None:
            candidates[name] = module
        elif reason and _sparse_itself(module):
            left[name] = reason

    def keep(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = next(iter([*given, *named.values()]), None)
        if isinstance(x, torch.Tensor) and x.is_nested:
            left[name] = (
                "it is called on nested tensors, which nn.TransformerEncoder makes of padded ones "
                "unless built with enable_nested_tensor=False"
            )
        elif isinstance(x, torch.Tensor):
            seen.setdefault(name, x.detach())

    _watched(model, candidates, keep, args, kwargs)
    for name, module in candidates.items():
        if name not in seen and name not in left and _sparse_itself(module):
            left[name] = "it is not called on this example, or only its weight is read"
    return seen, left


def _watched(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    note: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
    args: Any,
    kwargs: Mapping[str, Any],
) -> None:
    """Call a model, if there are modules to watch, and note what each of these is called with."""
    handles = []
    for name, module in modules.items():

        def hook(_: nn.Module, given: Any, named: Any, name: str = name) -> None:
            note(name, given, named)

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        if handles:
            call_model(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _sparse_itself(module: nn.Module) -> bool:
    return any(
        p.dim() > 1 and bool((p == 0).sum() > (1 - _DENSEST) * p.numel())
        for p in module.parameters(recurse=False)
    )


def _unsuitable(module: nn.Module) -> str | None:
    """Return None of a layer that can be replaced, else why not."""
    kind = type(module)
    if kind not in (*_LAYERS, *(SELECTING[each] for each in _LAYERS)):
        return f"a {kind.__name__} has no sparse counterpart"
    if reason := _unsuitable_tensor(module):
        return reason
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"its padding_mode is {module.padding_mode!r}, not 'zeros'"
        if len(set(module.stride)) > 1:
            return f"its strides {module.stride} differ"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    return None


_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""What has a sparse counterpart, also where it selects some of its features."""


def _unsuitable_tensor(module: nn.Module) -> str | None:
    for name, tensor in module.named_parameters():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"its {name} is {tensor.dtype} on {tensor.device}, not float32 on the CPU"
    return None


def _timed(chain: Chain, features: int, x: torch.Tensor) -> LayerTiming:
    """Time a layer, with what can be fused into it, against the sparse one."""
    layer = chain.layer
    weight = layer.weight
    density = float((weight != 0).float().mean()) if weight.numel() else 1.0
    dense_ms = sparse_ms = float("nan")
    if density < _DENSEST and x.numel():

        def dense() -> object:
            y: Any = layer(x)
            for module in chain.others:
                y = module(y)
            return y

        faster = _sparse(chain, features, by_item=False)
        medians = _medians({"dense": dense, "sparse": lambda: faster(x)})
        dense_ms, sparse_ms = 1e3 * medians["dense"], 1e3 * medians["sparse"]
    return LayerTiming(
        name=chain.name,
        kind=type(layer).__name__,
        shape=tuple(weight.shape),
        density=density,
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        sparse=sparse_ms < _MARGIN * dense_ms,
        fused=chain.names,
    )


def _sparse(chain: Chain, features: int, *, by_item: bool) -> nn.Module:
    """Return a sparse layer that does the work of a chain; of convolutions in their one layout."""
    from prunus.runtime.convolution import SparseConv  # brings Numba along
    from prunus.runtime.linear import SparseLinear

    layer = reading_all(chain.merged(), features)
    if isinstance(layer, nn.Linear):
        return SparseLinear(layer, rectified=chain.rectified, by_item=by_item)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return SparseConv(layer, rectified=chain.rectified, pool=chain.pool)


def _medians(variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of a call of each, timed by turns for a fraction of a second."""
    rounds = fitting_rounds(variants, 2 * _SECONDS, least=5, most=50)
    seconds = interleaved(variants, rounds=rounds, calls=2, warm=1)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def _replaced(
    model: nn.Module,
    chosen: list[tuple[Chain, int]],
    attentions: Mapping[str, bool],
    by_item: bool,
) -> nn.Module:
    names = [chain.name for chain, _ in chosen]
    open_here = {
        name: joint
        for name, joint in attentions.items()
        if any(each.rpartition(".")[0] == name for each in names)
    }
    fast = _with_open(copy_model(model), open_here)
    for chain, features in chosen:
        fast = _put(fast, chain.name, _sparse(chain, features, by_item=by_item))
        for name in chain.names:
            fast = _put(fast, name, nn.Identity())
    return fast.requires_grad_(False)


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Return the model with the module of that name replaced, under all the names that it has."""
    module.eval()
    if not name:
        return module
    former = model.get_submodule(name)
    for place, held in list(model.named_modules(remove_duplicate=False)):
        if held is former:
            parent, _, child = place.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    return model
