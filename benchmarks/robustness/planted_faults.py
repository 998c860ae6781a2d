"""A record of the tests that fail once a fault is planted into the runtime or the training.

For each fault, runs the tests that it concerns in a process of its own, until the first one fails,
and writes that test's name. Faults in kernels are compiled into an empty cache; those of the
training have to be found by quick tests.
Example: ``python -m benchmarks.robustness.planted_faults --fault "missing bias"``, or with
``--table training``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measuring import RESULTS, write_record
from benchmarks.robustness.kernel_faults import FAULTS, Fault
from benchmarks.robustness.training_faults import TRAINING_FAULTS, TrainingFault
from prunus._utils.system_info import system_info

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/runtime/test_layers.py"
TESTS_OF_ROUNDING = "tests/runtime/test_rounded_layers.py"
QUICK = "not slow and not distributed and not frameworks"

TABLES: Mapping[str, Sequence[Fault | TrainingFault]] = {
    "runtime": FAULTS,
    "training": TRAINING_FAULTS,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    faults = {fault.name: fault for table in TABLES.values() for fault in table}
    parser.add_argument("--fault", action="append", choices=faults, help="default: all")
    parser.add_argument("--table", choices=TABLES, help="only the faults of one table")
    default = RESULTS / "planted_faults.json"
    parser.add_argument("--out", type=Path, default=default, help="default: beside the benchmarks")
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows = {row["fault"]: row for row in record.get("faults", [])}
    wanted = [fault.name for fault in TABLES[arguments.table]] if arguments.table else [*faults]
    for fault in map(faults.__getitem__, arguments.fault or wanted):
        failed, date = first_failure(fault), datetime.now(UTC).isoformat(timespec="seconds")
        rows[fault.name] = {
            "fault": fault.name,
            "module": fault.full_module,
            "failed_test": failed,
            "date": date,
        }
        print(f"{fault.name}: {failed or 'NOT FOUND'}", flush=True)
        ordered = [rows[name] for name in faults if name in rows]
        found = sum(row["failed_test"] is not None for row in ordered)
        record = {
            "command": "python -m benchmarks.robustness.planted_faults",
            "date": date,
            "environment": system_info(),
            "tests": "those of the fault, until the first failure",
            "planted": len(ordered),
            "found": found,
            "faults": ordered,
        }
        write_record(arguments.out, record, digits=4)
    sys.exit(any(row["failed_test"] is None for row in rows.values()))


def tests_of(fault: Fault | TrainingFault) -> list[str]:
    """Return the arguments of pytest that select the tests of a fault."""
    if isinstance(fault, TrainingFault):
        return [fault.tests, "-m", QUICK]
    concerned = "convolution or pool" if fault.in_convolution else "linear"
    return [TESTS_OF_ROUNDING if fault.in_rounding else TESTS, "-k", concerned]


def first_failure(fault: Fault | TrainingFault) -> str | None:
    """Return the name of the first test that fails with a fault, or None if all pass.

    Raises:
        RuntimeError: The tests ended for another reason than a failed test, or of the runtime a
            failed comparison.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PLANTED_FAULT": fault.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            **({"NUMBA_CACHE_DIR": cache} if isinstance(fault, Fault) and fault.in_kernel else {}),
        }
        options = ["--maxfail=1", "-n0", "-p", "no:cacheprovider", "-p", PLUGIN, "-rf"]
        command = [sys.executable, "-m", "pytest", *tests_of(fault), *options]
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if ran.returncode == 0:
        return None
    failed = re.search(r"^FAILED (.+?)(?: - |$)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or failed is None:
        raise RuntimeError(
            f"{fault.name}: pytest ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
        )
    if isinstance(fault, Fault) and "outputs are beyond their bounds" not in ran.stdout:
        raise RuntimeError(f"{fault.name}: another error than a comparison's:\n{ran.stdout}")
    return failed[1]


PLUGIN = "benchmarks.robustness.planting_plugin"


if __name__ == "__main__":
    main()
