"""A model's answer with what can be seen of it: the text, and how sure the model was of every token.

Nothing here knows the right answer; a judge has these features alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.costs import BF16, Cost, Precision, Shapes, Step, model_costs, total
from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.loop import Step as DecodingStep
from llmcourse.decoding.loop import stream
from llmcourse.decoding.rows import Generation
from llmcourse.model import Decoder
from llmcourse.speculative.tasks.question import Question
from llmcourse.tokenizer import Tokenizer

FEATURES = (
    "mean log-probability",
    "lowest log-probability",
    "first log-probability",
    "last log-probability",
    "log-probability of the text",
    "mean entropy",
    "highest entropy",
    "smallest margin",
    "tokens",
    "ended by itself",
)
CONFIDENCE = FEATURES.index("mean log-probability")


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: without the stop string.
        features: of `FEATURES`, then what the question's own `observed` sees.
        num_prompt_tokens, num_new_tokens: what it took; the model's cost follows.
    """

    text: str
    features: tuple[float, ...]
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True)
class ModelAnswers:
    """Greedy answers of one model, to a line's end.

    Attributes:
        max_new_tokens: at least 1.
        batch: questions answered together, at least 1.
        stop: the string that ends an answer.

    Raises:
        ValueError: a number that is no integer or too small; at the call, a prompt that fills the context.
    """

    model: Decoder
    tokenizer: Tokenizer
    max_new_tokens: int = 16
    batch: int = 64
    stop: str = "\n"

    def __post_init__(self):
        require_integer(1, "max_new_tokens", self.max_new_tokens, "let it write one token or more")
        require_integer(1, "batch", self.batch, "answer one question or more at a time")

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        starts = range(0, len(questions), self.batch)
        return [answer for at in starts for answer in self._answer(questions[at : at + self.batch])]

    def _answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        room = self.model.config.max_position_embeddings - 1
        for question in questions:
            length, remedy = len(question.prompt), "show fewer tokens before the question"
            require(length <= room, "prompt", f"at most {room} tokens long", length, remedy)
        steps = stream(
            self.model,
            [question.prompt for question in questions],
            tokenizer=self.tokenizer,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
        )
        seen = []
        while True:
            try:
                seen.append(_doubts(next(steps)))
            except StopIteration as end:
                generations = end.value
                break
        doubts = torch.stack(seen, 1)  # (B, T, 2)
        for question, generation, row in zip(questions, generations, doubts, strict=True):
            features = features_of(generation, row[: len(generation.tokens)])
            observed = question.observed(generation.text)
            sizes = len(generation.prompt), len(generation.tokens)
            yield Answer(generation.text, (*features, *observed), *sizes)


def _doubts(step: DecodingStep) -> Float[Tensor, "B 2"]:
    """Entropy of each row's distribution, and how far ahead the most probable token is, in nats."""
    log_probs = step.logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(-1)  # 0 · log 0 is 0
    best = log_probs.topk(2, -1).values
    return torch.stack((entropy, best[:, 0] - best[:, 1]), -1).cpu()


def features_of(generation: Generation, doubts: Float[Tensor, "T 2"]) -> tuple[float, ...]:
    """The values of `FEATURES` for one answer.

    Args:
        doubts: entropy and margin at each of its tokens.

    Raises:
        ValueError: an answer without a token.
    """
    log_probs = generation.log_probs
    require_integer(1, "tokens of an answer", len(log_probs), "leave the prompt some room in the context")
    entropies, margins = doubts.double().unbind(-1)
    return (
        math.fsum(log_probs) / len(log_probs),
        min(log_probs),
        log_probs[0],
        log_probs[-1],
        math.fsum(log_probs),
        entropies.mean().item(),
        entropies.max().item(),
        margins.min().item(),
        float(len(log_probs)),
        float(generation.finish_reason in ("stop", "eos")),
    )


def answer_cost(
    shapes: Shapes, num_prompt_tokens: int, num_new_tokens: int, precision: Precision = BF16
) -> Cost:
    """FLOPs and bytes of one answer, alone on the machine: a prefill, then a step for each token but one.

    The last token is written and never read.

    Raises:
        ValueError: an empty prompt, or no new token.
    """
    require_integer(1, "num_prompt_tokens", num_prompt_tokens, "a prompt has one token or more")
    require_integer(1, "num_new_tokens", num_new_tokens, "an answer has one token or more")
    steps = [Step.prefill(1, num_prompt_tokens, logit_positions=1)]
    steps += [Step.decode(1, num_prompt_tokens + index) for index in range(1, num_new_tokens)]
    return total(cost for step in steps for cost in model_costs(shapes, step, precision))
