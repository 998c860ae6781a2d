"""Whether a run of the command survives whatever stops it, and ends with the same bits.

A small recipe is run once undisturbed. Then it is run many times over and disturbed, each time in
one of these ways, several times in a row, and resumed until it ends:

- killed at random: SIGKILL after a delay drawn over the whole life of the process;
- killed at a call: SIGKILL just before, or within, one of the calls that change its files; every
  one of them has its turn;
- terminated: SIGTERM after such a delay. The process has to end with 143, having saved as far as it
  says, unless no run had begun in it or its run was over;
- full disk: no room from a certain call on, or a small file system of its own where one may be
  mounted. The process has to end with 2 and one message;
- damaged: killed, its newest checkpoint then cut short, zeroed, altered or deleted, and perhaps
  killed again as it is resumed. The one before has to be taken, and that has to be said.

After each disturbance every file has to be whole, and what is saved no less than before. In the end
files, metrics and summary have to equal those of the undisturbed run, but for times. Whatever falls
short is printed, counted, and makes this exit with 1.

Run from the repository's root: ``python -m benchmarks.robustness.kills``
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import options, save
from benchmarks.robustness.disturbed import Disturbance, disturbed
from prunus._utils.files import load_tree
from prunus.errors import CheckpointError

__all__ = ["Bench", "Disturbance", "Trial", "at_a_call", "damaged", "differences", "full_disk"]

RECIPE = "digits"
# Removals at nearly every step, momentum, a score with a memory, and a floor that decides which
# state is delivered: all that a checkpoint must hold.
SETTINGS: dict[str, Any] = {
    "dense_epochs": 2,
    "epochs": 4,
    "batch_size": 32,
    "schedule": "gradual",
    "end": 0.9,
    "ratio": 30,
    "score": "taylor",
    "strength": 1,
    "strength_follows": "linear",
    "floor": "dense-0.3",
}
PATIENCE = 300.0  # seconds until a process is taken to hang

Saved = tuple[int, int]
"""How far the newest checkpoint is: whole epochs, and steps of the next."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code, or minus the signal that ended it.
        text: What it printed.
        where: The call at which it was disturbed, if it was.
        calls: How many calls it made that change files.
    """

    code: int
    text: str
    where: str = ""
    calls: int = 0

    @property
    def phase(self) -> str:
        """What it was doing last, by what it printed."""
        seen = "start-up"
        marks = {"data:": "preparing", "dense:": "dense training", "prune:": "sparse training"}
        for line in self.text.splitlines():
            for mark, phase in marks.items():
                if line.startswith(mark):
                    seen = phase
            if line.startswith((RECIPE, "written to", "the run in")):
                seen = "after the run"
        return seen


@dataclass
class Trial:
    """One run and what became of it.

    Attributes:
        out: Its directory.
        hits: Where each disturbance met it.
        lost: What went wrong on the way, each in words.
        unequal: What in the end is not as in the undisturbed run.
        saved: How far it had come when last looked at.
    """

    out: Path
    hits: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    saved: Saved = (0, 0)

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.out / "config.json").exists()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.out / "checkpoints" / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The checkpoint before that."""
        return self.out / "checkpoints" / "previous.safetensors"

    def expect(self, condition: bool, otherwise: str) -> None:
        """Note what went wrong unless the condition holds."""
        if not condition:
            self.lost.append(otherwise)

    def look(self) -> None:
        """See that every file is whole, and that no less is saved than before."""
        for path in sorted(self.out.glob("checkpoints/*.safetensors")):
            if path.name != "dense.safetensors":  # that one is no tree, and read by the resumed run
                try:
                    load_tree(path)
                except CheckpointError as error:
                    self.lost.append(f"torn: {error}")
        saved = self._saved()
        self.expect(saved >= self.saved, f"{self.saved} was saved, of which {saved} is left")
        self.saved = saved
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        self.expect(lines >= saved[0], f"{lines} lines of metrics for {saved[0]} epochs")

    def _saved(self) -> Saved:
        if not self.last.exists():
            return (0, 0)
        state = load_tree(self.last)
        return (state["lines"], state["within"]["steps"] if state["within"] else 0)


class Bench:
    """Runs the recipe, as a command of its own or watched, and knows how it ends undisturbed.

    Args:
        folder: For everything that is written.

    Attributes:
        undisturbed: The directory of the undisturbed run.
        calls: How many calls it took.
        seconds: How long the command took at its quickest: until it trained, and from then on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.undisturbed = folder / "undisturbed"
        self.seconds = (math.inf, math.inf)
        self._runs = 0
        self._output = folder / "output"
        # What is forked off it has imported everything already.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["prunus.cli.app", "prunus.recipes.run.training", "sklearn.datasets", "torch._dynamo"]
        )
        self.calls = self.watched(Trial(self.undisturbed), Disturbance()).calls

    def trial(self) -> Trial:
        """Return a run that has yet to begin."""
        self._runs += 1
        return Trial(self.folder / f"run-{self._runs}" / "out")

    def watched(self, trial: Trial, disturbance: Disturbance) -> Ended:
        """Begin or resume a run in a process that disturbs itself."""
        report = self.folder / "report"
        process = self._context.Process(
            target=disturbed,
            args=(self._arguments(trial), trial.out, disturbance, self._output, report),
        )
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"{trial.out} hangs"
        told = json.loads(report.read_text())
        return Ended(process.exitcode, self._output.read_text(), told["where"], told["calls"])

    def signalled(
        self, trial: Trial, what: signal.Signals | None = None, draw: random.Random | None = None
    ) -> Ended:
        """Begin or resume a run by the command, and send it a signal at a random moment.

        Half of the times that is in the whole life of the process, most of which is start-up, half
        of the times after training began.
        """
        from_start = draw is None or draw.random() < 0.5
        span = sum(self.seconds) if from_start else self.seconds[1]
        delay = draw.uniform(0, span) if draw is not None else math.inf
        fresh, sent = not trial.begun, False
        with self._command(trial) as process:
            begun, started = time.perf_counter(), math.inf
            while process.poll() is None:
                now = time.perf_counter()
                assert now - begun < PATIENCE, f"{trial.out} hangs"
                if b" epochs" in self._output.read_bytes():
                    started = min(started, now)
                if what is not None and now - (begun if from_start else started) >= delay:
                    process.send_signal(what)
                    process.wait(PATIENCE)
                    sent = True
                time.sleep(0.002)
            ended = time.perf_counter()
        if fresh and not sent:
            # The quickest, or most signals would come too late.
            self.seconds = min(self.seconds, (started - begun, ended - started), key=sum)
        return Ended(process.returncode, self._output.read_text())

    def _arguments(self, trial: Trial) -> list[str]:
        settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        resume = ["--resume"] if trial.begun else settings
        return ["run", RECIPE, "--out", str(trial.out), *resume]

    def _command(self, trial: Trial) -> subprocess.Popen[bytes]:
        with self._output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "prunus", *self._arguments(trial)],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def finish(self, trial: Trial, ended: Ended | None = None) -> None:
        """Let a run end, and compare it."""
        ended = ended or self.watched(trial, Disturbance())
        if ended.code != 0:
            trial.lost.append(f"does not go on ({ended.code}): {ended.text[-2000:]}")
            return
        trial.unequal = differences(trial.out, self.undisturbed)


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two runs differ, other than times."""
    names = [
        {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
        for top in (one, other)
    ]
    found = [f"only one of them has {name}" for name in sorted(names[0] ^ names[1])]
    both = sorted(names[0] & names[1])
    differ = [name for name in both if _timeless(one / name) != _timeless(other / name)]
    return found + [f"{name} differs" for name in differ]


def _timeless(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [_without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "summary.json":
        return _without_seconds(json.loads(path.read_text()))
    if path.stem == "previous":
        return None  # after a stop within the last epoch it is the checkpoint of that
    if path.stem in ("last", "after-dense"):
        return _without_seconds(load_tree(path))
    return path.read_bytes()


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [_without_seconds(item) for item in value]
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), flat.numpy().tobytes()
    return value


def at_random(bench: Bench, draw: random.Random, _: int) -> Trial:
    """Kill a run at random moments, and resume it until it ends."""
    trial = bench.trial()

    def moment(ended: Ended) -> str:
        aside = [path for path in trial.out.rglob(".*.*") if path.is_file()]
        return "a file being written" if aside else ended.phase

    strike = partial(bench.signalled, trial, signal.SIGKILL, draw)
    return _killed(bench, trial, [strike] * draw.randint(1, 4), moment)


def at_a_call(bench: Bench, draw: random.Random, number: int) -> Trial:
    """Kill a run first at the call of this number and then at others, and resume it."""
    trial = bench.trial()
    calls = [number, *(draw.randint(1, bench.calls) for _ in range(draw.randint(0, 2)))]
    strikes = (
        partial(bench.watched, trial, Disturbance("kill", call, draw.random())) for call in calls
    )
    return _killed(bench, trial, strikes, lambda ended: ended.where)


def _killed(
    bench: Bench,
    trial: Trial,
    strikes: Iterable[Callable[[], Ended]],
    moment: Callable[[Ended], str],
) -> Trial:
    """Kill a run by each of these, unless it ends before, and let it end."""
    ended = None
    for strike in strikes:
        ended = strike()
        if ended.code == 0:
            break
        trial.expect(ended.code == -signal.SIGKILL, f"ended by itself: {ended.text[-2000:]}")
        trial.hits.append(moment(ended))
        trial.look()
        ended = None
    bench.finish(trial, ended)
    return trial


def terminated(bench: Bench, draw: random.Random, _: int) -> Trial:
    """Terminate a run at random moments, and resume it until it ends."""
    trial, ended = bench.trial(), None
    for _ in range(draw.randint(1, 4)):
        ended = bench.signalled(trial, signal.SIGTERM, draw)
        if ended.code == 0:
            trial.hits.append(f"{ended.phase}: went on to the end")
            break
        trial.look()
        if ended.code == 143:
            trial.hits.append(f"{ended.phase}: saved")
            said = _said_to_be_saved(ended.text)
            trial.expect(said == trial.saved, f"said {said} but saved {trial.saved}")
        else:
            trial.hits.append(f"{ended.phase}: ended at once")
            harmless = ended.phase == "start-up" or (trial.out / "summary.json").exists()
            trial.expect(
                ended.code == -signal.SIGTERM and harmless,
                f"ended with {ended.code} in {ended.phase}: {ended.text[-2000:]}",
            )
        ended = None
    bench.finish(trial, ended)
    return trial


def _said_to_be_saved(text: str) -> Saved | None:
    said = re.search(r"stopped after (?:step (\d+) of )?epoch (\d+) \((dense|prune)\)", text)
    if said is None:
        return None
    epochs = int(said[2]) + (SETTINGS["dense_epochs"] if said[3] == "prune" else 0)
    return (epochs - 1, int(said[1])) if said[1] else (epochs, 0)


def full_disk(bench: Bench, draw: random.Random, number: int) -> Trial:
    """Leave a run no room from the call of this number on, then make room and resume it."""
    trial = bench.trial()
    ended = bench.watched(trial, Disturbance("full", number, draw.random()))
    if ended.where:
        trial.hits.append(ended.where)
        _refused_for_room(trial, ended)
    bench.finish(trial, None if ended.where else ended)
    return trial


def small_disk(bench: Bench, draw: random.Random, _: int) -> Trial:
    """Give a run a file system of its own that is too small, then enlarge it and resume."""
    trial = bench.trial()
    disk = trial.out.parent
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={draw.randint(16, 2600)}k", "tmpfs", str(disk)]
    subprocess.run(mounting, check=True)
    try:
        ended = bench.watched(trial, Disturbance())
        if ended.code != 0:
            refused = re.search(rf"cannot write {re.escape(str(trial.out))}/?(\S*):", ended.text)
            trial.hits.append(refused[1] or "." if refused else "elsewhere")
            _refused_for_room(trial, ended)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        bench.finish(trial, ended if ended.code == 0 else None)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return trial


def _refused_for_room(trial: Trial, ended: Ended) -> None:
    one = ended.text.count("error: ") == 1 and "Traceback" not in ended.text
    said = one and os.strerror(28) in ended.text and "make room" in ended.text
    trial.expect(ended.code == 2 and said, f"ended with {ended.code}: {ended.text[-2000:]}")
    trial.expect(trial.begun or not trial.out.exists(), "left something of a run that never began")
    trial.look()


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "emptied": lambda content, draw: b"",
    "zeroed": lambda content, draw: bytes(len(content)),
    "zeroed at its end": lambda content, draw: _zeroed(content, draw.randrange(len(content))),
    "a bit flipped": lambda content, draw: _flipped(content, draw.randrange(len(content) * 8)),
    "deleted": lambda content, draw: None,
}


def _zeroed(content: bytes, begin: int) -> bytes:
    return content[:begin] + bytes(len(content) - begin)


def _flipped(content: bytes, bit: int) -> bytes:
    altered = bytearray(content)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def damaged(bench: Bench, draw: random.Random, number: int) -> Trial:
    """Kill a run that has two checkpoints, damage the newer, and resume it."""
    while True:
        trial = bench.trial()
        at = draw.randint(bench.calls // 4, bench.calls)
        ended = bench.watched(trial, Disturbance("kill", at, draw.random()))
        trial.look()
        over = (trial.out / "summary.json").exists()
        # Between two renames the one before is the same file as the newest.
        if not over and trial.previous.exists() and not trial.last.samefile(trial.previous):
            break
    names = list(DAMAGES)
    damage = names[number % len(names)]
    trial.hits.append(damage)
    content = DAMAGES[damage](trial.last.read_bytes(), draw)
    if content is None:
        trial.last.unlink()
    else:
        trial.last.write_bytes(content)
    ended = bench.watched(trial, Disturbance("kill", draw.randint(0, 10)))
    text = ended.text
    if ended.code == -signal.SIGKILL:  # again, while it puts the one before in the newest's place
        ended = bench.watched(trial, Disturbance())
        text += ended.text
    said = "Going on from the one before it" in text
    trial.expect(said, f"nothing said of a checkpoint {damage}: {text[-2000:]}")
    bench.finish(trial, ended)
    return trial


KINDS = {
    "killed at random": at_random,
    "killed at a call": at_a_call,
    "terminated": terminated,
    "full disk": full_disk,
    "small disk": small_disk,
    "damaged": damaged,
}


def _may_mount(folder: Path) -> bool:
    disk = folder / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        if subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
            return False
    except FileNotFoundError:
        return False
    subprocess.run(["umount", str(disk)], check=True)
    return True


def measure(bench: Bench, kind: str, runs: int, seed: int) -> dict[str, Any]:
    """Disturb so many runs in one way."""
    order = list(range(1, bench.calls + 1))
    random.Random(seed).shuffle(order)
    hits: Counter[str] = Counter()
    lost = unequal = 0
    for number in range(runs):
        draw = random.Random(f"{seed} {kind} {number}")
        trial = KINDS[kind](bench, draw, order[number % len(order)])
        hits.update(trial.hits)
        lost, unequal = lost + bool(trial.lost), unequal + bool(trial.unequal)
        for what in (*trial.lost, *trial.unequal):
            print(f"{kind}, run {number}, after {trial.hits}: {what}", flush=True)
        shutil.rmtree(trial.out.parent)
    figures = {"runs": runs, "disturbances": hits.total(), "lost": lost, "unequal": unequal}
    print(f"{kind}: " + ", ".join(f"{value} {name}" for name, value in figures.items()), flush=True)
    return {**figures, "where": dict(sorted(hits.items()))}


def main() -> None:
    """Disturb runs in all ways, write the result file."""
    parser = options("Runs that are killed, terminated, out of room or damaged.", "kills")
    parser.add_argument("--runs", type=int, help="of each kind; default: as many as make sense")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ |= {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for _ in range(3):
            bench.signalled(bench.trial())
        runs = {
            "killed at random": 20,
            "killed at a call": bench.calls,
            "terminated": 10,
            "full disk": 40,
            "small disk": 12 if _may_mount(bench.folder) else 0,
            "damaged": 24,
        }
        kinds = {}
        for kind, most in runs.items():
            few = 2 if arguments.quick else arguments.runs
            kinds[kind] = measure(
                bench, kind, most if few is None else min(few, most), arguments.seed
            )
        calls = bench.calls
    figures = {"recipe": RECIPE, "settings": SETTINGS, "calls": calls, "kinds": kinds}
    save(arguments.out, arguments.seed, figures)
    sys.exit(any(kind["lost"] or kind["unequal"] for kind in kinds.values()))


if __name__ == "__main__":
    main()
