"""Texts to learn from: pairs to translate, turns of dialogues, and running text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.errors import DataError, listing
from prunus.recipes.hub import load, rows

__all__ = ["TURN", "Pairs", "dialogues", "texts", "translations"]

SPLITS = ("train", "validation", "test")

TURN = "<turn>"
"""Stands between the turns of a dialogue's context."""


@dataclass(frozen=True)
class Pairs:
    """What to read and what to write in answer.

    Attributes:
        sources: What to read.
        targets: What to write, one for each.
    """

    sources: Sequence[str]
    targets: Sequence[str]

    def __len__(self) -> int:
        return len(self.sources)


def translations(
    source: str, languages: tuple[str, str], *, name: str | None = None
) -> dict[str, Pairs]:
    """Load sentences in two languages.

    Each language is a column of its own, or both are in one column named translation, as in the
    sets of WMT.

    Args:
        source: A name on the Hub, or the path of a folder.
        languages: From which and to which.
        name: Which configuration of a set on the Hub.

    Raises:
        DataError: A split or column is absent, or a sentence is empty.
    """
    loaded = load(source, name)

    def columns(split: str) -> tuple[Sequence[Any], Sequence[Any]]:
        if split in loaded and "translation" in loaded[split].column_names:
            both = rows(loaded, source, split, ["translation"], SPLITS)["translation"]
            missing = [code for code in languages if len(both) and code not in both[0]]
            if missing:
                raise DataError(
                    f"the column translation of the {split} split of {source} lacks "
                    f"{listing(missing)}; found {listing(list(both[0]))}"
                )
            return [pair[languages[0]] for pair in both], [pair[languages[1]] for pair in both]
        found = rows(loaded, source, split, languages, SPLITS)
        return found[languages[0]], found[languages[1]]

    return {split: _checked(*columns(split), source, split) for split in SPLITS}


def dialogues(source: str, *, name: str | None = None, turns: int = 4) -> dict[str, Pairs]:
    """Load dialogues as pairs of a context and the assistant's next turn.

    The turns are in the columns speaker and text, lists both, or in one column named utterances, a
    list of records with these two, as in Taskmaster-1.

    Args:
        source: A name on the Hub, or the path of a folder.
        name: Which configuration of a set on the Hub.
        turns: How many turns before the answer make the context.

    Raises:
        DataError: A split or column is absent, there is no assistant in it, or a turn is empty.
    """
    loaded = load(source, name)

    def read(split: str) -> Iterator[tuple[list[str], list[str]]]:
        if split in loaded and "utterances" in loaded[split].column_names:
            for turns_ in rows(loaded, source, split, ["utterances"], SPLITS)["utterances"]:
                yield [turn["speaker"] for turn in turns_], [turn["text"] for turn in turns_]
            return
        found = rows(loaded, source, split, ["speaker", "text"], SPLITS)
        yield from zip(found["speaker"], found["text"], strict=True)

    result = {}
    for split in SPLITS:
        contexts, answers = [], []
        for speakers, said in read(split):
            for i in range(1, len(said)):
                if speakers[i].lower() == "assistant":
                    contexts.append(f" {TURN} ".join(said[max(0, i - turns) : i]))
                    answers.append(said[i])
        if not answers:
            raise DataError(
                f"no turn in the {split} split of {source} is the assistant's: the speakers must "
                'be "user" and "assistant"'
            )
        result[split] = _checked(contexts, answers, source, split)
    return result


def texts(source: str, *, column: str = "text") -> Mapping[str, str]:
    """Load running text; the rows of a split are joined by line breaks.

    Raises:
        DataError: A split or the column is absent, or all of it is empty.
    """
    loaded = load(source)
    result = {}
    for split in SPLITS:
        joined = "\n".join(rows(loaded, source, split, [column], SPLITS)[column])
        if not joined.strip():
            raise DataError(f"the {split} split of {source} holds no text")
        result[split] = joined
    return result


def _checked(sources: Sequence[Any], targets: Sequence[Any], source: str, split: str) -> Pairs:
    empty = [
        str(i)
        for i, (a, b) in enumerate(zip(sources, targets, strict=True))
        if not (isinstance(a, str) and isinstance(b, str) and a.strip() and b.strip())
    ]
    # A few may be left out of training, but what is measured on must be as it was published.
    if empty and (split != "train" or len(empty) == len(sources)):
        raise DataError(
            f"{len(empty):,} of {len(sources):,} pairs of the {split} split of {source} have an "
            f"empty source or reference, such as number {listing(empty, most=3)}: mend or remove "
            "them"
        )
    left_out = set(map(int, empty))
    kept = [i for i in range(len(sources)) if i not in left_out]
    return Pairs([sources[i] for i in kept], [targets[i] for i in kept])
