"""The registry of architectures."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.robustness.zoo.architecture import Architecture
from benchmarks.robustness.zoo.language import LANGUAGE
from benchmarks.robustness.zoo.senses import SENSES
from benchmarks.robustness.zoo.timm_models import TIMM

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Mapping[str, Architecture] = {
    f"{each.library}: {each.name}": each for each in (*LANGUAGE, *SENSES, *TIMM)
}
"""All architectures, by library and name."""
