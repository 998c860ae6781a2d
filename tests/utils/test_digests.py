"""Tests of the digests that checkpoints store: earlier checkpoints must stay readable."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from prunus._utils.files import save_tree
from prunus.recipes.tasks.task import fingerprint

TRANSPOSED = torch.arange(6).reshape(2, 3).t()


def test_digest_of_a_checkpoint_is_unchanged(tmp_path: Path) -> None:
    save_tree(tmp_path / "a", {"b": TRANSPOSED, "a": torch.ones(2)})
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata()["digest"] == "fb8c77924e4241e183b79c1132ccdeee"


def test_fingerprint_of_data_is_unchanged() -> None:
    assert fingerprint(["a", TRANSPOSED, torch.ones(2)]) == "eab9cf3e12c210cce3bbfdf75a3e81f7"
