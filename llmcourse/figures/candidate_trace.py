"""A text written by Medusa, step by step: which candidates were tried, which branch stood, what both sides
thought of every node.

The loop keeps the tokens of a tree, what the backbone thought of them, and the path that stood. What the
heads thought, it does not keep. That is computed here when the text is finished: hidden states do not depend
on how many tokens a text was written at a time, so one pass over all of it gives what all heads have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding import SamplingParams
from llmcourse.decoding.sampling import Randomness
from llmcourse.figures.speculation_strip import Line, Mark, SpeculationStrip, marked_pieces
from llmcourse.figures.speculation_trace import TracedToken, added_words
from llmcourse.model import Decoder
from llmcourse.speculative.measured import tokens_per_step
from llmcourse.speculative.medusa import (
    MedusaHeads,
    MedusaStep,
    MedusaTree,
    TypicalAcceptance,
    stream,
)
from llmcourse.tokenizer import Tokenizer


@dataclass(frozen=True)
class TracedNode:
    """One candidate of a step.

    Attributes:
        label: its token, as figures name it.
        p: the backbone's probability of it, behind its parent.
        q: the head's, which knows the text but not the parent.
        stands: whether it lies on the accepted path, and became text.
    """

    label: str
    p: float
    q: float
    stands: bool


@dataclass(frozen=True)
class CandidateStep:
    """One step.

    Attributes:
        before: the text's last token, as figures name it, which the tree grows from.
        nodes: in the tree's order; none in the first step, which reads the prompt.
        accepted: what the path added to the text.
        own: the backbone's token behind it; None where the text ended on the path.
    """

    before: str
    nodes: tuple[TracedNode, ...]
    accepted: tuple[TracedToken, ...]
    own: TracedToken | None

    @property
    def gained(self) -> tuple[TracedToken, ...]:
        """What the text gained by it."""
        return self.accepted + (() if self.own is None else (self.own,))


@dataclass(frozen=True)
class CandidateTrace:
    """A text, step by step.

    Attributes:
        tree: of every step but the first.
        rates: tokens a step up to each one, the first left out; None for the first.
    """

    prompt: str
    tree: MedusaTree
    steps: tuple[CandidateStep, ...]
    rates: tuple[float | None, ...]

    def check(self, at: int) -> CandidateStep:
        """The step of that number.

        Raises:
            ValueError: there is none.
        """
        last = len(self.steps) - 1
        if not 0 <= at <= last:
            raise ValueError(f"at must be in [0, {last}], got {at}; {last} is the last step")
        return self.steps[at]

    def num_tokens(self, at: int) -> int:
        """Of the text after the prompt, up to a step."""
        return sum(len(step.gained) for step in self.steps[: at + 1])


def record_candidates(
    model: Decoder,
    heads: MedusaHeads,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tree: MedusaTree,
    max_new_tokens: int = 24,
    params: SamplingParams | None = None,
    typical: TypicalAcceptance | None = None,
    generator: Randomness | None = None,
) -> CandidateTrace:
    """Writes a text with Medusa and takes its steps apart.

    Arguments and errors are those of `medusa.stream`; tokens of the trees are the heads' likeliest.
    """
    tokens = tokenizer.encode_prompt(prompt)
    settings = {"params": params, "generator": generator, "typical": typical}
    limits = {"tokenizer": tokenizer, "max_new_tokens": max_new_tokens}
    steps = list(stream(model, heads, [tokens], tree=tree, **settings, **limits))
    q = head_probabilities(model, heads, tokens, steps)
    return candidate_trace(prompt, tokens, steps, q, tree, tokenizer)


@torch.no_grad()
def head_probabilities(
    model: Decoder, heads: MedusaHeads, prompt: Sequence[int], steps: Sequence[MedusaStep]
) -> list[list[float]]:
    """What the heads thought of each node of each step's tree, of a batch of one.

    Args:
        prompt: its tokens.
        steps: from the first on.
    """
    text, ends = list(prompt), []
    for step in steps:
        ends.append(len(text) - 2)  # its state gave the text's last token, and the heads read it
        text += step.tokens[0]
    hidden = model.hidden_states(torch.tensor([text], device=model.device))[0]
    return [
        _of_nodes(heads.logits(model, hidden[end]).softmax(-1), step) if step.tree else []
        for end, step in zip(ends, steps, strict=True)
    ]


def _of_nodes(laws: Float[Tensor, "K V"], step: MedusaStep) -> list[float]:
    laws = laws.cpu()
    nodes = zip(step.tree.choices, step.drafts[0], strict=True)
    return [laws[len(choice) - 1, token].item() for choice, token in nodes]


def candidate_trace(
    prompt: str,
    tokens: Sequence[int],
    steps: Sequence[MedusaStep],
    q: Sequence[Sequence[float]],
    tree: MedusaTree,
    tokenizer: Tokenizer,
) -> CandidateTrace:
    """The trace of a batch of one.

    Args:
        tokens: of the prompt.
        steps: what `medusa.stream` yielded, from its first step on.
        q: as `head_probabilities` returns it.
        tree: that was tried in every step but the first.

    Raises:
        ValueError: no step, steps of several rows, or not one list of q for each.
    """
    rows = {len(step.active) for step in steps}
    if rows != {1} or len(q) != len(steps):
        raise ValueError(
            f"steps must be of one text, each with its q, got {len(steps)} steps of {sorted(rows)} rows and "
            f"{len(q)} lists of q; decode a batch of one"
        )
    text, traced = list(tokens), []
    for step, own_q in zip(steps, q, strict=True):
        traced.append(_traced(step, own_q, text, tokenizer))
        text += step.tokens[0]
    rates = [tokens_per_step(steps[: at + 1]) if at else None for at in range(len(steps))]
    return CandidateTrace(prompt, tree, tuple(traced), tuple(rates))


def _traced(step: MedusaStep, q: Sequence[float], text: Sequence[int], tokenizer: Tokenizer) -> CandidateStep:
    path, gained = step.paths[0], step.tokens[0]
    words = added_words(text, gained, tokenizer.decode, tokenizer.label)
    stood = min(len(path), len(gained))  # fewer than the path has, where the text ended on it
    numbers = zip(step.drafts[0], step.p_drafts[0], q, strict=True)
    nodes = tuple(
        TracedNode(tokenizer.label(token), p, own_q, node in path[:stood])
        for node, (token, p, own_q) in enumerate(numbers)
    )
    own = words[stood] if len(words) > stood else None
    return CandidateStep(tokenizer.label(text[-1]), nodes, tuple(words[:stood]), own)


def candidate_text(trace: CandidateTrace, at: int | None = None) -> SpeculationStrip:
    """The text up to a step: what stood, and what the backbone wrote itself, each in its colour.

    Args:
        at: the step, None for the last.

    Raises:
        ValueError: there is no such step.
    """
    last = len(trace.steps) - 1 if at is None else at
    trace.check(last)
    marked: list[tuple[TracedToken, Mark]] = []
    for step in trace.steps[: last + 1]:
        marked += [(word, "accepted") for word in step.accepted]
        marked += [] if step.own is None else [(step.own, "own")]
    return SpeculationStrip((Line(trace.prompt, marked_pieces(marked)),))
