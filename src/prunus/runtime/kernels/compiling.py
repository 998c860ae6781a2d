"""Compilation of kernels, their cache on disk, and their calls with several threads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit

__all__ = ["compiled", "run_in_threads"]

_parallel = threading.Lock()

_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]


def compiled(*shape: Any, parallel: bool = False) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function and keeps the result on disk under its own name.

    Numba stores all compiled versions of a function under one index file. Two processes may write
    it at once, or a killed process may leave it without its files; a kernel of another shape or
    release would then be loaded and return wrong results. A unique name per shape prevents this.

    Args:
        shape: The values that the function's code depends on. Those of the functions that it calls
            must be among them.
        parallel: Whether the function has loops for several threads.
    """
    suffix = "_".join(re.sub(r"\W+", "_", repr(each)) for each in (*shape, parallel))

    def decorate(function: Any) -> Any:
        name = re.sub(r"\W+", "_", function.__qualname__)
        function.__qualname__ = f"{name}_{suffix}_{_SOURCES}"
        dispatcher = njit(nogil=True, cache=True, parallel=parallel)(function)
        # The name identifies the kernel. Numba's own key contains the pickled functions that the
        # kernel calls, which differ between processes, so that no kernel would be found again.
        dispatcher._cache._index_key = lambda signature, codegen: (
            signature,
            codegen.magic_tuple(),
        )
        return dispatcher

    return decorate


def run_in_threads(kernel: Callable[..., Any], threads: int, *addresses: int) -> Any:
    """Call a kernel that divides its work among threads, and return its result.

    Calls are serialized, because not every threading layer of Numba can be entered twice.
    """
    with _parallel:
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
        return kernel(*addresses)
