"""Figures of the README: pruned networks, methods compared, and latencies of whole networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.common import NUMBERS, load, machine
from benchmarks.measuring import RESULTS
from benchmarks.studies.compare import METHODS, Outcome, digits, outcomes, spread

RECIPES = {
    "digits": "perceptron 64-300-100-10, scikit-learn's digits (`make demo`)",
    "mnist-lenet300": "LeNet-300-100, MNIST",
    "mnist-lenet5": "LeNet-5 (Caffe widths), MNIST",
}

LANGUAGE = {
    "multi30k-translation": "translator, Multi30k",
    "taskmaster-dialogue": "dialogue, Taskmaster-4",
    "shakespeare-lm": "GPT-2, Tiny Shakespeare",
}

METRICS = {"BLEU": "BLEU ↑", "bits per character": "bits per character ↓"}


def networks() -> str:
    """Return the table of pruned classifiers."""
    lines = [
        "| network | parameters | non-zero | ratio | dense test error | sparse test error | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in RECIPES.items():
        record = load(name)
        figures, run = record["figures"], record["runs"][0]

        def percent(figure: str, of: dict[str, Any] = figures) -> str:
            return f"{of[figure]['mean']:.2f} ± {of[figure]['deviation']:.2f}%"

        lines.append(
            f"| {title} | {run['parameters']:,} | {run['nonzero']:,} "
            f"| {figures['compression_ratio']['mean']:.1f}× "
            f"| {percent('dense_test_error_percent')} | {percent('sparse_test_error_percent')} "
            f"| {figures['seconds']['mean']:,.0f} s |"
        )
    seeds = [run["seed"] for run in record["runs"]]
    hardware, date = machine(record["runs"][0]["environment"]), record["date"][:10]
    lines.append(
        f"\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}; the time is that "
        f"of a whole run, dense training included; {hardware}, {date}. The ratio counts every "
        "parameter, biases included. On MNIST the training images are shifted by up to a pixel at "
        "random, for the dense and the sparse network alike. Each run reads the test split once, "
        "after every decision was made on a validation split. By `python -m "
        "benchmarks.studies.reproduce` with the name of the recipe.\n"
    )
    return "\n".join(lines)


def comparisons() -> list[str]:
    """Return the table of methods on the language recipes, without those not measured yet."""
    measured = {
        name: load(f"compare-{name}")
        for name in LANGUAGE
        if (RESULTS / f"compare-{name}.json").exists()
    }
    records = {name: record for name, record in measured.items() if any(_rows(record))}
    if not records:
        return []
    lines = [
        "Language models pruned by relevance, by plain L2 and by magnitude alone, each from the "
        "same dense network and with the same epochs, batches and schedule (test split):\n",
        "| network | metric | dense | sparsity | " + " | ".join(METHODS) + " |",
        "|---|---|---|---|" + "---|" * len(METHODS),
    ]
    for name, record in records.items():
        first = record["runs"][0]["summary"]
        title = f"{LANGUAGE[name]}, {first['parameters'] / 1e6:.1f} M parameters"
        previous = ""
        for _, row in _rows(record):
            cells = [spread(outcome.values, digits(record)) for outcome in row]
            dense = spread(row[0].dense, digits(record))
            lines.append(
                f"| {title} | {METRICS.get(first['metric']['name'], first['metric']['name'])} "
                f"| {'' if dense == previous else dense} | {row[0].sparsity:.0%} "
                f"| {' | '.join(cells)} |"
            )
            title, previous = "", dense
    lines.append(
        "\nMean ± standard deviation over the seeds. Sparsity is that of all prunable weights: "
        "embeddings, attention, feed-forward layers, norms and biases. The strength of relevance "
        "was chosen on the validation split with another seed; that of L2 likewise on Tiny "
        "Shakespeare and Multi30k, and transferred to the dialogues.\n"
    )
    for name, record in records.items():
        machines = [machine(run["summary"]["environment"]) for run in record["runs"]]
        options = " --data FOLDER" if record["data"] == "a folder" else ""
        options += " --set autocast=true" if record["settings"]["autocast"] else ""
        lines.append(
            f"- {LANGUAGE[name]}: {' and '.join(dict.fromkeys(machines))}, {record['date'][:10]}, "
            f"by `python -m benchmarks.studies.compare {name}{options}` with "
            f"{_ratios_and_seeds(record)}."
        )
    return ["\n".join([*lines, ""])]


def _rows(record: dict[str, Any]) -> Iterator[tuple[float, list[Outcome]]]:
    """Yield each ratio with the outcome of every method, where three seeds or more are shared."""
    reached = outcomes(record)
    for ratio in dict.fromkeys(ratio for ratio, _ in reached):
        row = [reached[ratio, method] for method in METHODS if (ratio, method) in reached]
        seeds = set.intersection(*(set(outcome.seeds) for outcome in row))
        if len(row) == len(METHODS) and len(seeds) >= 3:
            yield ratio, [outcome.only(seeds) for outcome in row]


def _ratios_and_seeds(record: dict[str, Any]) -> str:
    """Return the ratios and seeds of a comparison as options of its command."""
    rows: dict[str, list[str]] = {}
    for ratio, (first, *_) in _rows(record):
        rows.setdefault(" ".join(map(str, first.seeds)), []).append(f"{ratio:g}")
    return " and with ".join(
        f"`--ratios {' '.join(ratios)} --seeds {seeds}`" for seeds, ratios in rows.items()
    )


def whole_networks() -> list[str]:
    """Return the table of latencies of whole networks."""
    if not (RESULTS / "networks.json").exists():
        return []
    record = load("networks")
    lines = [
        f"Whole networks as `prunus bench` times them, {NUMBERS[record['threads']]}, how many "
        "times faster than dense:\n",
        "| network | batch | dense | compact | sparse | compact, sparse | onnxruntime |",
        "|---|---|---|---|---|---|---|",
    ]
    for network in record["networks"]:
        for row in network["rows"]:
            faster = row["times_faster"]
            cells = [
                f"{faster[name]:.2f}" if name in faster else "–"
                for name in ("compact", "sparse", "compact, sparse", "onnxruntime")
            ]
            title = RECIPES.get(network["network"], network["network"])
            dense = f"{row['times']['dense']['median_ms']:.3g} ms"
            lines.append(f"| {title} | {row['batch']} | {dense} | {' | '.join(cells)} |")
    errors = [
        error
        for network in record["networks"]
        for row in network["rows"]
        for error in row["errors"].values()
    ]
    lines.append(
        f"\n{machine(record['environment'] | {'threads': record['threads']})}, "
        f"{record['date'][:10]}, by `{record['command']}`; medians of interleaved "
        "calls. The LeNets are those of the recipes; the others have random weights with zeros "
        "at random places, and so have no dead units. onnxruntime runs the compact network. "
        f"Outputs differ by at most {max(errors):.1g} of the largest one.{_elsewhere()}\n"
    )
    return ["\n".join(lines)]


def _elsewhere() -> str:
    """Return the range of gains on another processor, where dense layers are slower."""
    record = load("networks-amd-epyc")
    rows = [row["times_faster"] for network in record["networks"] for row in network["rows"]]
    sparse, runtime = ([row[name] for row in rows] for name in ("sparse", "onnxruntime"))
    ratios = [ours / theirs for ours, theirs in zip(sparse, runtime, strict=True)]
    return (
        f" The gain depends on the machine: on {machine(record['environment'])}, the "
        f"same networks are {min(sparse):.1f} to {max(sparse):.1f} times faster with sparse layers "
        f"than dense, and {min(ratios):.2f} to {max(ratios):.1f} times faster than in onnxruntime, "
        f"which itself is {min(runtime):.1f} to {max(runtime):.1f} times faster than dense there "
        f"({record['date'][:10]}, by `{record['command']}`)."
    )
