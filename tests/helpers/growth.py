"""The rule without growth, for tests of the parts around it."""

from __future__ import annotations

from typing import Any

from prunus.growth import NoGrowth

_NO_EDITOR: Any = None

NO_GROWTH = NoGrowth(_NO_EDITOR, lambda: 0)
"""The rule of a pruner without growth; it is never asked to remove anything here."""
