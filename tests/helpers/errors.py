"""Messages of expected errors, as plain strings that processes can return."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prunus import PrunusError


def message_of(call: Callable[[], object], kind: type[PrunusError] = PrunusError) -> str:
    """Call a function that must raise an error; return the error's message."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)
