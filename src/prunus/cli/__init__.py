"""The command ``prunus``."""

from prunus.cli.app import app, main

__all__ = ["app", "main"]
