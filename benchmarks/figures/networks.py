"""Figures of pruned classifiers, and latencies of whole networks."""

from __future__ import annotations

import statistics

from benchmarks.figures.common import NUMBERS, comparisons, load, machine
from prunus.bench import KINDS
from prunus.studies.tables import format_spread

RECIPES = {
    "digits": "perceptron 64-300-100-10, scikit-learn's digits (`make demo`)",
    "mnist-lenet300": "LeNet-300-100, MNIST",
    "mnist-lenet300-without-shift": "LeNet-300-100, MNIST, without shifted images",
    "mnist-lenet5": "LeNet-5 (Caffe widths), MNIST",
}


def classifiers() -> str:
    """Return the table of pruned classifiers."""
    lines = [
        "| network | parameters | non-zero | ratio | dense test error | sparse test error |",
        "|---|---|---|---|---|---|",
    ]
    machines, seeds = [], set()
    for name, study in comparisons(RECIPES).items():
        ratio = study.settings["ratio"]
        runs = [
            run.summary
            for run in study.finished
            if run.summary is not None and run.cell[:2] == ("prunus", ratio)
        ]
        errors = {
            kind: format_spread([100 * (1 - run[kind]["test"]) for run in runs], 2)
            for kind in ("dense", "sparse")
        }
        nonzero = statistics.fmean(run["nonzero"] for run in runs)
        reached = statistics.fmean(run["compression_ratio"] for run in runs)
        lines.append(
            f"| {RECIPES[name]} | {runs[0]['parameters']:,} | {nonzero:,.0f} | {reached:.1f}× "
            f"| {errors['dense']}% | {errors['sparse']}% |"
        )
        seeds |= {run["seed"] for run in runs}
        machines += [f"{machine(run['environment'])}, {study.date[:10]}" for run in runs]
    lines.append(
        f"\nMean ± standard deviation over seeds {', '.join(map(str, sorted(seeds)))}, with the "
        "default method. The ratio counts every parameter, biases included. On MNIST the training "
        "images are shifted by up to a pixel at random, for the dense and the sparse network "
        "alike, unless the row says otherwise. Each run reads the test split once, after every "
        "decision was made on a validation split. "
        f"{'; '.join(dict.fromkeys(machines))}; by `prunus compare` with the name of the "
        "recipe and `--methods prunus`, and `--set shift=0` without shifted images.\n"
    )
    return "\n".join(lines)


def whole_networks() -> str:
    """Return the table of latencies of whole networks."""
    record = load("networks")
    timed = [row["times_faster"] for network in record["networks"] for row in network["rows"]]
    names = [name for name in KINDS if any(name in faster for faster in timed)]
    lines = [
        f"Whole networks as `prunus bench` times them, {NUMBERS[record['threads']]}, how many "
        "times faster than dense:\n",
        f"| network | batch | dense | {' | '.join(names)} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for network in record["networks"]:
        for row in network["rows"]:
            faster = row["times_faster"]
            cells = [f"{faster[name]:.2f}" if name in faster else "–" for name in names]
            title = RECIPES.get(network["network"], network["network"])
            dense = f"{row['times']['dense']['median_ms']:.3g} ms"
            lines.append(f"| {title} | {row['batch']} | {dense} | {' | '.join(cells)} |")
    errors = [
        error
        for network in record["networks"]
        for row in network["rows"]
        for name, error in row["errors"].items()
        if name == "dense" or KINDS[name].exact
    ]
    lines.append(
        f"\n{machine(record['environment'] | {'threads': record['threads']})}, "
        f"{record['date'][:10]}, by `{record['command']}`; medians of interleaved "
        "calls. The LeNets have 1/67 and 1/200 of their parameters left; the others have random "
        "weights with zeros at random places, and so have no dead units. onnxruntime runs the "
        f"compact network. Outputs differ by at most {max(errors):.1g} of the largest one."
        f"{_elsewhere()}\n"
    )
    return "\n".join(lines)


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
