"""The language tasks: losses, evaluation, accumulation and teacher outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")


from prunus.errors import PrunusError
from prunus.recipes.data.texts import TextPairs
from prunus.recipes.registry import RECIPES
from prunus.recipes.tasks.language_model import LanguageModel, LanguageModelConfig
from prunus.recipes.tasks.losses import NO_CLASS, Teacher
from prunus.recipes.tasks.sequence_to_sequence import SequenceConfig, SequenceToSequence
from recipes.texts import (
    SETS,
    SIZES,
    SMALL,
    counting,
)


def test_data_sets_cover_every_language_recipe() -> None:
    names = {n for n, r in RECIPES.items() if hasattr(r.config, "vocabulary")}
    assert names == set(SETS)


def sequence_task(**changes: Any) -> SequenceToSequence:
    chosen = {**SMALL, "dense_lr": 0.01, "lr": 0.01, "strength": 1.0, "floor": None, **changes}
    pairs = {split: TextPairs(*counting(count, split)) for split, count in SIZES.items()}
    return SequenceToSequence(SequenceConfig(**chosen), pairs)


def test_training_pairs_left_out_are_counted() -> None:
    assert sequence_task().notes == []
    chosen = {**SMALL, "dense_lr": 0.01, "lr": 0.01, "strength": 1.0, "floor": None}
    pairs = {split: TextPairs(*counting(count, split)) for split, count in SIZES.items()}
    train = pairs["train"]
    pairs["train"] = TextPairs(
        [*train.sources, "one " * 60, "two"], [*train.targets, "eins", "zwei " * 60], left_out=3
    )
    task = SequenceToSequence(SequenceConfig(**chosen), pairs)
    assert len(encoded(task, "train")) == SIZES["train"]
    assert task.notes == [
        "training pairs left out: 3 with an empty text and 2 with more than length=48 tokens"
    ]


def encoded(task: Any, split: str) -> Any:
    """Return the encoded pairs of a split, which are private."""
    return task._encoded[split]


def batch_of(task: Any, indices: Sequence[int]) -> Any:
    """Return a batch of chosen training pairs; the public method draws random ones."""
    return task._batch(encoded(task, "train"), indices)


def test_accumulated_gradients_match_those_of_one_large_batch() -> None:
    task = sequence_task(dropout=0.0, label_smoothing=0.1)
    torch.manual_seed(0)
    model = task.network().double()
    parts = [batch_of(task, range(i, i + 4)) for i in (0, 4, 8)]
    large = copy.deepcopy(model)
    task.loss(large, batch_of(task, range(12))).backward()  # type: ignore[no-untyped-call]
    sizes = [task.size(part) for part in parts]
    assert len(set(sizes)) > 1
    for part, size in zip(parts, sizes, strict=True):
        (task.loss(model, part) * (size / sum(sizes))).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(model.parameters(), large.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_pruning_dropout_replaces_dropout() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 40
    changes: dict[str, Any] = {"dropout": 0.4, "length": 16}
    tasks: list[tuple[Any, int]] = [  # with the number of different losses in the pruning epochs
        (sequence_task(dropout=0.4, pruning_dropout=0.0), 1),
        (language_model(dict.fromkeys(SIZES, text), pruning_dropout=0.0, **changes), 1),
        (sequence_task(dropout=0.4), 4),
    ]
    for task, different in tasks:
        torch.manual_seed(0)
        model = task.network().train()
        batch = next(task.batches(torch.Generator().manual_seed(0)))[0]
        before = {task.loss(model, batch).item() for _ in range(4)}
        task.prepare_pruning(model)
        after = {task.loss(model, batch).item() for _ in range(4)}
        assert len(before) == 4
        assert len(after) == different


def test_distillation_loss_matches_its_definition() -> None:
    task = sequence_task(dropout=0.0, label_smoothing=0.1)
    torch.manual_seed(0)
    model, dense = task.network().double(), task.network().double().eval()
    batch = batch_of(task, range(5))
    alone = task.loss(model, batch)
    # Private, but no public method returns the logits that the loss is computed from.
    (logits, right), (taught, _) = task._predict(model, batch), task._predict(dense, batch)
    written = right != NO_CLASS
    assert int(written.sum()) == task.size(batch) < len(right)  # there is padding
    logits, taught = logits[written], taught[written]
    probability = taught.exp() / taught.exp().sum(dim=1, keepdim=True)
    logarithm = logits - logits.exp().sum(dim=1, keepdim=True).log()
    expected = 0.7 * alone - 0.3 * (probability * logarithm).sum(dim=1).mean()
    loss = task.loss(model, batch, Teacher(dense, 0.3))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in dense.parameters())
    # The gradient is 0 for a teacher with the same predictions.
    model.zero_grad()
    model.load_state_dict(dense.state_dict())
    task.loss(model, batch, Teacher(dense, 1.0)).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        zeros = torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, zeros, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_teacher_outputs_replace_the_references() -> None:
    task = sequence_task(sequence_distillation=True, beams=2, length_penalty=0.5, dropout=0.2)
    torch.manual_seed(0)
    dense: Any = task.network().eval()
    torch.nn.init.normal_(dense.model.shared.weight, std=1.0)  # so that its answers are not empty
    data = encoded(task, "train")
    end = task.tokenizer.eos_token_id
    task.use_teacher_outputs([output for _, output in task.teacher_outputs(lambda: dense)])
    learnt = encoded(task, "train")
    assert learnt.sources == data.sources
    assert learnt.targets != data.targets
    for source, target in zip(data.sources, learnt.targets, strict=True):  # without padding
        answer = dense.generate(
            input_ids=torch.tensor([source]),
            num_beams=2,
            length_penalty=0.5,
            early_stopping=True,
            max_new_tokens=47,
        )
        assert answer[0, 1:].tolist() == target
        assert end not in target[:-1]
    shown = [
        row[row != task.tokenizer.pad_token_id].tolist()
        for step in task.batches(torch.Generator().manual_seed(0))
        for batch in step
        for row in batch.target
    ]
    assert sorted(shown) == sorted(learnt.targets)
    # Validation data stay the same, and without the setting there are no teacher outputs.
    plain = sequence_task(sequence_distillation=False)
    assert encoded(plain, "validation") == encoded(task, "validation")
    assert list(plain.teacher_outputs(lambda: dense)) == []


def test_pruning_dropout_without_dropout_is_rejected() -> None:
    with pytest.raises(PrunusError, match="pruning_dropout must be 0 or none where dropout is 0"):
        RECIPES["shakespeare-lm"].config.with_settings(["dropout=0", "pruning_dropout=0.3"])


def test_padding_does_not_change_the_loss() -> None:
    task = sequence_task(dropout=0.0)
    torch.manual_seed(0)
    model = task.network().double().eval()
    alone = [batch_of(task, [i]) for i in range(6)]
    together = batch_of(task, range(6))
    assert len({batch.source.shape[1] for batch in alone}) > 1
    total = sum(task.loss(model, batch) * task.size(batch) for batch in alone)
    mean = total / sum(task.size(batch) for batch in alone)
    torch.testing.assert_close(task.loss(model, together), mean, rtol=1e-9, atol=1e-12)


def language_model(text: dict[str, str], **changes: Any) -> LanguageModel:
    chosen = {**SMALL, "dense_lr": 0.01, "lr": 0.01, "strength": 1.0, "floor": None, **changes}
    return LanguageModel(LanguageModelConfig(**chosen), text)


def test_a_language_model_is_calibrated_by_its_training_text() -> None:
    text = {split: "\n".join(counting(count, split)[0]) for split, count in SIZES.items()}
    task = language_model(text, length=8)
    batches: Any = task.calibration_inputs()
    tokens = torch.tensor(task.tokenizer(text["train"])["input_ids"])
    found = torch.cat([batch["input_ids"] for batch in batches])
    assert 1 < len(found) <= 512
    assert found.shape[1] == 8
    assert torch.equal(found.flatten(), tokens[: found.numel()])


@pytest.mark.parametrize("length", [8, 7, 48])
def test_bits_per_character_count_every_token_once(length: int) -> None:
    text = {split: "\n".join(counting(count, split)[0]) for split, count in SIZES.items()}
    task = language_model(text, length=length)
    torch.manual_seed(0)
    model = task.network().eval()
    with torch.no_grad():  # far from uniform, so that contexts matter
        for parameter in model.parameters():
            parameter.mul_(3)
    tokens = [task.tokenizer.bos_token_id, *task.tokenizer(text["test"])["input_ids"]]
    half, total, done, begin = length // 2, 0.0, 0, 0
    while done < len(tokens) - 1:
        chunk = tokens[begin : begin + length + 1]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([chunk[:-1]])).logits[0].log_softmax(-1)
        for i in range(done - begin, len(chunk) - 1):
            total -= logits[i, chunk[i + 1]].item()
        done, begin = begin + len(chunk) - 1, begin + half
    seen = task.test(model)
    assert seen.metric == pytest.approx(total / math.log(2) / len(text["test"]), rel=1e-5)
    assert seen.loss == pytest.approx(total / (len(tokens) - 1), rel=1e-5)


def test_epoch_of_running_text_has_no_token_twice() -> None:
    text = {split: "\n".join(counting(count, split)[0]) for split, count in SIZES.items()}
    task = language_model(text, length=8, accumulation=2)
    # Private, but only numbered tokens show where a chunk comes from.
    count = len(task._tokens["train"])
    task._tokens["train"] = torch.arange(count)
    order = torch.Generator().manual_seed(0)
    steps = list(task.batches(order))
    assert len(steps) == task.steps_per_epoch
    assert {len(step) for step in steps[:-1]} == {2}
    chunks = [chunk.tolist() for step in steps for batch in step for chunk in batch]
    assert all(chunk == list(range(chunk[0], chunk[0] + 9)) for chunk in chunks)
    predicted = [token for chunk in chunks for token in chunk[1:]]
    assert len(set(predicted)) == len(predicted) == (count - 1) // 8 * 8
    again = [chunk.tolist() for step in task.batches(order) for batch in step for chunk in batch]
    assert again != chunks
    assert task.size(steps[0][0]) == steps[0][0].shape[0] * 8
