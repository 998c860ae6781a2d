"""Functions run in several processes of one group, as the benchmarks run them."""

from benchmarks.processes import run_in_processes

__all__ = ["run_in_processes"]
