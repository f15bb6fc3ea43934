"""The drafts of one request in a step: which rows of logits are theirs, and which of them stand.

Most need no more than the tokens that the step draws at every draft. Requests with settings beyond a
temperature, and those whose drafts were drawn, are judged from their logits, one by one after the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import DecodingError
from llmcourse.serving.other_choices import choose, draws, processed
from llmcourse.serving.request import RequestState
from llmcourse.serving.schedule import Chunk
from llmcourse.serving.speculation import Drafts, check_emitted

VERIFYING = 2  # sets its chance apart from that of the token at the same position, and of its draft


class DraftedChunk(NamedTuple):
    """A chunk that ends with drafts.

    Attributes:
        length: of the text before them.
        rows: of the step's drawn tokens, the one in the place of each draft, and the one after the last.
    """

    state: RequestState
    drafts: Drafts
    length: int
    rows: list[int]

    @property
    def drawn(self) -> bool:
        """Whether the acceptance rule decides: the drafts were drawn, and so is the answer."""
        return self.drafts.q is not None and not self.state.request.params.greedy


def drafted_chunks(
    more: Sequence[Chunk], drafts: Mapping[str, Drafts], num_decodes: int, num_rows: int
) -> list[DraftedChunk]:
    """Those of the chunks of several tokens that end with drafts.

    Args:
        num_decodes, num_rows: of the step's requests, those with one token, and all; rows of drafts follow.
    """
    found = []
    for index, chunk in enumerate(more, num_decodes):
        own = drafts.get(chunk.state.id)
        if own is not None and own.tokens:
            end = num_rows + len(own.tokens)
            rows = [*range(num_rows, end), index]
            found.append(DraftedChunk(chunk.state, own, chunk.stop - len(own.tokens), rows))
            num_rows = end
    return found


def judge(chunk: DraftedChunk, logits: Float[Tensor, "N V"]) -> list[int] | Exception:
    """What the request gains, or why nothing: whatever its settings or its drafter raise fails it alone."""
    try:
        return _verified(chunk, logits) if chunk.drawn else _chosen(chunk, logits)
    except Exception as error:
        return error


def _chosen(chunk: DraftedChunk, logits: Tensor) -> list[int]:
    """Tokens chosen one after the other, while they are the drafts."""
    (state, drafts, length, rows), gained = chunk, []
    for index, row in enumerate(rows):
        text = [*state.tokens[:length], *gained]
        gained.append(choose(state.request, text, logits[row : row + 1]))
        if gained != list(drafts.tokens[: index + 1]):
            break
    return gained


def _verified(chunk: DraftedChunk, logits: Tensor) -> list[int]:
    p = _distributions(chunk, logits)
    tokens, q = chunk.drafts.tokens[: len(p) - 1], chunk.drafts.q[: len(p) - 1].to(p.device)
    generator = draws(chunk.state.request, chunk.length, VERIFYING)
    uniform = torch.rand(len(p), generator=generator, dtype=torch.float64)
    emitted = chunk.state.speculator.verify(p, q, tokens, uniform)
    check_emitted(emitted, tokens, logits.shape[1])
    return list(emitted)


def _distributions(chunk: DraftedChunk, logits: Tensor) -> Float[Tensor, "T V"]:
    """The target's before each draft and after the last; the last is where a draft leaves nothing to choose.

    That draft is not judged then: whether the text really comes to this point is another step's question.
    """
    text, scores = [*chunk.state.tokens[: chunk.length], *chunk.drafts.tokens], []
    for index, row in enumerate(chunk.rows):
        try:
            before = text[: chunk.length + index]
            scores.append(processed(chunk.state.request, before, logits[row : row + 1]))
        except DecodingError:
            if not scores:
                raise
            break
    return torch.cat(scores).softmax(-1)
