"""Render figures from the committed result files, so that text and files cannot drift apart.

The README shows what becomes of networks, and ``docs/figures.md`` the rest.

python -m benchmarks.figures          print what belongs between the markers of each page
python -m benchmarks.figures --write  put it there
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from benchmarks.studies.compare import METHODS, Outcome, digits, outcomes, spread

ROOT = RESULTS.parent.parent

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

LEFT_OUT = {(dtype, sparsity) for dtype in ("bfloat16", "int8") for sparsity in (0.95, 0.98)}
"""Matrices not shown, for they say nothing new."""

VARIANTS = {
    "prunus": "prunus",
    "prunus, 90 % removed": "prunus, 90% removed",
    "prunus, decoupled": "prunus, decoupled",
    "two backward passes": "two backward passes, as in the authors' code",
    "LOBSTER-style loop": "a loop over tensors after the step, LOBSTER-style",
}

KERNELS_LEFT_OUT = {
    *(("linear", size, batch) for size in (256, 4096) for batch in (16, 100)),
    *(("linear", size, 256) for size in (256, 4096)),
    *(("convolution", size, 1) for size in (16, 32, 64, 128, 256)),
}
"""A choice of the timings is shown: these are kind, width and batch of what is not."""

NUMBERS = {1: "one thread", 2: "two threads"}

MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def render() -> dict[Path, str]:
    """Return each page's figures as Markdown."""
    details = {
        "Sparse layers": _kernels(),
        "Sparse files": _sparse_files(),
        "What a training step costs": _overhead(),
        "What a pruning costs": _threshold(),
        "Several processes": _processes(),
        "Against the formulas": _contract(),
        "Interruption": _kills(),
    }
    return {
        ROOT / "README.md": "\n".join([_networks(), *_comparisons(), *_whole_networks()]),
        ROOT / "docs" / "figures.md": "\n".join(
            f"## {title}\n\n{text}" for title, text in details.items()
        ),
    }


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _machine(environment: dict[str, Any]) -> str:
    threads = NUMBERS.get(environment["threads"], f"{environment['threads']} threads")
    return (
        f"{environment['processor']}, {environment['cores']} cores, {threads}, "
        f"torch {environment['torch']}"
    )


def _networks() -> str:
    lines = [
        "| network | parameters | non-zero | ratio | dense test error | sparse test error | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in RECIPES.items():
        record = _load(name)
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
    machine, date = _machine(record["runs"][0]["environment"]), record["date"][:10]
    lines.append(
        f"\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}; the time is that "
        f"of a "
        f"whole run, dense training included; {machine}, {date}. The ratio counts every parameter, "
        "biases included. On MNIST the training images are shifted by up to a pixel at random, "
        "for the "
        "dense network as for the sparse one. Each run looks at the test split once, after all was "
        "decided on a validation split. By `python -m benchmarks.studies.reproduce`, given the "
        "recipe.\n"
    )
    return "\n".join(lines)


def _comparisons() -> list[str]:
    """Render what each method reaches on the language recipes, as far as it has been measured."""
    begun = {
        name: _load(f"compare-{name}")
        for name in LANGUAGE
        if (RESULTS / f"compare-{name}.json").exists()
    }
    records = {name: record for name, record in begun.items() if any(_rows(record))}
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
        above = ""
        for _, found in _rows(record):
            cells = [spread(outcome.values, digits(record)) for outcome in found]
            dense = spread(found[0].dense, digits(record))
            lines.append(
                f"| {title} | {METRICS.get(first['metric']['name'], first['metric']['name'])} "
                f"| {'' if dense == above else dense} | {found[0].sparsity:.0%} "
                f"| {' | '.join(cells)} |"
            )
            title, above = "", dense
    lines.append(
        "\nMean ± standard deviation over the seeds. Sparsity is that of all prunable weights: of "
        "embeddings, attention, feed-forward layers, norms and biases. The strength of relevance "
        "was chosen on the validation split with another seed; that of L2 likewise on Tiny "
        "Shakespeare and Multi30k, and carried over to the dialogues.\n"
    )
    for name, record in records.items():
        machines = [_machine(run["summary"]["environment"]) for run in record["runs"]]
        given = " --data FOLDER" if record["data"] == "a folder" else ""
        given += " --set autocast=true" if record["settings"]["autocast"] else ""
        lines.append(
            f"- {LANGUAGE[name]}: {' and '.join(dict.fromkeys(machines))}, {record['date'][:10]}, "
            f"by `python -m benchmarks.studies.compare {name}{given}` with "
            f"{_ratios_and_seeds(record)}."
        )
    return ["\n".join([*lines, ""])]


def _rows(record: dict[str, Any]) -> Iterator[tuple[float, list[Outcome]]]:
    """Yield each ratio and what the methods reach at it, over the same three seeds at least."""
    got = outcomes(record)
    for ratio in dict.fromkeys(ratio for ratio, _ in got):
        found = [got[ratio, method] for method in METHODS if (ratio, method) in got]
        seeds = set.intersection(*(set(outcome.seeds) for outcome in found))
        if len(found) == len(METHODS) and len(seeds) >= 3:
            yield ratio, [outcome.only(seeds) for outcome in found]


def _ratios_and_seeds(record: dict[str, Any]) -> str:
    """Name the ratios and seeds of a comparison, as its command is given them."""
    rows: dict[str, list[str]] = {}
    for ratio, (first, *_) in _rows(record):
        rows.setdefault(" ".join(map(str, first.seeds)), []).append(f"{ratio:g}")
    return " and with ".join(
        f"`--ratios {' '.join(own)} --seeds {seeds}`" for seeds, own in rows.items()
    )


def _sparse_files() -> str:
    record, fuzzed = _load("sparse_files"), _load("fuzz_sparse_files")
    lines = [
        "Sparse files of matrices with zeros at random, in multiples of the least that any file "
        "takes, and megabytes of the dense matrix in a second:\n",
        "| type | zeros | prunus | safetensors | numpy, compressed | prunus reads | writes |",
        "|---|---|---|---|---|---|---|",
    ]
    for matrix in record["matrices"]:
        if matrix["sparsity"] < 0.9 or (matrix["dtype"], matrix["sparsity"]) in LEFT_OUT:
            continue
        methods = matrix["methods"]
        sizes = [f"{methods[m]['of_bound']:.3f}" for m in methods]
        own = methods["prunus"]
        lines.append(
            f"| {matrix['dtype']} | {matrix['sparsity']:.0%} | {' | '.join(sizes)} "
            f"| {own['read_MB_per_s']:,.0f} | {own['write_MB_per_s']:,.0f} |"
        )
    lines.append(
        f"\n{_machine(record['environment'])}, {record['date'][:10]}, by "
        f"`python -m benchmarks.speed.sparse_files`. Of {fuzzed['files']:,} sparse files damaged "
        f"at random, {fuzzed['outcomes']['refused']:,} were refused with one clear error and "
        f"{fuzzed['outcomes']['read']:,}, damaged in ways that nobody could tell, were read, each "
        f"within {fuzzed['slowest_seconds']:.2f} s and twice the memory that the reader allowed, "
        "by "
        "`python -m benchmarks.robustness.fuzz_sparse_files`.\n"
    )
    return "\n".join(lines)


def _kernels() -> str:
    record = _load("kernels")
    shown = (0.7, 0.85, 0.9, 0.95, 0.99)
    lines = [
        "Sparse layers against torch's dense ones and its CSR matrix, one thread, how many times "
        "faster than dense; activations lie feature by feature for sparse and CSR, pixel by pixel "
        "for convolutions:\n",
        "| layer | batch | " + " | ".join(f"{s:.0%} zeros" for s in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    kinds: dict[tuple[Any, ...], dict[float, Any]] = {}
    for row in record["rows"]:
        key = (row["layer"], tuple(row["shape"]), row.get("image"), row["batch"])
        kinds.setdefault(key, {})[row["sparsity"]] = row["times_faster_than_dense"]
    for (layer, shape, image, batch), rows in kinds.items():
        if (layer, shape[0], batch) in KERNELS_LEFT_OUT or shape[0] != shape[1]:
            continue
        size = "×".join(map(str, shape[:2] if layer == "linear" else shape))
        where = f" on {image}×{image}" if image else ""
        cells = []
        for sparsity in shown:
            csr = f" (CSR {rows[sparsity]['csr']:.1f})" if "csr" in rows[sparsity] else ""
            cells.append(f"{rows[sparsity]['sparse']:.1f}{csr}")
        lines.append(f"| {layer} {size}{where} | {batch} | {' | '.join(cells)} |")
    dense = max(
        2e-6 * math.prod(row["shape"]) * row["batch"] / row["times"]["dense"]["median_ms"]
        for row in record["rows"]
        if row["layer"] == "linear"
    )
    sparse = max(row["sparse_gflops"] for row in record["rows"])
    lines.append(
        f"\n{_machine(record['environment'])}, {record['date'][:10]}, by "
        "`python -m benchmarks.speed.kernels`; medians of interleaved calls, further shapes in its "
        f"result file. At best, torch's dense layers reach {dense:.0f} GFLOP/s, the sparse kernel "
        f"{record['peak_gflops']:.0f} on one line of the first cache, and sparse layers "
        f"{sparse:.0f}; memory is copied at {record['copy_gb_per_s']:.0f} GB/s. "
        f"{_against_csr(record)}."
    )
    if (RESULTS / "kernels-2-threads.json").exists():
        lines.append(_two_threads())
    return "\n".join([*lines, ""])


def _two_threads() -> str:
    record = _load("kernels-2-threads")
    faster = {
        row["sparsity"]: row["times_faster_than_dense"]["sparse"]
        for row in record["rows"]
        if (row["layer"], row["shape"], row["batch"]) == ("linear", [1024, 1024], 64)
    }
    shown = ", ".join(f"{faster[s]:.1f} at {s:.0%}" for s in (0.7, 0.9, 0.95, 0.99))
    return (
        "\nWith two threads, against dense layers with two, a linear layer of 1024×1024 and a "
        f"batch of 64 is as many times faster: {shown} ({_machine(record['environment'])}, "
        f"{record['date'][:10]}, by `{record['command']}`). {_against_csr(record)}."
    )


def _against_csr(record: dict[str, Any]) -> str:
    medians = [
        {name: each["median_ms"] for name, each in row["times"].items()}
        for row in record["rows"]
        if "csr" in row["times"]
    ]
    behind = [each["sparse"] / each["csr"] - 1 for each in medians if each["csr"] < each["sparse"]]
    if not behind:
        return f"CSR is slower in all of {len(medians)} rows"
    return f"CSR is faster in {len(behind)} of {len(medians)} rows, by {max(behind):.1%} at most"


def _whole_networks() -> list[str]:
    if not (RESULTS / "networks.json").exists():
        return []
    record = _load("networks")
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
        f"\n{_machine(record['environment'] | {'threads': record['threads']})}, "
        f"{record['date'][:10]}, by `{record['command']}`; medians of interleaved "
        "calls. The LeNets are those of the recipes; the others have random weights, and zeros at "
        "random, and so have nothing that is dead. onnxruntime is given the compact network. No "
        f"output is off by more than {max(errors):.1g} of the largest.{_elsewhere()}\n"
    )
    return ["\n".join(lines)]


def _elsewhere() -> str:
    """Say what the same networks gain on another processor, where dense layers are slower."""
    record = _load("networks-amd-epyc")
    rows = [row["times_faster"] for network in record["networks"] for row in network["rows"]]
    sparse, runtime = ([row[name] for row in rows] for name in ("sparse", "onnxruntime"))
    beside = [own / other for own, other in zip(sparse, runtime, strict=True)]
    return (
        f" How much is gained depends on the machine: on {_machine(record['environment'])}, the "
        f"same networks are {min(sparse):.1f} to {max(sparse):.1f} times faster with sparse layers "
        f"than dense, and {min(beside):.2f} to {max(beside):.1f} times faster than in onnxruntime, "
        f"which itself is {min(runtime):.1f} to {max(runtime):.1f} times faster than dense there "
        f"({record['date'][:10]}, by `{record['command']}`)."
    )


def _overhead() -> str:
    record = _load("step_overhead")
    lines = [
        "A training step, in multiples of the same step with AdamW alone:\n",
        "| | " + " | ".join(f"{c['case']}, batch {c['batch']}" for c in record["cases"]) + " |",
        "|---|" + "---|" * len(record["cases"]),
    ]
    for variant, title in VARIANTS.items():
        cells = [f"{case['variants'][variant]['ratio']:.2f}" for case in record["cases"]]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append(
        f"\n{_machine(record['environment'])}, {record['date'][:10]}; medians of interleaved "
        f"steps, by "
        "`python -m benchmarks.speed.step_overhead`. With most weights removed, much of the "
        "difference is "
        "AdamW's own: on this processor the square root that it takes is slower for exact zeros.\n"
    )
    return "\n".join(lines)


def _threshold() -> str:
    record = _load("threshold")
    lines = [
        "The exact global threshold, against `torch.kthvalue` of the joined magnitudes:\n",
        "| weights | prunus | kthvalue | extra memory, prunus | kthvalue |",
        "|---|---|---|---|---|",
    ]
    for size in record["sizes"]:
        ours, theirs = size["methods"]["prunus, with masks"], size["methods"]["kthvalue"]
        lines.append(
            f"| {size['weights'] / 1e6:.0f} M | {ours['median_ms']:.0f} ms "
            f"| {theirs['median_ms']:.0f} ms | {ours['extra_share']:.1%} of the weights "
            f"| {theirs['extra_share']:.0%} |"
        )
    lines.append(
        f"\n{_machine(record['environment'])}, {record['date'][:10]}, by "
        "`python -m benchmarks.speed.threshold`.\n"
    )
    return "\n".join(lines)


def _processes() -> str:
    record = _load("many_processes")
    lines = [
        "Several processes that hold one model together by `fully_shard`, each with as many "
        "weights as one alone:\n",
        "| processes | weights | one pruning | put in by each | AdamW's step | with prunus "
        "| put in by each |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['processes']} | {row['weights'] / 1e6:.1f} M | {row['event_ms']:.0f} ms "
        f"| {row['event_bytes'] / 1e3:.0f} kB | {row['step_ms']:.1f} ms "
        f"| {row['step_ratio']:.2f}× | {row['step_bytes']} B |"
        for row in record["measured"]
    ]
    paper = record["paper"]["events"]
    counts = sorted({row["processes"] for row in paper} - {1})
    lines += [
        f"\n{_machine(record['environment'])}, {record['date'][:10]}, gloo, by "
        f"`{record['command']}`; four processes share two cores. What each puts into the "
        "collectives is nearly doubled on its way around a ring. On paper, one pruning of "
        f"{record['paper']['assumptions']['tensors']} tensors takes, and each process sends, with "
        "the assumptions in the result file (none of it was measured on GPUs):\n",
        "| weights | " + " | ".join(f"{count:,} GPUs" for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for weights in sorted({row["weights"] for row in paper}):
        cells = [
            f"{row['seconds'] * 1e3:,.0f} ms, {row['bytes_sent_by_each'] / 1e3:.0f} kB each"
            for count in counts
            for row in paper
            if (row["weights"], row["processes"]) == (weights, count)
        ]
        lines.append(f"| {weights / 1e9:.0f} B | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _contract() -> str:
    record = _load("contract_table")
    layouts, bounds = record["layouts"], record["bounds"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for layout in layouts.values():
        for name, own in layout["distances"].items():
            rows.setdefault(name, []).append(own)
    special = [*bounds["at least, by optimizer"], *bounds["times, by optimizer"]]
    each = ", ".join(f"{layout['cells']:,} {name}" for name, layout in layouts.items())
    wrong = sum(len(layout["problems"]) for layout in layouts.values())
    lines = [
        "Every penalty, way and schedule, with every optimizer of `torch.optim` that takes dense "
        "gradients, in every precision, with and without accumulation, as far as torch offers it, "
        f"and in several processes ({each}), each held against the same training spelled out in "
        "float64: zeros and densities are exact, and the end is as far off as rounding makes it, "
        "in multiples of the whole way of the training:\n",
        "| precision | trainings | off at most | allowed |",
        "|---|---|---|---|",
    ]
    for name, allowed in bounds["by precision"].items():
        own = rows[name]
        lines.append(
            f"| {name} | {sum(row['cells'] for row in own):,} "
            f"| {max(row['largest'] for row in own):.2g} | {allowed:.2g} |"
        )
    lines.append(
        f"\n{_machine(record['environment'])}, {record['date'][:10]}, by "
        f"`{record['command']}`; {wrong or 'none'} of them off by more. Further off are optimizers "
        f"that round by themselves or for which the last bit decides, {', '.join(special)}: "
        "see the result file.\n"
    )
    return "\n".join(lines)


def _kills() -> str:
    record = _load("kills")
    kinds = record["kinds"]
    runs = sum(kind["runs"] for kind in kinds.values())
    times = sum(kind["disturbances"] for kind in kinds.values())
    lost = sum(kind["lost"] for kind in kinds.values())
    unequal = sum(kind["unequal"] for kind in kinds.values())
    return (
        f"Of {runs} runs of the command that were disturbed {times} times in all "
        f"({', '.join(kinds)}), {lost} were lost and {unequal} ended with other bits than the "
        f"undisturbed one; each of the {record['calls']} calls that change a file was the moment "
        f"of a SIGKILL at least once. {_machine(record['environment'])}, {record['date'][:10]}, by "
        f"`{record['command']}`.\n"
    )


def main() -> None:
    """Print the figures, or write them to their pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into their pages")
    write = parser.parse_args().write
    for page, figures in render().items():
        if write:
            page.write_text(MARKED.sub(figures.replace("\\", r"\\"), page.read_text()))
        else:
            print(f"{page.relative_to(ROOT)}:\n\n{figures}")


if __name__ == "__main__":
    main()
