"""Which tensors of a model may be pruned.

By default the weights of every layer: linear, convolutional, transposed, embedding, recurrent and
attention layers, and any module of your own whose parameter has "weight" in its name and at least
two dimensions. Biases, the parameters of normalization layers and bare parameters are left out
unless asked for. A tensor shared by several modules is one target.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from prunus._distributed.process_group import ProcessGroup, process_group_of
from prunus._distributed.shards import Shard, local, shard_of
from prunus._distributed.wrappers import check_wrappers, unwrap
from prunus._utils.checks import raise_problems, type_problem
from prunus.errors import PrunusError, listing, nearest

__all__ = ["Pattern", "Predicate", "PrunableTensor", "Selection", "as_selection", "select"]

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]
"""Called with a tensor's name, the tensor, and the module that owns it."""

Pattern = str | type[nn.Module] | Predicate
"""A glob on tensor or module names, a module type, or a predicate."""

Kind = Literal["weight", "bias", "norm", "other"]

_NORM = re.compile(r"Norm(\dd)?$")


@dataclass(frozen=True, eq=False)
class PrunableTensor:
    """One tensor that may be pruned.

    Attributes:
        name: Its first name in the model, as in ``model.named_parameters()``.
        parameter: The tensor itself, as the optimizer holds it.
        aliases: The other names of the same tensor where it is tied.
        padding_row: The row of an embedding that stands for padding; it is never counted or pruned.
    """

    name: str
    parameter: nn.Parameter
    aliases: tuple[str, ...] = ()
    padding_row: int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The part of the tensor that this process holds, detached: all of it, unless sharded."""
        return local(self.parameter)

    @property
    def gradient(self) -> torch.Tensor | None:
        """The same part of its gradient."""
        gradient = self.parameter.grad
        return None if gradient is None else local(gradient)

    @cached_property
    def shard(self) -> Shard:
        """Where that part lies in the whole."""
        return shard_of(self.parameter)

    @cached_property
    def local_padding_row(self) -> int | None:
        """The row of that part which stands for padding, if it is there."""
        if self.padding_row is None:
            return None
        row = self.padding_row - self.shard.offsets[0]
        return row if 0 <= row < self.shard.size[0] else None

    @property
    def prunable(self) -> int:
        """How many of its weights may be pruned, those held by other processes included."""
        numel = self.parameter.numel()
        if self.padding_row is None:
            return numel
        return numel - numel // self.parameter.shape[0]


class Selection(Mapping[str, PrunableTensor]):
    """The tensors that may be pruned, by name, in the model's order; made by :func:`select`.

    Args:
        targets: The tensors.

    Example:
        >>> selection = select(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))
        >>> list(selection), selection.prunable
        (['0.weight'], 6)
    """

    def __init__(self, targets: Sequence[PrunableTensor]) -> None:
        self._targets = {target.name: target for target in targets}

    def __getitem__(self, name: str) -> PrunableTensor:
        return self._targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __repr__(self) -> str:
        return f"Selection({len(self)} tensors, {self.prunable:,} prunable weights)"

    @property
    def prunable(self) -> int:
        """How many weights may be pruned in all."""
        return sum(target.prunable for target in self.values())

    @cached_property
    def process_group(self) -> ProcessGroup:
        """The processes that hold the tensors together; just this one, unless they are sharded."""
        return process_group_of([target.parameter for target in self.values()])

    @cached_property
    def counted(self) -> Mapping[str, bool]:
        """Whether this process is the one to count its part of a tensor, which others may hold too.

        Where tensors are sharded, all processes have to ask for the first time together.
        """
        boxes = [target.shard for target in self.values()]
        return dict(zip(self, self.process_group.counts_shards(boxes), strict=True))


@dataclass(frozen=True, eq=False)
class _Place:
    """One place in the module tree where a parameter hangs: a tied tensor has several."""

    name: str
    parameter: nn.Parameter
    path: tuple[tuple[str, nn.Module], ...]  # (name, module) from the root to the owner

    @property
    def owner(self) -> nn.Module:
        return self.path[-1][1]

    @property
    def kind(self) -> Kind:
        local = self.name.rpartition(".")[2]
        if _is_legacy_parametrization(self.owner, local):
            return "other"
        if _NORM.search(type(self.owner).__name__):
            return "norm"
        if "bias" in local:
            return "bias"
        lazy = is_lazy(self.parameter)  # has no dimensions to ask for
        if "weight" in local and (lazy or self.parameter.dim() >= 2):
            return "weight"
        return "other"


def select(
    model: nn.Module,
    include: Pattern | Iterable[Pattern] = (),
    exclude: Pattern | Iterable[Pattern] = (),
    *,
    biases: bool = False,
    norms: bool = False,
) -> Selection:
    """Choose the tensors of ``model`` that may be pruned.

    A tensor is taken if it is of a kind that is asked for (weights always, biases and norms by
    their switches) and lies in what ``include`` names, if that is given. A glob that matches a
    tensor's full name takes it whatever its kind, so ``"*"`` takes everything and ``"pos_embed"``
    a bare parameter. ``exclude`` wins over both.

    A layer whose weight is computed by a parametrization (``weight_norm``, ``spectral_norm``) has
    no weight of its own to set to zero and is left out; name the tensors below its
    ``parametrizations`` to prune those. With ``weight_norm`` a zero in ``original1`` is a zero in
    the weight.

    Args:
        model: Any module, also within ``torch.compile`` or DistributedDataParallel.
        include: Only these. Globs (``*`` also crosses dots) are matched against tensor names and
            the names of the modules above them; types against those modules; predicates are called
            with name, tensor and owning module.
        exclude: Not these.
        biases: Take biases too, as the paper does.
        norms: Take the weights of normalization layers too, as the paper does (their biases as well
            if ``biases`` is set).

    Returns:
        The selection. A tied tensor is taken once, if any of its names is, and left out if any of
        its names is excluded.

    Raises:
        PrunusError: A pattern matches nothing, nothing is left to prune, a chosen tensor is frozen,
            empty, without memory, or not a floating-point tensor, or the model is sharded by a
            wrapper that does not tell which weights are where.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> list(select(model, exclude="2", biases=True))
        ['0.weight', '0.bias']
    """
    check_model(model)
    check_wrappers(model)
    model = unwrap(model)  # the names are the inner ones
    includes, excludes = _as_patterns(include), _as_patterns(exclude)
    places = _places(model)
    _reject_idle_patterns(includes, excludes, places)

    def wanted(place: _Place) -> bool:
        if any(isinstance(p, str) and fnmatchcase(place.name, p) for p in includes):
            return True
        if includes and not any(_matches(p, place) for p in includes):
            return False
        if place.kind == "norm":
            return norms and (biases or "bias" not in place.name.rpartition(".")[2])
        if place.kind == "other":  # a predicate has seen the tensor itself and chosen it
            return any(_is_predicate(p) and _matches(p, place) for p in includes)
        return place.kind == "weight" or biases

    tied: dict[int, list[_Place]] = {}
    for place in places:
        tied.setdefault(id(place.parameter), []).append(place)
    targets = []
    for group in tied.values():
        if any(_matches(p, place) for p in excludes for place in group):
            continue
        if any(wanted(place) for place in group):
            targets.append(_target(group))
    _reject_unusable(targets)
    if not targets:
        raise PrunusError(_nothing_left(model, places))
    return Selection(targets)


def _as_patterns(patterns: Pattern | Iterable[Pattern]) -> tuple[Pattern, ...]:
    several: Any = patterns
    given: tuple[Pattern, ...] = (several,)
    single = isinstance(patterns, str | bytes | torch.Tensor | nn.Module) or callable(patterns)
    if not single:
        with contextlib.suppress(TypeError):  # it is neither a pattern nor several
            given = tuple(several)
    wrong = [
        repr(pattern)
        for pattern in given
        if not isinstance(pattern, str)
        and (isinstance(pattern, nn.Module) or not callable(pattern))
    ]
    if wrong:
        raise PrunusError(
            f"a pattern is a glob, a module type or a predicate, but got {listing(wrong)}"
        )
    return given


def _places(model: nn.Module) -> list[_Place]:
    places = []
    paths: dict[str, tuple[tuple[str, nn.Module], ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        above = paths[name.rpartition(".")[0]] if name else ()
        paths[name] = (*above, (name, module))
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.append(_Place(f"{name}.{own}" if name else own, parameter, paths[name]))
    return places


def _is_legacy_parametrization(owner: nn.Module, local: str) -> bool:
    """Tell tensors that ``torch.nn.utils.weight_norm`` and its like make a weight of."""
    base, _, suffix = local.rpartition("_")
    return suffix in ("g", "v", "orig") and hasattr(owner, base) and base not in owner._parameters


def _is_predicate(pattern: Pattern) -> bool:
    return callable(pattern) and not isinstance(pattern, type)


def _matches(pattern: Pattern, place: _Place) -> bool:
    if isinstance(pattern, str):
        names = [place.name, *(name for name, _ in place.path if name)]
        return any(fnmatchcase(name, pattern) for name in names)
    if isinstance(pattern, type):
        return any(isinstance(module, pattern) for _, module in place.path)
    return bool(pattern(place.name, place.parameter, place.owner))


def _reject_idle_patterns(
    includes: Sequence[Pattern], excludes: Sequence[Pattern], places: Sequence[_Place]
) -> None:
    names = list(dict.fromkeys(n for p in places for n in (*(m for m, _ in p.path if m), p.name)))
    types = sorted({type(module).__name__ for p in places for _, module in p.path})
    problems = []
    for argument, patterns in (("include", includes), ("exclude", excludes)):
        for pattern in patterns:
            if any(_matches(pattern, place) for place in places):
                continue
            if isinstance(pattern, str):
                hint = nearest(pattern, names) or names[:3]
                problems.append(f"{argument}={pattern!r} (nearest names: {listing(hint)})")
            elif isinstance(pattern, type):
                problems.append(f"{argument}={pattern.__name__} (types here: {listing(types)})")
            else:
                problems.append(f"{argument}={pattern!r} (false for every tensor)")
    if problems:
        raise PrunusError(
            "every pattern must match a tensor or a module that holds tensors, but nothing is "
            f"matched by {'; '.join(problems)}"
        )


def _target(group: Sequence[_Place]) -> PrunableTensor:
    rows = [
        place.owner.padding_idx
        for place in group
        if isinstance(place.owner, nn.Embedding | nn.EmbeddingBag)
        and place.owner.padding_idx is not None
    ]
    first = group[0]
    aliases = tuple(place.name for place in group[1:])
    return PrunableTensor(first.name, first.parameter, aliases, rows[0] if rows else None)


def _reject_unusable(targets: Sequence[PrunableTensor]) -> None:
    problems = []
    for target in targets:
        parameter = target.parameter
        if is_lazy(parameter):
            problems.append(f"{target.name} is not initialized yet (run the model once first)")
        elif parameter.is_meta:
            problems.append(f"{target.name} is on the meta device (give it memory first)")
        elif parameter.numel() == 0:
            problems.append(f"{target.name} is empty, of shape {tuple(parameter.shape)}")
        elif not parameter.is_floating_point():
            problems.append(f"{target.name} is of type {parameter.dtype}, not floating point")
        elif parameter.element_size() < 2:
            problems.append(f"{target.name} is of type {parameter.dtype}, too narrow to compute in")
        elif parameter.is_inference():
            problems.append(f"{target.name} was made within torch.inference_mode()")
        elif not parameter.requires_grad:
            problems.append(f"{target.name} is frozen (requires_grad is False)")
    if problems:
        raise PrunusError(
            f"these tensors cannot be pruned: {'; '.join(problems)}. Mend them or leave them out, "
            "for example with exclude=[names] or exclude=lambda name, tensor, module: not "
            "tensor.requires_grad or tensor.numel() == 0"
        )


def _nothing_left(model: nn.Module, places: Sequence[_Place]) -> str:
    message = f"{type(model).__name__} has no tensors left to prune: "
    if not places:
        return message + "it has no parameters at all"
    parametrized = [name for name, module in model.named_modules() if is_parametrized(module)]
    if parametrized:
        message += f"the weights of {listing(parametrized)} are computed by parametrizations; "
    found = ", ".join(f"{place.name} ({place.kind})" for place in places[:20])
    return (
        f"{message}its tensors are {found}; widen include, narrow exclude, or ask for biases=True "
        "or norms=True"
    )


def model_problem(model: object) -> str | None:
    """Return what is wrong with a model that must be a module."""
    return type_problem(
        "model",
        model,
        nn.Module,
        "a torch.nn.Module",
        fix="pass the network itself, not its parameters, its state_dict or a function",
    )


def check_model(model: object) -> None:
    """Check that a model is a module.

    Raises:
        ArgumentTypeError: It is not.
    """
    raise_problems(model_problem(model))


def total_parameters(model: nn.Module) -> int:
    """Count the parameters of ``model``, tied ones once; the dividend of the compression ratio."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Count the parameters of ``model`` that are not zero; the divisor of the compression ratio."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())


def as_selection(
    selection: Selection | Callable[[nn.Module], Selection] | None, model: nn.Module
) -> Selection:
    """Return a selection of a model: as it is, by a function, or of all layers' weights.

    Args:
        selection: A selection of this model, a function that returns one, or None for
            :func:`select`.
        model: The model.
    """
    if isinstance(selection, Selection):
        return selection
    return select(model) if selection is None else selection(model)
