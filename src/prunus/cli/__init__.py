"""The command ``prunus``."""

import sys

from prunus._utils.extras import missing_extra

try:
    import rich.console  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # pragma: no cover - only without the cli extra
    print(missing_extra("the prunus command", "cli", error), file=sys.stderr)
    sys.exit(2)
