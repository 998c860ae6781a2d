"""Definition of a recipe: the functions and settings in a user's module, checked as a whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunus.errors import PrunusError, RecipeError, listing
from prunus.recipes.config import Config, unknown_setting
from prunus.recipes.custom.settings import base_settings, settings_type
from prunus.recipes.custom.user_code import reporting_errors

__all__ = ["Definition", "Function"]


@dataclass(frozen=True)
class _Form:
    """The form of a function that a recipe may define.

    Attributes:
        positional: The names of the arguments that prunus passes by position.
        result: What it returns, for messages.
        required: Whether every recipe has it.
        named: The arguments that it must take by name.
        optional: Further arguments that it may take by name, besides settings and ``seed``.
    """

    positional: tuple[str, ...]
    result: str
    required: bool = False
    named: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_FORMS: Mapping[str, _Form] = {
    "network": _Form((), "the network, a torch.nn.Module", required=True),
    "loaders": _Form(
        (),
        "the batches to train on, to validate on and, if there are any, to test on",
        required=True,
        named=("batch_size",),
        optional=("data",),
    ),
    "loss": _Form(
        ("model", "batch"),
        "the mean loss of a batch, a tensor of one element",
        required=True,
        optional=("teacher",),
    ),
    "metric": _Form(("model", "loader"), "the metric on the batches of a loader, a number"),
    "optimizer": _Form(("model", "lr"), "a torch.optim.Optimizer"),
    "selection": _Form(("model",), "the tensors that may be pruned, as prunus.select does"),
    "example_inputs": _Form(("batch_size",), "inputs of the network"),
}
"""The functions of a recipe's module by name."""


@dataclass(frozen=True)
class Function:
    """A function of a recipe's module.

    Attributes:
        name: Its name in the module.
        call: The function.
        keywords: The arguments to pass by name.
        file: The file of the module.
    """

    name: str
    call: Callable[..., Any]
    keywords: tuple[str, ...]
    file: Path

    def __str__(self) -> str:
        return f"{self.name}() of {self.file.name}"

    def __call__(self, *arguments: Any, values: Mapping[str, Any]) -> Any:
        """Call the function.

        Args:
            *arguments: The arguments to pass by position.
            values: The values of the arguments by name, of which it receives those that it takes.

        Raises:
            RecipeError: It raised an error.
        """
        named = {name: values[name] for name in self.keywords if name in values}
        with reporting_errors(str(self), self.file):
            return self.call(*arguments, **named)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The content of a recipe's module.

    Attributes:
        file: The file of the module.
        summary: The first line of its docstring.
        network: Builds the network.
        loaders: Returns the batches.
        loss: Returns the mean loss of a batch.
        metric: Returns the validation metric; None for the validation loss.
        optimizer: Builds the optimizer; None for Adam.
        selection: Returns the tensors that may be pruned; None for those of all layers.
        example_inputs: Returns inputs of the network; None for those of a training batch.
        config: The settings, with those of the recipe's own.
    """

    file: Path
    summary: str
    network: Function
    loaders: Function
    loss: Function
    metric: Function | None
    optimizer: Function | None
    selection: Function | None
    example_inputs: Function | None
    config: Config

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name

    @property
    def metric_name(self) -> str:
        """The name of the metric: that of its function, if it has another one than "metric"."""
        if self.metric is None:
            return "loss"
        return str(getattr(self.metric.call, "__name__", "metric"))

    @property
    def default_data(self) -> str | None:
        """The data without --data, for tables; None if --data is required."""
        if "data" not in self.loaders.keywords:
            return "its own"
        default = inspect.signature(self.loaders.call).parameters["data"].default
        return None if default is inspect.Parameter.empty else str(default)

    @property
    def takes_data(self) -> bool:
        """Whether --data may be passed."""
        return "data" in self.loaders.keywords

    @classmethod
    def of(cls, module: Any, file: Path) -> Definition:
        """Return the definition in a module.

        Args:
            module: The module, or any object with its names as attributes.
            file: Its file.

        Raises:
            RecipeError: Names are missing or wrong; every one is listed.
        """
        settings = getattr(module, "settings", {})
        problems = list(_settings_problems(settings))
        known = dict(settings) if not problems else {}
        functions: dict[str, Function | None] = {}
        has_metric = getattr(module, "metric", None) is not None
        for name, form in _FORMS.items():
            function = getattr(module, name, None)
            functions[name] = None
            if function is None:
                if form.required:
                    problems.append(
                        f"it has no {name}({', '.join((*form.positional, *form.named))}), which "
                        f"returns {form.result}"
                    )
                continue
            found = list(_signature_problems(name, function, form, known))
            problems += found
            if not found:
                keywords = tuple(_keywords(function, form))
                functions[name] = Function(name, function, keywords, file)
        arguments = {key for each in functions.values() if each for key in each.keywords}
        if not problems:
            own = [key for key in known if key not in base_settings()]
            problems += [_unused_problem(key) for key in own if key not in arguments]
        mode = getattr(module, "mode", None)
        problems += _mode_problems(mode, has_metric=has_metric)
        if not problems:
            try:
                config = _config(known, mode, has_metric=has_metric)
            except PrunusError as error:
                problems.append(f"its settings cannot be used: {error}")
        if problems:
            raise RecipeError(f"{file.name} is not a recipe: {'; '.join(problems)}")
        lines = (inspect.getdoc(module) or "").strip().splitlines()
        return cls(
            file=file,
            summary=lines[0] if lines else f"the recipe in {file.name}",
            config=config,
            **functions,  # type: ignore[arg-type]
        )


def _settings_problems(settings: Any) -> Iterator[str]:
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        yield f"settings must be values by name, such as dict(epochs=10), but is {settings!r}"


def _signature_problems(
    name: str, function: Any, form: _Form, settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with the type or the arguments of a function."""
    if not callable(function):
        yield f"{name} must be a function, but is {function!r}"
        return
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in, without a signature
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    expected = f"{name}({', '.join((*form.positional, *form.named))})"
    received = f"{name}({', '.join(map(str, parameters))})"
    if len(positional) < len(form.positional) and not any_number:
        yield f"{expected} must take {listing(form.positional)}, but it is {received}"
        return
    rest = positional[len(form.positional) :] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {parameter.name for parameter in rest}
    lacking = [name for name in form.named if name not in names and not any_name]
    if lacking:
        yield f"{expected} must take {listing(lacking)}, but it is {received}"
    known = {*form.named, *form.optional, "seed", *settings, *base_settings()}
    unknown = [p.name for p in rest if p.default is p.empty and p.name not in known]
    if unknown:
        yield (
            f"{name}() takes {listing(unknown)}, which is no setting: give it a default, or add "
            f"it to settings, as in settings = dict({unknown[0]}=...)"
        )


def _keywords(function: Any, form: _Form) -> Iterator[str]:
    """Yield the names of the arguments that a function takes besides those by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        yield from form.named
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_position = sum(p.kind is p.POSITIONAL_ONLY for p in parameters)
    yield from (p.name for p in named[max(0, len(form.positional) - by_position) :])


def _unused_problem(name: str) -> str:
    hint = unknown_setting(name, base_settings())
    return f"settings has {name!r}, but no function takes an argument of this name, and {hint}"


def _mode_problems(mode: Any, *, has_metric: bool) -> Iterator[str]:
    if mode is None:
        return
    if mode not in ("max", "min"):
        yield f'mode must be "max" or "min", but is {mode!r}'
    elif not has_metric:
        yield "mode has no effect without metric(): the validation loss is minimized; leave it out"


def _config(
    settings: Mapping[str, Any],
    mode: Literal["max", "min"] | None,
    *,
    has_metric: bool,
) -> Config:
    own = {name: value for name, value in settings.items() if name not in base_settings()}
    kind = settings_type(own, mode or ("max" if has_metric else "min"))
    return kind(**{**base_settings(), **settings})
