"""The selection of the tensors of a model that may be pruned.

By default these are the weights of every layer: linear, convolutional, transposed, embedding,
recurrent and attention layers, any custom module whose parameter has "weight" in its name and at
least two dimensions, and the matrices of a mixture of experts. Biases, the parameters of
normalization layers, embeddings that are not trained and other bare parameters are left out unless
requested; :func:`select` warns if that leaves out much of the model. A tensor that several modules
share is selected once.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from prunus._distributed.process_group import ProcessGroup, process_group_of
from prunus._distributed.shards import Shard, local, shard_of
from prunus._distributed.wrappers import check_wrappers, unwrap
from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.conversions import check_not_converted, is_converted
from prunus._utils.text_table import text_table
from prunus.errors import ArgumentError, PrunusError, listing, nearest

__all__ = [
    "NamePattern",
    "Predicate",
    "PrunableTensor",
    "Selection",
    "as_selection",
    "is_of_experts",
    "matching_tensors",
    "owners",
    "select",
]

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]
"""Called with a tensor's name, the tensor, and the module that owns it."""

NamePattern = str | type[nn.Module] | Predicate
"""A glob on tensor or module names, a module type, or a predicate."""

Role = Literal["weight", "bias", "norm", "other"]

_NORM = re.compile(r"Norm(\dd)?$")

_EXPERTS = re.compile(r"Experts?(MLP|GLU)?$")
"""Types of modules whose bare parameters are the stacked matrices of a mixture of experts."""

_ATTENTION = re.compile(r"Attention$")
"""Types of modules whose bare parameters may be projections."""

_PROJECTION = re.compile(r"([qkvor]|\w*kernel)$")
"""Names of bare parameters of an attention that are projections, of query, key, value, output and
relative positions."""

_REMOVE_NORM = (
    "remove the weight norm first, by torch.nn.utils.parametrize.remove_parametrizations or "
    "torch.nn.utils.remove_weight_norm"
)

_MOST_LEFT_OUT = 0.1
"""The fraction of the parameters in matrices that may be left out without a warning."""


@dataclass(frozen=True, eq=False)
class PrunableTensor:
    """One tensor that may be pruned.

    Attributes:
        name: Its first name in the model, as in ``model.named_parameters()``.
        parameter: The tensor itself, as the optimizer holds it.
        aliases: The other names of the same tensor where it is tied.
        padding_row: The row of an embedding that is the padding's; never counted or pruned.
        shape: The shape of the whole tensor when it was selected.
    """

    name: str
    parameter: nn.Parameter
    aliases: tuple[str, ...] = ()
    padding_row: int | None = None
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        # A tensor that is not initialized yet has no shape, and is rejected by its own message.
        shape = torch.Size() if is_lazy(self.parameter) else self.parameter.shape
        object.__setattr__(self, "shape", shape)

    @property
    def weight(self) -> torch.Tensor:
        """This process's shard of the tensor, detached: all of it, unless sharded."""
        return local(self.parameter)

    @property
    def gradient(self) -> torch.Tensor | None:
        """The same shard of its gradient."""
        gradient = self.parameter.grad
        return None if gradient is None else local(gradient)

    @cached_property
    def shard(self) -> Shard:
        """The position of that shard in the whole tensor."""
        return shard_of(self.parameter)

    @cached_property
    def local_padding_row(self) -> int | None:
        """The padding row as a row of the shard, if it is in it."""
        if self.padding_row is None:
            return None
        row = self.padding_row - self.shard.offsets[0]
        return row if 0 <= row < self.shard.size[0] else None

    @property
    def prunable(self) -> int:
        """How many of its weights may be pruned, in all shards."""
        numel = self.parameter.numel()
        if self.padding_row is None:
            return numel
        return numel - numel // self.parameter.shape[0]


class Selection(Mapping[str, PrunableTensor]):
    """The tensors that may be pruned, by name, in the model's order; built by :func:`select`.

    ``str()`` of it is a table with a row for each tensor.

    Args:
        tensors: The tensors.

    Example:
        >>> selection = select(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))
        >>> list(selection), selection.prunable
        (['0.weight'], 6)
    """

    def __init__(self, tensors: Sequence[PrunableTensor]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def __getitem__(self, name: str) -> PrunableTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Selection({len(self)} tensors, {self.prunable:,} prunable weights)"

    def __str__(self) -> str:
        rows = [
            [name, "×".join(map(str, tensor.shape)) or "scalar", f"{tensor.prunable:,}"]
            for name, tensor in self.items()
        ]
        footer = [f"{len(self)} tensors", "", f"{self.prunable:,}"]
        return text_table(["tensor", "shape", "prunable"], rows, footer=footer)

    @property
    def prunable(self) -> int:
        """How many weights may be pruned in all."""
        return sum(tensor.prunable for tensor in self.values())

    @cached_property
    def process_group(self) -> ProcessGroup:
        """The processes that hold the tensors together; just this one, unless they are sharded."""
        return process_group_of([tensor.parameter for tensor in self.values()])

    @cached_property
    def counted(self) -> Mapping[str, bool]:
        """Whether this process counts its shard of a tensor, which others may hold too.

        If tensors are sharded, all processes must read this for the first time together.
        """
        shards = [tensor.shard for tensor in self.values()]
        return dict(zip(self, self.process_group.shards_counted_here(shards), strict=True))


@dataclass(frozen=True, eq=False)
class _Occurrence:
    """An occurrence of a parameter in the module tree: a tied tensor has several."""

    name: str
    parameter: nn.Parameter
    path: tuple[tuple[str, nn.Module], ...]  # (name, module) from the root to the owner

    @property
    def owner(self) -> nn.Module:
        return self.path[-1][1]

    @property
    def is_matrix(self) -> bool:
        """Whether it is trained and has two dimensions or more, and is no bias or norm's."""
        trained = self.parameter.requires_grad and not is_lazy(self.parameter)
        return trained and self.parameter.dim() >= 2 and self.role in ("weight", "other")

    @property
    def role(self) -> Role:
        local = self.name.rpartition(".")[2]
        if _is_legacy_parametrization(self.owner, local):
            return "other"
        if _NORM.search(type(self.owner).__name__):
            return "norm"
        if "bias" in local:
            return "bias"
        lazy = is_lazy(self.parameter)  # has no dimensions yet
        if (lazy or self.parameter.dim() >= 2) and self._is_named_as_weight(local):
            return "weight"
        return "other"

    def _is_named_as_weight(self, local: str) -> bool:
        owner = type(self.owner).__name__
        if "weight" in local or is_of_experts(self.owner):
            return True
        return bool(_ATTENTION.search(owner) and _PROJECTION.match(local))

    @property
    def is_direction(self) -> bool:
        """Whether a weight norm divides it by its norm."""
        local = self.name.rpartition(".")[2]
        if isinstance(self.owner, ParametrizationList):
            weight_norm = any(type(module).__name__ == "_WeightNorm" for module in self.owner)
            return weight_norm and local == "original1"
        hooks = self.owner._forward_pre_hooks.values()
        return any(isinstance(hook, WeightNorm) and local == f"{hook.name}_v" for hook in hooks)

    @property
    def is_fixed_table(self) -> bool:
        """Whether it is an embedding that is not trained, as of sinusoidal positions."""
        return isinstance(self.owner, nn.Embedding) and not self.parameter.requires_grad


def select(
    model: nn.Module,
    include: NamePattern | Iterable[NamePattern] = (),
    exclude: NamePattern | Iterable[NamePattern] = (),
    *,
    biases: bool = False,
    norms: bool = False,
) -> Selection:
    """Return the tensors of ``model`` that may be pruned.

    A tensor is selected if its role is (weights always, biases and norms by their arguments) and it
    matches ``include``, if there is any. A glob that matches a tensor's full name selects it
    whatever its role, so ``"*"`` selects everything and ``"pos_embed"`` a bare parameter.
    ``exclude`` takes precedence over both.

    Without ``include``, an embedding that is not trained is left out too: a fixed table, as of
    sinusoidal positions.

    A layer whose weight is computed by a parametrization (``weight_norm``, ``spectral_norm``) has
    no weight of its own to set to zero and is left out; name the tensors below its
    ``parametrizations`` to prune those. The direction of a ``weight_norm`` is rejected, because the
    norm of a row without weights is 0, which the row is divided by.

    It warns if more than a tenth of the parameters in matrices is neither selected nor excluded.

    Args:
        model: Any module, also within ``torch.compile``, DataParallel or DistributedDataParallel.
        include: Patterns of which a tensor must match one. Globs (``*`` also matches dots) are
            matched against tensor names and the names of the modules above them; types against
            those modules; predicates are called with name, tensor and owning module.
        exclude: Patterns of which a tensor must match none.
        biases: Select biases too, as the paper does.
        norms: Select the weights of normalization layers too, as the paper does (and their biases
            if ``biases`` is set).

    Returns:
        The selection. A tied tensor is selected once, if any of its names is, and left out if any
        of its names is excluded.

    Raises:
        ArgumentError: A pattern is not a glob, a type or a predicate, or matches nothing.
        PrunusError: No tensor is left to prune, a selected tensor is frozen, empty, without memory,
            or not a floating-point tensor, the model has layers of ``speed_up``, or it is sharded
            by a wrapper that does not record which weights each process holds.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> list(select(model, exclude="2", biases=True))
        ['0.weight', '0.bias']
    """
    check_model(model)
    check_wrappers(model)
    model = unwrap(model)  # the names are the inner ones
    check_not_converted(model, allowed=["script", "packed", "tensor"])
    includes, excludes = _as_patterns("include", include), _as_patterns("exclude", exclude)
    occurrences = _occurrences(model)
    _check_matches({"include": includes, "exclude": excludes}, occurrences)

    def is_included(occurrence: _Occurrence) -> bool:
        name, role = occurrence.name, occurrence.role
        if any(isinstance(p, str) and fnmatchcase(name, p) for p in includes):
            return True
        if includes and not any(_matches(p, occurrence) for p in includes):
            return False
        if role == "norm":
            return norms and (biases or "bias" not in name.rpartition(".")[2])
        if role == "other":  # only a predicate, which receives the tensor itself, selects it
            return any(_is_predicate(p) and _matches(p, occurrence) for p in includes)
        if occurrence.is_fixed_table and not includes:
            return False
        return role == "weight" or biases

    by_tensor: dict[int, list[_Occurrence]] = {}
    for occurrence in occurrences:
        by_tensor.setdefault(id(occurrence.parameter), []).append(occurrence)
    selected, left_out = [], []
    for tied in by_tensor.values():
        if any(_matches(p, occurrence) for p in excludes for occurrence in tied):
            continue
        if any(is_included(occurrence) for occurrence in tied):
            selected.append(_prunable_tensor(tied))
        elif tied[0].is_matrix:
            left_out.append(tied[0])
    _check_prunable(selected, directions={o.name for o in occurrences if o.is_direction})
    if not selected:
        check_not_converted(model, allowed=["tensor"])
        raise PrunusError(_nothing_left_message(model, occurrences))
    if not includes:
        _warn_of_left_out(model, selected, left_out)
    return Selection(selected)


def _warn_of_left_out(
    model: nn.Module, selected: Sequence[PrunableTensor], left_out: Sequence[_Occurrence]
) -> None:
    """Warn if the selection by default leaves out much of a model.

    Args:
        model: The model.
        selected: The tensors selected.
        left_out: The other matrices, without those that the caller excluded.
    """
    lost = sum(occurrence.parameter.numel() for occurrence in left_out)
    total = lost + sum(tensor.parameter.numel() for tensor in selected)
    if lost <= _MOST_LEFT_OUT * total:
        return
    names = [occurrence.name for occurrence in left_out]
    owners = sorted({type(occurrence.owner).__name__ for occurrence in left_out})
    largest = max(left_out, key=lambda occurrence: occurrence.parameter.numel())
    fix = f"Select them too with select(model, include=['*weight*', {largest.name!r}])"
    if largest.is_direction:
        fix = f"To select {largest.name}, {_REMOVE_NORM}"
    warnings.warn(
        f"{lost / total:.0%} of the parameters in matrices of {type(model).__name__} are left out "
        f"of the selection, so that its sparsity is not the model's: {listing(names)}, parameters "
        f"of {listing(owners)}. {fix}, or leave them out with exclude=",
        stacklevel=3,
    )


def matching_tensors(
    model: nn.Module, selection: Selection, argument: str, patterns: Sequence[NamePattern]
) -> list[list[str]]:
    """Return, for each pattern, the names of the selected tensors that it matches.

    A tied tensor is matched if any of its names is.

    Args:
        model: The model.
        selection: Tensors of the model.
        argument: What messages call the patterns.
        patterns: The patterns, as for :func:`select`.

    Raises:
        ArgumentError: A pattern is not a glob, a type or a predicate, or matches no selected
            tensor; every one is named.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> matching_tensors(model, select(model), "targets", ["1", nn.Linear])
        [['1.weight'], ['0.weight', '1.weight']]
    """
    patterns = _as_patterns(argument, patterns)
    names = {id(tensor.parameter): tensor.name for tensor in selection.values()}
    occurrences = [o for o in _occurrences(unwrap(model)) if id(o.parameter) in names]
    _check_matches({argument: patterns}, occurrences)
    matches = [
        {names[id(o.parameter)] for o in occurrences if _matches(pattern, o)}
        for pattern in patterns
    ]
    return [[name for name in selection if name in matched] for matched in matches]


def owners(model: nn.Module, selection: Selection) -> dict[str, list[nn.Module]]:
    """Return the modules that own each selected tensor: several if it is tied.

    Args:
        model: The model.
        selection: Tensors of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> owners(model, select(model, "1"))
        {'1.weight': [Linear(in_features=8, out_features=2, bias=True)]}
    """
    names = {id(tensor.parameter): tensor.name for tensor in selection.values()}
    found: dict[str, list[nn.Module]] = {name: [] for name in selection}
    for occurrence in _occurrences(unwrap(model)):
        if (name := names.get(id(occurrence.parameter))) is not None:
            found[name].append(occurrence.owner)
    return found


def is_of_experts(module: nn.Module) -> bool:
    """Return whether the parameters of a module are stacked matrices of a mixture of experts."""
    return bool(_EXPERTS.search(type(module).__name__))


def _as_patterns(
    name: str, patterns: NamePattern | Iterable[NamePattern]
) -> tuple[NamePattern, ...]:
    argument: Any = patterns
    result: tuple[NamePattern, ...] = (argument,)
    single = isinstance(patterns, str | bytes | torch.Tensor | nn.Module) or callable(patterns)
    if not single:
        with contextlib.suppress(TypeError):  # neither a pattern nor iterable
            result = tuple(argument)
    wrong = [
        repr(pattern)
        for pattern in result
        if not isinstance(pattern, str)
        and (isinstance(pattern, nn.Module) or not callable(pattern))
    ]
    if wrong:
        raise ArgumentError(
            f"each pattern of {name} must be a glob, a module type or a predicate, but is "
            f"{listing(wrong)}"
        )
    return result


def _occurrences(model: nn.Module) -> list[_Occurrence]:
    """Return every occurrence of every parameter, in the model's order."""
    occurrences = []
    paths: dict[str, tuple[tuple[str, nn.Module], ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        above = paths[name.rpartition(".")[0]] if name else ()
        paths[name] = (*above, (name, module))
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full_name = f"{name}.{own}" if name else own
            occurrences.append(_Occurrence(full_name, parameter, paths[name]))
    return occurrences


def _is_legacy_parametrization(owner: nn.Module, local: str) -> bool:
    """Return whether ``torch.nn.utils.weight_norm`` or its like computes a weight from a tensor."""
    base, _, suffix = local.rpartition("_")
    return suffix in ("g", "v", "orig") and hasattr(owner, base) and base not in owner._parameters


def _is_predicate(pattern: NamePattern) -> bool:
    return callable(pattern) and not isinstance(pattern, type)


def _matches(pattern: NamePattern, occurrence: _Occurrence) -> bool:
    if isinstance(pattern, str):
        names = [occurrence.name, *(name for name, _ in occurrence.path if name)]
        return any(fnmatchcase(name, pattern) for name in names)
    if isinstance(pattern, type):
        return any(isinstance(module, pattern) for _, module in occurrence.path)
    return bool(pattern(occurrence.name, occurrence.parameter, occurrence.owner))


def _check_matches(
    patterns_of: Mapping[str, Sequence[NamePattern]], occurrences: Sequence[_Occurrence]
) -> None:
    """Check that every pattern matches something.

    Args:
        patterns_of: The patterns of each argument.
        occurrences: What they may match.

    Raises:
        ArgumentError: Some do not; every one is named.
    """
    names = list(
        dict.fromkeys(n for o in occurrences for n in (*(m for m, _ in o.path if m), o.name))
    )
    types = sorted({type(module).__name__ for o in occurrences for _, module in o.path})
    problems = []
    for argument, patterns in patterns_of.items():
        for pattern in patterns:
            if any(_matches(pattern, occurrence) for occurrence in occurrences):
                continue
            if isinstance(pattern, str):
                hint = nearest(pattern, names) or names[:3]
                problems.append(f"{argument}={pattern!r} (nearest names: {listing(hint)})")
            elif isinstance(pattern, type):
                problems.append(f"{argument}={pattern.__name__} (types here: {listing(types)})")
            else:
                problems.append(f"{argument}={pattern!r} (false for every tensor)")
    if problems:
        raise ArgumentError(
            "every pattern must match a tensor or a module that has tensors, but nothing is "
            f"matched by {'; '.join(problems)}"
        )


def _prunable_tensor(tied: Sequence[_Occurrence]) -> PrunableTensor:
    rows = [
        occurrence.owner.padding_idx
        for occurrence in tied
        if isinstance(occurrence.owner, nn.Embedding | nn.EmbeddingBag)
        and occurrence.owner.padding_idx is not None
    ]
    first = tied[0]
    aliases = tuple(occurrence.name for occurrence in tied[1:])
    return PrunableTensor(first.name, first.parameter, aliases, rows[0] if rows else None)


def _check_prunable(tensors: Sequence[PrunableTensor], directions: AbstractSet[str]) -> None:
    """Check that selected tensors can be trained and pruned.

    Args:
        tensors: The tensors.
        directions: The names of the tensors that a weight norm divides by their norms.

    Raises:
        PrunusError: Some cannot; every one is named.
    """
    problems = []
    for tensor in tensors:
        name, parameter = tensor.name, tensor.parameter
        if is_lazy(parameter):
            problems.append(f"{name} is not initialized yet (run the model once first)")
        elif is_converted(parameter):
            problems.append(
                f"{name} is a {type(parameter).__name__}, not a plain tensor (prune the network "
                "before it is quantized or converted)"
            )
        elif parameter.is_meta:
            problems.append(f"{name} is on the meta device (allocate it first)")
        elif parameter.numel() == 0:
            problems.append(f"{name} is empty, of shape {tuple(parameter.shape)}")
        elif not parameter.is_floating_point():
            problems.append(f"{name} is of type {parameter.dtype}, not floating point")
        elif parameter.element_size() < 2:
            problems.append(f"{name} is of type {parameter.dtype}, too narrow to compute in")
        elif parameter.is_inference():
            problems.append(f"{name} was created under torch.inference_mode()")
        elif not directions.isdisjoint((name, *tensor.aliases)):
            problems.append(
                f"{name} is the direction of a weight norm, which is NaN where all weights of a "
                f"row are removed ({_REMOVE_NORM})"
            )
        elif not parameter.requires_grad:
            problems.append(f"{name} is frozen (requires_grad is False)")
    if problems:
        raise PrunusError(
            f"these tensors cannot be pruned: {'; '.join(problems)}. Fix them or leave them out, "
            "for example with exclude=[names] or exclude=lambda name, tensor, module: not "
            "tensor.requires_grad or tensor.numel() == 0"
        )


def _nothing_left_message(model: nn.Module, occurrences: Sequence[_Occurrence]) -> str:
    message = f"{type(model).__name__} has no tensors left to prune: "
    if not occurrences:
        return message + "it has no parameters at all"
    parametrized = [name for name, module in model.named_modules() if is_parametrized(module)]
    if parametrized:
        message += f"the weights of {listing(parametrized)} are computed by parametrizations; "
    found = ", ".join(f"{o.name} ({o.role})" for o in occurrences[:20])
    return (
        f"{message}its tensors are {found}; widen include, narrow exclude, or pass biases=True "
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
    """Return how many parameters a model has, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Return how many parameters of a model are not zero."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())


def as_selection(
    selection: Selection | Callable[[nn.Module], Selection] | None, model: nn.Module
) -> Selection:
    """Return a selection of a model: as it is, from a function, or of all layers' weights.

    Args:
        selection: A selection of this model, a function that returns one, or None for
            :func:`select`.
        model: The model.

    Raises:
        ArgumentTypeError: The function returns something else.
    """
    if isinstance(selection, Selection):
        return selection
    if selection is None:
        return select(model)
    result = selection(model)
    problem = type_problem(
        "the result of selection(model)",
        result,
        Selection,
        "a Selection",
        fix="return prunus.select(model, ...)",
    )
    raise_problems(problem)
    return result
