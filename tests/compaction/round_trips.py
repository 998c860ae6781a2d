"""Calls of ``compact`` for tests, with the file of the compact model as part of the test."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from prunus import compaction
from prunus._distributed.wrappers import unwrap
from prunus.compaction import load_compact, save_compact

__all__ = ["compact_and_reload", "compact_with_report"]

# Modules and their attributes have no static types, so models are of type Any here.


def compact_with_report(model: Any, example: Any) -> tuple[Any, compaction.CompactionReport]:
    """Return the compact model and the report."""
    return compaction.compact(model, example, return_report=True)


def compact_and_reload(model: Any, example: Any) -> Any:
    """Return the compact model after writing it to a file and reading it back.

    Raises:
        AssertionError: The loaded model differs from the compact one.
    """
    small, report = compact_with_report(model, example)
    original = copy.deepcopy(unwrap(model))
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.fill_(7)  # every value must come from the file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_compact(small, report, path)
        loaded = load_compact(path, original)
    state = small.state_dict()
    assert list(loaded.state_dict()) == list(state)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)
    types = [(name, type(module)) for name, module in small.named_modules()]
    assert [(name, type(module)) for name, module in loaded.named_modules()] == types
    names = [[name for name, _ in network.named_parameters()] for network in (small, loaded)]
    assert names[0] == names[1]  # tied parameters are still tied
    for parameter, reloaded in zip(small.parameters(), loaded.parameters(), strict=True):
        assert parameter.requires_grad == reloaded.requires_grad
        assert parameter.dtype == reloaded.dtype
    return loaded
