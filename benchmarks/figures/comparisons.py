"""Figures of the comparisons of methods: a summary, and one table for each recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.common import comparisons, machine
from benchmarks.studies.compare import METHODS, Outcome, digits, outcomes, spread, table

NETWORKS = {
    "mnist-lenet300": "LeNet-300-100, MNIST",
    "mnist-lenet5": "LeNet-5, MNIST",
    "cifar10-resnet32": "ResNet-32, CIFAR-10",
    "multi30k-translation": "Translator, Multi30k",
    "taskmaster-dialogue": "Dialogue, Taskmaster-4",
    "shakespeare-lm": "GPT-2, Tiny Shakespeare",
}

METRICS = {
    "accuracy": "accuracy ↑",
    "BLEU": "BLEU ↑",
    "bits per character": "bits per character ↓",
}


def summary() -> list[str]:
    """Return the table of all methods, with the rows for which every method was measured."""
    records = {name: record for name, record in comparisons(NETWORKS).items() if any(_rows(record))}
    if not records:
        return []
    lines = [
        "Networks pruned by prunus's default method, by the paper's penalty and magnitude "
        "(relevance), by L2 and magnitude, by magnitude alone, and with the paper's own settings. "
        "Each starts from the same dense network, with the same epochs, batches and schedule "
        "(test split):\n",
        "| network | metric | dense | sparsity | " + " | ".join(METHODS) + " |",
        "|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name, record in records.items():
        metric = record["runs"][0]["summary"]["metric"]["name"]
        title, previous = NETWORKS[name], ""
        for row in _rows(record):
            cells = [spread(outcome.values, digits(record)) for outcome in row]
            dense = spread(row[0].dense, digits(record))
            lines.append(
                f"| {title} | {METRICS[metric]} | {'' if dense == previous else dense} "
                f"| {row[0].sparsity:.1%} | {' | '.join(cells)} |"
            )
            title, previous = "", dense
    lines.append(
        "\nMean ± standard deviation over the seeds. Sparsity is that of all prunable weights, "
        "biases included. The strengths of relevance and L2 were chosen for each recipe on the "
        "validation split, with other seeds; the default method has no setting of its own for a "
        "recipe. The paired differences are in "
        "[docs/figures.md](docs/figures.md#comparisons-of-methods).\n"
    )
    return ["\n".join(lines)]


def details() -> str:
    """Return the table of each comparison, and how it was made."""
    parts = [
        "Test split. Mean ± standard deviation over the seeds; the last column has the difference "
        "to prunus within each seed ± the standard error of its mean, positive where prunus is "
        "better.\n"
    ]
    for name, record in comparisons(NETWORKS).items():
        runs = record["runs"]
        machines = [machine(run["summary"]["environment"]) for run in runs]
        seeds = {run["summary"]["seed"] for run in runs}
        ratios = dict.fromkeys(run["ratio"] for run in runs)
        options = " --data FOLDER" if record["data"] == "a folder" else ""
        options += " --set autocast=true" if record["settings"]["autocast"] else ""
        methods = dict.fromkeys(run["method"] for run in runs)
        options += "" if set(methods) == set(METHODS) else f" --methods {' '.join(methods)}"
        parts += [
            f"### {NETWORKS[name]}\n",
            *table(record),
            f"\n{' and '.join(dict.fromkeys(machines))}, {record['date'][:10]}, by `python -m "
            f"benchmarks.studies.compare {name}{options} --ratios "
            f"{' '.join(f'{ratio:g}' for ratio in ratios)} --seeds "
            f"{' '.join(map(str, sorted(seeds)))}`.\n",
        ]
    return "\n".join(parts)


def _rows(record: dict[str, Any]) -> Iterator[list[Outcome]]:
    """Yield the outcomes of all methods at each ratio, where they share three seeds or more."""
    results = outcomes(record)
    for ratio in dict.fromkeys(ratio for ratio, _ in results):
        row = [results[ratio, method] for method in METHODS if (ratio, method) in results]
        seeds = set.intersection(*(set(outcome.seeds) for outcome in row))
        if len(row) == len(METHODS) and len(seeds) >= 3:
            yield [outcome.only(seeds) for outcome in row]
