"""A function run in several processes of one group, and the results of all of them."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

TIMEOUT = timedelta(seconds=60)
"""The longest time that a process waits for another one."""


def run_in_processes(
    count: int, work: Callable[..., Any], *arguments: Any, limit: float = 900.0
) -> list[Any]:
    """Call ``work(*arguments)`` in new processes of one group; return all results.

    Args:
        count: The number of processes.
        work: A function that each of them can import.
        arguments: Its arguments.
        limit: The seconds after which processes that still run are killed. Each then writes where
            it was to the standard error stream.

    Raises:
        TimeoutError: The limit was exceeded.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(  # type: ignore[no-untyped-call]
            _process,
            (count, folder, work, arguments, limit),
            nprocs=count,
            join=False,
            start_method="spawn",
        )
        end = time.monotonic() + limit + 1.0  # after the processes have written where they were
        while not context.join(timeout=max(end - time.monotonic(), 0.0)):
            if time.monotonic() >= end:
                running = [i for i, process in enumerate(context.processes) if process.is_alive()]
                for process in context.processes:
                    process.kill()
                    process.join()
                raise TimeoutError(
                    f"processes {running} of {count} did not end within {limit:g} seconds and were "
                    "killed; their standard error stream shows where they were"
                )
        paths = [Path(folder) / f"{rank}.pt" for rank in range(count)]
        # Pickles written by these processes.
        return [torch.load(path, weights_only=False) for path in paths]


def _process(
    rank: int,
    count: int,
    folder: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    limit: float,
) -> None:
    faulthandler.enable()  # prints the stack if native code crashes
    faulthandler.dump_traceback_later(limit)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=TIMEOUT
    )
    try:
        torch.save(work(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
    end_process()


def end_process() -> NoReturn:
    """End this process with exit code 0, without finalizing the interpreter.

    Threads of gloo may outlive their process group. One that asks for the interpreter's lock while
    the interpreter is finalized is killed by it, which aborts the process now and then, after all
    of its work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
