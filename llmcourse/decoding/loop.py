"""The autoregressive loop: ask for logits, choose a token, append it, until something ends the text.

    x_{t+1} ~ p(· | x_1 … x_t)

Every row of a batch ends by itself: at an end token, a stop string, its length limit or an error. It
then rides along unused until the last row is done, as batches do without continuous batching.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import (
    DecodingError,
    EverythingMaskedError,
    NonFiniteLogitsError,
    require_on_error,
)
from llmcourse.decoding.history import History
from llmcourse.decoding.params import SamplingParams
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.decoding.rows import Generation, Row
from llmcourse.decoding.sampling import Randomness, check_generator, greedy, sample
from llmcourse.decoding.source import LogitsSource, as_source, check_request
from llmcourse.model import Decoder
from llmcourse.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """What happened when one token was chosen for each row.

    Attributes:
        index: 0 for the first new token.
        raw_logits: what the model said.
        logits: what the processors made of it; the very same tensor where there are none.
        tokens: the choice; meaningless where not active.
        texts: the text that became certain with it, `""` while a character or a possible stop
            string is unfinished.
        active: the rows that took this token.
        time_s: from the request to the choice, without what the reader of the stream did in between.
    """

    index: int
    raw_logits: Float[Tensor, "B V"]
    logits: Float[Tensor, "B V"]
    tokens: Int[Tensor, " B"]
    texts: list[str]
    active: Bool[Tensor, " B"]
    time_s: float

    @property
    def raw_probabilities(self) -> Float[Tensor, "B V"]:
        return self.raw_logits.softmax(-1)

    @property
    def probabilities(self) -> Float[Tensor, "B V"]:
        return self.logits.softmax(-1)

    @property
    def kept(self) -> Bool[Tensor, "B V"]:
        """The candidates: tokens that no processor has cut."""
        return self.logits > -math.inf


Stream = Generator[Step, None, list[Generation]]


def stream(
    source: Decoder | LogitsSource,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 64,
    processors: Sequence[Processor] = (),
    params: SamplingParams | None = None,
    generator: Randomness | None = None,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
) -> Stream:
    """Decodes a batch, yielding a `Step` for every token; its return value is what `generate` returns.

    Arguments are checked at the call, before the first step is asked for. A stream may be closed
    early: the next call starts its source anew.

    Args:
        source: a model, or anything else that gives logits. A source object serves one stream at a time.
        prompts: token ids, one list a row, of any lengths.
        tokenizer: gives texts; without it they stay empty.
        max_new_tokens: a limit for each row; clamped to the room that its prompt leaves in the context.
        processors: applied in order, before those of `params`.
        params: which processors to apply, and whether to sample: then they need the generator, and
            at temperature 0 they ignore it.
        generator: without params, None is greedy search; one `torch.Generator`, or one a row, draws
            from the processed distribution.
        eos_token_ids: the tokens that end a text; None asks the source.
        stop: strings that end a text. They need the tokenizer.

    Raises:
        TypeError: an argument of another kind, such as text in place of token ids.
        ValueError: an argument out of range, or params that sample without a generator.
        DecodingError: at the end, if a row failed: the first such error, its `generations` being
            what all rows came to. NaN or +inf in its logits, or all tokens masked, fail a row alone.
    """
    source = as_source(source)
    rows, eos = start_rows(source, prompts, tokenizer, max_new_tokens, eos_token_ids, stop)
    processors, generator = choice(params, processors, generator, len(prompts))
    return _run(source, rows, processors, generator, eos)


def generate(
    source: Decoder | LogitsSource,
    prompts: Sequence[Sequence[int]],
    *,
    on_error: Literal["raise", "return"] = "raise",
    **settings,
) -> list[Generation]:
    """Decodes a batch to its end; the settings are those of `stream`.

    Args:
        on_error: "raise" finishes the other rows and raises the first error, with `generations`
            attached; "return" leaves errors in the generations.
    """
    require_on_error(on_error)
    return run_to_end(stream(source, prompts, **settings), on_error)


def run_to_end(steps: Stream, on_error: Literal["raise", "return"]) -> list[Generation]:
    """What a stream returns, its steps left aside; `on_error` as in `generate`."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value
    except DecodingError as error:
        if on_error == "raise":
            raise
        return error.generations


def start_rows(
    source: LogitsSource,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer | None,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None,
    stop: str | Sequence[str],
) -> tuple[list[Row], frozenset[int]]:
    """A row for each prompt, and the tokens that end one; arguments and errors are those of `stream`."""
    stop = (stop,) if isinstance(stop, str) else stop
    eos = check_request(source, prompts, max_new_tokens, eos_token_ids)
    if len(stop) and tokenizer is None:
        raise ValueError("stop must be left out where there is no tokenizer; pass tokenizer= too")
    limits = [min(max_new_tokens, source.max_length - len(prompt)) for prompt in prompts]
    rows = [Row(prompt, limit, tokenizer, stop) for prompt, limit in zip(prompts, limits, strict=True)]
    return rows, eos


def choice(
    params: SamplingParams | None,
    processors: Sequence[Processor],
    generator: object,
    num_rows: int,
) -> tuple[Sequence[Processor], Randomness | None]:
    """All processors, and what to draw with: None for greedy search. Errors are those of `stream`."""
    if params is not None:
        processors, generator = [*processors, *params.processors()], _randomness(params, generator)
    if generator is not None:
        check_generator(generator, num_rows)
    return processors, generator


def _randomness(params: SamplingParams, generator: object) -> object:
    """The generator that these params draw from: none where they are greedy."""
    if params.greedy:
        return None
    if generator is None:
        raise ValueError(
            "generator must be given where params sample, got None; "
            "pass torch.Generator().manual_seed(0), or temperature=0"
        )
    return generator


def _run(
    source: LogitsSource,
    rows: list[Row],
    processors: Sequence[Processor],
    generator: Randomness | None,
    eos_token_ids: frozenset[int],
) -> Stream:
    prompts = [row.prompt for row in rows]
    num_steps = max(row.limit for row in rows)
    history = History.from_prompts(prompts, num_steps, source.device)
    tokens = None
    for index in range(num_steps):
        started = perf_counter()
        if tokens is None:
            raw = source.start(prompts, max(map(len, prompts)) + num_steps)
        else:
            raw = source.step(tokens)
        raw = widen(raw)
        logits = apply(processors, raw, history)
        fail_broken_rows(rows, raw, logits, index)
        if not any(row.active for row in rows):
            break
        active = torch.tensor([row.active for row in rows], device=logits.device)
        tokens = greedy(logits) if generator is None else sample(logits, generator)
        tokens = tokens.masked_fill(~active, 0)  # where a row has ended, its choice means nothing
        history.append(tokens, active)
        texts = _push(rows, tokens, logits, eos_token_ids)
        yield Step(index, raw, logits, tokens, texts, active, perf_counter() - started)
        if not any(row.active for row in rows):
            break
    return finish(rows)


def fail_broken_rows(rows: list[Row], raw: Tensor, logits: Tensor, index: int) -> None:
    """Ends the rows that leave nothing to choose from; one pass over each tensor finds them."""
    weights = (
        "; check the model's weights and number format, or, in contrastive decoding, whether the amateur "
        "rules out a token that the expert keeps"
    )
    overflow = " after the processors; a temperature near 0 overflows, use 0 for greedy search"
    checks = [(raw, weights)] if logits is raw else [(raw, weights), (logits, overflow)]
    for values, remedy in checks:
        for number, peak in enumerate(values.amax(-1).tolist()):  # NaN if the row holds one
            where = f"row {number}, step {index}"
            if not rows[number].active or -math.inf < peak < math.inf:
                continue
            if peak == -math.inf:
                message = f"{where}: every token is masked; loosen the processors, or stop earlier"
                rows[number].fail(EverythingMaskedError(message))
            else:
                rows[number].fail(NonFiniteLogitsError(f"{where}: the logits hold {peak}{remedy}"))


def _push(rows: list[Row], tokens: Tensor, logits: Tensor, eos_token_ids: frozenset[int]) -> list[str]:
    chosen = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return [
        row.push(token, log_prob, eos_token_ids) if row.active else ""
        for row, token, log_prob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True)
    ]


def finish(rows: list[Row]) -> list[Generation]:
    """What all rows came to; raises the first error, with these attached."""
    generations = [row.generation() for row in rows]
    for row in rows:
        if row.error is not None:
            row.error.generations = generations
            raise row.error
    return generations
