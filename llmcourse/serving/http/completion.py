"""One call of /v1/completions: the requests that it makes of the engine, and the texts that come of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmcourse.decoding.rows import Row
from llmcourse.serving.http.body import CompletionBody
from llmcourse.serving.http.fields import SEEDS
from llmcourse.serving.http.prompts import ServedModel
from llmcourse.serving.http.service import Answers, Event
from llmcourse.serving.request import Request

# What ends a text, as a row says it and as OpenAI does.
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", None: None}


@dataclass(frozen=True)
class Piece:
    """Text that has become certain.

    Attributes:
        index: of the choice.
        finish_reason: "stop" or "length" with the last piece of a choice.
    """

    index: int
    text: str
    finish_reason: str | None = None


class Completion:
    """A call with all its choices, n for each prompt, in the order of the prompts.

    Args:
        texts: the prompts as they were given, texts or token ids.
        prompts: the same as token ids.

    Raises:
        ApiError: a kind of speculation that the model does not offer.

    Attributes:
        id, created: as in OpenAI's objects, `created` in seconds since 1970.
    """

    def __init__(
        self,
        body: CompletionBody,
        texts: list[str] | list[list[int]],
        prompts: list[list[int]],
        model: ServedModel,
    ):
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.body, self.model = body, model
        self._speculation = model.speculation(body.speculation)
        self.prompts = prompts
        self._shown = [text if isinstance(text, str) else model.tokenizer.decode(text) for text in texts]
        each = [prompt for prompt in prompts for _ in range(body.n)]
        self._rows = [Row(prompt, body.max_tokens, model.tokenizer, body.stop) for prompt in each]
        self._indices = {self._request_id(index): index for index in range(len(each))}

    def requests(self) -> list[Request]:
        """One a choice. The n answers to a prompt are drawn with seeds that follow each other."""
        body, params = self.body, self.body.params(self.model.tokenizer.vocab_size)
        seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
        return [
            Request(
                self._request_id(index),
                row.prompt,
                max_tokens=body.max_tokens,
                params=params,
                seed=(seed + index % body.n) % SEEDS,
                stop_token_ids=self.model.eos_token_ids,
                priority=body.priority,
                arrival_s=time.monotonic(),
                speculation=self._speculation,
            )
            for index, row in enumerate(self._rows)
        ]

    async def pieces(self, answers: Answers) -> AsyncIterator[list[Piece]]:
        """Texts as they become certain, until all are ended; with `echo` each begins with its prompt.

        Raises:
            Exception: what made a request fail.
        """
        if self.body.echo:
            yield [Piece(index, self._shown[index // self.body.n]) for index in range(len(self._rows))]
        while any(row.active for row in self._rows):
            pieces = [self._take_in(event, answers) for event in await answers.events()]
            yield _joined([piece for piece in pieces if piece])

    def usage(self) -> dict[str, int]:
        """Tokens so far: a prompt counts once, however many answers it gets."""
        prompt_tokens = sum(map(len, self.prompts))
        completion_tokens = sum(len(row.tokens) for row in self._rows)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def content(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """OpenAI's completion object, or a chunk of one, with these pieces as its choices."""
        choices = [
            {"text": p.text, "index": p.index, "logprobs": None, "finish_reason": p.finish_reason}
            for p in pieces
        ]
        head = {"id": self.id, "object": "text_completion", "created": self.created}
        return head | {"model": self.model.name, "choices": choices}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The completion object of all pieces."""
        return self.content(_joined(pieces)) | {"usage": self.usage()}

    def _request_id(self, index: int) -> str:
        return f"{self.id}-{index}"

    def _take_in(self, event: Event, answers: Answers) -> Piece | None:
        """The text that an event brings; tokens that came after a stop string are dropped."""
        index = self._indices[event.request_id]
        row = self._rows[index]
        if event.error is not None:
            raise event.error
        if not row.active:
            return None
        text = row.push(event.token, 0.0, self.model.eos_token_ids)
        if row.finish_reason == "stop":
            answers.end(event.request_id)
        return Piece(index, text, FINISH_REASONS[row.finish_reason])


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece for each choice, in the order of the choices."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str | None] = {}
    for piece in pieces:
        texts.setdefault(piece.index, []).append(piece.text)
        reasons[piece.index] = piece.finish_reason
    return [Piece(index, "".join(texts[index]), reasons[index]) for index in sorted(texts)]
