"""Compaction followed by saving and loading, so that loaded models are tested as well."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from prunus import compaction
from prunus._distributed.wrappers import unwrap
from prunus.compaction import load_compact, save_compact

__all__ = ["compact"]


def compact(model: Any, example: Any) -> Any:
    """Return what ``prunus.compact`` returns, written to a file and read again."""
    small, report = compaction.compact(model, example, return_report=True)
    other = copy.deepcopy(unwrap(model))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)  # the file must bring its own
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_compact(small, report, path)
        loaded = load_compact(path, other)
    state = small.state_dict()
    assert list(loaded.state_dict()) == list(state)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)
    before = [(name, type(module)) for name, module in small.named_modules()]
    assert [(name, type(module)) for name, module in loaded.named_modules()] == before
    names = [[name for name, _ in network.named_parameters()] for network in (small, loaded)]
    assert names[0] == names[1]  # what was one parameter is still one
    for one, two in zip(small.parameters(), loaded.parameters(), strict=True):
        assert one.requires_grad == two.requires_grad
        assert one.dtype == two.dtype
    return loaded
