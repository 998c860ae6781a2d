"""The language recipes: their data, training, evaluation and files."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")

import sacrebleu
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from helpers.commands import metrics, prunus, settings, summary
from helpers.runs import KilledError, assert_same_run, at_step
from prunus.errors import DataError, PrunusError
from prunus.recipes.data.texts import TextPairs, load_dialogues, load_texts, load_translations
from prunus.recipes.data.tokenizer import train_tokenizer
from prunus.recipes.registry import RECIPES
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.loading import load_trained
from prunus.recipes.run.training import Stopped, run
from prunus.recipes.tasks.language import bucket_by_length
from prunus.recipes.tasks.language_model import LanguageModel, LanguageModelConfig
from prunus.recipes.tasks.losses import NO_CLASS, Teacher
from prunus.recipes.tasks.sequence_to_sequence import SequenceConfig, SequenceToSequence
from recipes.texts import (
    ENGLISH,
    GERMAN,
    SETS,
    SIZES,
    SMALL,
    counting,
    multi30k,
    taskmaster4,
    write,
)

SEARCH = {"beams": 2, "validation_beams": 1}


def small(name: str, **changes: Any) -> list[str]:
    search = SEARCH if isinstance(RECIPES[name].config, SequenceConfig) else {}
    return settings(**{**SMALL, **search, **changes})


def test_data_sets_cover_every_language_recipe() -> None:
    names = {n for n, r in RECIPES.items() if hasattr(r.config, "vocabulary")}
    assert names == set(SETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_language_recipe_runs_from_a_folder(tmp_path: Path, name: str) -> None:
    data, out = SETS[name](tmp_path / "set"), tmp_path / "run"
    outcome = prunus("run", name, *small(name), "--data", data, "--out", out)
    assert outcome.code == 0, outcome.err
    held = summary(out)
    assert held["compression_ratio"] >= 3
    assert sum(counts["prunable"] for counts in held["layer_types"].values()) <= held["parameters"]
    assert {"embedding and head", "attention", "feed-forward", "norm"} <= set(held["layer_types"])
    assert "embedding and head" in outcome.out
    for network in ("dense", "sparse"):
        assert held[network]["test_perplexity"] == pytest.approx(
            math.exp(held[network]["test_loss"])
        )

    # from_pretrained loads the same network, with tied weights and zeros.
    auto = (
        AutoModelForSeq2SeqLM
        if name.endswith(("translation", "dialogue"))
        else (AutoModelForCausalLM)
    )
    loaded = auto.from_pretrained(out / "pretrained")
    saved = load_file(out / "model.safetensors")
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved.items())
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert held["nonzero"] == sum(int((p != 0).sum()) for p in loaded.parameters())
    tokenizer = AutoTokenizer.from_pretrained(out / "pretrained")
    assert tokenizer.decode(tokenizer.encode("fünf, sechs?")) == "fünf, sechs?"

    # So does the loader of the command.
    trained = load_trained(out / "model.safetensors")
    inputs: Any = trained.example_inputs(2)
    with torch.no_grad():
        expected = loaded.eval()(**inputs).logits
        assert torch.equal(trained.model(**inputs).logits, expected)
        if name.endswith("lm"):
            assert prunus("export", out, "--to", "compact").code == 0
            compact = load_trained(out / "model.compact.safetensors").model
            torch.testing.assert_close(compact(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bleu_matches_sacrebleu_on_answers_of_the_saved_network(tmp_path: Path) -> None:
    data, out = multi30k(tmp_path / "set"), tmp_path / "run"
    name = "multi30k-translation"
    # Long enough to learn the language; the networks still differ, and neither is perfect.
    learning = {"batch_size": 4, "dense_lr": 0.005, "lr": 0.01, "dropout": 0}
    chosen = small(name, dense_epochs=40, epochs=20, width=32, **learning)
    outcome = prunus("run", name, *chosen, "--data", data, "--out", out)
    assert outcome.code == 0, outcome.err
    held = summary(out)
    model = AutoModelForSeq2SeqLM.from_pretrained(out / "pretrained").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "pretrained")
    english, german = counting(SIZES["test"], "test")
    written = []
    for sentence in english:  # one by one, without padding
        tokens = torch.tensor([[*tokenizer.encode(sentence), tokenizer.eos_token_id]])
        answer = model.generate(
            input_ids=tokens, num_beams=2, max_new_tokens=47, early_stopping=True
        )
        written.append(tokenizer.decode(answer[0], skip_special_tokens=True).strip())
    bleu = sacrebleu.corpus_bleu(written, [german])
    assert held["sparse"]["test"] == pytest.approx(bleu.score, abs=1e-6)
    assert held["dense"]["test"] > 20  # untrained, it is 0
    assert "version" in held["metric"]["signature"]
    assert held["metric"]["search"] == "beam 2, length penalty 1"
    lines = metrics(out)
    assert lines[39]["more"]["perplexity"] < lines[0]["more"]["perplexity"] / 20
    # A few answers are printed at every validation.
    shown = counting(SIZES["validation"], "validation")[0][:3]
    assert all(outcome.out.count(f"{sentence}  →  ") >= 60 for sentence in shown)


@pytest.mark.slow
def test_stopped_language_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = multi30k(tmp_path / "set")
    command: list[str | Path] = [
        "run",
        "multi30k-translation",
        *small("multi30k-translation", distillation=0.5, pruning_dropout=0.2, smoothing=0.9),
        "--data",
        data,
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus(*command, "--out", whole).code == 0
    # Six steps an epoch: the kills are in the second epoch of each phase.
    for step, resume in ((8, []), (9, ["--resume"])):
        with at_step(step, KilledError), pytest.raises(KilledError):
            prunus(*command, "--out", stopped, *resume)
    assert prunus(*command, "--out", stopped, "--resume").code == 0
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_resume_with_other_data_is_rejected(tmp_path: Path) -> None:
    data, out = multi30k(tmp_path / "set"), tmp_path / "run"
    command: list[str | Path] = [
        "run",
        "multi30k-translation",
        *small("multi30k-translation"),
        "--data",
        data,
    ]
    with at_step(8, KilledError), pytest.raises(KilledError):
        prunus(*command, "--out", out)
    english, german = counting(SIZES["train"], "others")
    write(data, "train", {"en": english, "de": german})
    prunus(*command, "--out", out, "--resume").refused("the data are not those that the run")


def sequence_task(**changes: Any) -> SequenceToSequence:
    chosen = {**SMALL, "dense_lr": 0.01, "lr": 0.01, "strength": 1.0, "floor": None, **changes}
    pairs = {split: TextPairs(*counting(count, split)) for split, count in SIZES.items()}
    return SequenceToSequence(SequenceConfig(**chosen), pairs)


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
        batch = next(task.epoch(torch.Generator().manual_seed(0)))[0]
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
def test_distillation_applies_to_pruning_epochs_and_resumed_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = multi30k(tmp_path / "set"), tmp_path / "run"
    seen: list[tuple[nn.Module, Teacher | None]] = []
    true_loss = SequenceToSequence.loss

    def loss(
        self: Any, model: nn.Module, batch: Any, teacher: Teacher | None = None
    ) -> torch.Tensor:
        seen.append((model, teacher))
        return true_loss(self, model, batch, teacher)

    monkeypatch.setattr(SequenceToSequence, "loss", loss)
    name, chosen = "multi30k-translation", {"distillation": 0.25, "pruning_dropout": 0.05}
    command: list[str | Path] = ["run", name, *small(name, **chosen), "--data", data, "--out", out]
    # Six steps an epoch, two epochs of each phase.
    with at_step(14, KilledError), pytest.raises(KilledError):
        prunus(*command)
    first, seen[:] = list(seen), []
    assert prunus(*command, "--resume").code == 0
    assert [teacher is not None for _, teacher in first] == [False] * 12 + [True] * 2
    assert len(seen) == 12
    dense = load_file(out / "checkpoints" / "dense.safetensors")
    for model, teacher in (*first[12:], *seen):
        assert teacher is not None
        assert teacher.fraction == 0.25
        assert not teacher.network.training
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
        held = teacher.network.state_dict()
        assert all(torch.equal(held[key], value) for key, value in dense.items())
        assert model.model.decoder.layers[0].dropout == 0.05  # type: ignore[union-attr, index]


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
        for step in task.epoch(torch.Generator().manual_seed(0))
        for batch in step
        for row in batch.target
    ]
    assert sorted(shown) == sorted(learnt.targets)
    # Validation data stay the same, and without the setting there are no teacher outputs.
    plain = sequence_task(sequence_distillation=False)
    assert encoded(plain, "validation") == encoded(task, "validation")
    assert list(plain.teacher_outputs(lambda: dense)) == []


@pytest.mark.slow
def test_teacher_outputs_survive_kills_and_are_reused_with_the_dense_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = "multi30k-translation", multi30k(tmp_path / "set")
    writing = small(name, sequence_distillation="true")
    command: list[str | Path] = ["run", name, "--data", data, *writing]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert prunus(*command, "--out", whole).code == 0
    # Private, but the kill has to come while answers are generated.
    true_generate = SequenceToSequence._generate
    calls: list[int] = []

    def count(self: Any, model: Any, sources: Any, beams: int) -> torch.Tensor:
        calls.append(len(sources))
        if calls == [12, 12, 96]:
            raise KilledError  # two validations, and then all training sources
        return true_generate(self, model, sources, beams)

    monkeypatch.setattr(SequenceToSequence, "_generate", count)
    with pytest.raises(KilledError):
        prunus(*command, "--out", stopped)
    with at_step(3, KilledError), pytest.raises(KilledError):
        prunus(*command, "--out", stopped, "--resume")
    assert calls[3:] == [96]
    outputs = stopped / "checkpoints" / "teacher-outputs.safetensors"
    outputs.write_bytes(outputs.read_bytes()[:-1])
    outcome = prunus(*command, "--out", stopped, "--resume")
    assert outcome.code == 0
    assert "damaged" in outcome.out
    assert calls[4] == 96
    assert_same_run(stopped, whole)

    def without(folder: str, *chosen: str) -> tuple[bytes, bool]:
        calls[:] = []
        out = tmp_path / folder
        assert prunus(*command, *chosen, "--dense", whole, "--out", out).code == 0
        return (out / "model.safetensors").read_bytes(), 96 in calls

    assert without("taken") == ((whole / "model.safetensors").read_bytes(), False)
    # Another search has other outputs, and without the setting the references are used.
    assert without("other", *settings(beams=3))[1]
    model, wrote = without("references", *settings(sequence_distillation="false"))
    assert not wrote
    assert model != (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_run_stops_while_teacher_outputs_are_computed(tmp_path: Path) -> None:
    name, data, out = "multi30k-translation", multi30k(tmp_path / "set"), tmp_path / "run"
    chosen = settings(**{**SMALL, **SEARCH, "sequence_distillation": "true"})
    recipe = RECIPES[name]
    config = recipe.config.with_settings([text for text in chosen if text != "--set"])
    messages: list[str] = []

    class Watch:
        def begin(self, *_: Any) -> None: ...
        def step(self) -> None: ...
        def epoch(self, *_: Any) -> None: ...
        def report(self, message: str) -> None:
            messages.append(message)

    def stop() -> bool:
        return "writes teacher outputs" in messages[-1]

    with pytest.raises(Stopped, match="before the first epoch"):
        run(recipe, config, RunDirectory(out), Watch(), data=str(data), stop=stop)
    assert not (out / "checkpoints" / "teacher-outputs.safetensors").exists()
    summary = run(recipe, config, RunDirectory(out), Watch(), data=str(data), resume=True)
    assert summary["compression_ratio"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi30k-translation", "shakespeare-lm"])
def test_autocast_keeps_weights_and_evaluation_in_float32(name: str, tmp_path: Path) -> None:
    data, out = SETS[name](tmp_path / "set"), tmp_path / "run"
    seen: list[tuple[str, torch.dtype]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            assert parameter.dtype is parameter.grad.dtype is torch.float32

    def products(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Linear | Conv1D):
            seen.append(("train" if module.training else "measure", output.dtype))

    hooks = [register_optimizer_step_pre_hook(look), register_module_forward_hook(products)]
    chosen = small(name, autocast="true", dropout=0.1, distillation=0.5)
    try:
        assert prunus("run", name, *chosen, "--data", data, "--out", out).code == 0
    finally:
        for hook in hooks:
            hook.remove()
    # The teacher runs in the same precision; all evaluation is in float32.
    assert ("train", torch.bfloat16) in seen
    assert ("train", torch.float32) not in seen
    assert ("measure", torch.float32) in seen
    # A loaded network does not keep the attention that was chosen for training.
    model = AutoModel.from_pretrained(out / "pretrained")
    # Private, but transformers reports the attention in no other way.
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype is torch.float32


@pytest.mark.slow
def test_dense_network_of_other_precision_is_not_adopted(tmp_path: Path) -> None:
    name, data = "multi30k-translation", multi30k(tmp_path / "set")
    first = ("run", name, "--data", data)
    assert prunus(*first, *small(name), "--out", tmp_path / "a").code == 0
    other: list[str | Path] = [*small(name, autocast="true"), "--dense", tmp_path / "a"]
    outcome = prunus(*first, *other, "--out", tmp_path / "b")
    outcome.refused("autocast is False there and True here")


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
    steps = list(task.epoch(order))
    assert len(steps) == task.steps_per_epoch
    assert {len(step) for step in steps[:-1]} == {2}
    chunks = [chunk.tolist() for step in steps for batch in step for chunk in batch]
    assert all(chunk == list(range(chunk[0], chunk[0] + 9)) for chunk in chunks)
    predicted = [token for chunk in chunks for token in chunk[1:]]
    assert len(set(predicted)) == len(predicted) == (count - 1) // 8 * 8
    again = [chunk.tolist() for step in task.epoch(order) for batch in step for chunk in batch]
    assert again != chunks
    assert task.size(steps[0][0]) == steps[0][0].shape[0] * 8


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
    assert len(load_translations(str(tmp_path / "set"), ("en", "de"))["train"]) == 1


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


@pytest.mark.slow
def test_dense_network_of_other_data_is_rejected(tmp_path: Path) -> None:
    data, first = multi30k(tmp_path / "set"), tmp_path / "first"
    command: list[str | Path] = ["run", "multi30k-translation", *small("multi30k-translation")]
    command += ["--data", data]
    assert prunus(*command, "--out", first).code == 0
    # Settings of evaluation alone leave the dense network the same.
    second = [*command, *settings(beams=3), "--dense", first, "--out", tmp_path / "second"]
    assert prunus(*second).code == 0
    english, german = counting(SIZES["train"], "others")
    write(data, "train", {"en": english, "de": german})
    outcome = prunus(*command, "--dense", first, "--out", tmp_path / "third")
    outcome.refused("used other data")


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
