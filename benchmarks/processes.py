"""A function run in several processes of one group, and the results of all of them."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

TIMEOUT = timedelta(seconds=60)


def run_in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``work(*arguments)`` in ``count`` new processes of one group; return all results."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            _process, (count, folder, work, arguments), nprocs=count, start_method="spawn"
        )
        paths = [Path(folder) / f"{rank}.pt" for rank in range(count)]
        # Pickles written by these processes.
        return [torch.load(path, weights_only=False) for path in paths]


def _process(
    rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    faulthandler.enable()  # prints the stack if native code crashes
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
