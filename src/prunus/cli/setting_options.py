"""Settings that are passed as options: the message that names ``--set``."""

from __future__ import annotations

import dataclasses
from typing import Any

from typer.core import TyperCommand

from prunus.errors import ArgumentError

__all__ = ["CommandWithSettings"]


class CommandWithSettings(TyperCommand):
    """A command with ``--set SETTING=VALUE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            ArgumentError: An option does not exist, but is the name of a setting.
        """
        try:
            parsed: list[str] = super().parse_args(ctx, args)
        except Exception as error:
            # By its name, because typer's own copy of click has replaced the package.
            if type(error).__name__ != "NoSuchOption":
                raise
            option = str(error.option_name)  # type: ignore[attr-defined]
            meant = _setting_of(option)
            if meant is None:
                raise
            raise ArgumentError(
                f"{option} is no option, but {meant} is a setting: pass --set {meant}=VALUE"
            ) from error
        return parsed


def _setting_of(option: str) -> str | None:
    """Return the setting of a built-in recipe that an option is named after, if any."""
    from prunus.recipes.config import setting_meant_by
    from prunus.recipes.registry import RECIPES

    configs = [recipe.config for recipe in RECIPES.values()]
    known = {field.name for config in configs for field in dataclasses.fields(config)}
    name = option.lstrip("-").replace("-", "_")
    return name if name in known else setting_meant_by(name, known)
