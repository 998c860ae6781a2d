"""The k-th smallest magnitude over many tensors: prunus beside concatenating them.

Time is the median of interleaved calls in one process. Extra memory is the peak of the resident set
during one call minus its size before the call, in a new process for each method that holds the
weights and has called the method once on a few of them; it includes all allocations, by PyTorch or
not. The peak is reset through Linux's /proc/self/clear_refs, because the one that ``getrusage``
reports includes imports and the parent process; so the benchmark needs Linux. Every call must find
the same value.

Run from the repository's root: ``python -m benchmarks.speed.threshold``
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import options, save
from prunus._engine.kth_smallest import SCORE_CHUNK, ScoreChunk, kth_smallest
from prunus._utils.chunks import chunks
from prunus._utils.timing import interleaved, spread

TENSORS = 8
FRACTION = 0.9

Weights = Sequence[torch.Tensor]


def prunus(weights: Weights, k: int, masks: Weights | None = None) -> float:
    """Compute it by prunus._engine.kth_smallest, called as pruning calls it."""

    def scores() -> Iterator[ScoreChunk]:
        for i, weight in enumerate(weights):
            operands = (weight,) if masks is None else (weight, masks[i])
            for part, *kept in chunks(*operands, size=SCORE_CHUNK):
                yield ScoreChunk(str(i), part.abs(), kept[0] if kept else None)

    return kth_smallest(scores, k).value


def kthvalue(weights: Weights, k: int) -> float:
    """Compute it by torch.kthvalue of the concatenation."""
    return torch.cat([weight.abs() for weight in weights]).kthvalue(k).values.item()


def topk(weights: Weights, k: int) -> float:
    """Compute it by torch.topk of the concatenation, from the top, where fewer elements are."""
    magnitudes = torch.cat([weight.abs() for weight in weights])
    return magnitudes.topk(magnitudes.numel() - k + 1, sorted=False).values.min().item()


def sort(weights: Weights, k: int) -> float:
    """Compute it by torch.sort of the concatenation."""
    return torch.cat([weight.abs() for weight in weights]).sort().values[k - 1].item()


METHODS: dict[str, Callable[..., float]] = {
    "prunus": prunus,
    "prunus, with masks": prunus,
    "kthvalue": kthvalue,
    "topk": topk,
    "sort": sort,
}


def prepared(method: str, total: int, seed: int) -> Callable[[], float]:
    """Return a call of a method on ``total`` weights, in tensors of growing sizes."""
    generator = torch.Generator().manual_seed(seed)
    ends = [total * i * (i + 1) // (TENSORS * (TENSORS + 1)) for i in range(TENSORS + 1)]
    weights = [
        torch.empty(end - start).normal_(generator=generator)
        for start, end in itertools.pairwise(ends)
    ]
    call = functools.partial(METHODS[method], weights, round(FRACTION * total))
    if method.endswith("masks"):
        call.keywords["masks"] = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    return call


def extra_bytes(method: str, total: int, seed: int, threads: int) -> tuple[int, float]:
    """Return by how much a call raises the peak of this new process, and the value it finds."""
    torch.set_num_threads(threads)
    prepared(method, min(total, 1 << 18), seed)()
    call = prepared(method, total, seed)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    value = call()
    return _peak_bytes() - before, value


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def measure(total: int, *, rounds: int, seed: int, threads: int) -> dict[str, Any]:
    """Measure memory, then time, of every method; all have to find the same value."""
    extra, found = {}, {}
    for name in METHODS:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
            task = pool.submit(extra_bytes, name, total, seed, threads)
            extra[name], found[name] = task.result()
    calls = {name: prepared(name, total, seed) for name in METHODS}
    found |= {f"{name} (timed)": call() for name, call in calls.items()}
    assert len(set(found.values())) == 1, f"not the same value: {found}"
    seconds = interleaved(calls, rounds=rounds, seed=seed)
    return {
        name: {
            **spread(seconds[name]),
            "extra_bytes": extra[name],
            "extra_share": extra[name] / (total * torch.float32.itemsize),
        }
        for name in METHODS
    }


def _table(total: int, figures: dict[str, Any]) -> str:
    lines = [f"\n{total:,} float32 weights in {TENSORS} tensors, k = {FRACTION:.0%}"]
    lines.append(f"{'method':20}{'ms':>10}   {'quartiles':24}{'extra MiB':>10}{'of weights':>12}")
    for name, f in figures.items():
        quartiles = f"{f['quartile_1_ms']:.1f} to {f['quartile_3_ms']:.1f}"
        lines.append(
            f"{name:20}{f['median_ms']:10.1f}   {quartiles:24}"
            f"{f['extra_bytes'] / 2**20:10.1f}{f['extra_share']:12.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all sizes, print a table of each, write the result file."""
    arguments = options("The k-th smallest magnitude over many tensors.", "threshold").parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for millions, rounds in ((1, 50), (21, 15), (64, 7)):
        total = millions * 1_000_000
        rounds = 2 if arguments.quick else rounds
        figures = measure(total, rounds=rounds, seed=arguments.seed, threads=arguments.threads)
        print(_table(total, figures), flush=True)
        results.append({"weights": total, "rounds": rounds, "methods": figures})
    save(arguments.out, arguments.seed, {"tensors": TENSORS, "share": FRACTION, "sizes": results})


if __name__ == "__main__":
    main()
