"""Text to token ids and back, over the `tokenizers` library's `tokenizer.json` files."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A thin, typed view of a `tokenizers.Tokenizer`.

    Args:
        path: a `tokenizer.json`, or the folder that holds one.
        vocab_size: the model's, where that is larger: embeddings are often padded to a round
            number, and the ids beyond the last token stand for no text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or `vocab_size` is smaller than the vocabulary.
    """

    def __init__(self, path: str | Path, *, vocab_size: int | None = None):
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"no tokenizer.json at {path}; transformers writes one with "
                "AutoTokenizer.from_pretrained(…).save_pretrained(folder)"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is damaged or no tokenizer.json ({error}); fetch it again") from error
        size = self._tokenizer.get_vocab_size()
        if vocab_size is not None and vocab_size < size:
            raise ValueError(
                f"the tokenizer {path} has {size} tokens, the model only {vocab_size}; are they of one model?"
            )
        self.vocab_size = vocab_size or size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in the text are recognised, none is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in which `<|pad|>` and the like are characters as all others."""
        return self._without_special.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to be continued, with what the checkpoint's makers put before one.

        For the embedded family that is `<|endoftext|>`, which stood before every document in
        training; other checkpoints say it in their `tokenizer.json`, or add nothing.
        """
        return self._tokenizer.encode(text, add_special_tokens=True).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Bytes that are no character show as U+FFFD.

        Raises:
            ValueError: an id is not of the vocabulary.
        """
        ids = list(token_ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            index = next(i for i, token in enumerate(ids) if not 0 <= token < self.vocab_size)
            raise ValueError(f"token_ids[{index}] must be in [0, {self.vocab_size}), got {ids[index]}")
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it (`<|endoftext|>`), None if there is none."""
        return self._tokenizer.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """All tokens as the vocabulary spells them, special ones included, and their ids."""
        return self._tokenizer.get_vocab()

    def label(self, token_id: int) -> str:
        """A token as a reader should see it in a figure: spaces and newlines made visible,
        bytes that are only a part of a character as `<E4>`, invisible characters as `<U+3000>`."""
        text = self.decode([token_id], skip_special_tokens=False)
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return f"<{token_id}>"
        if REPLACEMENT in text:
            text = _bytes(piece).decode("utf-8", errors="surrogateescape")
        elif piece.startswith("▁") and not text.startswith(" "):
            text = f" {text}"  # SentencePiece drops the space of a text's first word
        return "".join(map(_visible, text))

    def stream(self) -> StreamDecoder:
        """A decoder that takes tokens one at a time, for printing while generating."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns tokens into text as they come, holding back the bytes of an unfinished character.

    A Chinese character is three bytes in UTF-8, and a token may end inside one. All pieces that
    `push` returned and the last one of `flush` make exactly `tokenizer.decode` of all tokens.
    (With SentencePiece's byte fallback only where the bytes are valid UTF-8: it blames a whole
    run of bytes for one that is wrong.)
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._shown_ids: list[int] = []  # context: a first word may lose its space without it
        self._new_ids: list[int] = []
        self._shown = 0  # characters of both that were returned

    def push(self, token_id: int) -> str:
        """The text that this token completes, `""` while a character is unfinished.

        Raises:
            ValueError: the id is not of the vocabulary; the stream goes on without it.
        """
        text = self._tokenizer.decode([*self._shown_ids, *self._new_ids, token_id])
        self._new_ids.append(token_id)
        unfinished = len(text) - len(text.rstrip(REPLACEMENT))
        if len(self._new_ids) > 4:  # no character is longer: only the last one may still be whole
            unfinished = min(unfinished, 1)
        piece = text[self._shown : len(text) - unfinished]
        self._shown += len(piece)
        if piece and not unfinished:
            self._shown_ids, self._new_ids = self._new_ids, []
            self._shown = len(self._tokenizer.decode(self._shown_ids))
        return piece

    def flush(self) -> str:
        """The end of the text: U+FFFD if a character was left unfinished, else `""`."""
        piece = self._tokenizer.decode(self._shown_ids + self._new_ids)[self._shown :]
        self._shown_ids, self._new_ids, self._shown = [], [], 0
        return piece


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # what "surrogateescape" makes of a stray byte
        return f"<{code - 0xDC00:02X}>"
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(character, character)
    return shown if shown.isprintable() else f"<U+{code:04X}>"


def _bytes(piece: str) -> bytes:
    """The bytes of a vocabulary entry: one as SentencePiece spells it, `<0xE4>`, or byte-level BPE's."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    alphabet = _byte_alphabet()
    return b"".join(alphabet.get(ch, ch.encode()) for ch in piece)


@functools.cache
def _byte_alphabet() -> dict[str, bytes]:
    """The printable stand-ins that byte-level BPE writes for the 256 bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
