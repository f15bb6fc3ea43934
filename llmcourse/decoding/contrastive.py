"""Contrastive decoding: prefer what a strong model knows and a weak one does not.

    V_head = {x : p_expert(x) >= alpha · max p_expert}
    score(x) = log p_expert(x) - log p_amateur(x)   for x in V_head,   -inf elsewhere

Source: Li et al. 2022, "Contrastive Decoding: Open-ended Text Generation as Optimization",
section 3. Without V_head the difference would reward tokens that both models hold nearly
impossible, the amateur a little more so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.processors import widen
from llmcourse.decoding.source import LogitsSource, as_source
from llmcourse.model import Decoder
from llmcourse.tokenizer import Tokenizer


def contrastive_logits(
    expert_logits: Float[Tensor, "B V"],
    amateur_logits: Float[Tensor, "B Va"],  # Va must be V; other sizes are refused by name
    alpha: float = 0.1,
    amateur_temperature: float = 1.0,
    beta: float | None = None,
) -> Float[Tensor, "B V"]:
    """The contrastive score of every token, in fp32 or wider; its softmax can be sampled.

    A plausible token to which the amateur gives no probability at all scores +inf.

    Args:
        alpha: in [0, 1]; 0 lifts the plausibility constraint, 1 leaves only the expert's choice.
        amateur_temperature: above 0; below 1 it sharpens what the amateur is blamed for.
        beta: None for the difference above; a number >= 0 for the form of O'Brien and Lewis 2023,
            (1 + beta) log p_expert - beta log p_amateur, which at 0 is the expert itself.

    Raises:
        ValueError: a strength out of range, or two vocabularies.
    """
    _check_strengths(alpha, amateur_temperature, beta)
    check_vocabularies(expert_logits.shape[-1], amateur_logits.shape[-1])
    expert = widen(expert_logits).log_softmax(dim=-1)
    amateur = (widen(amateur_logits) / amateur_temperature).log_softmax(dim=-1)
    score = expert - amateur
    if beta is not None:
        score = expert + beta * score
    return score.masked_fill(~plausible(expert, alpha), -math.inf)


def plausible(logits: Float[Tensor, "B V"], alpha: float) -> Bool[Tensor, "B V"]:
    """V_head as a mask: tokens at least alpha times as probable as the likeliest one.

    A token that the expert rules out (-inf) is never in it. NaN is, so that a broken model is
    seen by whoever reads the scores.
    """
    log_alpha = math.log(alpha) if alpha > 0 else -math.inf
    too_rare = logits < logits.max(dim=-1, keepdim=True).values + log_alpha
    return ~(too_rare | logits.isneginf())


class ContrastiveLogits:
    """Expert minus amateur as a source of logits: any loop or search runs it unchanged.

    Both models read the same tokens, each through its own cache. Beam search normalises the
    scores at every step, where the paper adds them up as they are.

    Args:
        expert, amateur: two models over one vocabulary, the second the weaker.
        alpha, amateur_temperature, beta: as in `contrastive_logits`.
        tokenizers: the expert's and the amateur's; given, their tokens are compared one by one.

    Attributes:
        expert_logits, amateur_logits: what each model said at the latest step, for drawing.

    Raises:
        ValueError: the vocabularies differ (both sizes and the first difference), a strength is
            out of range, or one source object is given for both.
    """

    def __init__(
        self,
        expert: Decoder | LogitsSource,
        amateur: Decoder | LogitsSource,
        *,
        alpha: float = 0.1,
        amateur_temperature: float = 1.0,
        beta: float | None = None,
        tokenizers: tuple[Tokenizer, Tokenizer] | None = None,
    ):
        _check_strengths(alpha, amateur_temperature, beta)
        self.expert, self.amateur = as_source(expert), as_source(amateur)
        if self.expert is self.amateur:  # its one cache would take every token twice
            raise ValueError(
                f"expert and amateur must be two sources, got one {type(expert).__name__} for both; "
                "make a source for each, or pass models"
            )
        check_vocabularies(self.expert.vocab_size, self.amateur.vocab_size, tokenizers)
        self.alpha, self.amateur_temperature, self.beta = alpha, amateur_temperature, beta
        self.vocab_size = self.expert.vocab_size
        self.max_length = min(self.expert.max_length, self.amateur.max_length)
        self.eos_token_ids = self.expert.eos_token_ids
        self.device = self.expert.device
        self.expert_logits: Tensor | None = None
        self.amateur_logits: Tensor | None = None

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        """Reads the prompts with both models."""
        return self._contrast(self.expert.start(prompts, capacity), self.amateur.start(prompts, capacity))

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """One more token for every row of both models."""
        there = tokens.to(self.amateur.device)
        return self._contrast(self.expert.step(tokens), self.amateur.step(there))

    def reorder(self, rows: Int[Tensor, " R"]) -> None:
        """Row i of both models becomes a copy of row `rows[i]`."""
        self.expert.reorder(rows)
        self.amateur.reorder(rows.to(self.amateur.device))

    def _contrast(self, expert: Tensor, amateur: Tensor) -> Tensor:
        self.expert_logits, self.amateur_logits = expert, amateur.to(expert.device)
        return contrastive_logits(
            self.expert_logits, self.amateur_logits, self.alpha, self.amateur_temperature, self.beta
        )


def check_vocabularies(
    expert_size: int, amateur_size: int, tokenizers: tuple[Tokenizer, Tokenizer] | None = None
) -> None:
    """Raises `ValueError` unless a token id means the same to both models."""
    difference = _first_difference(*tokenizers) if tokenizers else ""
    if expert_size != amateur_size or difference:
        raise ValueError(
            f"expert and amateur must share one vocabulary, got {expert_size} and {amateur_size} tokens"
            f"{difference}; choose two models of one family"
        )


def _first_difference(expert: Tokenizer, amateur: Tokenizer) -> str:
    for token_id in range(max(expert.vocab_size, amateur.vocab_size)):
        spelled = [
            repr(t.label(token_id)) if token_id < t.vocab_size else "nothing" for t in (expert, amateur)
        ]
        if spelled[0] != spelled[1]:
            return (
                f", of which token {token_id} is {spelled[0]} to the expert and {spelled[1]} to the amateur"
            )
    return ""


def _check_strengths(alpha: float, amateur_temperature: float, beta: float | None) -> None:
    require(0 <= alpha <= 1, "alpha", "in [0, 1]", alpha, "use 0 to lift the constraint")
    positive = 0 < amateur_temperature < math.inf
    remedy = "use 1.0 for the amateur as it is"
    require(positive, "amateur_temperature", "positive and finite", amateur_temperature, remedy)
    if beta is not None:
        require(0 <= beta < math.inf, "beta", "at least 0 and finite", beta, "use 0 for the expert alone")
