"""Forwards to ``helpers.commands`` for tests/export, until it imports that itself."""

from helpers.commands import SHORT as SHORT
from helpers.commands import prunus as prunus
