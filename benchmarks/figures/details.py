"""Figures of ``docs/figures.md``: parts of the library, measured and checked."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.figures.common import load, machine
from benchmarks.measuring import RESULTS

EXCLUDED_MATRICES = {
    (dtype, sparsity) for dtype in ("bfloat16", "int8") for sparsity in (0.95, 0.98)
}
"""Type and sparsity of matrices that are not shown."""

VARIANTS = {
    "default method": "default method",
    "default method, 90 % removed": "default method, 90% removed",
    "prunus": "prunus",
    "prunus, 90 % removed": "prunus, 90% removed",
    "prunus, decoupled": "prunus, decoupled",
    "two backward passes": "two backward passes, as in the authors' code",
    "LOBSTER-style loop": "a loop over tensors after the step, LOBSTER-style",
}

EXCLUDED_KERNELS = {
    *(("linear", size, batch) for size in (256, 4096) for batch in (16, 100)),
    *(("linear", size, 256) for size in (256, 4096)),
    *(("convolution", size, 1) for size in (16, 32, 64, 128, 256)),
}
"""Layer, width and batch of timings that are not shown."""


def kernels() -> str:
    """Return the table of sparse layers beside dense ones and CSR."""
    record = load("kernels")
    shown = (0.7, 0.85, 0.9, 0.95, 0.99)
    lines = [
        "Sparse layers against torch's dense ones and its CSR matrix, one thread, how many times "
        "faster than dense; activations are stored feature by feature for sparse and CSR, pixel "
        "by pixel for convolutions:\n",
        "| layer | batch | " + " | ".join(f"{s:.0%} zeros" for s in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    layers: dict[tuple[Any, ...], dict[float, Any]] = {}
    for row in record["rows"]:
        key = (row["layer"], tuple(row["shape"]), row.get("image"), row["batch"])
        layers.setdefault(key, {})[row["sparsity"]] = row["times_faster_than_dense"]
    for (layer, shape, image, batch), rows in layers.items():
        if (layer, shape[0], batch) in EXCLUDED_KERNELS or shape[0] != shape[1]:
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
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by "
        "`python -m benchmarks.speed.kernels`; medians of interleaved calls, further shapes in its "
        f"result file. At best, torch's dense layers reach {dense:.0f} GFLOP/s, the sparse kernel "
        f"{record['peak_gflops']:.0f} on one cache line, and sparse layers "
        f"{sparse:.0f}; memory is copied at {record['copy_gb_per_s']:.0f} GB/s. "
        f"{_against_csr(record)}."
    )
    if (RESULTS / "kernels-2-threads.json").exists():
        lines.append(_two_threads())
    return "\n".join([*lines, ""])


def _two_threads() -> str:
    """Return the sentences about two threads."""
    record = load("kernels-2-threads")
    faster = {
        row["sparsity"]: row["times_faster_than_dense"]["sparse"]
        for row in record["rows"]
        if (row["layer"], row["shape"], row["batch"]) == ("linear", [1024, 1024], 64)
    }
    shown = ", ".join(f"{faster[s]:.1f} at {s:.0%}" for s in (0.7, 0.9, 0.95, 0.99))
    return (
        "\nWith two threads for both, a sparse linear layer of 1024×1024 on a batch of 64 is this "
        f"many times faster than a dense one: {shown} ({machine(record['environment'])}, "
        f"{record['date'][:10]}, by `{record['command']}`). {_against_csr(record)}."
    )


def _against_csr(record: dict[str, Any]) -> str:
    """Return in how many rows CSR is faster, and by how much."""
    medians = [
        {name: each["median_ms"] for name, each in row["times"].items()}
        for row in record["rows"]
        if "csr" in row["times"]
    ]
    behind = [each["sparse"] / each["csr"] - 1 for each in medians if each["csr"] < each["sparse"]]
    if not behind:
        return f"CSR is slower in all of {len(medians)} rows"
    return f"CSR is faster in {len(behind)} of {len(medians)} rows, by {max(behind):.1%} at most"


def precisions() -> str:
    """Return the table of sparse linear layers in three types beside the fastest dense one."""
    record = load("precisions")
    sparse = {
        "sparse float32": "float32",
        "sparse bfloat16": "bfloat16",
        "sparse bfloat16, 1×2": "bfloat16, blocks 1×2",
        "sparse int8": "int8",
        "sparse int8, 1×4": "int8, blocks 1×4",
    }
    lines = [
        "Sparse linear layers in three types, how many times faster than the fastest dense layer "
        "of any type: torch's in float32, bfloat16 and int8, and onnxruntime's in int8. Zeros are "
        "at random places, or in blocks of a row:\n",
        f"| layer | zeros | batch | fastest dense | {' | '.join(sparse.values())} |",
        "|---|---|---|---|" + "---|" * len(sparse),
    ]
    for row in record["rows"]:
        medians = {name: each["median_ms"] for name, each in row["times"].items()}
        dense = {name.removeprefix("dense "): ms for name, ms in medians.items() if "dense" in name}
        fastest = min(dense, key=lambda name: dense[name])
        cells = [f"{dense[fastest] / medians[name]:.2f}" for name in sparse]
        lines.append(
            f"| {'×'.join(map(str, row['shape']))} | {row['sparsity']:.0%} | {row['batch']} "
            f"| {fastest}: {dense[fastest]:.3g} ms | {' | '.join(cells)} |"
        )
    lines.append(
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by `{record['command']}`; "
        "medians of interleaved calls, in processor time. All layers but dense ones in bfloat16 "
        "have inputs and outputs in float32.\n"
    )
    return "\n".join(lines)


def under_load() -> str:
    """Return the sentences about decisions on a busy machine."""
    record = load("under_load")
    functions = {name: record[name] for name in ("speed_up", "bench")}
    calls = ", ".join(
        f"`{name}` {each['quiet']['calls']} times alone and {each['busy']['calls']} times beside"
        for name, each in functions.items()
    )
    problems = [problem for each in functions.values() for problem in each["problems"]]
    found = "; ".join(problems) or (
        "all calls decided alike, and no ratio of two times was more than twice the median of the "
        "calls alone, or less than half of it"
    )
    return (
        f"One sparse network, beside {record['busy_processes']} processes that keep the machine "
        f"busy ({calls}): {found}. {machine(record['environment'])}, {record['date'][:10]}, by "
        f"`{record['command']}`.\n"
    )


def sparse_files() -> str:
    """Return the table of sizes and speeds of sparse files."""
    record, fuzzed = load("sparse_files"), load("fuzz_sparse_files")
    lines = [
        "Sparse files of matrices with zeros at random, in multiples of the smallest possible "
        "size, and megabytes of the dense matrix per second:\n",
        "| type | zeros | prunus | safetensors | numpy, compressed | prunus reads | writes |",
        "|---|---|---|---|---|---|---|",
    ]
    for matrix in record["matrices"]:
        if matrix["sparsity"] < 0.9 or (matrix["dtype"], matrix["sparsity"]) in EXCLUDED_MATRICES:
            continue
        methods = matrix["methods"]
        sizes = [f"{methods[m]['of_bound']:.3f}" for m in methods]
        ours = methods["prunus"]
        lines.append(
            f"| {matrix['dtype']} | {matrix['sparsity']:.0%} | {' | '.join(sizes)} "
            f"| {ours['read_MB_per_s']:,.0f} | {ours['write_MB_per_s']:,.0f} |"
        )
    lines.append(
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by "
        f"`python -m benchmarks.speed.sparse_files`. Of {fuzzed['files']:,} sparse files damaged "
        f"at random, {fuzzed['outcomes']['refused']:,} were rejected with one `SparseFileError` "
        f"and {fuzzed['outcomes']['read']:,}, whose damage cannot be detected, were read, each "
        f"within {fuzzed['slowest_seconds']:.2f} s and twice the memory allowed to the reader, by "
        "`python -m benchmarks.robustness.fuzz_sparse_files`.\n"
    )
    return "\n".join(lines)


def int8() -> str:
    """Return the table of sparse networks in int8: metrics and sizes."""
    record = load("int8")
    lines = [
        "Sparse networks of recipes, their accuracy on the test split as mean and standard "
        "deviation over the seeds, and the bytes of their files:\n",
        "| recipe | zeros | seeds | float32 | sparse file in int8 | ONNX in int8 "
        "| sparse file | in int8 | ONNX | in int8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    settings: list[str] = []
    recipes = dict.fromkeys(network["recipe"] for network in record["networks"])
    for recipe in recipes:
        networks = [network for network in record["networks"] if network["recipe"] == recipe]
        cells = []
        for variant in ("float32", "int8, sparse file", "int8, onnxruntime"):
            tested = [100 * network[variant]["test"] for network in networks]
            cells.append(f"{statistics.mean(tested):.2f} ± {statistics.stdev(tested):.2f}")
        files = ("sparse file", "sparse file, int8", "onnx", "onnx, int8")
        cells += [f"{statistics.mean(n['bytes'][f] for n in networks):,.0f}" for f in files]
        changed = [f"{name}={value}" for name, value in networks[0]["settings"].items()]
        settings.append(f"`{recipe}` with {', '.join(changed)}")
        zeros = statistics.mean(network["sparsity"] for network in networks)
        lines.append(f"| `{recipe}` | {zeros:.0%} | {len(networks)} | {' | '.join(cells)} |")
    lines.append(
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by "
        f"`python -m benchmarks.studies.int8` on runs of {' and of '.join(settings)}.\n"
    )
    return "\n".join(lines)


def overhead() -> str:
    """Return the table of the time of a training step."""
    record = load("step_overhead")
    lines = ["A training step, in multiples of the same step with AdamW alone:"]
    for fused, optimizer in ((False, "AdamW"), (True, "AdamW(fused=True)")):
        cases = [case for case in record["cases"] if case.get("fused", False) is fused]
        if not cases:
            continue
        titles = [f"{case['case']}, batch {case['batch']}" for case in cases]
        lines.append(f"\n| {optimizer} | {' | '.join(titles)} |")
        lines.append("|---|" + "---|" * len(cases))
        for variant, title in VARIANTS.items():
            if all(variant in case["variants"] for case in cases):
                cells = [f"{case['variants'][variant]['ratio']:.2f}" for case in cases]
                lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append(
        f"\n{machine(record['environment'])}, {record['date'][:10]}; medians of interleaved "
        "steps, by `python -m benchmarks.speed.step_overhead`.\n"
    )
    return "\n".join(lines)


def sparse_training() -> str:
    """Return the table of the time of a training step with sparse layers."""
    record = load("sparse_training")
    perceptron = f"perceptron {record['layers']} x {record['width']}"
    titles = {
        perceptron: f"{perceptron}, batch {record['batch']}",
        "gpt2": "GPT-2 of `shakespeare-lm`",
        "gpt2, linear layers": "the same with `nn.Linear` in place of `Conv1D`",
    }
    lines = [
        "A training step with `AdamW(fused=True)`, by `SparseTraining` in multiples of the dense "
        "step without a pruner; and the milliseconds of its parts beside those of the dense step:"
        "\n",
        "| network | removed | threads | ratio | forward and backward | AdamW "
        "| hooks of the pruner |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        dense, sparse = (case["variants"][name] for name in ("dense", "pruned, sparse layers"))
        (passes, update), (before, alone) = (
            variant["parts_ms"].values() for variant in (sparse, dense)
        )
        lines.append(
            f"| {titles[case.get('network', perceptron)]} | {case['sparsity']:.0%} "
            f"| {case['threads']} | {sparse['ratio']:.2f} "
            f"| {passes:.0f} instead of {before:.0f} | {alone:.0f} | {update - alone:.0f} |"
        )
    processor, cores = (record["environment"][key] for key in ("processor", "cores"))
    lines.append(
        f"\n{processor}, {cores} cores, torch {record['environment']['torch']}, "
        f"{record['date'][:10]}; medians of interleaved steps, with one thread in processor time, "
        "by `python -m benchmarks.speed.sparse_training`.\n"
    )
    return "\n".join(lines)


def threshold() -> str:
    """Return the table of the k-th smallest score."""
    record = load("threshold")
    lines = [
        "The exact global threshold, against `torch.kthvalue` of the concatenated magnitudes:\n",
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
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by "
        "`python -m benchmarks.speed.threshold`.\n"
    )
    return "\n".join(lines)


def processes() -> str:
    """Return the tables of sharded models, measured and estimated."""
    record = load("many_processes")
    lines = [
        "Several processes that shard one model by `fully_shard`; the number of weights in each "
        "process is constant:\n",
        "| processes | weights | one pruning | bytes per process | AdamW's step | with prunus "
        "| bytes per process |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['processes']} | {row['weights'] / 1e6:.1f} M | {row['event_ms']:.0f} ms "
        f"| {row['event_bytes'] / 1e3:.0f} kB | {row['step_ms']:.1f} ms "
        f"| {row['step_ratio']:.2f}× | {row['step_bytes']} B |"
        for row in record["measured"]
    ]
    estimates = record["paper"]["events"]
    counts = sorted({row["processes"] for row in estimates} - {1})
    lines += [
        f"\n{machine(record['environment'])}, {record['date'][:10]}, gloo, by "
        f"`{record['command']}`; four processes share two cores. The bytes are those passed to "
        "collectives; a ring sends nearly twice as many. Estimated time of one pruning of "
        f"{record['paper']['assumptions']['tensors']} tensors, and bytes sent by each process, "
        "under the assumptions in the result file (nothing was measured on GPUs):\n",
        "| weights | " + " | ".join(f"{count:,} GPUs" for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for weights in sorted({row["weights"] for row in estimates}):
        cells = [
            f"{row['seconds'] * 1e3:,.0f} ms, {row['bytes_sent_by_each'] / 1e3:.0f} kB each"
            for count in counts
            for row in estimates
            if (row["weights"], row["processes"]) == (weights, count)
        ]
        lines.append(f"| {weights / 1e9:.0f} B | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def contract() -> str:
    """Return the table of trainings compared with a float64 reference."""
    record = load("contract_table")
    layouts, bounds = record["layouts"], record["bounds"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for layout in layouts.values():
        for name, distances in layout["distances"].items():
            rows.setdefault(name, []).append(distances)
    special = [*bounds["at least, by optimizer"], *bounds["times, by optimizer"]]
    each = ", ".join(f"{layout['cells']:,} {name}" for name, layout in layouts.items())
    wrong = sum(len(layout["problems"]) for layout in layouts.values())
    lines = [
        "Every penalty, `apply=` and schedule, with every optimizer of `torch.optim` that accepts "
        "dense gradients, in every precision, with and without accumulation, and in several "
        f"processes, as far as torch supports it ({each}). Each training is compared with the same "
        "formulas in float64: zeros and densities are exact; the distance between the final "
        "weights, relative to the distance travelled in training, is due to rounding:\n",
        "| precision | trainings | largest distance | allowed |",
        "|---|---|---|---|",
    ]
    for name, allowed in bounds["by precision"].items():
        found = rows[name]
        lines.append(
            f"| {name} | {sum(row['cells'] for row in found):,} "
            f"| {max(row['largest'] for row in found):.2g} | {allowed:.2g} |"
        )
    lines.append(
        f"\n{machine(record['environment'])}, {record['date'][:10]}, by "
        f"`{record['command']}`; {wrong or 'none'} of them exceeded the bound. Wider bounds "
        "apply to optimizers that round to bfloat16 themselves or depend on single bits: "
        f"{', '.join(special)} (see the result file).\n"
    )
    return "\n".join(lines)


def kills() -> str:
    """Return the sentence about interrupted runs."""
    record = load("kills")
    disturbances = record["kinds"]
    runs, times, lost, unequal = (
        sum(kind[figure] for kind in disturbances.values())
        for figure in ("runs", "disturbances", "lost", "unequal")
    )
    return (
        f"Of {runs} runs of the command, disturbed {times} times in all "
        f"({', '.join(disturbances)}), {lost} were lost and {unequal} ended with different bits "
        f"than the undisturbed run; each of the {record['calls']} calls that change a file was "
        f"interrupted by SIGKILL at least once. {machine(record['environment'])}, "
        f"{record['date'][:10]}, by `{record['command']}`.\n"
    )
