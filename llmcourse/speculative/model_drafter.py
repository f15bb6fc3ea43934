"""A smaller model as a drafter: it decodes ahead of the target, by the target's own settings.

Its cache holds the text but for the last token or two: after a step in which all its drafts stood, it has
yet to read the last of them and the target's bonus. Drafts that fell are rolled back. (Leviathan et al. 2023;
Chen et al. 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.decoding.sampling import Randomness, greedy, pick
from llmcourse.model import Decoder
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.numbers import uniform_by_row
from llmcourse.tokenizer import Tokenizer


def require_decoder(name: str, model: object) -> None:
    """Raises TypeError for what is no model, such as the pair that `pretrained.load` returns."""
    if not isinstance(model, Decoder):
        remedy = "pass the model that pretrained.load returns, without its tokenizer"
        raise TypeError(f"{name} must be a Decoder, got {type(model).__name__}; {remedy}")


class ModelDrafter:
    """Drafts by a decoder with the target's vocabulary, its own KV cache, and a context of its own.

    Past its context it proposes nothing.

    Args:
        model: the draft model.
        tokenizer: the draft model's; if given, its tokens are compared with those of the target's.

    Raises:
        TypeError: no decoder.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer | None = None):
        require_decoder("model", model)
        self.model, self.tokenizer = model, tokenizer
        self.vocab_size = model.config.vocab_size

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.cache = self.model.new_cache(len(prompts), capacity)
        self._held = [0] * len(prompts)  # tokens that the cache counts, known to the host
        history = History.from_prompts(prompts, device=self.model.device)
        self._catch_up(history.tokens, [len(prompt) for prompt in prompts])

    @torch.no_grad()
    def draft(
        self,
        history: History,
        num_drafts: Sequence[int],
        processors: Sequence[Processor] = (),
        generator: Randomness | None = None,
    ) -> Draft:
        self._lengths = history.lengths.tolist()
        context = self.model.config.max_position_embeddings
        rooms = [max(0, context - length) for length in self._lengths]
        counts = [min(asked, room) for asked, room in zip(num_drafts, rooms, strict=True)]
        num_tokens = torch.tensor(counts, device=history.tokens.device)
        if not any(counts):
            return Draft(history.tokens[:, :0], num_tokens)
        width = max(counts)
        points = None if generator is None else uniform_by_row(generator, counts, width)
        tokens, q, stops = self._decode(history, width, processors, points)
        if stops is not None:
            num_tokens = torch.minimum(num_tokens, stops)
        past = torch.arange(tokens.shape[1], device=tokens.device) >= num_tokens[:, None]
        return Draft(tokens.masked_fill(past, 0), num_tokens, q)

    def accept(self, num_accepted: Sequence[int]) -> None:
        """Keeps of the cache what is still the text; the last draft was never read."""
        stood = zip(self._held, self._lengths, num_accepted, strict=True)
        self._cut([min(held, length + count) for held, length, count in stood])

    def goes_on(self, logits: Float[Tensor, "B V"]) -> Bool[Tensor, " B"] | None:
        """Which rows shall be given a draft from these logits; None: all of them, as always here.

        A drafter that is not always sure says otherwise. It must not depend on what will be drawn, or drafts
        that stand would be of another distribution than the target's.
        """
        return None

    def _decode(
        self, history: History, width: int, processors: Sequence[Processor], points: Tensor | None
    ) -> tuple[Int[Tensor, "B G"], Float[Tensor, "B G V"] | None, Int[Tensor, " B"] | None]:
        """At most `width` tokens for each row, and what they were drawn from: None for greedy decoding.

        And how many of them a row has before it does not go on: None if nothing was stopped.
        """
        logits = self.model.lm_head(self._catch_up(history.tokens, self._lengths))
        text = history.select(range(len(logits))) if processors else history  # only they look back
        tokens, q, stops, on = [], [], None, None
        for position in range(width):
            if position:
                logits = self.model.lm_head(self._read(tokens[-1][:, None]))[:, 0]
                self._held = [held + 1 for held in self._held]
                if processors:
                    text.append(tokens[-1])
            more = self.goes_on(widen(logits))
            if more is not None:
                on = more if on is None else on & more
                stops = on.long() if stops is None else stops + on
                if not on.any():
                    break
            logits = widen(apply(processors, widen(logits), text))
            if points is None:
                tokens.append(greedy(logits))
            else:
                q.append(logits.softmax(-1))
                tokens.append(pick(q[-1], points[:, position]).to(logits.device))
        if not tokens:
            return history.tokens[:, :0], None, stops
        return torch.stack(tokens, 1), torch.stack(q, 1) if q else None, stops

    def _catch_up(self, tokens: Int[Tensor, "B S"], lengths: list[int]) -> Float[Tensor, "B C"]:
        """Reads what is new of each row, its last token in any case; the hidden state at the last token.

        Rows with less to read than others read some of their text anew, instead of padding.
        """
        unread = [length - held for length, held in zip(lengths, self._held, strict=True)]
        width = max(1, *unread)
        starts = [max(0, length - width) for length in lengths]
        self._cut(starts)
        slots = torch.tensor(starts, device=tokens.device)[:, None] + torch.arange(
            width, device=tokens.device
        )
        hidden = self._read(tokens.gather(1, slots))  # (B, width, C)
        self._held = [start + width for start in starts]
        self._cut(lengths)  # texts shorter than `width` were padded after all
        ends = torch.tensor(lengths, device=tokens.device) - 1 - slots[:, 0]
        return hidden[torch.arange(len(lengths), device=tokens.device), ends]

    def _read(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """The normalised hidden states of tokens behind what the cache holds."""
        return self.model.hidden_states(tokens, self.cache)

    def _cut(self, lengths: list[int]) -> None:
        if lengths != self._held:
            self.cache.truncate(lengths)
            self._held = lengths
