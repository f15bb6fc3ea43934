"""Beam search: keep the n likeliest beginnings, extend each by every token, keep n again.

    score(y) = log p(y | prompt) / |y|^length_penalty       (|y| generated tokens, the end included)

Sources: Graves 2012 ("Sequence Transduction with Recurrent Neural Networks") for the search,
Wu et al. 2016 (GNMT, section 7) for dividing by a power of the length. The bookkeeping is that of
`transformers.generate(num_beams=n, early_stopping=False)`, so that both give the same texts and
scores: see `_Search`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import (
    DecodingError,
    EverythingMaskedError,
    NonFiniteLogitsError,
    require,
    require_integer,
    require_number,
    require_on_error,
)
from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.decoding.source import LogitsSource, as_source, check_request
from llmcourse.model import Decoder
from llmcourse.progress import bar


@dataclass(frozen=True)
class BeamNode:
    """One candidate that the search looked at: a token after the beginning that is its parent.

    It went on to the next step (`kept`), ended a hypothesis (`finished`: the end token, or the
    length limit), or was cut (neither).
    """

    id: int
    parent: int | None  # None: the prompt
    step: int  # 0 for the first generated token
    token: int
    token_log_prob: float
    log_prob: float  # of all tokens from the prompt to this one
    kept: bool
    finished: bool


@dataclass(frozen=True)
class Hypothesis:
    """A text that the search arrived at; `finished` if by an end token, not by the length limit."""

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    node: int  # id of its last token in the tree


@dataclass(frozen=True)
class BeamSearch:
    """The best hypotheses, best first, and every candidate of the search in order, for drawing.

    A search that an error ended keeps what it had found until then.
    """

    hypotheses: list[Hypothesis]
    nodes: list[BeamNode]
    error: DecodingError | None = None

    def path(self, node: int) -> list[BeamNode]:
        """The candidates from the first token to this one; ids are indices into `nodes`."""
        return _path(self.nodes, node)


def beam_search(source: Decoder | LogitsSource, prompt: Sequence[int], **settings) -> BeamSearch:
    """The likeliest continuations of one prompt; the settings and errors are those of `stream_beams`."""
    return beam_searches(source, [prompt], **settings)[0]


def beam_searches(
    source: Decoder | LogitsSource,
    prompts: Sequence[Sequence[int]],
    *,
    on_error: Literal["raise", "return"] = "raise",
    progress: bool = False,
    **settings,
) -> list[BeamSearch]:
    """The same for a batch of prompts, all beams of all prompts in one forward pass a step.

    Args:
        on_error: "raise" finishes the other searches and raises the first error, with what all of them
            came to as its `generations`; "return" leaves errors in the searches.
        progress: show a bar of the steps, if they take more than a moment.
    """
    require_on_error(on_error)
    steps = stream_beams(source, prompts, **settings)
    total = settings.get("max_new_tokens")  # a search may end before
    try:
        with bar(None, "searching", total=total, unit="step", shown=progress, after_s=1) as shown:
            while True:
                next(steps)
                shown.update()
    except StopIteration as end:
        return end.value
    except DecodingError as error:
        if on_error == "raise":
            raise
        return error.generations


BeamStream = Generator[list[list[BeamNode]], None, list[BeamSearch]]


def stream_beams(
    source: Decoder | LogitsSource,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    num_return: int = 1,
    processors: Sequence[Processor] = (),
    eos_token_ids: Sequence[int] | None = None,
) -> BeamStream:
    """Searches a batch, yielding each step's candidates for every prompt, an empty list once it is done.

    Its return value is what `beam_searches` returns. Arguments are checked at the call.

    Args:
        source: where logits come from; a decoder is read through its cache.
        prompts: token ids, one list a prompt, of any lengths.
        max_new_tokens: at most; clamped to the room that each prompt leaves in the context.
        length_penalty: 0 compares log-probabilities and so favours short texts, 1 their mean,
            more favours long ones.
        num_return: how many hypotheses to return; fewer come back where fewer exist.
        processors: applied to log-probabilities, which they may leave unnormalised.
        eos_token_ids: what ends a text; None for the source's own.

    Raises:
        TypeError: a prompt that is no list of token ids.
        ValueError: an argument out of range.
        NonFiniteLogitsError: NaN or +inf from the source or a processor; names step and beam.
        EverythingMaskedError: no continuation is left and no hypothesis has ended. Both end one search
            and are raised when the others are done, with `generations`: the searches of the batch.
    """
    source = as_source(source)
    eos = check_request(source, prompts, max_new_tokens, eos_token_ids)
    searches = []
    for prompt in prompts:
        steps = _steps(source, prompt, max_new_tokens)
        _check_search(source, steps, num_beams, num_return, length_penalty)
        searches.append(_Search(num_beams, steps, length_penalty, eos))
    return _run(source, [list(prompt) for prompt in prompts], searches, processors, num_return)


def _run(
    source: LogitsSource,
    prompts: list[list[int]],
    searches: list[_Search],
    processors: Sequence[Processor],
    num_return: int,
) -> BeamStream:
    room = max(search.steps for search in searches)
    history = History.from_prompts(prompts, room=room, device=source.device)
    logits = source.start(prompts, max(map(len, prompts)) + room)
    for _ in range(room):
        log_probs = _log_probs(logits, processors, history)
        known = [len(search.tree) for search in searches]
        beams, first = [], 0  # each search owns the next `num_rows` rows of the batch
        for search in searches:
            own = log_probs[first : first + search.num_rows]
            beams += [(first + row, token) for row, token in (search.grow(own) if len(own) else ())]
            first += len(own)
        yield [search.tree[before:] for search, before in zip(searches, known, strict=True)]
        if not beams:
            break
        rows = torch.tensor([row for row, _ in beams], device=source.device)
        tokens = torch.tensor([token for _, token in beams], device=source.device)
        source.reorder(rows)  # the caches follow the beams: one row may become several, or none
        history = history.select(rows)
        history.append(tokens)
        logits = source.step(tokens)
    return _finish(searches, num_return)


def _finish(searches: list[_Search], num_return: int) -> list[BeamSearch]:
    results = [
        BeamSearch([search.hypothesis(node) for node in search.ended[:num_return]], search.tree, search.error)
        for search in searches
    ]
    for number, result in enumerate(results):
        if result.error is not None:
            if len(results) > 1:
                result.error.add_note(f"in prompt {number} of {len(results)}")
            result.error.generations = results
            raise result.error
    return results


class _Search:
    """What is known so far, and the rules by which it grows.

    - Each step looks at the (1 + number of end tokens, at least 2) x n likeliest candidates, so
      that n of them can go on even if every beam could end.
    - Candidates go on in order until n do. A candidate that ends counts only among the n first,
      and the n best scores of those that ended are kept.
    - The search stops once n have ended and the likeliest beam, if it ended at the present
      length, would not score above the worst of them. With a positive length penalty this may
      stop too early, since a longer text could still overtake; it is the usual bargain.
    """

    def __init__(self, num_beams: int, steps: int, length_penalty: float, eos: frozenset[int]):
        self.num_beams, self.steps, self.length_penalty, self.eos = num_beams, steps, length_penalty, eos
        self.tree: list[BeamNode] = []
        self.beams: list[BeamNode] = []  # row i of the caches holds beam i
        self.ended: list[BeamNode] = []  # best score first
        self.step = 0
        self.num_rows = 1  # of the batch: the prompt alone at first, 0 when the search is over
        self.error: DecodingError | None = None

    def grow(self, log_probs: Float[Tensor, "n V"]) -> list[tuple[int, int]]:
        """Takes every beam's next-token log-probabilities; returns (row, token) of the new beams.

        What cannot be searched on ends this search alone, with an error.
        """
        try:
            going_on = self._grow(log_probs)
        except DecodingError as error:
            self.error, going_on = error, []
        self.num_rows = len(going_on)
        return going_on

    def _grow(self, log_probs: Float[Tensor, "n V"]) -> list[tuple[int, int]]:
        self._refuse_broken(log_probs)
        so_far = [beam.log_prob for beam in self.beams] or [0.0]
        totals = log_probs + log_probs.new_tensor(so_far)[:, None]
        width = max(2, 1 + len(self.eos)) * self.num_beams
        rows, tokens = best_candidates(totals, width)
        nodes = self._judge(rows.tolist(), tokens.tolist(), log_probs[rows, tokens], totals[rows, tokens])
        ended = self.ended + [node for node in nodes if node.finished]
        # Sorting is stable: of equal scores the older hypothesis stays ahead.
        self.ended = sorted(ended, key=self.score, reverse=True)[: self.num_beams]
        self.beams = [node for node in nodes if node.kept]
        self.tree += nodes
        self.step += 1
        if not self.beams and not self.ended:
            raise EverythingMaskedError(f"step {self.step - 1}: every continuation of every beam is masked")
        going_on = [(row, node.token) for row, node in zip(rows.tolist(), nodes, strict=True) if node.kept]
        return going_on if self._can_improve() else []

    def _refuse_broken(self, log_probs: Float[Tensor, "n V"]) -> None:
        broken = (log_probs.isnan() | log_probs.isposinf()).any(dim=-1)
        if broken.any():
            beam = int(broken.nonzero()[0])
            raise NonFiniteLogitsError(f"beam {beam}, step {self.step}: the logits hold NaN or +inf")

    def _judge(self, rows, tokens, token_log_probs, totals) -> list[BeamNode]:
        """Candidates, best first, as nodes: which go on, which end, which are cut."""
        nodes, going_on = [], 0
        columns = zip(rows, tokens, token_log_probs.tolist(), totals.tolist(), strict=True)
        for rank, (row, token, token_log_prob, log_prob) in enumerate(columns):
            ends = token in self.eos or self.step + 1 == self.steps
            kept = not ends and going_on < self.num_beams
            going_on += kept
            parent = self.beams[row].id if self.beams else None
            node_id = len(self.tree) + rank
            scores = (token_log_prob, log_prob, kept, ends and rank < self.num_beams)
            nodes.append(BeamNode(node_id, parent, self.step, token, *scores))
        return nodes

    def _can_improve(self) -> bool:
        if not self.beams or len(self.ended) < self.num_beams:
            return bool(self.beams)
        return self.score(self.beams[0]) > self.score(self.ended[-1])

    def score(self, node: BeamNode) -> float:
        return node.log_prob / (node.step + 1) ** self.length_penalty

    def hypothesis(self, node: BeamNode) -> Hypothesis:
        tokens = [n.token for n in _path(self.tree, node.id)]
        return Hypothesis(tokens, node.log_prob, self.score(node), node.token in self.eos, node.id)


def best_candidates(totals: Float[Tensor, "n V"], count: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Row and column of the `count` largest entries, largest first; fewer if others are -inf.

    Of equal entries the lower row wins, then the lower column: `topk` alone leaves that open.
    """
    flat = totals.flatten()
    smallest = flat.topk(min(count, flat.numel())).values[-1]
    index = (flat >= smallest).nonzero()[:, 0]  # ties may make them more than `count`
    order = flat[index].sort(descending=True, stable=True).indices[:count]
    index = index[order]
    index = index[flat[index] > -math.inf]
    return index // totals.shape[1], index % totals.shape[1]


def _log_probs(logits: Tensor, processors: Sequence[Processor], history: History) -> Float[Tensor, "n V"]:
    """Processed log-probabilities in fp32 or wider; a row of -inf stays one."""
    nothing_left = logits.isneginf().all(dim=-1, keepdim=True)  # its softmax would be NaN
    log_probs = widen(logits).log_softmax(dim=-1).masked_fill(nothing_left, -math.inf)
    return apply(processors, log_probs, history)


def _steps(source: LogitsSource, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens can be generated: what is asked for, or what the context has room for."""
    room = source.max_length - len(prompt)
    allowed = f"shorter than the context of {source.max_length} tokens"
    require(room >= 1, "prompt", allowed, f"{len(prompt)} tokens", "keep only its last part")
    return min(max_new_tokens, room)


def _check_search(
    source: LogitsSource, steps: int, num_beams: object, num_return: object, length_penalty: object
) -> None:
    require_integer(1, "num_beams", num_beams, "use 1 for greedy search")
    if num_beams > (texts := source.vocab_size**steps):
        raise ValueError(
            f"num_beams must be at most {texts}, got {num_beams}; there are no more texts of length "
            f"{steps} over a vocabulary of {source.vocab_size}"
        )
    allowed, remedy = f"in [1, num_beams = {num_beams}]", "widen the beam for more"
    require_number(lambda n: 1 <= n <= num_beams, "num_return", allowed, num_return, remedy, kind=Integral)
    remedy = "use 0 to compare sums of log-probabilities"
    require_number(math.isfinite, "length_penalty", "finite", length_penalty, remedy)


def _path(nodes: list[BeamNode], node: int | None) -> list[BeamNode]:
    path = []
    while node is not None:
        path.append(nodes[node])
        node = nodes[node].parent
    return path[::-1]
