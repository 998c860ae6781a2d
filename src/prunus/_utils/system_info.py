"""The hardware and versions that a figure was measured with, to be stored beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from prunus._version import VERSION

__all__ = ["has_bfloat16", "system_info"]


def system_info() -> dict[str, str | int]:
    """Return hardware and versions."""
    return {
        "prunus": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }


def has_bfloat16() -> bool:
    """Return whether the processor has instructions for products in bfloat16.

    Without them torch emulates such products. False where torch does not report instructions.
    """
    # The function is newer than the oldest torch that prunus accepts.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(name.endswith("bf16") and value is True for name, value in capabilities.items())


def _processor() -> str:
    """Return the processor's name, which ``platform.processor()`` often lacks on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
