"""Headlines of the README: one result each of the method, of a small network and of speed."""

from __future__ import annotations

from benchmarks.figures.common import comparisons, load
from benchmarks.figures.comparisons import METRICS, NETWORKS
from benchmarks.figures.pictures import STUDY
from prunus.studies import Study
from prunus.studies.statistics import Outcome
from prunus.studies.tables import format_sparsity, format_spread

CLASSIFIER = "mnist-lenet300"

NETWORK = "perceptron 5×2048, 95%"
"""The network of the speed, as its result file names it."""


def headlines() -> str:
    """Return the table of headlines, each with a link to its evidence."""
    return "\n".join(
        [
            "| network | removed | dense | prunus | comparison |",
            "|---|---|---|---|---|",
            _method(),
            _classifier(),
            _speed(),
            "\nMetrics are the mean ± standard deviation over three seeds, on the test split, "
            "which decided nothing; the perceptron has random weights, with zeros at random "
            "places. The names link to the evidence, with hardware, versions and commands.\n",
        ]
    )


def _outcome(study: Study, method: str) -> Outcome:
    """Return the outcome of a method at the first ratio of a study."""
    return study.outcomes()[study.ratios[0], method]


def _method() -> str:
    study = comparisons([STUDY])[STUDY]
    found, rival = _outcome(study, "prunus"), _outcome(study, "magnitude")
    spread = study.table().spread
    return (
        f"| [{NETWORKS[STUDY]}](docs/figures.md#comparisons-of-methods), {METRICS[study.metric]} "
        f"| {format_sparsity(found.sparsity)} | {spread(found.dense)} | {spread(found.values)} "
        f"| {spread(rival.values)} by magnitude pruning |"
    )


def _classifier() -> str:
    study = comparisons([CLASSIFIER])[CLASSIFIER]
    found, rival = _outcome(study, "prunus"), _outcome(study, "magnitude")
    dense, sparse, other = (
        format_spread([100 * (1 - value) for value in values], 2)
        for values in (found.dense, found.values, rival.values)
    )
    return (
        f"| [{NETWORKS[CLASSIFIER]}](docs/figures.md#classifiers), test error in % ↓ "
        f"| {format_sparsity(found.sparsity)} | {dense} | {sparse} | {other} by "
        f"magnitude pruning, both with {study.ratios[0]:g} times fewer non-zero parameters |"
    )


def _speed() -> str:
    """Return the batch at which sparse layers gain least."""
    (network,) = (n for n in load("networks")["networks"] if n["network"] == NETWORK)
    faster = {row["batch"]: row["times_faster"]["sparse"] for row in network["rows"]}
    row = min(network["rows"], key=lambda row: row["times_faster"]["sparse"])
    dense, sparse = (row["times"][name]["median_ms"] for name in ("dense", "sparse"))
    name, _, sparsity = NETWORK.rpartition(", ")
    return (
        f"| [{name[0].upper()}{name[1:]}](docs/figures.md#whole-networks), ms for a batch of "
        f"{row['batch']} ↓ | {sparsity} | {dense:.3g} | {sparse:.3g} "
        f"| {min(faster.values()):.1f} to {max(faster.values()):.1f} times faster than dense "
        f"float32, for batches of {min(faster)} to {max(faster)} on one thread of a CPU |"
    )
