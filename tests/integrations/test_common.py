"""The arguments that the adapters share with the pruner."""

from __future__ import annotations

import inspect
from typing import get_type_hints

from prunus import Pruner
from prunus.integrations.common import PrunerOptions


def test_options_are_the_arguments_that_a_pruner_accepts_by_name_only() -> None:
    parameters = inspect.signature(Pruner).parameters.values()
    by_name = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    hints = get_type_hints(Pruner.__init__)
    assert get_type_hints(PrunerOptions) == {name: hints[name] for name in by_name}
