"""Text data sets: translations, dialogues and running text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.errors import DataError, listing
from prunus.recipes.data.splits import get_split, load_splits

__all__ = ["TURN_SEPARATOR", "TextPairs", "load_dialogues", "load_texts", "load_translations"]

_SPLITS = ("train", "validation", "test")

TURN_SEPARATOR = "<turn>"
"""The token between the turns of a dialogue's context."""


@dataclass(frozen=True)
class TextPairs:
    """Pairs of a source and a target text.

    Attributes:
        sources: The texts to read.
        targets: The reference answers, one for each source.
        left_out: The number of pairs of the data set that are left out, because a text is empty.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.sources)


def load_translations(
    source: str, languages: tuple[str, str], *, name: str | None = None
) -> dict[str, TextPairs]:
    """Load sentences in two languages.

    Each language is a column of its own, or both are in one column named translation, as in the
    sets of WMT. Training pairs with an empty sentence are left out and counted.

    Args:
        source: A name on the Hub, or the path of a folder.
        languages: The source and the target language.
        name: The configuration of a set on the Hub.

    Raises:
        DataError: A split or column is missing, or a sentence for evaluation is empty.
    """
    loaded = load_splits(source, name)

    def columns(split: str) -> tuple[Sequence[Any], Sequence[Any]]:
        if split in loaded and "translation" in loaded[split].column_names:
            both = get_split(loaded, source, split, ["translation"], _SPLITS)["translation"]
            _check_records(both, languages, f"translation of the {split} split of {source}")
            return [pair[languages[0]] for pair in both], [pair[languages[1]] for pair in both]
        found = get_split(loaded, source, split, languages, _SPLITS)
        return found[languages[0]], found[languages[1]]

    return {split: _checked_pairs(*columns(split), source, split) for split in _SPLITS}


def load_dialogues(source: str, *, name: str | None = None, turns: int = 4) -> dict[str, TextPairs]:
    """Load dialogues as pairs of a context and the assistant's next turn.

    The turns are in the columns speaker and text, lists both, or in one column named utterances, a
    list of records with these two, as in Taskmaster-1. Training pairs with an empty text are left
    out and counted.

    Args:
        source: A name on the Hub, or the path of a folder.
        name: The configuration of a set on the Hub.
        turns: The number of turns before the answer that form the context.

    Raises:
        DataError: A split or column is missing, no turn is the assistant's, or a text for
            evaluation is empty.
    """
    loaded = load_splits(source, name)

    def read(split: str) -> Iterator[tuple[list[str], list[str]]]:
        where = f"the {split} split of {source}"
        if split in loaded and "utterances" in loaded[split].column_names:
            column = get_split(loaded, source, split, ["utterances"], _SPLITS)["utterances"]
            for number, cell in enumerate(column):
                _check_records(
                    _list(cell, f"utterances of {where}", number),
                    ("speaker", "text"),
                    f"utterances, row {number} of {where}",
                )
                yield [turn["speaker"] for turn in cell], [turn["text"] for turn in cell]
            return
        found = get_split(loaded, source, split, ["speaker", "text"], _SPLITS)
        rows = zip(found["speaker"], found["text"], strict=True)
        for number, (speakers_cell, texts_cell) in enumerate(rows):
            speakers = _list(speakers_cell, f"speaker of {where}", number)
            texts = _list(texts_cell, f"text of {where}", number)
            if len(speakers) != len(texts):
                raise DataError(
                    f"dialogue {number} of {where} has {len(speakers)} speakers but {len(texts)} "
                    "turns: each turn needs one"
                )
            yield speakers, texts

    result = {}
    for split in _SPLITS:
        contexts, answers = [], []
        for number, (speakers, texts) in enumerate(read(split)):
            _check_texts([*speakers, *texts], f"dialogue {number} of the {split} split of {source}")
            for i in range(1, len(texts)):
                if speakers[i].lower() == "assistant":
                    contexts.append(f" {TURN_SEPARATOR} ".join(texts[max(0, i - turns) : i]))
                    answers.append(texts[i])
        if not answers:
            raise DataError(
                f"no turn in the {split} split of {source} is the assistant's: the speakers must "
                'be "user" and "assistant"'
            )
        result[split] = _checked_pairs(contexts, answers, source, split)
    return result


def load_texts(source: str, *, column: str = "text") -> Mapping[str, str]:
    """Load running text; the rows of a split are joined by line breaks.

    Raises:
        DataError: A split or the column is missing, or all of it is empty.
    """
    loaded = load_splits(source)
    result = {}
    for split in _SPLITS:
        parts = get_split(loaded, source, split, [column], _SPLITS)[column]
        _check_texts(parts, f"the column {column} of the {split} split of {source}")
        joined = "\n".join(parts)
        if not joined.strip():
            raise DataError(f"the {split} split of {source} holds no text")
        result[split] = joined
    return result


def _check_texts(values: Iterable[Any], where: str) -> None:
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{where} must hold texts, but holds {value!r}")


def _list(value: Any, where: str, number: int) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(
            f"the column {where} must hold a list in each row, one item per turn, but row {number} "
            f"holds {value!r}"
        )
    return value


def _check_records(values: Iterable[Any], fields: Sequence[str], where: str) -> None:
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(
                f"the column {where} must hold records with {listing(fields)}, but number {number} "
                f"is {value!r}"
            )
        missing = [name for name in fields if name not in value]
        if missing:
            raise DataError(
                f"the column {where} lacks {listing(missing)}; found {listing(list(value))}"
            )


def _checked_pairs(
    sources: Sequence[Any], targets: Sequence[Any], source: str, split: str
) -> TextPairs:
    empty = [
        str(i)
        for i, (a, b) in enumerate(zip(sources, targets, strict=True))
        if not (isinstance(a, str) and isinstance(b, str) and a.strip() and b.strip())
    ]
    # A few may be left out of training, but evaluation must use the data as published.
    if empty and (split != "train" or len(empty) == len(sources)):
        raise DataError(
            f"{len(empty):,} of {len(sources):,} pairs of the {split} split of {source} have an "
            f"empty source or reference, such as number {listing(empty, most=3)}: fix or remove "
            "them"
        )
    left_out = set(map(int, empty))
    kept = [i for i in range(len(sources)) if i not in left_out]
    return TextPairs([sources[i] for i in kept], [targets[i] for i in kept], left_out=len(left_out))
