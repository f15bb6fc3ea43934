"""Drafts in and out of the model, without the host: read a window of the text, and decide what stays.

While a row is drafted for, its position runs ahead of what is certain: with γ drafts behind the last token,
at p, it is p + γ. A window then reads the tokens from p on, and settling sets the position to the last that
stands. So nothing has to be copied from one to the other, and all of a step is one CUDA graph.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tokens import Choice, check_text


def last_tokens(text: Int[Tensor, "B S"], positions: Int[Tensor, " B"], count: int) -> Int[Tensor, "B T"]:
    """So many tokens of each row, the last of them where it stands."""
    return text.gather(1, positions[:, None] + torch.arange(1 - count, 1, device=text.device))


def embed_window_reference(
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    table: Float[Tensor, "V C"],
    tokens: Int[Tensor, "B T"],
) -> Float[Tensor, "B_T C"]:
    """The table's rows for the T tokens of each row up to `text[b, p]`; notes the tokens."""
    tokens.copy_(last_tokens(text, positions, tokens.shape[1]))
    return table[tokens.flatten()]


def embed_window(
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    table: Float[Tensor, "V C"],
    tokens: Int[Tensor, "B T"],
    *,
    out: Float[Tensor, "B_T C"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
) -> Float[Tensor, "B_T C"]:
    """`embed_window_reference`, into `out` where it is given.

    Args:
        positions: each at least T − 1, which on a GPU nobody looks for.
        tokens: written.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("table", table, "V", "C")
    check_dims("tokens", tokens, "B", "T")
    check_memory("table", table, table)
    check_text(text, positions, len(tokens), table)
    check_memory("tokens", tokens, table, dtype=torch.long)
    memory = "leave it at None for new memory"
    check_tensor("out", out, (tokens.numel(), table.shape[1]), table, memory, layout=memory)
    if resolve(backend, table.device, table.dtype) == "reference":
        rows = embed_window_reference(text, positions, table, tokens)
        return rows if out is None else out.copy_(rows)
    from llmcourse.kernels import drafts_triton

    out = table.new_empty(tokens.numel(), table.shape[1]) if out is None else out
    drafts_triton.launch_embed(text, positions, table, tokens, out, pdl)
    return out


def accept_greedy(
    logits: Float[Tensor, "B T V"], drafts: Int[Tensor, "B G"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """How many drafts stand, each of them the target's likeliest token, and that token where they end.

    Args:
        logits: the target's before each draft, and after the last: T = G + 1.
    """
    return accept_certain(logits.argmax(-1), drafts)


def accept_certain(
    best: Int[Tensor, "B T"], drafts: Int[Tensor, "B G"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """How many drafts are the target's own tokens, counted from the first, and its token after them."""
    num_accepted = (best[:, :-1] == drafts).int().cumprod(-1).sum(-1)
    return num_accepted, best.gather(1, num_accepted[:, None])[:, 0]


def settle(
    num_accepted: Int[Tensor, " B"],
    next_tokens: Int[Tensor, " B"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    report: Int[Tensor, "B N"],
) -> None:
    """Appends the target's token behind the drafts that stand, and sets the position to it.

    Rolling back is no more than that: keys and values of drafts that fell lie behind the position, where no
    token of the text looks, and are overwritten by what comes next.

    Args:
        text: the γ drafts already in it.
        positions: of the last draft of each row; moved back to the last token that stands.
        last: a position that none may pass: a row that has ended stays there, and rides along unused.
        report: written: how many tokens each row gained, then these, then drafts that fell; N = γ + 2.
    """
    gamma, gained = report.shape[1] - 2, num_accepted + 1
    begin = positions - gamma
    text.scatter_(1, (begin + gained)[:, None], next_tokens[:, None])
    slots = begin[:, None] + torch.arange(1, gamma + 2, device=text.device)
    report.copy_(torch.cat((gained[:, None], text.gather(1, slots)), 1))
    positions.copy_((begin + gained).clamp(max=last))


def settle_greedy_reference(
    logits: Float[Tensor, "B T V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    report: Int[Tensor, "B N"],
) -> None:
    """`accept_greedy` of the T − 1 drafts that end at the positions, then `settle`."""
    drafts = last_tokens(text, positions, logits.shape[1] - 1)
    settle(*accept_greedy(logits, drafts), text, positions, last, report)


def settle_greedy(
    logits: Float[Tensor, "B T V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    last: int,
    report: Int[Tensor, "B N"],
    choice: Choice,
    *,
    backend: Backend = "auto",
) -> None:
    """`settle_greedy_reference` in one launch.

    Logits that are NaN count as infinite, as in `choose`.

    Args:
        choice: memory for B · T rows of logits.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("logits", logits, "B", "T", "V")
    check_memory("logits", logits, logits)
    batch, num_tokens, vocab_size = logits.shape
    check_text(text, positions, batch, logits)
    wide = (batch, num_tokens + 1)
    check_tensor("report", report, wide, logits, "it needs a number and T tokens a row", dtype=torch.long)
    if resolve(backend, logits.device, logits.dtype) == "reference":
        return settle_greedy_reference(logits, text, positions, last, report)
    choice.check(batch * num_tokens, vocab_size, logits.device)
    from llmcourse.kernels import drafts_triton

    return drafts_triton.launch_settle_greedy(logits, text, positions, last, report, choice)
