"""Small text data sets with the columns of the real ones, which a small network can learn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from helpers.commands import settings
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.sequence_to_sequence import SequenceConfig

SIZES = {"train": 96, "validation": 12, "test": 12}

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
GERMAN = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht"]

# Enough for every number above, with 256 bytes and the special tokens.
SMALL: dict[str, Any] = {
    "vocabulary": 290,
    "length": 48,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "feed_forward": 16,
    "dropout": 0.1,
    "batch_size": 16,
    "dense_epochs": 2,
    "epochs": 2,
    "ratio": 3,
    "schedule": "gradual",
    "floor": "none",
}


def write(folder: Path, split: str, columns: Mapping[str, Sequence[Any]]) -> None:
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(dict(columns)).to_parquet(path)


def counting(count: int, seed: str) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    picked = [[draw.randrange(8) for _ in range(draw.randint(2, 5))] for _ in range(count)]
    return (
        [" ".join(ENGLISH[i] for i in numbers) for numbers in picked],
        [" ".join(GERMAN[i] for i in numbers) for numbers in picked],
    )


def multi30k(folder: Path) -> Path:
    for split, count in SIZES.items():
        english, german = counting(count, split)
        write(folder, split, {"en": english, "de": german})
    return folder


def wmt14(folder: Path) -> Path:
    for split, count in SIZES.items():
        pairs = zip(*counting(count, split), strict=True)
        write(folder, split, {"translation": [{"de": de, "en": en} for en, de in pairs]})
    return folder


def taskmaster4(folder: Path) -> Path:
    for split, count in SIZES.items():
        asked, answers = counting(count, split)
        said = [[q, a, "and then", "done"] for q, a in zip(asked, answers, strict=True)]
        write(
            folder,
            split,
            {
                "conversation_id": [f"{split}-{i}" for i in range(count)],
                "speaker": [["user", "assistant", "user", "assistant"]] * count,
                "text": said,
            },
        )
    return folder


def taskmaster1(folder: Path) -> Path:
    for split, count in SIZES.items():
        turns = [
            [
                {"index": 0, "speaker": "USER", "text": question, "segments": []},
                {"index": 1, "speaker": "ASSISTANT", "text": answer, "segments": []},
            ]
            for question, answer in zip(*counting(count, split), strict=True)
        ]
        names = [f"{split}-{i}" for i in range(count)]
        ids = {"conversation_id": names, "instruction_id": names}
        write(folder, split, {**ids, "utterances": turns})
    return folder


def shakespeare(folder: Path) -> Path:
    for split, count in SIZES.items():
        write(folder, split, {"text": ["\n".join(counting(count, split)[0])]})
    return folder


SETS = {
    "multi30k-translation": multi30k,
    "wmt14-translation": wmt14,
    "taskmaster-dialogue": taskmaster4,
    "taskmaster1-dialogue": taskmaster1,
    "shakespeare-lm": shakespeare,
}

SEARCH = {"beams": 2, "validation_beams": 1}


def small(name: str, **changes: Any) -> list[str]:
    """Return the options of a recipe for a small network, with these settings changed."""
    search = SEARCH if isinstance(RECIPES[name].config, SequenceConfig) else {}
    return settings(**{**SMALL, **search, **changes})
