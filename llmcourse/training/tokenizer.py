"""Byte-level byte-pair encoding, trained on a sample of every domain.

Frequent pairs of neighbouring pieces are merged until the vocabulary is full (Sennrich et al.
2016); starting from bytes, no text is out of vocabulary (Radford et al. 2019, section 2.2).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|pad|>", "<|mask|>", "<|sep|>")
VOCAB_SIZE = 12_288

# Merges never cross these borders: words with the space before them, single digits, runs of
# punctuation, runs of white space (an indented line start is one piece).
PIECES = r"'(?:s|d|m|t|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(
    documents: Iterable[str], vocab_size: int = VOCAB_SIZE, *, show_progress: bool = False
) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens, the special ones first.

    Args:
        show_progress: draw bars, where standard error is a terminal.

    Raises:
        ValueError: `vocab_size` leaves no room for merges, or the text is too small for it.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise ValueError(f"vocab_size must be above {smallest} (bytes and special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text yields only {tokenizer.get_vocab_size()} of {vocab_size} tokens; "
            "give more text or a smaller vocab_size"
        )
    add_start(tokenizer)
    return tokenizer


def add_start(tokenizer: Tokenizer) -> None:
    """Lets the tokenizer put `<|endoftext|>` before a prompt, as it stood before every document.

    Encoding without special tokens, as in training and evaluation, stays as it is.
    """
    start = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[start]
    )


def sample_documents(documents: Sequence[str], max_chars: int, seed: int = 0) -> Iterator[str]:
    """Documents in random order until `max_chars` characters are reached."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    taken = 0
    for index in order:
        if taken >= max_chars:
            return
        taken += len(documents[index])
        yield documents[index]


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that an earlier run wrote."""
    return Tokenizer.from_file(str(path))
