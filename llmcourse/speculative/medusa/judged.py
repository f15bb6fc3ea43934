"""A step's verdict on a batch of trees: broken logits fail a row alone, the rest is verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.history import History
from llmcourse.decoding.loop import fail_broken_rows
from llmcourse.decoding.processors import Processor, widen
from llmcourse.decoding.rows import Row
from llmcourse.decoding.sampling import Randomness
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.medusa.reading import node_logits
from llmcourse.speculative.medusa.typical import TypicalAcceptance, typical_walk
from llmcourse.speculative.numbers import uniform_by_row
from llmcourse.speculative.verify_tree import TreeVerdict, verify_tree, walk


@dataclass(frozen=True)
class JudgedTree:
    """What became of each row's tree, known to the host; the fields are those of `MedusaStep`.

    Attributes:
        log_probs: of each token that the text may gain, under the target's distribution.
    """

    drafts: list[list[int]]
    p_drafts: list[list[float]]
    paths: list[tuple[int, ...]]
    next_tokens: list[int]
    log_probs: list[list[float]]

    def emitted(self, row: int) -> Iterator[tuple[int, float]]:
        """The tokens that the row's text may gain, with their log-probabilities."""
        tokens = [*(self.drafts[row][node] for node in self.paths[row]), self.next_tokens[row]]
        return zip(tokens, self.log_probs[row], strict=False)  # padding follows


def judge_tree(
    raw: Float[Tensor, "B T V"],
    draft: Draft,
    rows: Sequence[Row],
    index: int,
    history: History,
    processors: Sequence[Processor],
    generator: Randomness | None,
    typical: TypicalAcceptance | None = None,
) -> JudgedTree:
    """Verifies a batch's trees by what the target said of them.

    Rows end with an error where the logits after the text are broken. Where those after a node are, the row
    uses only the nodes before it.

    Args:
        raw: the target's logits, T = N + 1.
        draft: with a tree, all of whose nodes are every row's own.
        history, processors, generator: as the loop has them; no generator means greedy.
        typical: the lossy rule, in place of `walk` and `verify_tree`.
    """
    raw = widen(raw)
    logits = node_logits(raw, draft.tokens, draft.tree, history, processors)
    counts, logits = _before_broken_logits(raw, logits, rows, index)
    verdict = _verdict(logits, draft, counts, rows, generator, typical)
    before = torch.tensor(draft.tree.parents, dtype=torch.long, device=logits.device) + 1
    log_p = logits.log_softmax(-1)
    node_log_p = log_p[:, before].gather(2, draft.tokens[..., None])[..., 0]  # (B, N)
    ends = log_p[torch.arange(len(log_p), device=log_p.device), verdict.last_nodes + 1]
    next_log_p = ends.gather(1, verdict.next_tokens[:, None])[:, 0].tolist()
    paths = [draft.tree.path(node) for node in verdict.last_nodes.tolist()]
    by_node = node_log_p.tolist()
    return JudgedTree(
        drafts=draft.tokens.tolist(),
        p_drafts=node_log_p.exp().tolist(),
        paths=paths,
        next_tokens=verdict.next_tokens.tolist(),
        log_probs=[
            [*(by_node[row][node] for node in path), next_log_p[row]] for row, path in enumerate(paths)
        ],
    )


def _before_broken_logits(
    raw: Tensor, logits: Tensor, rows: Sequence[Row], index: int
) -> tuple[Int[Tensor, " B"], Float[Tensor, "B T V"]]:
    """How many nodes of each row can be judged, and logits that are broken nowhere."""
    whole = raw.amax(-1).isfinite() & logits.amax(-1).isfinite()  # (B, T); the peak is NaN if there is one
    size = whole.shape[1] - 1
    if bool(whole.all()):
        return torch.full((len(rows),), size, device=raw.device), logits
    fail_broken_rows(list(rows), raw[:, 0], logits[:, 0], index)
    # A node before the first broken one has its ancestors before it, and is judged at those alone.
    counts = (whole.int().cumprod(-1).sum(-1) - 1).clamp(min=0)
    return counts, logits.masked_fill(~whole[..., None], 0.0)


def _verdict(
    logits: Tensor,
    draft: Draft,
    counts: Int[Tensor, " B"],
    rows: Sequence[Row],
    generator: Randomness | None,
    typical: TypicalAcceptance | None,
) -> TreeVerdict:
    size = len(draft.tree)
    if generator is None and typical is None:
        return walk(logits, draft.tokens, draft.tree, counts)
    if generator is None:
        return typical_walk(logits.softmax(-1), draft.tokens, draft.tree, typical, None, counts)
    if typical is not None:
        asked = [1 if row.active else 0 for row in rows]
        uniform = uniform_by_row(generator, asked, 1)[:, 0]
        return typical_walk(logits.softmax(-1), draft.tokens, draft.tree, typical, uniform, counts)
    asked = [size + 1 if row.active else 0 for row in rows]
    uniform = uniform_by_row(generator, asked, size + 1)
    q = draft.distributions(logits.shape[-1])
    return verify_tree(logits.softmax(-1), q, draft.tokens, uniform, draft.tree, counts, trusted=True)
