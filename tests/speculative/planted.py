"""Verification as it must not be: each bug is the real function with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from llmcourse.speculative import verify as module
from llmcourse.speculative.verify import Verdict, verify_drafts

Verify = Callable[..., Verdict]


@contextmanager
def patched(name: str, replacement: Callable) -> Iterator[None]:
    with mock.patch.object(module, name, replacement):
        yield


def always_accepts(*arguments, **settings) -> Verdict:
    with patched("accepts", lambda p, q, uniform: torch.ones_like(uniform, dtype=torch.bool)):
        return verify_drafts(*arguments, **settings)


def no_residual(*arguments, **settings) -> Verdict:
    """A rejected draft is replaced from p itself, as if nothing of it had been spent."""
    with patched("residual", lambda p, q: p):
        return verify_drafts(*arguments, **settings)


def residual_not_renormalised(*arguments, **settings) -> Verdict:
    """Shares of a sum below 1 are taken for probabilities: what is missing falls to the last token."""

    def pick(weights: Tensor, points: Tensor) -> Tensor:
        return (weights.cumsum(-1) <= points[:, None]).sum(-1).clamp(max=weights.shape[1] - 1)

    with patched("residual", lambda p, q: (p - q).clamp(min=0)), patched("pick", pick):
        return verify_drafts(*arguments, **settings)


def no_bonus(p, q, drafts, uniform, num_drafts=None, **settings) -> Verdict:
    """Where all drafts stand, the last one is the step's last token: correct texts, one token lost."""
    verdict = verify_drafts(p, q, drafts, uniform, num_drafts, **settings)
    counts = torch.full_like(verdict.num_accepted, drafts.shape[1]) if num_drafts is None else num_drafts
    full = (verdict.num_accepted == counts) & (counts > 0)
    last = drafts.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
    return Verdict(verdict.num_accepted - full.int(), torch.where(full, last, verdict.next_tokens))


def bonus_from_the_draft_before(p, q, *arguments, **settings) -> Verdict:
    """The bonus token comes from the target's distribution before the last draft."""
    return verify_drafts(torch.cat((p[:, :-1], p[:, -2:-1]), 1), q, *arguments, **settings)


def q_one_position_early(p, q, drafts, uniform, num_drafts=None, *, trusted=True) -> Verdict:
    return verify_drafts(p, q.roll(1, 1), drafts, uniform, num_drafts, trusted=True)


def biased_by_ten_percent(*arguments, **settings) -> Verdict:
    with patched("accepts", lambda p, q, uniform: uniform * q < 1.1 * p):
        return verify_drafts(*arguments, **settings)


BUGS: dict[str, Verify] = {
    "always accepts": always_accepts,
    "no residual": no_residual,
    "residual not renormalised": residual_not_renormalised,
    "no bonus token": no_bonus,
    "bonus from the draft before": bonus_from_the_draft_before,
    "q at the wrong position": q_one_position_early,
    "acceptance biased by ten percent": biased_by_ten_percent,
}
