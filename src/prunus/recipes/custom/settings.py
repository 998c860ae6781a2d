"""The settings of a user's recipe: those of all recipes, and its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from prunus._utils.checks import raise_problems
from prunus._utils.fields import setting
from prunus.recipes.config import Config
from prunus.recipes.setting_marks import Affects

__all__ = ["base_settings", "settings_type"]

_DEFAULTS: Mapping[str, Any] = {
    "dense_epochs": 10,
    "epochs": 20,
    "batch_size": 64,
    # That of Adam, which is the default optimizer.
    "dense_lr": 1e-3,
    "lr": 1e-3,
    "ratio": 10.0,
}
"""The settings that have no default in :class:`Config`."""


def base_settings() -> dict[str, Any]:
    """Return the settings that all recipes have, with their defaults.

    Example:
        >>> base_settings()["ratio"]
        10.0
    """
    fields = dataclasses.fields(Config)
    return {field.name: _DEFAULTS.get(field.name, field.default) for field in fields}


def settings_type(own: Mapping[str, Any], mode: Literal["max", "min"]) -> type[Config]:
    """Return the type of the settings of a recipe.

    Args:
        own: The settings that the recipe adds, with their defaults, whose types they keep.
        mode: Whether its metric is to be maximized or minimized.

    Raises:
        ArgumentTypeError: A default is neither a number, a text nor a truth value.

    Example:
        >>> kind = settings_type({"width": 16}, "max")
        >>> kind(**base_settings()).with_settings(["width=32"]).width
        32
    """
    types = (bool, int, float, str)
    raise_problems(
        *(
            f"{name} must be a number, a text or true or false, but is {value!r}"
            for name, value in own.items()
            if type(value) not in types
        )
    )
    fields: list[Any] = [
        (
            name,
            Annotated[type(value), Affects.DENSE_NETWORK],
            setting(value, help="A setting of this recipe."),
        )
        for name, value in own.items()
    ]
    return dataclasses.make_dataclass(
        "RecipeSettings",
        fields,
        bases=(Config,),
        namespace={"mode": mode, "__module__": __name__},
        frozen=True,
        kw_only=True,
    )
