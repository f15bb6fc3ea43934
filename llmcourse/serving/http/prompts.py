"""From the argument `prompt` to token ids, in the four forms that OpenAI's has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmcourse.serving.http.errors import ApiError, refuse, short
from llmcourse.serving.http.fields import DRAFT_LENGTH, FIELDS, is_integer, is_text
from llmcourse.serving.speculation import Speculation
from llmcourse.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """What the front must know of a model.

    Attributes:
        name: by which clients ask for it.
        tokenizer: its own.
        max_length: tokens of its context, prompt and answer together.
        eos_token_ids: tokens that end an answer.
        drafters: kinds of speculation that clients may ask for, each made for a draft length.
    """

    name: str
    tokenizer: Tokenizer
    max_length: int
    eos_token_ids: frozenset[int]
    drafters: Mapping[str, Callable[[int], Speculation]] = field(default_factory=dict)

    def speculation(self, asked: dict | None) -> Speculation | None:
        """What the argument `speculation` asks for.

        Raises:
            ApiError: of a kind that there is not, or drafts as long as the context.
        """
        if asked is None:
            return None
        if asked["kind"] not in self.drafters:
            kinds = ", ".join(map(repr, self.drafters)) or "none here"
            refuse("speculation", f"of a kind that is served ({kinds})", asked["kind"], "leave it out")
        length = asked.get("draft_length", DRAFT_LENGTH)
        if length >= self.max_length:
            allowed = f"of a draft_length below the context of {self.max_length}"
            refuse("speculation", allowed, length, "a step cannot bring more than a whole text")
        return self.drafters[asked["kind"]](length)


def split_prompts(prompt: object) -> list[str] | list[list[int]]:
    """The prompts that the argument holds, one or more.

    Raises:
        ApiError: it has none of the four forms, or a prompt is empty.
    """
    if is_text(prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(map(is_text, prompt)):
            return prompt
        lists = [prompt] if is_integer(prompt[0]) else prompt
        if all(isinstance(ids, list) and ids and all(map(is_integer, ids)) for ids in lists):
            return lists
    refuse("prompt", FIELDS["prompt"].allowed, prompt, FIELDS["prompt"].remedy)


async def encode_prompts(prompts: list[str] | list[list[int]], model: ServedModel) -> list[list[int]]:
    """Token ids of every prompt; other requests go on while a long text is encoded.

    Raises:
        ApiError: a text of no tokens, or a token id outside of the vocabulary.
    """
    encoded = [await _encode(prompt, model.tokenizer) for prompt in prompts]
    last = model.tokenizer.vocab_size - 1
    for ids in encoded:
        if not ids:
            refuse("prompt", "a text of at least one token", "", FIELDS["prompt"].remedy)
        for token in (min(ids), max(ids)):
            if not 0 <= token <= last:
                refuse("prompt", f"token ids in [0, {last}]", token, "encode with the model's own tokenizer")
    return encoded


async def _encode(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    return await asyncio.to_thread(tokenizer.encode_prompt, prompt)


def check_length(prompts: list[list[int]], max_tokens: int, model: ServedModel) -> None:
    """Refuses what is longer than the model's context.

    Raises:
        ApiError: naming the prompt if it leaves no room for an answer, else `max_tokens`.
    """
    longest = max(map(len, prompts))
    if longest + max_tokens <= model.max_length:
        return
    param = "prompt" if longest >= model.max_length else "max_tokens"
    message = (
        f"{param} must fit into the context of {model.max_length} tokens, got a prompt of {longest} and "
        f"max_tokens {short(max_tokens)}; shorten the prompt or lower max_tokens"
    )
    raise ApiError(400, message, param=param, code="context_length_exceeded")
