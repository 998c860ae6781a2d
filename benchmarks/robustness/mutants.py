"""Mutation testing: whether the tests of a module fail when the module is changed.

mutmut makes one small change at a time (a mutant) and runs the tests that call the changed
function, in a process forked after torch was imported. Each module is judged by its own tests
alone, in a copy of the repository. Properties and code outside functions are not mutated. A mutant
that exceeds the time limit runs again with four times as much: if it exceeds that too, it loops and
counts as killed. A survivor needs a test, or a reason in ``equivalent_mutants.toml``.

Run from the repository's root: ``python -m benchmarks.robustness.mutants``
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libcst as cst
import torch
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import read_functions_from_index
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

from benchmarks.measuring import RESULTS, save

ROOT = Path(__file__).resolve().parents[2]

# Each module below src/prunus/, and the tests that have to detect a change of it.
MODULES: dict[str, list[str]] = {
    "constraint.py": ["tests/test_constraint.py", "tests/test_schedules.py"],
    "masks.py": ["tests/test_masks.py", "tests/engine/test_removal.py"],
    "schedules/base.py": ["tests/test_schedules.py"],
    "schedules/gradual.py": ["tests/test_schedules.py"],
    "schedules/iterative.py": ["tests/test_schedules.py"],
    "schedules/one_shot.py": ["tests/test_schedules.py"],
    "schedules/threshold_search.py": ["tests/test_threshold_search.py"],
    "scores.py": ["tests/test_scores.py"],
    "selection.py": ["tests/test_selection.py"],
    "export/encodings.py": ["tests/export/test_encodings.py", "tests/export/test_round_trips.py"],
    "export/sparse_format.py": ["tests/export/test_sparse_format.py"],
    "export/sparse_reader.py": [
        "tests/export/test_damaged_files.py",
        "tests/export/test_sparse_reader.py",
        "tests/export/test_round_trips.py",
    ],
    "patterns/groupings.py": ["tests/patterns/test_removal_of_groups.py"],
    "patterns/layout.py": ["tests/patterns/test_removal_of_groups.py"],
    "penalties/application.py": ["tests/penalties/test_applications.py"],
    "penalties/averages.py": ["tests/penalties/test_averages.py"],
    "penalties/coefficients.py": ["tests/penalties/test_coefficients.py"],
    "penalties/decoupled_application.py": ["tests/penalties/test_applications.py"],
    "penalties/formula.py": ["tests/penalties/test_formula.py"],
    "penalties/gradient_application.py": ["tests/penalties/test_applications.py"],
    "penalties/loss_application.py": ["tests/penalties/test_applications.py"],
    "penalties/relevance.py": ["tests/penalties/test_relevance.py"],
    "penalties/strengths.py": ["tests/penalties/test_strengths.py"],
    "_engine/clipping.py": ["tests/engine/test_clipping.py"],
    "_engine/gradients.py": ["tests/engine/test_gradients.py"],
    "_engine/kth_smallest.py": ["tests/engine/test_kth_smallest.py"],
    "_engine/observation.py": ["tests/engine/test_observation.py"],
    "_engine/removal.py": ["tests/engine/test_removal.py"],
    "_engine/optimizer_hooks.py": ["tests/engine/test_step_hooks.py"],
    "_engine/step_state.py": ["tests/engine/test_step_state.py"],
}

EQUIVALENT: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_name("equivalent_mutants.toml").read_text()
)
"""By module, the reasons why mutants are equivalent and the changes that have each reason."""

WANTED = 85.0
"""The percentage of a module's mutants that its tests have to kill."""

# An expression on a line that matches one of these is not mutated: these lines build messages.
NOT_MUTATED = [r"^\s*raise\b", r"\bwarnings\.warn\(", r"\blog(ger)?\.\w+\("]

# The limit of a mutant is ``multiplier`` times the time of its tests without a change, plus 2 s.
CONFIG = """
[tool.mutmut]
source_paths = ["src/"]
also_copy = ["benchmarks"]
only_mutate = {only}
do_not_mutate_patterns = {patterns}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_multiplier = {multiplier}
timeout_constant = 2.0
log_to_file = true
"""

MULTIPLIER, CONFIRMING_MULTIPLIER = 4.0, 16.0

# Added to the conftest of the copy: the fastest tests first, as mutmut measured them, and
# Hypothesis with the same examples every time, without a search for smaller ones.
CONFTEST = """

def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import json
    from pathlib import Path

    stats = Path(__file__).parents[1] / "mutmut-stats.json"
    if stats.exists():
        seconds = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


import torch._dynamo  # imported by the first optimizer otherwise, again for every mutant
from hypothesis import Phase, settings

settings.register_profile(
    "mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutants")
"""

Record = dict[str, Any]

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
"""The first characters of mutmut's lines of progress."""


class Copy:
    """A copy of the repository in which mutmut mutates one module.

    Args:
        folder: An empty folder.
        module: The module, below ``src/prunus/``.
        processes: How many mutants are tested at once.
    """

    def __init__(self, folder: Path, module: str, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self.path, self.tests = f"src/prunus/{module}", MODULES[module]
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        with (folder / "tests/conftest.py").open("a") as conftest:
            conftest.write(CONFTEST)

    def run(self, names: Iterable[str], multiplier: float) -> None:
        """Run mutmut for the mutants of these names, or for all if there are none."""
        config = CONFIG.format(
            only=json.dumps([self.path]),
            patterns=json.dumps(NOT_MUTATED),
            tests=json.dumps(self.tests),
            multiplier=multiplier,
        )
        (self.folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)
        rules = str(Path(__file__).with_name("mutation_rules.py"))
        log = self.folder / "log.txt"
        with log.open("w") as output:
            finished = subprocess.run(
                [sys.executable, rules, "--max-children", str(self.processes), *names],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if finished.returncode:
            lines = [line for line in log.read_text().splitlines() if line[:1] not in _SPINNER]
            raise SystemExit("\n".join([f"mutmut failed on {self.path}:", *lines[-50:]]))

    def statuses(self) -> dict[str, str]:
        """Return the status of every mutant that was tested, by its name."""
        data = SourceFileMutationData(path=self.path)
        with contextlib.chdir(self.folder):
            data.load()
        return {
            # 255 is an error of mutmut itself, such as a test that it cannot find.
            name: "error" if code == 255 else status_by_exit_code[code]
            for name, code in data.exit_code_by_key.items()
            if code is not None  # not among the names that were asked for
        }

    def describe(self, name: str) -> Record:
        """Return where a mutant differs from the module, and the lines that do."""
        with contextlib.chdir(self.folder):
            functions = read_functions_from_index(name, self.path)
        assert functions is not None
        before, after = (cst.Module([f]).code.strip().split("\n") for f in functions)
        start = next(i for i, line in enumerate(before) if line.lstrip().startswith("def "))
        pairs = zip(before, [*after, *before], strict=False)
        changed = next((i for i, (old, new) in enumerate(pairs) if old != new), start)
        lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[3:]
        return {
            "mutant": name.rpartition(".")[2],
            "line": self._line_of(name) + changed - start,
            "diff": [line for line in lines if not line.startswith("@@")],
        }

    def _line_of(self, name: str) -> int:
        function, owner = orig_function_and_class_names_from_key(name)
        tree: ast.Module | ast.ClassDef = ast.parse((self.folder / self.path).read_text())
        if owner:
            classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
            tree = next(node for node in classes if node.name == owner)
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        return next(node.lineno for node in functions if node.name == function)


def measure(module: str, processes: int, earlier: Record | None, numbers: str) -> Record:
    """Return how many mutants of a module its tests kill, and the survivors.

    Args:
        module: The module, below ``src/prunus/``.
        processes: How many mutants are tested at once.
        earlier: A record of the same code: only its survivors are tested again.
        numbers: Only mutants whose number ends like this; "" for all.
    """
    dotted = "prunus." + module.removesuffix(".py").replace("/", ".")
    names = [f"*__mutmut_*{numbers}"] if numbers else []
    if earlier is not None:
        names = [f"{dotted}.{survivor['mutant']}" for survivor in earlier["survivors"]]
        if not names:
            return earlier
    used = _cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), module, processes)
        copy.run(names, MULTIPLIER)
        status = copy.statuses()
        if not status:
            raise SystemExit(f"no mutant of {module} was tested: it is empty, or was renamed")
        unsure = [name for name, how in status.items() if how in ("timeout", "error")]
        if unsure:
            copy.run(unsure, CONFIRMING_MULTIPLIER)
            status = copy.statuses()
        survivors = [
            {"status": how, **copy.describe(name)}
            for name, how in status.items()
            if how not in ("killed", "timeout")
        ]
    counts = Counter(status.values())
    seconds = round(_cpu_seconds() - used)
    if earlier is not None:
        counts["killed"] += earlier["killed"]
        counts["timeout"] += earlier["timeouts"]
        seconds += earlier["cpu_seconds"]
    return _record(module, counts, seconds, survivors)


def _record(module: str, counts: Counter[str], seconds: int, survivors: list[Record]) -> Record:
    detected, total = counts["killed"] + counts["timeout"], counts.total()
    record = {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_sha256": _digest_of(module),
        "tests": MODULES[module],
        "mutants": total,
        "killed": counts["killed"],
        "timeouts": counts["timeout"],
        "survived": total - detected,
        "equivalent": 0,
        "percent_killed": round(100 * detected / total, 1),
        "cpu_seconds": seconds,
        "survivors": sorted(survivors, key=lambda survivor: (survivor["line"], survivor["mutant"])),
    }
    return explain(module, record)


def explain(module: str, record: Record) -> Record:
    """Write the reasons why survivors are equivalent into a module's record, and return it."""
    for survivor in record["survivors"]:
        survivor.pop("equivalent", None)
        if (why := reason(module, survivor["diff"])) is not None:
            survivor["equivalent"] = why
    record["equivalent"] = sum("equivalent" in survivor for survivor in record["survivors"])
    return record


def reason(module: str, diff: Iterable[str]) -> str | None:
    """Return why a mutant of a module is equivalent, or None if no reason is known."""
    change = "\n".join(line[0] + line[1:].strip() for line in diff)
    for why, changes in EQUIVALENT.get(module, {}).items():
        if change in map(str.strip, changes):
            return why
    return None


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def digest(source: str) -> str:
    """Return a digest of a module's code, without docstrings and comments.

    The numbers of its mutants only depend on that.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _digest_of(module: str) -> str:
    return digest((ROOT / "src/prunus" / module).read_text())


def _commit() -> str:
    """Return the current commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def problems(results: dict[str, Record]) -> list[str]:
    """Return what the results lack, one sentence each."""
    found = []
    for module, record in results.items():
        unexplained = record["survived"] - record["equivalent"]
        if record["percent_killed"] < WANTED:
            found.append(f"{module}: {record['percent_killed']} % killed, wanted {WANTED} %")
        if unexplained:
            found.append(f"{module}: {unexplained} survivors without a test or a reason")
        used = {survivor.get("equivalent") for survivor in record["survivors"]}
        unused = [why for why in EQUIVALENT.get(module, {}) if why not in used]
        found += [f"{module}: no survivor has the reason {why!r}" for why in unused]
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="default: all")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--numbers", default="", help="only mutants whose number ends like this")
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="test only those that survived, as --out lists them",
    )
    parser.add_argument(
        "--explain", action="store_true", help="test nothing: only compare --out with the reasons"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.json")
    return parser.parse_args()


def main() -> None:
    """Mutate the modules, write the results, and exit with 1 if they lack anything."""
    options = _options()
    unknown = [module for module in options.modules if module not in MODULES]
    if unknown:
        raise SystemExit(f"unknown modules {unknown}: expected some of {list(MODULES)}")
    torch.set_num_threads(1)  # as in every test
    results: dict[str, Record] = {}
    if options.out.exists():
        results = json.loads(options.out.read_text())["modules"]
    for module in options.modules:
        if options.explain:
            if module in results:
                explain(module, results[module])
            continue
        earlier = results.get(module) if options.survivors else None
        if earlier is not None and earlier["code_sha256"] != _digest_of(module):
            earlier = None  # the numbers of its mutants are others now
        results[module] = measure(module, options.processes, earlier, options.numbers)
        _save(options.out, results)
        print(module, {k: v for k, v in results[module].items() if isinstance(v, int | float)})
    _save(options.out, results)
    found = problems({module: results[module] for module in options.modules if module in results})
    if found:
        raise SystemExit("\n".join(found))


def _save(out: Path, results: dict[str, Record]) -> None:
    ordered: Sequence[str] = [module for module in MODULES if module in results]
    figures = {"mutmut": version("mutmut"), "modules": {name: results[name] for name in ordered}}
    save(out, 0, figures)


if __name__ == "__main__":
    main()
