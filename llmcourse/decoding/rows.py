"""One row of a batch while it is decoded, and the record that is left of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from llmcourse.decoding.errors import DecodingError
from llmcourse.decoding.stop_strings import StopStrings
from llmcourse.tokenizer import Tokenizer

FinishReason = Literal["eos", "stop", "length", "error"]


@dataclass(frozen=True)
class Generation:
    """One finished text.

    Attributes:
        prompt: its token ids.
        tokens: the generated ids, the end token or the tokens of a stop string included.
        text: what they say, without end token and stop string; empty where no tokenizer was given.
        finish_reason: what ended it: an end token, a stop string, a length limit, or an error.
        log_probs: of each token, in nats, under the distribution that it was chosen from.
        error: what went wrong, if anything.
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    finish_reason: FinishReason
    log_probs: list[float]
    error: DecodingError | None = None


class Row:
    """A text in the making: takes tokens, gives out text, and knows when it has ended.

    Args:
        prompt: its token ids.
        limit: how many tokens may follow; 0 ends it at once.
    """

    def __init__(self, prompt: Sequence[int], limit: int, tokenizer: Tokenizer | None, stop: Sequence[str]):
        self.prompt, self.limit = list(prompt), limit
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.text = ""
        self.error: DecodingError | None = None
        self.finish_reason: FinishReason | None = None if limit else "length"
        self._decoder = tokenizer.stream() if tokenizer else None
        self._stop = StopStrings(stop)

    @property
    def active(self) -> bool:
        return self.finish_reason is None

    def push(self, token: int, log_prob: float, eos_token_ids: Collection[int]) -> str:
        """Adds a token; returns the text that it makes certain."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        ended = token in eos_token_ids
        piece = "" if ended else self._show(token)
        if ended or len(self.tokens) == self.limit:
            self.finish_reason = "eos" if ended else "length"
            piece += self._rest()
        if self._stop.found is not None:
            self.finish_reason = "stop"
        self.text += piece
        return piece

    def fail(self, error: DecodingError) -> None:
        """Ends the row; the text stays what was given out before."""
        self.error, self.finish_reason = error, "error"

    def generation(self) -> Generation:
        return Generation(self.prompt, self.tokens, self.text, self.finish_reason, self.log_probs, self.error)

    def _show(self, token: int) -> str:
        return self._stop.push(self._decoder.push(token)) if self._decoder else ""

    def _rest(self) -> str:
        """What was held back: half a character, the start of a stop string that never came."""
        return self._stop.push(self._decoder.flush()) + self._stop.flush() if self._decoder else ""
