"""A step's verdict on a batch: what cannot be judged fails its row alone, the rest is verified."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import DecodingError, require
from llmcourse.decoding.history import History
from llmcourse.decoding.loop import fail_broken_rows
from llmcourse.decoding.processors import Processor, widen
from llmcourse.decoding.rows import Row
from llmcourse.decoding.sampling import Randomness, greedy
from llmcourse.speculative.distributions import most_probable, point_masses, processed_logits
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.numbers import uniform_by_row
from llmcourse.speculative.verify import Verdict, verify_certain, verify_drafts


class DraftError(DecodingError):
    """A drafter proposed for a row what cannot be verified."""


@dataclass(frozen=True)
class Judged:
    """What became of each row's drafts, known to the host; the fields are those of `SpeculativeStep`.

    Attributes:
        log_probs: of each accepted draft and of the token after them, under the target's distribution.
    """

    drafts: list[list[int]]
    p_drafts: list[list[float]]
    q_drafts: list[list[float]]
    num_accepted: list[int]
    next_tokens: list[int]
    log_probs: list[list[float]]
    p: Float[Tensor, "B V"]
    q: Float[Tensor, "B V"]

    def emitted(self, row: int) -> Iterator[tuple[int, float]]:
        """The tokens that the row's text may gain, with their log-probabilities."""
        tokens = [*self.drafts[row][: self.num_accepted[row]], self.next_tokens[row]]
        return zip(tokens, self.log_probs[row], strict=False)  # padding follows


def checked(
    draft: Draft, asked: Sequence[int], vocab_size: int, rows: Sequence[Row], index: int
) -> tuple[Draft, list[int]]:
    """The draft no wider than it must be, and how many are each row's own; waits for the device.

    A row fails if more was proposed than asked for, or a token outside the vocabulary. What is proposed for
    a row that has ended is left out.

    Raises:
        TypeError: no `Draft`.
        ValueError: tensors of other shapes than (B, G), (B,) and (B, G, V), other numbers than integers for
            the first two, or a tree that is no chain: a cache holds one text a row, and the drafts behind
            it are read as one.
    """
    if not isinstance(draft, Draft):
        raise TypeError(f"draft must return a Draft, got {type(draft).__name__}; wrap the tokens in one")
    if draft.tree is not None:
        remedy = "read it with read_tree, and judge it with walk or verify_tree"
        require(draft.tree.is_chain, "tree of a draft", "a chain in this loop", draft.tree.parents, remedy)
    shapes = tuple(draft.tokens.shape[:1]), tuple(draft.num_tokens.shape)
    good = draft.tokens.dim() == 2 and shapes == ((len(rows),),) * 2
    found = f"{tuple(draft.tokens.shape)} and {shapes[1]}"
    allowed = f"of shapes ({len(rows)}, G) and ({len(rows)},)"
    require(good, "tokens and num_tokens of a draft", allowed, found, "propose for every row")
    for name, tensor in (("tokens", draft.tokens), ("num_tokens", draft.num_tokens)):
        whole = tensor.dtype in (torch.int32, torch.int64)
        require(whole, f"{name} of a draft", "int32 or int64", tensor.dtype, "give ids and counts")
    _check_q(draft, vocab_size)
    counts, tokens = draft.num_tokens.tolist(), draft.tokens.tolist()
    for number, row in enumerate(rows):
        if not row.active:
            counts[number] = 0
            continue
        most = min(asked[number], draft.tokens.shape[1])
        if problem := _problem(tokens[number], counts[number], most, vocab_size):
            row.fail(DraftError(f"row {number}, step {index}: {problem}"))
            counts[number] = 0
    width, device = max(counts), draft.tokens.device
    padded = [[*own, *[0] * (width - len(own))] for own in _own(tokens, counts)]
    own = torch.tensor(padded, dtype=torch.long, device=device)  # the host knows them: cheaper than masks
    q = None if draft.q is None else draft.q[:, :width]
    return Draft(own, torch.tensor(counts, device=device), q), counts


def _check_q(draft: Draft, vocab_size: int) -> None:
    if draft.q is None:
        return
    wanted, remedy = (*draft.tokens.shape, vocab_size), "give a distribution for each draft"
    found = tuple(draft.q.shape) if isinstance(draft.q, Tensor) else type(draft.q).__name__
    require(found == wanted, "q of a draft", f"of shape {wanted}", found, remedy)
    good = draft.q.is_floating_point() and draft.q.device == draft.tokens.device
    found = f"{draft.q.dtype} on {draft.q.device}"
    require(good, "q of a draft", f"of floats on {draft.tokens.device}", found, "move or convert it")


def _problem(tokens: list[int], count: int, most: int, vocab_size: int) -> str | None:
    if not 0 <= count <= most:
        return (
            f"num_tokens of the draft must be in [0, {most}], got {count}; propose no more than is asked for"
        )
    for token in tokens[:count]:
        if not 0 <= token < vocab_size:
            return (
                f"drafts must be in [0, {vocab_size - 1}], got {token}; "
                "use a drafter with the target's own tokenizer"
            )
    return None


def judge(
    raw: Float[Tensor, "B T V"],
    draft: Draft,
    counts: list[int],
    rows: Sequence[Row],
    index: int,
    history: History,
    processors: Sequence[Processor],
    generator: Randomness | None,
) -> Judged:
    """Verifies a batch's drafts by what the target said of them.

    Rows end with an error where the logits after the text are broken, or the draft's q is none. Logits
    that are broken further on only shorten the draft: they fail the row if its text comes to them.

    Args:
        raw: the target's logits, T = G + 1.
        draft, counts: as `checked` returns them.
        history, processors, generator: as the loop has them; no generator means greedy.
    """
    raw = widen(raw)
    logits = processed_logits(raw, draft.tokens, history, processors)
    counts = _before_broken_logits(raw, logits, counts, rows, index)
    if generator is None and draft.q is None:
        verdict, seen = _certain(logits, draft.tokens, counts)
    else:
        verdict, seen = _uncertain(logits, draft, counts, rows, index, generator)
    gained = verdict.emitted(draft.tokens)
    return Judged(
        drafts=_own(draft.tokens.tolist(), counts),
        num_accepted=verdict.num_accepted.tolist(),
        next_tokens=[tokens[-1] for tokens in gained],
        log_probs=_log_probs(logits, gained),
        **seen,
    )


def _before_broken_logits(
    raw: Tensor, logits: Tensor, counts: list[int], rows: Sequence[Row], index: int
) -> list[int]:
    """How many drafts of each row can be judged; a row where not even the first can be fails."""
    finite = raw.amax(-1).isfinite()  # the peak is NaN if there is one
    if logits is not raw:
        finite &= logits.amax(-1).isfinite()
    finite = finite.tolist()  # (B, T)
    if all(map(all, finite)):
        return counts
    fail_broken_rows(list(rows), raw[:, 0], logits[:, 0], index)
    whole = [row.index(False) if False in row else math.inf for row in finite]
    return [max(0, min(count, first - 1)) for count, first in zip(counts, whole, strict=True)]


def _certain(logits: Tensor, drafts: Int[Tensor, "B G"], counts: list[int]) -> tuple[Verdict, dict]:
    """Of greedy decoding and drafts that were certain: nearly all of both distributions would be zeros."""
    best, vocab_size = greedy(logits), logits.shape[-1]
    verdict = verify_certain(best, drafts, torch.tensor(counts, device=drafts.device))
    p = point_masses(verdict.next_tokens[:, None], vocab_size, logits.dtype)[:, 0]
    q = torch.zeros_like(p)
    for row, column in _fallen(verdict, counts):
        q[row, drafts[row, column]] = 1
    p_drafts = (drafts == best[:, :-1]).to(p.dtype).tolist()
    q_drafts = [[1.0] * count for count in counts]
    return verdict, {"p_drafts": _own(p_drafts, counts), "q_drafts": q_drafts, "p": p, "q": q}


def _uncertain(
    logits: Tensor,
    draft: Draft,
    counts: list[int],
    rows: Sequence[Row],
    index: int,
    generator: Randomness | None,
) -> tuple[Verdict, dict]:
    """The rule over both distributions, whatever they are."""
    p = most_probable(logits) if generator is None else logits.softmax(-1)
    q = draft.distributions(logits.shape[-1])
    if ended := [number for number, row in enumerate(rows) if not row.active]:
        p[ended] = 1 / p.shape[-1]  # any distribution
    uniform = _uniform(generator, counts, draft.tokens.shape[1])
    verdict = _verdict(p, q, draft, counts, uniform, rows, index)
    places = draft.tokens[..., None]
    p_drafts, q_drafts = (side.gather(2, places)[..., 0].tolist() for side in (p[:, :-1], q))
    q_end = torch.zeros_like(p[:, 0])
    for row, column in _fallen(verdict, counts):
        q_end[row] = q[row, column]
    p_end = p[torch.arange(len(p), device=p.device), verdict.num_accepted]
    return verdict, {
        "p_drafts": _own(p_drafts, counts),
        "q_drafts": _own(q_drafts, counts),
        "p": p_end,
        "q": q_end,
    }


def _fallen(verdict: Verdict, counts: list[int]) -> list[tuple[int, int]]:
    """Row and column of each draft that fell."""
    ends = enumerate(zip(verdict.num_accepted.tolist(), counts, strict=True))
    return [(row, stood) for row, (stood, count) in ends if stood < count]


def _uniform(generator: Randomness | None, counts: list[int], width: int) -> Float[Tensor, "B T"]:
    """A number for each draft, and one in the last column for the token after a row's own."""
    if generator is None:  # all is certain
        return torch.zeros(len(counts), width + 1, dtype=torch.float64)
    numbers = uniform_by_row(generator, [count + 1 for count in counts], width + 1)
    numbers[:, -1:] = numbers.gather(1, torch.tensor(counts, device=numbers.device)[:, None])
    return numbers


def _verdict(
    p: Tensor,
    q: Tensor,
    draft: Draft,
    counts: list[int],
    uniform: Tensor,
    rows: Sequence[Row],
    index: int,
) -> Verdict:
    """`verify_drafts`; where it refuses, each row by itself, so that only those to blame fail."""
    num_drafts = torch.tensor(counts, device=p.device)
    trusted = draft.q is None  # then all distributions are our own
    try:
        return verify_drafts(p, q, draft.tokens, uniform, num_drafts, trusted=trusted)
    except ValueError:
        for number, row in enumerate(rows):
            alone = torch.zeros_like(num_drafts)
            alone[number] = counts[number]
            try:
                verify_drafts(p, q, draft.tokens, uniform, alone)
            except ValueError as error:
                row.fail(DraftError(f"row {number}, step {index}: {error}"))
                counts[number] = 0
    return verify_drafts(p, q, draft.tokens, uniform, torch.tensor(counts, device=p.device))


def _log_probs(logits: Tensor, gained: list[list[int]]) -> list[list[float]]:
    """Of the tokens that each row gained; positions after the last of them are not looked at."""
    width = max(map(len, gained))
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in gained], device=logits.device)
    log_probs = logits[:, :width].log_softmax(-1)  # (B, width, V)
    return log_probs.gather(2, padded[..., None])[..., 0].tolist()


def _own(values: list[list], counts: list[int]) -> list[list]:
    return [row[:count] for row, count in zip(values, counts, strict=True)]
