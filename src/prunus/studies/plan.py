"""Plans: which runs a study consists of, with which settings, checked before any of them starts."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunus._utils.checks import number_problem, raise_problems
from prunus._utils.system_info import system_info
from prunus.errors import PrunusError, listing
from prunus.methods import methods as registry
from prunus.recipes.config import Config
from prunus.recipes.method_settings import method_settings
from prunus.recipes.recipe import Recipe
from prunus.recipes.setting_marks import Affects
from prunus.studies.cells import Cell, duplicates_problem, format_ratio
from prunus.studies.study import Study, StudyMethod, StudyRun

__all__ = ["DEFAULT_METHODS", "DEFAULT_SEEDS", "Request", "plan_study", "run_arguments"]

DEFAULT_METHODS = ("prunus", "magnitude")
"""The methods of a new study for which none are requested."""

DEFAULT_SEEDS = (0, 1, 2)
"""The seeds of a new study for which none are requested."""

_ANY_RATIO = 2.0
"""The ratio to check the settings of methods with where the requested ones cannot be used."""

_BUDGET = ("epochs",)
"""Settings that all methods share, besides those that the dense network depends on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The runs that a user asks for; what is empty or None is that of the study in the directory.

    Attributes:
        recipe: The recipe.
        data: A folder or Hub name to use instead of the recipe's own data.
        changes: Settings of all methods, each as ``key=value``.
        methods: Methods as text: a name of the registry, with changes after commas, and perhaps a
            label before them, such as ``"weak = prunus,strength=0.001"``. Default for a new study:
            :data:`DEFAULT_METHODS`.
        ratios: Compression ratios. Default for a new study: the recipe's.
        seeds: Seeds. Default for a new study: :data:`DEFAULT_SEEDS`.
        threads: The number of threads of each run. Default for a new study: 1.
    """

    recipe: Recipe
    data: str | None = None
    changes: Sequence[str] = ()
    methods: Sequence[str] = ()
    ratios: Sequence[float] = ()
    seeds: Sequence[int] = ()
    threads: int | None = None


def plan_study(
    request: Request, study: Study | None = None, warn: Callable[[str], None] = lambda _: None
) -> Study:
    """Return the study with the requested runs.

    Args:
        request: The runs to add, and the settings of the study.
        study: The study to continue. Default None: a new one.
        warn: Called with a message for each setting that has no effect, and for those that change a
            method. Default: no call.

    Returns:
        The study, whose finished runs stay.

    Raises:
        ArgumentError: Methods, ratios, seeds or settings cannot be used; every one is listed.
        PrunusError: The study to continue has other settings; every difference is listed.
    """
    recipe = request.recipe
    problems = list(_problems(request, study))
    changes = tuple(request.changes) or (study.changes if study else ())
    messages: dict[str, None] = {}
    base, shared = recipe.config, changes
    try:
        base = base.with_settings(changes, messages.setdefault)
    except PrunusError as error:
        problems.append(str(error))
        shared = ()  # reported once and not for every method
    texts = request.methods or ([] if study else DEFAULT_METHODS)
    ratios = list(request.ratios) or (study.ratios if study else [base.ratio])
    seeds = list(request.seeds) or (study.seeds if study else list(DEFAULT_SEEDS))
    usable = [ratio for ratio in ratios if number_problem("a ratio", ratio, above=1) is None]
    requested, more = _methods(recipe, base, shared, texts, usable or [_ANY_RATIO], messages)
    raise_problems(*problems, *more)
    for message in messages:
        warn(message)
    wanted = Study(
        commands=(),
        recipe=recipe.name,
        data=_data_name(request),
        changes=changes,
        settings=base.as_dict(),
        threads=request.threads or (study.threads if study else 1),
        methods=requested,
        environment=system_info(),
        date=_now(),
        runs=(),
    )
    if study is not None:
        known, problems = _methods(recipe, base, changes, _texts(study), study.ratios, {})
        raise_problems(*problems)
        _check_same(study, dataclasses.replace(wanted, methods={**known, **requested}))
        wanted = dataclasses.replace(
            wanted, commands=study.commands, methods={**study.methods, **requested}
        )
    environment = {**wanted.environment, "threads": wanted.threads}
    wanted = dataclasses.replace(wanted, environment=environment)
    cells = {run.cell: run for run in study.runs} if study else {}
    labels = list(requested) or list(wanted.methods)
    added = [
        Cell(label, float(ratio), seed)
        for seed in seeds
        for ratio in ratios
        for label in labels
        if Cell(label, float(ratio), seed) not in cells
    ]
    if not added:
        assert study is not None
        return study
    for cell in added:
        arguments = run_arguments(wanted, cell, request.data and wanted.data)
        cells[cell] = StudyRun(cell, shlex.join(["prunus", "run", *arguments]))
    command = _command(wanted, labels, ratios, seeds, request.data and wanted.data)
    return dataclasses.replace(
        wanted,
        commands=(*wanted.commands, command),
        runs=tuple(sorted(cells.values(), key=_order(wanted, cells))),
    )


def run_arguments(
    study: Study, cell: Cell, data: str | None = None, recipe: str | None = None
) -> list[str]:
    """Return the arguments of ``prunus run`` for a cell, without its directory.

    Args:
        study: The study.
        cell: The cell.
        data: The value of ``--data``. Default None: the recipe's own.
        recipe: The argument that means the recipe. Default None: its name.
    """
    method = study.methods[cell.method]
    settings = [*study.changes, *method.changes, f"ratio={format_ratio(cell.ratio)}"]
    return [
        *(recipe or study.recipe, "--seed", str(cell.seed), "--method", method.name),
        *(part for setting in settings for part in ("--set", setting)),
        *(["--data", data] if data else []),
    ]


def _problems(request: Request, study: Study | None) -> Iterator[str | None]:
    """Yield what is wrong with a request by itself."""
    recipe = request.recipe
    for ratio in request.ratios:
        yield number_problem("a ratio", ratio, above=1)
    for seed in request.seeds:
        yield number_problem("a seed", seed, whole=True, least=0, below=2**63)
    if request.threads is not None:
        yield number_problem("threads", request.threads, whole=True, least=1)
    yield duplicates_problem("--ratios", [format_ratio(ratio) for ratio in request.ratios])
    yield duplicates_problem("--seeds", request.seeds)
    if study is None and not request.ratios and recipe.config.ratio == 0:
        yield f"the recipe {recipe.name} has no ratio to reach: pass --ratios"
    yield recipe.data_problem(request.data)
    keys = [text.partition("=")[0] for text in request.changes]
    if "ratio" in keys:
        yield "the ratios of a study are --ratios, not --set ratio=...: pass --ratios"


def _data_name(request: Request) -> str:
    """Return the name of the data in the record, which holds no path of the machine."""
    if request.data is None:
        return request.recipe.data or ""
    return Path(request.data).name if Path(request.data).is_dir() else request.data


def _parse(text: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the label, the name and the changes of a method."""
    first, *changes = (part.strip() for part in text.split(","))
    label, equals, name = (part.strip() for part in first.partition("="))
    if equals:
        return label, name, tuple(changes)
    return ",".join([first, *changes]), first, tuple(changes)


def _texts(study: Study) -> list[str]:
    """Return the methods of a study as text."""
    return [_text(label, method) for label, method in study.methods.items()]


def _text(label: str, method: StudyMethod) -> str:
    own = ",".join([method.name, *method.changes])
    return own if own == label else f"{label} = {own}"


def _methods(
    recipe: Recipe,
    base: Config,
    shared: Sequence[str],
    texts: Iterable[str],
    ratios: Sequence[float],
    messages: dict[str, None],
) -> tuple[dict[str, StudyMethod], list[str | None]]:
    """Return methods by label, with their exact settings, and what is wrong with the others.

    Args:
        recipe: The recipe.
        base: Its settings for the study.
        shared: The changes that lead to them.
        texts: The methods as text.
        ratios: The ratios to check the settings with.
        messages: The messages so far, to which those about single methods are added.
    """
    parsed = [(_parse(text), text) for text in texts]
    labels = [label for (label, _, _), _ in parsed]
    problems = [duplicates_problem("the methods", labels), _folders_problem(labels)]
    found: dict[str, StudyMethod] = {}
    for (label, name, changes), text in parsed:
        problem = _label_problem(label, name, text)
        if problem is None:
            try:
                settings, notes = _settings(recipe, shared, name, changes, ratios)
            except PrunusError as error:
                problem = f"method {label}: {error}" if name in registry else str(error)
                if problem.endswith("set strength to a number"):
                    problem += f', such as --method "{name},strength=0.01"'
            else:
                messages |= {f"{label}: {note}": None for note in notes if note not in messages}
                problem = _unfair_problem(base, label, changes)
                own = base.as_dict()
                differing = {key: value for key, value in settings.items() if value != own[key]}
                found[label] = StudyMethod(name, changes, differing)
        problems.append(problem)
    return found, [*problems, *_conflicts(recipe, shared, found)]


def _settings(
    recipe: Recipe,
    shared: Sequence[str],
    name: str,
    changes: Sequence[str],
    ratios: Sequence[float],
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a method's runs, without the ratio, and messages about them.

    Raises:
        PrunusError: The method or a setting is unknown, or settings conflict.
    """
    method = recipe.method(name)
    messages: dict[str, None] = {}
    settings: dict[str, Any] = {}
    for ratio in ratios:
        texts = [*shared, *changes, f"ratio={format_ratio(ratio)}"]
        config = recipe.config.with_settings(
            texts, messages.setdefault, method=method, warn_of_changes=False
        )
        settings = config.as_dict()
    settings.pop("ratio")
    return settings, list(messages)


def _label_problem(label: str, name: str, text: str) -> str | None:
    if not label or not name:
        return f'{text!r} is not of the form NAME,KEY=VALUE,... or "LABEL = NAME,KEY=VALUE,..."'
    if label in registry and label != name:
        return (
            f"the label {label!r} is the name of another method than {name}: choose another label"
        )
    return None


def _folders_problem(labels: Sequence[str]) -> str | None:
    """Return a problem if the labels of two methods give their runs the same directory."""
    folders: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        folders.setdefault(folder_name(label), []).append(label)
    same = [" and ".join(map(repr, group)) for group in folders.values() if len(group) > 1]
    return f"the labels {listing(same)} are too similar: change one" if same else None


def folder_name(label: str) -> str:
    """Return a label as a part of a file name.

    Example:
        >>> folder_name("weak prunus,strength=0.001")
        'weak-prunus-strength=0.001'
    """
    return "".join(c if c.isalnum() or c in "._=+-" else "-" for c in label)


def _unfair_problem(base: Config, label: str, changes: Sequence[str]) -> str | None:
    """Return a problem if a method changes what all methods share."""
    shared = {*_BUDGET, "ratio", *base.settings_affecting(Affects.DENSE_NETWORK)}
    unfair = [text for text in changes if text.partition("=")[0] in shared]
    if not unfair:
        return None
    return (
        f"method {label} changes what all methods of a study share: {listing(unfair)}; pass --set "
        "(or --ratios) to change it for all"
    )


def _conflicts(
    recipe: Recipe, shared: Sequence[str], methods: Mapping[str, StudyMethod]
) -> Iterator[str]:
    """Yield the settings that are passed for all methods although methods set them themselves.

    All but the schedule: one that is passed for all replaces that of a method with growth.
    """
    own: dict[str, list[str]] = {}
    for label, method in methods.items():
        names = {text.partition("=")[0] for text in method.changes}
        for name in names | method_settings(recipe.method(method.name)).keys() - {"schedule"}:
            own.setdefault(name, []).append(label)
    for text in shared:
        key = text.partition("=")[0]
        if key in own:
            yield (
                f"--set {text} would replace what the methods {listing(own[key])} set: pass it "
                f'with a method, such as --method "{own[key][0]},{text}"'
            )


def _check_same(study: Study, wanted: Study) -> None:
    """Check that a study to continue has the requested settings.

    Raises:
        PrunusError: It has others; every difference is listed.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "recipe": (study.recipe, wanted.recipe),
        "data": (study.data, wanted.data),
        "threads": (study.threads, wanted.threads),
    }
    pairs |= _paired(study.settings, wanted.settings)
    for label, method in study.methods.items():
        other = wanted.methods[label]
        if method.name != other.name:
            pairs[f"method {label}"] = (method.name, other.name)
        own, others = study.settings_of(label), {**wanted.settings, **other.settings}
        changed = {*method.settings, *other.settings}
        for key, pair in _paired(own, others).items():
            if key in changed:
                pairs[f"{key} of {label}"] = pair
    differences = [
        f"{name} was {before!r} and is {after!r}"
        for name, (before, after) in pairs.items()
        if before != after
    ]
    if differences:
        raise PrunusError(
            f"the study has other settings: {listing(differences, most=100)}; continue it with its "
            "own, or start another one in another --out"
        )


def _paired(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (before.get(key), after.get(key)) for key in {**before, **after}}


def _order(study: Study, cells: Mapping[Cell, Any]) -> Callable[[StudyRun], tuple[int, int, int]]:
    """Return the sort key of runs: by seed, ratio and method, each in the order of the plan."""
    places = [
        {value: place for place, value in enumerate(dict.fromkeys(values))}
        for values in (
            [cell.seed for cell in cells],
            [cell.ratio for cell in cells],
            study.methods,
        )
    ]
    seeds, ratios, methods = places
    return lambda run: (seeds[run.cell.seed], ratios[run.cell.ratio], methods[run.cell.method])


def _command(
    study: Study,
    labels: Iterable[str],
    ratios: Iterable[float],
    seeds: Iterable[int],
    data: str | None,
) -> str:
    """Return the command that plans these runs."""
    texts = [_text(label, study.methods[label]) for label in labels]
    # Those of --methods come first, so that the order of the methods is kept.
    plain = list(itertools.takewhile(registry.__contains__, texts))
    parts = ["prunus", "compare", study.recipe]
    parts += ["--methods", ",".join(plain)] if plain else []
    parts += [part for text in texts[len(plain) :] for part in ("--method", text)]
    parts += ["--ratios", ",".join(map(format_ratio, ratios))]
    parts += ["--seeds", ",".join(map(str, seeds))]
    parts += [part for text in study.changes for part in ("--set", text)]
    parts += ["--data", data] if data else []
    parts += ["--threads", str(study.threads)] if study.threads != 1 else []
    return shlex.join(parts)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
