"""The verdict over drafts that were drawn, without the host: how many stand, and the token after them.

A draft x ~ q stands with probability min(1, p(x) / q(x)). Where the first one falls the text goes on with a
token of the distribution in proportion to max(0, p − q), behind the last draft with one of p. (Leviathan et
al. 2023, algorithm 1.) That token is drawn as in `tokens`, by the Gumbel-max trick, for which nobody has to
add the distribution up:

    argmax over x of  log max(0, p(x) − q(x)) + g(x)

All chance comes from the seed, the row and the position, by numbers that no draft was drawn with.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.drafts import last_tokens, settle
from llmcourse.kernels.tokens import CHUNK, Choice, check_text

# Added to log p where p ≤ q. Such a token never beats one where p > q; but if there is none, as rounding may
# have it where p = q, the token is drawn from p.
NO_EXCESS = -1000.0


class VerdictMemory:
    """Memory for the kernels, to be used again by every step.

    Attributes:
        sums: `(B, T, chunks, 4)`, of each chunk of the vocabulary: the target's largest logit and the sum of
            exp((logit − largest) / temperature), then the drafter's.
        normalizers: `(B, 4)`, the same of the whole vocabulary where the text goes on, the sums by their log.
        num_accepted: `(B,)`.
        arrivals: `(B,)`, how many chunks have been added up; zero between launches.
    """

    def __init__(self, batch_size: int, num_tokens: int, vocab_size: int, device):
        chunks = -(-vocab_size // CHUNK)
        self.sums = torch.empty(batch_size, num_tokens, chunks, 4, dtype=torch.float32, device=device)
        self.normalizers = torch.empty(batch_size, 4, dtype=torch.float32, device=device)
        self.num_accepted = torch.empty(batch_size, dtype=torch.int32, device=device)
        self.arrivals = torch.zeros(batch_size, dtype=torch.int32, device=device)

    def check(self, logits: Float[Tensor, "B T V"]) -> None:
        """Raises ValueError unless it was made for logits of this shape, on this device."""
        batch, num_tokens, vocab_size = logits.shape
        needed = (batch, num_tokens, -(-vocab_size // CHUNK), logits.device)
        held = (*self.sums.shape[:3], self.sums.device)
        if held != needed:
            raise ValueError(
                f"memory must be for (batch_size, num_tokens, chunks, device) {needed} of the logits, "
                f"got {held}; make it for these"
            )


def accept_drawn(
    p: Float[Tensor, "B T V"],  # T = G + 1
    q: Float[Tensor, "B G V"],
    drafts: Int[Tensor, "B G"],
    uniform: Float[Tensor, "B G"],
    noise: Float[Tensor, "B V"],
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """How many drafts stand, and the token after them.

    Args:
        p, q: the distributions before each draft; p also after the last.
        uniform: in [0, 1), decides on each draft.
        noise: Gumbel's, decides on the token after them.
    """
    p_drafts, q_drafts = (side.gather(2, drafts[..., None])[..., 0] for side in (p[:, :-1], q))
    num_accepted = (uniform * q_drafts < p_drafts).int().cumprod(-1).sum(-1)
    rows = torch.arange(len(p), device=p.device)
    p = p[rows, num_accepted]
    q = torch.cat((q, torch.zeros_like(q[:, :1])), 1)[rows, num_accepted]  # no draft, nothing to leave out
    scores = torch.where(p > q, (p - q).log(), p.log() + NO_EXCESS)
    return num_accepted, (scores + noise).argmax(-1)


def settle_drawn_reference(
    logits: Float[Tensor, "B T V"],
    draft_logits: Float[Tensor, "B G V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    report: Int[Tensor, "B N"],
    choice: Choice,
) -> None:
    """`accept_drawn` of the γ drafts that end at the positions, then `settle`."""
    gamma = draft_logits.shape[1]
    drafts = last_tokens(text, positions, gamma)
    p, q = ((side.double() / choice.temperature).softmax(-1) for side in (logits, draft_logits))
    uniform, noise = p.new_empty(len(p), gamma), p.new_empty(len(p), p.shape[-1])
    for row, begin in enumerate((positions - gamma).tolist()):
        generator = torch.Generator(p.device).manual_seed(verdict_seed(choice.seed, row, begin))
        uniform[row].uniform_(generator=generator)
        noise[row].exponential_(generator=generator).log_().neg_()
    settle(*accept_drawn(p, q, drafts, uniform, noise), text, positions, last, report)


def verdict_seed(seed: int, row: int, position: int) -> int:
    """Another than that of the draft which was drawn here, from three numbers."""
    return hash((seed, row, position, 1))


def settle_drawn(
    logits: Float[Tensor, "B T V"],
    draft_logits: Float[Tensor, "B G V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    report: Int[Tensor, "B N"],
    choice: Choice,
    memory: VerdictMemory,
    *,
    backend: Backend = "auto",
) -> None:
    """`settle_drawn_reference` in two launches; the chance is another, its distribution the same.

    With logits that are NaN no draft stands, and the token is one of the vocabulary, as in `choose`.

    Args:
        logits: the target's before each draft and after the last.
        draft_logits: what each draft was drawn from, at the same temperature; −inf is probability 0.
        text, positions, last, report: as in `settle`.
        choice: that of the drafts, for B rows: its temperature and seed.
        memory: for logits of this shape.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, a greedy choice, or a backend that
            cannot run.
    """
    check_dims("logits", logits, "B", "T", "V")
    check_memory("logits", logits, logits)
    batch, num_tokens, vocab_size = logits.shape
    one_less = "pass those of each draft, one less than the target's"
    check_tensor("draft_logits", draft_logits, (batch, num_tokens - 1, vocab_size), logits, one_less)
    check_text(text, positions, batch, logits)
    wide = (batch, num_tokens + 1)
    check_tensor("report", report, wide, logits, "it needs a number and T tokens a row", dtype=torch.long)
    if not choice.sampled:
        raise ValueError("choice must have a temperature above 0, got 0; greedy drafts are `settle_greedy`'s")
    if resolve(backend, logits.device, logits.dtype) == "reference":
        return settle_drawn_reference(logits, draft_logits, text, positions, last, report, choice)
    choice.check(batch, vocab_size, logits.device)
    memory.check(logits)
    from llmcourse.kernels import drawn_drafts_triton

    places = (text, positions, last, report)
    return drawn_drafts_triton.launch(logits, draft_logits, *places, choice, memory)
