"""A teacher that can be stored: the k likeliest tokens of each position, instead of all V.

Students of several sizes and seeds read the same text, and the teacher's answers are the same each time:
they can be kept, at the cost of disk instead of passes. All of them are 2 V bytes a token in fp16, 256 kB
for V = 128,000; k of them with their ids are 6 k, and 2 for the others together: 386 for k = 64. Others,

    r = 1 − Σ_{i in top k} p_i

can be dealt with in two ways:

    bucket         They are one more outcome, r for the teacher and 1 − Σ_{i in top k} q_i for the student: a
                   divergence of k + 1 outcomes. Merging outcomes never adds to a divergence, so it is at most
                   the whole one, and 0 for a student that is the teacher. How to share r out among the others
                   the student is not told.
    renormalised   p'_i = p_i / (1 − r), and nothing for the others: KL(p' ‖ q) = Σ_i p'_i ln(p'_i / q_i)
                   can fall as long as the student has something left for them. It learns to be surer than
                   its teacher: of the top k alone both the gradient and the calibration are biased
                   (Anshumann et al. 2025, "Sparse Logit Sampling", who draw the tokens that are kept).

Temperatures above 1 move probability into the rest, so one belongs to what is stored: p_T is, not p.

`TopK.of` and `stored_loss` take whole logits: they are the slow truth. `TopK.of_hidden` and
`stored_loss_of_hidden` make them of some rows at a time, and again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.processors import widen
from llmcourse.distillation.losses import (
    IGNORED,
    Response,
    check_temperature,
    check_vocabularies,
    divergence_of,
    mixed,
)

Rest = Literal["bucket", "renormalised"]
RESTS = get_args(Rest)
STORED = (torch.float16, torch.float32)
CHUNK_LOGITS = 2**26  # at a time: 256 MiB in fp32, of which a loss holds a few
Head = Callable[[Float[Tensor, "N C"]], Float[Tensor, "N V"]]  # what makes logits of hidden states


@dataclass(frozen=True)
class TopK:
    """The likeliest tokens of each position, in order.

    Attributes:
        ids: `(..., k)`, int32.
        log_probs: `(..., k + 1)`, ln p_T of these tokens, and last ln r, of all others together. It is stored
            since one minus rounded probabilities is rounding alone where they are nearly all. In fp16 a
            probability is off by 0.05 % near e⁻¹ and by up to 0.4 % near e⁻¹⁶.
        vocab_size: V, of the teacher.
        temperature: T.
    """

    ids: Int[Tensor, "*shape k"]
    log_probs: Float[Tensor, "*shape k_and_rest"]
    vocab_size: int
    temperature: int | float = 1.0

    @classmethod
    def of(
        cls,
        teacher_logits: Float[Tensor, "*shape V"],
        k: int,
        *,
        temperature: int | float = 1.0,
        dtype: torch.dtype = torch.float16,
    ) -> TopK:
        """What is to be stored of a teacher's logits.

        Args:
            k: from 1 to V − 1.
            temperature: T, of the losses that will be taken.
            dtype: of the logarithms, float16 or float32.

        Raises:
            ValueError: a number out of its range, or another dtype.
        """
        vocab_size = teacher_logits.shape[-1]
        check_temperature(temperature)
        require_integer(1, "k", k, "64 are usual")
        require(
            k < vocab_size, "k", f"below the vocabulary, {vocab_size}", k, "store less, or ask the teacher"
        )
        require(
            dtype in STORED, "dtype", "torch.float16 or torch.float32", dtype, "bfloat16 has too few bits"
        )
        log_p = (widen(teacher_logits.detach()) / temperature).log_softmax(-1)
        strongest, ids = log_p.topk(k, dim=-1)
        log_probs = torch.cat((strongest, _log_of_others(log_p, ids)), -1)
        return cls(ids.int(), log_probs.to(dtype), vocab_size, temperature)

    @classmethod
    def of_hidden(
        cls,
        hidden: Float[Tensor, "*shape C"],
        head: Head,
        vocab_size: int,
        k: int,
        *,
        temperature: int | float = 1.0,
        chunk_rows: int | None = None,
    ) -> TopK:
        """`of` of the logits that a head makes, of some rows at a time.

        Args:
            chunk_rows: how many; None takes those of `CHUNK_LOGITS`.
        """
        rows = hidden.flatten(0, -2)
        chunks = rows.split(chunk_rows or best_chunk_rows(vocab_size))
        found = [cls.of(head(chunk), k, temperature=temperature) for chunk in chunks]
        ids, log_probs = (torch.cat([getattr(each, name) for each in found]) for name in ("ids", "log_probs"))
        shape = hidden.shape[:-1]
        return cls(ids.unflatten(0, shape), log_probs.unflatten(0, shape), vocab_size, temperature)

    @property
    def k(self) -> int:
        return self.ids.shape[-1]

    @property
    def bytes_per_token(self) -> int:
        return self.k * self.ids.element_size() + (self.k + 1) * self.log_probs.element_size()


def stored_loss(
    response: Response,
    student_logits: Float[Tensor, "*shape V"],
    teacher: TopK,
    labels: Int[Tensor, "*shape"] | None = None,
    *,
    rest: str = "bucket",
) -> Float[Tensor, ""]:
    """`response_loss` against a stored teacher.

    Args:
        labels: as of `response_loss`.
        rest: "bucket" or "renormalised"; with the second there is forward KL alone: the others ask what the
            teacher says of tokens that it says nothing of.

    Raises:
        ValueError: another vocabulary or temperature than those stored, another rest, one that the divergence
            cannot do with, or hard labels with a weight that are not given.
    """
    check_vocabularies(student_logits.shape[-1], teacher.vocab_size)
    _check_stored(response, teacher, rest)

    def soft() -> Tensor:
        log_q = (widen(student_logits) / teacher.temperature).log_softmax(-1)
        sides = _with_bucket if rest == "bucket" else _renormalised
        return divergence_of(response, *sides(teacher, log_q))

    return mixed(response, soft, student_logits, labels)


def stored_loss_of_hidden(
    response: Response,
    hidden: Float[Tensor, "*shape C"],
    head: Head,
    teacher: TopK,
    labels: Int[Tensor, "*shape"],
    *,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """`stored_loss` of the logits that the student's head makes, of some rows at a time.

    Args:
        chunk_rows: how many; None takes those of `CHUNK_LOGITS`.

    Raises:
        ValueError: as `stored_loss`.
    """
    given = hidden.flatten(0, -2), teacher.ids.flatten(0, -2), teacher.log_probs.flatten(0, -2)
    size = chunk_rows or best_chunk_rows(teacher.vocab_size)
    chunks = list(zip(*(each.split(size) for each in (*given, labels.flatten())), strict=True))

    def loss_of(hidden: Tensor, ids: Tensor, log_probs: Tensor, labels: Tensor) -> Tensor:
        told = TopK(ids, log_probs, teacher.vocab_size, teacher.temperature)
        return stored_loss(response, head(hidden), told, labels)

    if len(chunks) == 1:
        return loss_of(*chunks[0])
    # Each weighs by the positions that count in it: a mean of means would be another loss.
    counts = torch.stack([(labels != IGNORED).sum() for *_, labels in chunks])
    again = {"use_reentrant": False, "preserve_rng_state": False}
    losses = torch.stack([checkpoint(loss_of, *chunk, **again) for chunk in chunks])
    return (losses * counts).sum() / counts.sum().clamp(min=1)


def best_chunk_rows(vocab_size: int) -> int:
    """Rows whose logits are `CHUNK_LOGITS`, at least one."""
    return max(1, CHUNK_LOGITS // vocab_size)


def _with_bucket(
    teacher: TopK, log_q: Float[Tensor, "*shape V"]
) -> tuple[Float[Tensor, "*shape outcomes"], Float[Tensor, "*shape outcomes"]]:
    """ln p and ln q of the k tokens and of all others together."""
    ids = teacher.ids.long()
    log_q = torch.cat((log_q.gather(-1, ids), _log_of_others(log_q, ids)), -1)
    return widen(teacher.log_probs), log_q


def _renormalised(
    teacher: TopK, log_q: Float[Tensor, "*shape V"]
) -> tuple[Float[Tensor, "*shape k"], Float[Tensor, "*shape k"]]:
    """ln p' and ln q of the k tokens; the student keeps what it gives to others."""
    return widen(teacher.log_probs[..., :-1]).log_softmax(-1), log_q.gather(-1, teacher.ids.long())


def _log_of_others(
    log_probs: Float[Tensor, "*shape V"], ids: Int[Tensor, "*shape k"]
) -> Float[Tensor, "*shape 1"]:
    """The logarithm of what tokens have together that are not named."""
    return log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)


def _check_stored(response: Response, teacher: TopK, rest: str) -> None:
    stored, remedy = teacher.temperature, "store the teacher anew at the temperature of the loss"
    require(
        response.temperature == stored, "temperature", f"{stored} as stored", response.temperature, remedy
    )
    require(rest in RESTS, "rest", "'bucket' or 'renormalised'", repr(rest), "choose one")
    forward = response.divergence == "forward_kl"
    needed = f"'bucket' for {response.divergence}"
    require(forward or rest == "bucket", "rest", needed, repr(rest), "or take forward_kl")
