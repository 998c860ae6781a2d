"""The byte-level BPE tokenizer, trained on the training split and saved with the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prunus._utils.extras import missing_extra
from prunus.errors import DataError

__all__ = ["BOS", "EOS", "PAD", "train_tokenizer"]

BOS, PAD, EOS, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"


def train_tokenizer(texts: Iterable[str], size: int, extra: Sequence[str] = ()) -> Any:
    """Train a tokenizer for ``transformers``; decoding an encoded text returns the same text.

    Args:
        texts: The texts to train on.
        size: The number of tokens, including 256 bytes and the special tokens.
        extra: Special tokens besides those for start, padding, end and unknown.

    Returns:
        A ``PreTrainedTokenizerFast`` whose first special tokens have the ids 0 to 3.

    Raises:
        DataError: The texts are too few for that many tokens.
        MissingExtraError: The libraries of the language extra are not installed.

    Example:
        >>> tokenizer = train_tokenizer(["to be or not to be, that is the question"] * 9, 280)
        >>> tokenizer.decode(tokenizer.encode("or not, Ümläute?"))
        'or not, Ümläute?'
    """
    try:
        from tokenizers import Tokenizer, decoders, pre_tokenizers
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise missing_extra("a language recipe", "language", error) from error
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=size,
            special_tokens=[BOS, PAD, EOS, UNKNOWN, *extra],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != size:
        raise DataError(
            f"vocabulary={size} is more than the training texts yield, "
            f"{tokenizer.get_vocab_size():,}: lower it, or train on more"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens=list(extra),
        clean_up_tokenization_spaces=False,
    )
