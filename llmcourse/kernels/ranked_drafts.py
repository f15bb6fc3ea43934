"""Drafts that are heads' likeliest tokens: node n of a tree holds its head's token of its rank.

The nodes' tokens are written to the slots behind the text, where a pass over the tree reads them. A rank is a
place in the order of a head's logits, the largest first; of equal ones the lower token comes first, so that
which token stands where is the same wherever it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tokens import check_text

LEAST_CHUNK = 512  # logits that one program looks at: 16 for each of a warp's threads
MOST_CHUNKS = 64  # of a vocabulary, whose best the last program merges
MOST_RANKS = 64  # that the kernel finds: as many as nodes in a tree that attention's kernel reads


def ranked_tokens(logits: Float[Tensor, "*shape V"], width: int) -> Int[Tensor, "*shape R"]:
    """The `width` likeliest tokens of each row, in order; NaN counts as infinite, as in `choose`.

    Args:
        width: at most V.
    """
    rows = logits.where(~logits.isnan(), math.inf)
    if rows.is_cuda:  # sorts all of them, and has nothing to ask the device for
        return rows.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    rows = rows.flatten(0, -2)
    tokens = torch.empty(len(rows), width, dtype=torch.long, device=logits.device)
    for row, found in zip(rows, tokens, strict=True):
        # topk leaves open which of equal logits it takes: it only tells how large they are.
        least = row.topk(width).values[-1]
        candidates = (row >= least).nonzero()[:, 0]
        order = row[candidates].sort(descending=True, stable=True).indices
        found.copy_(candidates[order[:width]])
    return tokens.view(*logits.shape[:-1], width)


class Ranking:
    """Which guess each node of a tree is, and memory for the kernel.

    Args:
        heads: of each node, whose guess it is, from 0 on.
        ranks: of each node, which of that head's tokens, from 0 on.

    Attributes:
        num_heads, width: how many of the heads, and of a head's tokens, are used.
        heads, ranks: `(N,)`, on the device.
        chunk: tokens that one program looks at.
        order, tokens: `(B · K, chunks · width)`, the best of each chunk: an integer for how large a logit
            is, and where it stands.
        arrivals: `(B · K,)`, how many chunks have been looked through; zero between launches.

    Raises:
        ValueError: no nodes, or not as many ranks as heads.
    """

    def __init__(self, batch_size: int, heads: Sequence[int], ranks: Sequence[int], vocab_size: int, device):
        if not heads or len(heads) != len(ranks):
            raise ValueError(
                f"heads and ranks must be one or more, as many of each, got {len(heads)} and {len(ranks)}; "
                "give both for each node"
            )
        self.batch_size, self.vocab_size = batch_size, vocab_size
        self.num_heads, self.width = max(heads) + 1, max(ranks) + 1
        self.heads = torch.tensor(heads, dtype=torch.long, device=device)
        self.ranks = torch.tensor(ranks, dtype=torch.long, device=device)
        self.chunk = LEAST_CHUNK
        while self.num_chunks > MOST_CHUNKS:
            self.chunk *= 2
        rows, kept = batch_size * self.num_heads, self.num_chunks * self.width
        self.order, self.tokens = torch.empty(2, rows, kept, dtype=torch.int32, device=device)
        self.arrivals = torch.zeros(rows, dtype=torch.int32, device=device)

    @property
    def num_chunks(self) -> int:
        return -(-self.vocab_size // self.chunk)

    def check(self, logits: Tensor) -> None:
        """Raises ValueError unless it was made for such logits, and these have as many tokens as ranks."""
        needed = (*logits.shape, logits.device)
        held = (self.batch_size, self.num_heads, self.vocab_size, self.order.device)
        if held != needed:
            raise ValueError(
                f"ranking must be for (batch_size, num_heads, vocab_size, device) {needed} of the logits, "
                f"got {held}; make one for these"
            )
        if self.width > self.vocab_size:
            raise ValueError(
                f"ranks must be below the vocabulary's {self.vocab_size}, got {self.width - 1}; "
                "prune the tree"
            )


def draft_ranked_reference(
    logits: Float[Tensor, "B K V"], text: Int[Tensor, "B S"], positions: Int[Tensor, " B"], ranking: Ranking
) -> None:
    """Node n of each row goes to `text[b, positions[b] + 1 + n]`."""
    nodes = ranked_tokens(logits, ranking.width)[:, ranking.heads, ranking.ranks]  # (B, N)
    slots = positions[:, None] + torch.arange(1, nodes.shape[1] + 1, device=text.device)
    text.scatter_(1, slots, nodes)


def draft_ranked(
    logits: Float[Tensor, "B K V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    ranking: Ranking,
    *,
    backend: Backend = "auto",
    pdl: bool = False,
) -> None:
    """`draft_ranked_reference` in one launch.

    Args:
        logits: what each head says.
        positions: of each row's last token; they stay where they are.
        ranking: of these nodes, for logits of these sizes.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, a ranking for others, more ranks than
            the kernel finds, or a backend that cannot run.
    """
    check_dims("logits", logits, "B", "K", "V")
    check_memory("logits", logits, logits)
    check_text(text, positions, len(logits), logits)
    ranking.check(logits)
    if resolve(backend, logits.device, logits.dtype) == "reference":
        return draft_ranked_reference(logits, text, positions, ranking)
    if ranking.width > MOST_RANKS:
        raise ValueError(
            f"ranks must be below {MOST_RANKS} for the kernel, got {ranking.width - 1}; take the reference"
        )
    from llmcourse.kernels.ranked_drafts_triton import launch

    launch(logits, text, positions, ranking, pdl)
