"""Properties of the processor."""

from __future__ import annotations

import pytest
import torch

from prunus._utils.system_info import has_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx512_f": True, "l1d_cache_size": 32768}, False),
        ({}, False),
    ],
)
def test_bfloat16_follows_the_instructions_that_torch_reports(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16() is expected


def test_bfloat16_is_not_assumed_where_torch_reports_no_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bfloat16()
