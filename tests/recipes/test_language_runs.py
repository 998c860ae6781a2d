"""Runs of the language recipes: files, resumption, distillation and precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
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
from prunus.recipes.registry import RECIPES
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.loading import load_trained
from prunus.recipes.run.training import Stopped, run
from prunus.recipes.tasks.losses import Teacher
from prunus.recipes.tasks.sequence_to_sequence import SequenceToSequence
from recipes.texts import (
    SEARCH,
    SETS,
    SIZES,
    SMALL,
    counting,
    multi30k,
    small,
    write,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SETS)
def test_language_recipe_runs_from_a_folder(tmp_path: Path, name: str) -> None:
    data, out = SETS[name](tmp_path / "set"), tmp_path / "run"
    outcome = prunus("run", name, *small(name), "--data", data, "--out", out)
    assert outcome.code == 0, outcome.err
    held = summary(out)
    names = [key.removeprefix("test_") for key in held["sparse"] if key.startswith("test_")]
    assert 0 < held["multiply_adds"]["sparse"] < held["multiply_adds"]["dense"]
    assert (held["metric"]["name"], *names) == RECIPES[name].metrics
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
    assert lines[39]["extra_metrics"]["perplexity"] < lines[0]["extra_metrics"]["perplexity"] / 20
    # A few answers are printed at every validation.
    shown = counting(SIZES["validation"], "validation")[0][:3]
    assert all(outcome.out.count(f"{sentence}  →  ") >= 60 for sentence in shown)


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
        return "computing teacher outputs" in messages[-1]

    with pytest.raises(Stopped, match="before the first epoch"):
        run(recipe, config, RunDirectory(out), Watch(), data=str(data), stop=stop)
    assert not (out / "checkpoints" / "teacher-outputs.safetensors").exists()
    summary = run(recipe, config, RunDirectory(out), Watch(), data=str(data), resume=True)
    assert summary["compression_ratio"] >= 3


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


def test_dense_network_of_other_precision_is_not_adopted(tmp_path: Path) -> None:
    name, data = "multi30k-translation", multi30k(tmp_path / "set")
    first = ("run", name, "--data", data)
    assert prunus(*first, *small(name), "--out", tmp_path / "a").code == 0
    other: list[str | Path] = [*small(name, autocast="true"), "--dense", tmp_path / "a"]
    outcome = prunus(*first, *other, "--out", tmp_path / "b")
    outcome.refused("autocast is False there and True here")


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
