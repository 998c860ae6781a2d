"""A record of the tests of the runtime that fail once a fault is planted into it.

For each fault, runs the tests of the layers that it concerns in a process of its own, until the
first one fails, and writes that test's name. Faults in kernels are compiled into an empty cache.
Example: ``python -m benchmarks.robustness.planted_faults --fault "missing bias"``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measuring import RESULTS, write_record
from benchmarks.robustness.kernel_faults import FAULTS, Fault, find_fault
from prunus._utils.system_info import system_info

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/runtime/test_layers.py"
TESTS_OF_ROUNDING = "tests/runtime/test_rounded_layers.py"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--fault", action="append", choices=names, help="default: all")
    default = RESULTS / "planted_faults.json"
    parser.add_argument("--out", type=Path, default=default, help="default: beside the benchmarks")
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows = {row["fault"]: row for row in record.get("faults", [])}
    for fault in map(find_fault, arguments.fault or names):
        failed = first_failure(fault)
        rows[fault.name] = {
            "fault": fault.name,
            "module": fault.full_module,
            "failed_test": failed,
        }
        print(f"{fault.name}: {failed or 'NOT FOUND'}", flush=True)
        ordered = [rows[name] for name in names if name in rows]
        found = sum(row["failed_test"] is not None for row in ordered)
        record = {
            "command": "python -m benchmarks.robustness.planted_faults",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": system_info(),
            "tests": f"{TESTS} or {TESTS_OF_ROUNDING}, of the fault, until the first failure",
            "planted": len(ordered),
            "found": found,
            "faults": ordered,
        }
        write_record(arguments.out, record, digits=4)
    sys.exit(any(row["failed_test"] is None for row in rows.values()))


def first_failure(fault: Fault) -> str | None:
    """Return the name of the first test that fails with a fault, or None if all pass.

    Raises:
        RuntimeError: The tests ended for another reason than a failed comparison.
    """
    concerned = "convolution or pool" if fault.in_convolution else "linear"
    tests = TESTS_OF_ROUNDING if fault.in_rounding else TESTS
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PLANTED_FAULT": fault.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            **({"NUMBA_CACHE_DIR": cache} if fault.in_kernel else {}),
        }
        options = ["--maxfail=1", "-p", "no:cacheprovider", "-p", PLUGIN, "-k", concerned, "-rf"]
        command = [sys.executable, "-m", "pytest", tests, *options]
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if ran.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+?)(?: - |$)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or failed is None:
        raise RuntimeError(
            f"{fault.name}: pytest ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
        )
    if "outputs are beyond their bounds" not in ran.stdout:
        raise RuntimeError(f"{fault.name}: another error than a comparison's:\n{ran.stdout}")
    return failed[1]


PLUGIN = "benchmarks.robustness.kernel_faults"


if __name__ == "__main__":
    main()
