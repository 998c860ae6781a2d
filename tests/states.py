"""Forwards to ``helpers.states`` for tests/export, until it imports that itself."""

from helpers.states import same as same
