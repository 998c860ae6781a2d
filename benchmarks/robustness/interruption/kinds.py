"""Kinds of disturbance: kills, SIGTERM, full disks and damaged checkpoints."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.robustness.interruption.calls import Disturbance
from benchmarks.robustness.interruption.runs import SETTINGS, Ended, Runner, Saved, Trial


def at_random(runner: Runner, draw: random.Random, _: int) -> Trial:
    """Kill a run at random moments, and resume it until it ends."""
    trial = runner.trial()

    def moment(ended: Ended) -> str:
        aside = [path for path in trial.out.rglob(".*.*") if path.is_file()]
        return "a file being written" if aside else ended.phase

    strike = partial(runner.signalled, trial, signal.SIGKILL, draw)
    return _killed(runner, trial, [strike] * draw.randint(1, 4), moment)


def at_a_call(runner: Runner, draw: random.Random, number: int) -> Trial:
    """Kill a run first at the call of this number and then at others, and resume it."""
    trial = runner.trial()
    calls = [number, *(draw.randint(1, runner.calls) for _ in range(draw.randint(0, 2)))]
    strikes = (
        partial(runner.watched, trial, Disturbance("kill", call, draw.random())) for call in calls
    )
    return _killed(runner, trial, strikes, lambda ended: ended.where)


def _killed(
    runner: Runner,
    trial: Trial,
    strikes: Iterable[Callable[[], Ended]],
    moment: Callable[[Ended], str],
) -> Trial:
    """Kill a run by each strike, unless it ends before, and resume it until its end."""
    ended = None
    for strike in strikes:
        ended = strike()
        if ended.code == 0:
            break
        trial.expect(
            ended.code == -signal.SIGKILL, f"ended without the signal: {ended.text[-2000:]}"
        )
        trial.hits.append(moment(ended))
        trial.inspect()
        ended = None
    runner.finish(trial, ended)
    return trial


def terminated(runner: Runner, draw: random.Random, _: int) -> Trial:
    """Terminate a run at random moments, and resume it until it ends."""
    trial, ended = runner.trial(), None
    for _ in range(draw.randint(1, 4)):
        ended = runner.signalled(trial, signal.SIGTERM, draw)
        if ended.code == 0:
            trial.hits.append(f"{ended.phase}: ran to the end")
            break
        trial.inspect()
        if ended.code == 143:
            trial.hits.append(f"{ended.phase}: saved")
            reported = _reported_as_saved(ended.text)
            trial.expect(reported == trial.saved, f"reported {reported} but saved {trial.saved}")
        else:
            trial.hits.append(f"{ended.phase}: ended at once")
            harmless = ended.phase == "start-up" or (trial.out / "summary.json").exists()
            trial.expect(
                ended.code == -signal.SIGTERM and harmless,
                f"ended with {ended.code} in {ended.phase}: {ended.text[-2000:]}",
            )
        ended = None
    runner.finish(trial, ended)
    return trial


def _reported_as_saved(text: str) -> Saved | None:
    found = re.search(r"stopped after (?:step (\d+) of )?epoch (\d+) \((dense|prune)\)", text)
    if found is None:
        return None
    epochs = int(found[2]) + (SETTINGS["dense_epochs"] if found[3] == "prune" else 0)
    return (epochs - 1, int(found[1])) if found[1] else (epochs, 0)


def full_disk(runner: Runner, draw: random.Random, number: int) -> Trial:
    """Fill the disk of a run from the call of this number on, then make room and resume it."""
    trial = runner.trial()
    ended = runner.watched(trial, Disturbance("full", number, draw.random()))
    if ended.where:
        trial.hits.append(ended.where)
        _check_full_disk_error(trial, ended)
    runner.finish(trial, None if ended.where else ended)
    return trial


def small_disk(runner: Runner, draw: random.Random, _: int) -> Trial:
    """Run in a file system that is too small, then enlarge it and resume."""
    trial = runner.trial()
    disk = trial.out.parent
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={draw.randint(16, 2600)}k", "tmpfs", str(disk)]
    subprocess.run(mounting, check=True)
    try:
        ended = runner.watched(trial, Disturbance())
        if ended.code != 0:
            refused = re.search(rf"cannot write {re.escape(str(trial.out))}/?(\S*):", ended.text)
            trial.hits.append(refused[1] or "." if refused else "elsewhere")
            _check_full_disk_error(trial, ended)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        runner.finish(trial, ended if ended.code == 0 else None)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return trial


def _check_full_disk_error(trial: Trial, ended: Ended) -> None:
    one = ended.text.count("error: ") == 1 and "Traceback" not in ended.text
    complete = one and os.strerror(28) in ended.text and "make room" in ended.text
    trial.expect(ended.code == 2 and complete, f"ended with {ended.code}: {ended.text[-2000:]}")
    trial.expect(trial.begun or not trial.out.exists(), "left files of a run that never began")
    trial.inspect()


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


def damaged(runner: Runner, draw: random.Random, number: int) -> Trial:
    """Kill a run that has two checkpoints, damage the newer, and resume it."""
    while True:
        trial = runner.trial()
        at = draw.randint(runner.calls // 4, runner.calls)
        ended = runner.watched(trial, Disturbance("kill", at, draw.random()))
        trial.inspect()
        over = (trial.out / "summary.json").exists()
        # Between two renames both checkpoints are the same file.
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
    ended = runner.watched(trial, Disturbance("kill", draw.randint(0, 10)))
    text = ended.text
    if ended.code == -signal.SIGKILL:  # while it replaces the newest by the one before
        ended = runner.watched(trial, Disturbance())
        text += ended.text
    reported = "Resuming from the previous one" in text
    trial.expect(reported, f"no message about a checkpoint {damage}: {text[-2000:]}")
    runner.finish(trial, ended)
    return trial


KINDS = {
    "killed at random": at_random,
    "killed at a call": at_a_call,
    "terminated": terminated,
    "full disk": full_disk,
    "small disk": small_disk,
    "damaged": damaged,
}
