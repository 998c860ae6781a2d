"""Figures of the comparisons of methods: a summary, and one table for each recipe."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.common import comparisons, machines
from benchmarks.studies.published import METHODS
from prunus.studies import Study
from prunus.studies.statistics import Outcome
from prunus.studies.tables import format_sparsity

NETWORKS = {
    "digits-methods": "Perceptron, scikit-learn's digits, every method",
    "mnist-lenet300": "LeNet-300-100, MNIST",
    "mnist-lenet300-without-shift": "LeNet-300-100, MNIST, without shifted images",
    "mnist-lenet5": "LeNet-5, MNIST",
    "cifar10-resnet32": "ResNet-32, CIFAR-10",
    "multi30k-translation": "Translator, Multi30k",
    "taskmaster-dialogue": "Dialogue, Taskmaster-4",
    "shakespeare-lm": "GPT-2, Tiny Shakespeare",
    "shakespeare-lm-40x": "GPT-2, Tiny Shakespeare, a fortieth of its parameters",
}

METRICS = {
    "accuracy": "accuracy ↑",
    "BLEU": "BLEU ↑",
    "bits per character": "bits per character ↓",
}


def summary() -> list[str]:
    """Return the table of all methods, with the rows for which every method was measured."""
    studies = {name: study for name, study in comparisons(NETWORKS).items() if any(_rows(study))}
    if not studies:
        return []
    lines = [
        "Networks pruned by prunus's default method, by the paper's penalty and magnitude "
        "(relevance), by L2 and magnitude (l2), by magnitude alone, and with the paper's own "
        "settings. Each starts from the same dense network, with the same epochs, batches and "
        "schedule (test split):\n",
        "| network | metric | dense | sparsity | " + " | ".join(METHODS) + " |",
        "|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name, study in studies.items():
        title, previous, spread = NETWORKS[name], "", study.table().spread
        for row in _rows(study):
            cells = [spread(outcome.values) for outcome in row]
            dense = spread(row[0].dense)
            lines.append(
                f"| {title} | {METRICS[study.metric]} | {'' if dense == previous else dense} "
                f"| {format_sparsity(row[0].sparsity)} | {' | '.join(cells)} |"
            )
            title, previous = "", dense
    lines.append(
        "\nMean ± standard deviation over the seeds. Sparsity is that of all prunable weights, "
        "biases included. The strengths of relevance and l2 were chosen for each recipe on the "
        "validation split, with other seeds; the default method has no setting of its own for a "
        "recipe. The tables below have the paired differences.\n"
    )
    return ["\n".join(lines)]


def details() -> str:
    """Return the table of each comparison, and how it was made."""
    parts = [
        *summary(),
        "Test split. Mean ± standard deviation over the seeds; the last column has the mean of the "
        "differences to the first method within each seed ± its standard error, positive where the "
        "first method is better, and a * where it is more than two standard errors from 0.\n",
    ]
    for name, study in comparisons(NETWORKS).items():
        table = study.table()
        notes = "".join(f"\n{note}\n" for note in table.notes)
        commands = " and ".join(f"`{command}`" for command in study.commands)
        parts += [
            f"### {NETWORKS[name]}\n",
            table.to_markdown() + notes,
            f"{machines(study)}, {study.date[:10]}, by {commands}.\n",
        ]
    return "\n".join(parts)


def _rows(study: Study) -> Iterator[list[Outcome]]:
    """Yield the outcomes of all methods at each ratio, where they share three seeds or more."""
    results = study.outcomes()
    for ratio in study.ratios:
        row = [results[ratio, method] for method in METHODS if (ratio, method) in results]
        seeds = set.intersection(*(set(outcome.seeds) for outcome in row))
        if len(row) == len(METHODS) and len(seeds) >= 3:
            yield [outcome.only(seeds) for outcome in row]
