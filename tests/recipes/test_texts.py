"""Text data sets, the tokenizer, and batches by length."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")


from helpers.commands import prunus
from prunus.errors import DataError, PrunusError
from prunus.recipes.data.texts import load_dialogues, load_texts, load_translations
from prunus.recipes.data.tokenizer import train_tokenizer
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.language import bucket_by_length
from recipes.texts import (
    ENGLISH,
    GERMAN,
    SIZES,
    counting,
    multi30k,
    small,
    taskmaster4,
    write,
)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_buckets_contain_each_example_once(lengths: list[int], size: int, seed: int) -> None:
    examples = [(length,) for length in lengths]
    batches = list(bucket_by_length(examples, size, torch.Generator().manual_seed(seed), pool=3))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 1


def test_buckets_reduce_padding() -> None:
    drawn = torch.randint(1, 50, (4000, 2), generator=torch.Generator().manual_seed(0))
    lengths = [(first, second) for first, second in drawn.tolist()]
    batches = list(bucket_by_length(lengths, 20, torch.Generator().manual_seed(1), pool=200))
    for text, most in ((0, 1.02), (1, 1.5)):
        padded = sum(len(batch) * max(lengths[i][text] for i in batch) for batch in batches)
        assert padded < most * sum(length[text] for length in lengths)


def test_dialogue_becomes_contexts_and_answers(tmp_path: Path) -> None:
    pairs = load_dialogues(str(taskmaster4(tmp_path / "set")), turns=2)["validation"]
    asked, answers = counting(SIZES["validation"], "validation")
    assert pairs.sources[:2] == [asked[0], f"{answers[0]} <turn> and then"]
    assert pairs.targets[:2] == [answers[0], "done"]
    assert len(pairs) == 2 * SIZES["validation"]


def test_running_text_is_joined_by_line_breaks(tmp_path: Path) -> None:
    for split in SIZES:
        write(tmp_path, split, {"text": ["one", "two"]})
    assert load_texts(str(tmp_path))["train"] == "one\ntwo"


def test_tokenizer_is_deterministic() -> None:
    texts = counting(200, "a")[1]
    trained = [train_tokenizer(texts, 280).backend_tokenizer.to_str() for _ in range(3)]
    assert trained[0] == trained[1] == trained[2]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decoding_an_encoded_text_returns_it(text: str) -> None:
    tokenizer = _tokenizer()
    tokens = tokenizer.encode(text)
    if not any(special in text for special in tokenizer.all_special_tokens):
        assert tokenizer.decode(tokens) == text


def _tokenizer(held: list[Any] = []) -> Any:  # noqa: B006
    if not held:
        held.append(train_tokenizer(ENGLISH + GERMAN, 270))
    return held[0]


def refused(tmp_path: Path, name: str, *parts: str, **changes: Any) -> None:
    out = tmp_path / "run"
    outcome = prunus("run", name, *small(name, **changes), "--data", tmp_path / "set", "--out", out)
    outcome.refused(*parts)
    assert not out.exists()


def test_data_of_other_columns_are_rejected(tmp_path: Path) -> None:
    taskmaster4(tmp_path / "set")
    refused(tmp_path, "multi30k-translation", "lacks the columns en, de", "speaker, text")


def test_missing_language_is_rejected(tmp_path: Path) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"translation": [{"de": "eins", "fr": "un"}]})
    refused(tmp_path, "wmt14-translation", "lacks en; found de, fr", "train split")


def test_empty_reference_is_rejected(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    write(tmp_path / "set", "test", {"en": ["one", "two"], "de": ["eins", " "]})
    refused(
        tmp_path,
        "multi30k-translation",
        "1 of 2 pairs of the test split",
        "empty source or reference, such as number 1",
    )


def test_empty_training_pairs_are_left_out(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    write(tmp_path / "set", "train", {"en": ["one", "", "two"], "de": ["eins", "zwei", ""]})
    train = load_translations(str(tmp_path / "set"), ("en", "de"))["train"]
    assert (len(train), train.left_out) == (1, 2)


@pytest.mark.slow
def test_training_pairs_left_out_are_reported(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    english, german = counting(SIZES["train"], "train")
    write(tmp_path / "set", "train", {"en": [*english, ""], "de": [*german, "eins"]})
    chosen = small("multi30k-translation", ratio=1e9)  # the run ends before its training
    paths = ("--data", tmp_path / "set", "--out", tmp_path / "run")
    outcome = prunus("run", "multi30k-translation", *chosen, *paths)
    outcome.refused("ratio=1e+09 cannot be reached")
    assert "training pairs left out: 1 with an empty text\n" in outcome.out


def test_text_longer_than_the_positions_is_rejected(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    write(tmp_path / "set", "test", {"en": ["one " * 60], "de": ["eins"]})
    refused(tmp_path, "multi30k-translation", "1 of 1 pairs of the test split have", "set length=")


def test_training_pairs_that_are_all_too_long_are_rejected(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    write(tmp_path / "set", "train", {"en": ["one two " * 60] * 9, "de": ["eins"] * 9})
    refused(tmp_path, "multi30k-translation", "every pair of the train split", vocabulary=265)


def test_unknown_hub_data_set_is_rejected(tmp_path: Path) -> None:
    outcome = prunus("run", "taskmaster-dialogue", "--out", tmp_path / "run")
    outcome.refused("is not on the Hub", "--data FOLDER", "speaker and text")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"speaker": ["user"], "text": ["hi"]}, "must hold a list in each row"),
        ({"speaker": [["user"]], "text": [["hi", "hello"]]}, "has 1 speakers but 2 turns"),
        ({"speaker": [["user", None]], "text": [["hi", "yes"]]}, "must hold texts, but holds None"),
        ({"speaker": [["user", "assistant"]], "text": [["hi", None]]}, "must hold texts"),
        ({"speaker": [None], "text": [["hi"]]}, "must hold a list in each row"),
        ({"utterances": [[{"text": "hi"}]]}, "lacks speaker; found text"),
        ({"utterances": [None]}, "must hold a list in each row"),
        ({"utterances": ["hi"]}, "must hold a list in each row"),
        ({"utterances": [["hi"]]}, "must hold records with speaker, text"),
    ],
)
def test_dialogues_of_another_shape_are_rejected(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, columns)
    refused(tmp_path, "taskmaster-dialogue", message, "train split")


@pytest.mark.parametrize("cells", [[None, "one"], [1, 2]])
def test_running_text_that_is_no_text_is_rejected(tmp_path: Path, cells: list[Any]) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"text": cells})
    refused(tmp_path, "shakespeare-lm", "the column text of the train split", "must hold texts")


@pytest.mark.parametrize(
    ("cells", "message"),
    [(["one"], "must hold records with en, de"), ([None], "must hold records with en, de")],
)
def test_translations_of_another_shape_are_rejected(
    tmp_path: Path, cells: list[Any], message: str
) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"translation": cells})
    refused(tmp_path, "wmt14-translation", message)


def test_dialogue_without_an_assistant_is_rejected(tmp_path: Path) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"speaker": [["user", "bot"]], "text": [["hi", "hello"]]})
    refused(tmp_path, "taskmaster-dialogue", "no turn in the train split", '"assistant"')


def test_empty_text_is_rejected(tmp_path: Path) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"text": [" ", ""]})
    refused(tmp_path, "shakespeare-lm", "the train split", "holds no text")


def test_text_shorter_than_a_chunk_is_rejected(tmp_path: Path) -> None:
    for split in SIZES:
        write(tmp_path / "set", split, {"text": ["one two three four"]})
    refused(
        tmp_path, "shakespeare-lm", "fewer than a chunk of length=4000", length=4000, vocabulary=265
    )


def test_vocabulary_larger_than_the_text_yields_is_rejected(tmp_path: Path) -> None:
    multi30k(tmp_path / "set")
    refused(tmp_path, "multi30k-translation", "vocabulary=5000 is more than", vocabulary=5000)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"vocabulary": 100}, "above 264"),
        ({"width": 15}, "a multiple of heads"),
        ({"length": 1}, "at least 2"),
        ({"layers": 0}, "at least 1"),
        ({"accumulation": 0}, "at least 1"),
        ({"dropout": 1}, "from 0 to below 1"),
        ({"beta2": 1}, "from 0 to below 1"),
        ({"beams": 0}, "at least 1"),
        ({"length_penalty": -1}, "at least 0"),
        ({"validation_pairs": -1}, "at least 0"),
    ],
)
def test_settings_out_of_range_are_rejected(setting: dict[str, Any], reason: str) -> None:
    config = RECIPES["multi30k-translation"].config
    ((key, value),) = setting.items()
    with pytest.raises(PrunusError, match=f"{key} must be {reason}"):
        config.with_settings([f"{key}={value}"])


@pytest.mark.parametrize("absent", ["transformers", "tokenizers"])
def test_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(PrunusError, match=r"pip install 'prunus\[language\]'"):
        train_tokenizer(["one"], 270)


def test_paper_recipes_have_the_paper_settings() -> None:
    wmt, dialogue = (
        RECIPES[n].config.as_dict() for n in ("wmt14-translation", "taskmaster1-dialogue")
    )
    for held in (wmt, dialogue):
        assert (held["beta1"], held["beta2"], held["accumulation"]) == (0.85, 0.997, 3)
        assert (held["alpha"], held["relative"], held["strength"]) == (1.0, False, 1e-5)
        assert (held["schedule"], held["biases"], held["norms"]) == ("iterative", True, True)
    sizes = ("layers", "width", "feed_forward", "heads", "beams", "length_penalty", "floor")
    assert [wmt[key] for key in sizes] == [6, 512, 2048, 8, 4, 0.6, 27.2]
    assert [dialogue[key] for key in sizes] == [2, 256, 256, 4, 6, 1.2, 6.03]
    assert json.dumps(wmt)  # as config.json stores it


def test_missing_folder_of_text_is_rejected() -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_texts("./nowhere")
