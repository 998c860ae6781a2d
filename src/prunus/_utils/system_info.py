"""The hardware and versions that a figure was measured with, to be stored beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from prunus._version import VERSION

__all__ = ["system_info"]


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


def _processor() -> str:
    """Return the processor's name, which ``platform.processor()`` often lacks on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
