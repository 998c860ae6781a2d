"""Functions run in several processes of one group, as the benchmarks run them."""

from benchmarks.processes import together

__all__ = ["together"]
