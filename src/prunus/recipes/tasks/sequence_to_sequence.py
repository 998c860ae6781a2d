"""The sequence-to-sequence task, measured by BLEU: translation and dialogue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from prunus._utils.extras import missing_extra
from prunus._utils.fields import number, setting
from prunus.errors import DataError
from prunus.recipes.data.texts import TextPairs
from prunus.recipes.data.tokenizer import train_tokenizer
from prunus.recipes.setting_marks import Affects
from prunus.recipes.tasks.language import (
    LanguageConfig,
    LanguageTask,
    bucket_by_length,
    choose_attention,
    group_into_steps,
)
from prunus.recipes.tasks.losses import NO_CLASS, Teacher, cross_entropy
from prunus.recipes.tasks.task import Evaluation, TeacherOutput, fingerprint

__all__ = ["SequenceConfig", "SequenceToSequence"]

_SAMPLES = 3
_GENERATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(LanguageConfig):
    """The settings of translation and dialogue, in addition to those of :class:`LanguageConfig`."""

    beams: Annotated[int, Affects.TEACHER_OUTPUTS] = number(
        4, whole=True, least=1, help="Beam width of the final evaluation."
    )
    validation_beams: int = number(
        1,
        whole=True,
        least=1,
        help="Width of the beam search at each validation; 1 for greedy search, which is several "
        "times faster.",
    )
    length_penalty: Annotated[float, Affects.TEACHER_OUTPUTS] = number(
        1.0, least=0, help="Exponent of the length that divides a beam's score."
    )
    validation_pairs: int = number(
        0, whole=True, least=0, help="Validation pairs to generate outputs for; 0 for all."
    )
    sequence_distillation: Annotated[bool, Affects.TEACHER_OUTPUTS] = setting(
        False,
        help="Whether the sparse network trains on the outputs of the dense network for each "
        "training source, by a search of width beams, instead of the references. These outputs "
        "are easier to learn for a network with few weights, because teacher outputs are more "
        "consistent than human references (Kim and Rush, arXiv 1606.07947).",
    )


@dataclass(frozen=True)
class _Encoded:
    """A split as token ids."""

    sources: list[list[int]]
    targets: list[list[int]]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class _Batch:
    source: torch.Tensor
    target: torch.Tensor


class SequenceToSequence(LanguageTask[SequenceConfig]):
    """A task for an encoder and decoder shaped as BART, whose embeddings and head are tied.

    Training pairs with more than ``length`` tokens are left out; :attr:`notes` reports how many.

    Args:
        config: The settings.
        pairs: The data, by split.
        extra: Further special tokens of the tokenizer.

    Raises:
        DataError: A text of the validation or test split has more tokens than the model has
            positions.
    """

    metric = "BLEU"
    extra_metrics = ("perplexity",)

    def __init__(
        self, config: SequenceConfig, pairs: Mapping[str, TextPairs], extra: Sequence[str] = ()
    ) -> None:
        self._pairs = pairs
        train = pairs["train"]
        both = [text for texts in (train.sources, train.targets) for text in texts]
        super().__init__(config, train_tokenizer(both, config.vocabulary, extra))
        self._encoded = {split: self._encode(split) for split in pairs}
        self.notes = self._left_out()
        batches = math.ceil(len(self._encoded["train"]) / config.batch_size)
        self.steps_per_epoch = math.ceil(batches / config.accumulation)
        self.fingerprint = fingerprint(
            [self.tokenizer.backend_tokenizer.to_str()]
            + [
                text
                for split in pairs.values()
                for texts in (split.sources, split.targets)
                for text in texts
            ]
        )
        self._bleu = _bleu()
        self.about = {"search": f"beam {config.beams}, length penalty {config.length_penalty:g}"}

    def _encode(self, split: str) -> _Encoded:
        pairs, most = self._pairs[split], self._config.length
        end = self.tokenizer.eos_token_id
        columns = [
            [[*tokens, end] for tokens in self.tokenizer(list(texts))["input_ids"]]
            for texts in (pairs.sources, pairs.targets)
        ]
        kept = [i for i in range(len(pairs)) if max(len(c[i]) for c in columns) <= most]
        if len(kept) < len(pairs) and split != "train":
            longest = max(len(tokens) for column in columns for tokens in column)
            raise DataError(
                f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs of the {split} split have "
                f"more than length={most} tokens, at most {longest}: set length={longest}"
            )
        if not kept:
            raise DataError(
                f"every pair of the train split has more than length={most} tokens: raise length"
            )
        return _Encoded(*([column[i] for i in kept] for column in columns))

    def _left_out(self) -> list[str]:
        """Return a line with the number of training pairs that are left out, if there are any."""
        train = self._pairs["train"]
        counts = {
            "with an empty text": train.left_out,
            f"with more than length={self._config.length} tokens": len(train)
            - len(self._encoded["train"]),
        }
        reasons = [f"{count:,} {reason}" for reason, count in counts.items() if count]
        return [f"training pairs left out: {' and '.join(reasons)}"] if reasons else []

    def network(self) -> nn.Module:
        """Build a BART of the configured size."""
        from transformers import BartConfig, BartForConditionalGeneration

        config, tokenizer = self._config, self.tokenizer
        model: nn.Module = BartForConditionalGeneration(
            BartConfig(
                vocab_size=config.vocabulary,
                max_position_embeddings=config.length,
                d_model=config.width,
                encoder_layers=config.layers,
                decoder_layers=config.layers,
                encoder_attention_heads=config.heads,
                decoder_attention_heads=config.heads,
                encoder_ffn_dim=config.feed_forward,
                decoder_ffn_dim=config.feed_forward,
                dropout=config.dropout,
                attention_dropout=0.0,
                activation_function="relu",
                scale_embedding=True,
                bos_token_id=tokenizer.bos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                decoder_start_token_id=tokenizer.bos_token_id,
                forced_eos_token_id=None,
            )
        )
        choose_attention(model, config)
        return model

    def batches(self, generator: torch.Generator) -> Iterator[list[_Batch]]:
        """Yield each pair once, in batches of similar lengths, in random order."""
        data = self._encoded["train"]
        # Targets first: a target token costs the decoder and the head, a source token the encoder.
        lengths = [(len(b), len(a)) for a, b in zip(data.sources, data.targets, strict=True)]
        batches = (
            self._batch(data, indices)
            for indices in bucket_by_length(lengths, self._config.batch_size, generator)
        )
        return group_into_steps(batches, self._config.accumulation)

    def _batch(self, data: _Encoded, indices: Sequence[int]) -> _Batch:
        return _Batch(
            self._padded([data.sources[i] for i in indices]),
            self._padded([data.targets[i] for i in indices]),
        )

    def _padded(self, texts: Sequence[list[int]]) -> torch.Tensor:
        longest = max(map(len, texts))
        pad = self.tokenizer.pad_token_id
        return torch.tensor([text + [pad] * (longest - len(text)) for text in texts])

    def size(self, batch: _Batch) -> int:
        """Return the number of target tokens."""
        return int((batch.target != self.tokenizer.pad_token_id).sum())

    def loss(self, model: nn.Module, batch: _Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Return the cross-entropy of each next token, given those before it."""
        smoothing = self._config.label_smoothing
        return cross_entropy(
            lambda network: self._predict(network, batch), model, teacher, label_smoothing=smoothing
        )

    @torch.no_grad()
    def teacher_outputs(
        self, dense: Callable[[], nn.Module]
    ) -> Iterator[tuple[float, TeacherOutput]]:
        """Yield the outputs of the dense network for the training sources, with the fraction done.

        Yields nothing without sequence_distillation.
        """
        if not self._config.sequence_distillation:
            return
        network, sources, done = dense(), self._encoded["train"].sources, 0
        for indices in _chunks(_longest_first(sources), _GENERATION_BATCH):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._config.autocast):
                tokens = self._generate(network, [sources[i] for i in indices], self._config.beams)
            done += len(indices)
            yield done / len(sources), {"indices": torch.tensor(indices), "tokens": tokens}

    def use_teacher_outputs(self, outputs: Sequence[TeacherOutput]) -> None:
        """Replace the references of the training split by these outputs."""
        end = self.tokenizer.eos_token_id
        targets = list(self._encoded["train"].targets)
        for output in outputs:
            indices, rows = output["indices"].tolist(), output["tokens"].tolist()
            for i, tokens in zip(indices, rows, strict=True):
                # The first is the start token; those after the end token are padding.
                stop = tokens.index(end) + 1 if end in tokens else len(tokens)
                targets[i] = tokens[1:stop]
        self._encoded["train"] = _Encoded(self._encoded["train"].sources, targets)

    def _generate(self, model: Any, sources: Sequence[list[int]], beams: int) -> torch.Tensor:
        """Return the network's outputs, a row of tokens each, which begin with the start token."""
        padded = self._padded(sources)
        penalty = {"length_penalty": self._config.length_penalty} if beams > 1 else {}
        outputs: torch.Tensor = model.generate(
            input_ids=padded,
            attention_mask=padded != self.tokenizer.pad_token_id,
            max_new_tokens=self._config.length - 1,
            num_beams=beams,
            do_sample=False,
            early_stopping=beams > 1,
            **penalty,
        )
        return outputs

    def _predict(self, model: nn.Module, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of all target tokens, and their classes; padding has none."""
        start = torch.full_like(batch.target[:, :1], self.tokenizer.bos_token_id)
        logits = model(
            input_ids=batch.source,
            attention_mask=batch.source != self.tokenizer.pad_token_id,
            decoder_input_ids=torch.cat([start, batch.target[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        padding = batch.target == self.tokenizer.pad_token_id
        return logits.flatten(0, 1), batch.target.masked_fill(padding, NO_CLASS).flatten()

    def validate(self, model: nn.Module) -> Evaluation:
        """Evaluate on the validation split, with the fast search."""
        config = self._config
        return self._evaluate(
            model, "validation", config.validation_beams, config.validation_pairs or None
        )

    def test(self, model: nn.Module) -> Evaluation:
        """Evaluate on the test split, with the full search."""
        return self._evaluate(model, "test", self._config.beams, None)

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, split: str, beams: int, most: int | None) -> Evaluation:
        model.eval()
        data, pairs = self._encoded[split], self._pairs[split]
        ranked = _longest_first(data.sources)
        total, count = 0.0, 0
        for indices in _chunks(ranked, _GENERATION_BATCH):
            batch = self._batch(data, indices)
            logits, labels = self._predict(model, batch)
            total += F.cross_entropy(logits, labels, reduction="sum", ignore_index=NO_CLASS).item()
            count += self.size(batch)
        outputs: dict[int, str] = {}
        chosen = [i for i in ranked if most is None or i < most]
        for indices in _chunks(chosen, _GENERATION_BATCH):
            tokens = self._generate(model, [data.sources[i] for i in indices], beams)
            decoded = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            outputs.update(zip(indices, map(str.strip, decoded), strict=True))
        model.train()
        order = sorted(outputs)
        score = self._bleu.corpus_score(
            [outputs[i] for i in order], [[pairs.targets[i] for i in order]]
        )
        self.about = {**self.about, "signature": str(self._bleu.get_signature())}
        samples = [
            f"    {_short(pairs.sources[i])}  →  {_short(outputs[i])}" for i in order[:_SAMPLES]
        ]
        extra = {"perplexity": math.exp(min(total / count, 700.0))}
        return Evaluation(total / count, float(score.score), extra, samples)


def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise missing_extra("a language recipe", "language", error) from error
    return BLEU()


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _longest_first(texts: Sequence[list[int]]) -> list[int]:
    """Return all indices, the longest text first, so that a lack of memory shows at once."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (indices[i : i + size] for i in range(0, len(indices), size))
