"""The command ``prunus``."""

import sys

try:
    import rich.console  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # pragma: no cover - only without the cli extra
    print(
        f"the prunus command needs the 'cli' extra: pip install 'prunus[cli]' ({error})",
        file=sys.stderr,
    )
    sys.exit(2)
