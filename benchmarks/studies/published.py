"""The published comparisons of methods, each the exact command of ``prunus compare``.

The tuned settings of other methods are chosen on the validation split, with seeds that no figure
reports. A study is run, or continued, by its name; more options of ``prunus compare`` may follow,
such as ``--data`` and ``--jobs``::

    python -m benchmarks.studies.published shakespeare-lm --out DIR --jobs 2

Its record is then copied to the result files.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import prunus
from benchmarks.measuring import RESULTS
from prunus.studies.record import STUDY_FILE

__all__ = ["METHODS", "RELEVANCE", "STUDIES", "arguments", "result_file"]

METHODS = ("prunus", "relevance", "l2", "magnitude", "paper")
"""The methods of the summary, by their labels in the studies.

"relevance" is the paper's penalty with a strength tuned for the recipe, and removes by magnitude;
"paper" has the strength and the scale of the paper.
"""

RELEVANCE: Mapping[str, str] = {
    "digits": "alpha=0.1,strength=0.01",
    "mnist-lenet300": "strength=0.015",
    "mnist-lenet5": "alpha=0.05,strength=0.05",
    "multi30k-translation": "smoothing=0.99,strength=0.3",
    "taskmaster-dialogue": "smoothing=0.99,strength=3.0",
    "shakespeare-lm": "smoothing=0.99,strength=3.0",
}
"""The settings of "relevance" for each recipe."""


PRUNUS_L1 = "prunus-l1 = prunus,penalty=l1,strength=0.001"
"""The default method with a constant coefficient and |w| in the penalty, for LeNet-300-100.

Of 0.0003, 0.001 and 0.003 the strength with the smallest validation error.
"""


def _study(recipe: str, methods: str, ratios: str, seeds: str = "0,1,2", *options: str) -> str:
    """Return the arguments of a study, with the settings of "relevance" where it is a method."""
    own = f"relevance = magnitude,penalty=relevance,{RELEVANCE[recipe]}"
    changed = {"relevance": own, "prunus-l1": PRUNUS_L1}
    texts = [changed.get(name, name) for name in methods.split(",")]
    parts = [part for text in texts for part in ("--method", text)]
    return shlex.join([recipe, *parts, "--ratios", ratios, "--seeds", seeds, *options])


STUDIES: Mapping[str, str] = {
    "digits": _study("digits", "prunus", "25"),
    "digits-methods": _study(
        *("digits", ",".join(prunus.methods), "25,60", "0,1,2"),
        # An exact ratio: with a floor, a network that does not meet it is delivered denser.
        *("--set", "schedule=gradual", "--set", "floor=none"),
    ),
    "mnist-lenet300": _study("mnist-lenet300", "prunus-l1,prunus,magnitude", "100"),
    "mnist-lenet300-without-shift": _study(
        "mnist-lenet300", "prunus-l1,prunus,magnitude", "100", "0,1,2", "--set", "shift=0"
    ),
    "multi30k-translation": _study(
        *("multi30k-translation", "relevance,l2,magnitude", "10,5", "0,1,2"),
        *("--set", "autocast=true"),
    ),
    "taskmaster-dialogue": _study(
        *("taskmaster-dialogue", "relevance,l2,magnitude", "10,5,3.334", "0,1,2,3"),
        *("--set", "autocast=true"),
    ),
    "shakespeare-lm": _study("shakespeare-lm", ",".join(METHODS), "20"),
    "shakespeare-lm-40x": _study("shakespeare-lm", ",".join(METHODS), "40"),
}
"""The arguments of ``prunus compare`` for each study, by its name."""


def arguments(name: str) -> list[str]:
    """Return the arguments of ``prunus compare`` for a study, the recipe first."""
    return shlex.split(STUDIES[name])


def result_file(name: str) -> Path:
    """Return the path of a study's record among the result files."""
    return RESULTS / f"compare-{name}.json"


def main() -> None:
    """Run a study, and copy its record to the result files."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="All other options are those of prunus compare."
    )
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--out", type=Path, help="directory of the study; default: studies/NAME")
    chosen, options = parser.parse_known_args()
    out = chosen.out or Path("studies") / chosen.name
    command = ["prunus", "compare", *arguments(chosen.name), "--out", str(out), *options]
    print(shlex.join(command))
    ended = subprocess.run([sys.executable, "-m", *command], check=False)
    if ended.returncode:
        sys.exit(ended.returncode)
    shutil.copyfile(out / STUDY_FILE, result_file(chosen.name))


if __name__ == "__main__":
    main()
