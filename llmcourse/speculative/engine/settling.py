"""What becomes of drafts, decided on the device: the verdict, what each text gained, and the rollback.

Rolling back is to set a row's position: the keys and values of drafts that fell lie behind it, where no
token of the text looks, and are overwritten by what comes next.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.speculative.verify import Verdict, verify_drafts


def verify_greedy(logits: Float[Tensor, "B T V"], drafts: Int[Tensor, "B G"]) -> Verdict:
    """`verify_drafts` where both sides are certain: a draft stands if it is the target's likeliest token.

    Args:
        logits: the target's before each draft, and after the last: T = G + 1.
    """
    best = logits.argmax(-1)  # (B, G + 1)
    num_accepted = (best[:, :-1] == drafts).int().cumprod(-1).sum(-1)
    return Verdict(num_accepted, best.gather(1, num_accepted[:, None])[:, 0])


def verify_sampled(
    logits: Float[Tensor, "B T V"],
    q: Float[Tensor, "B G V"],
    drafts: Int[Tensor, "B G"],
    uniform: Float[Tensor, "B T"],
    inverse_temperature: Float[Tensor, 1],
) -> Verdict:
    """`verify_drafts` for p = softmax(logits / temperature); q was made with the same temperature."""
    p = torch.softmax(logits * inverse_temperature, -1)
    return verify_drafts(p, q, drafts, uniform, trusted=True)


def settle(
    verdict: Verdict, gamma: int, text: Int[Tensor, "B S"], positions: Int[Tensor, " B"], last: int
) -> Int[Tensor, "B N"]:
    """Appends the target's token behind the drafts that stand, and sets the position to it.

    Args:
        gamma: γ, how many drafts of each row were judged.
        text: the drafts already in it, behind `positions`.
        positions: of each text's last token; moved by what it gains.
        last: a position that none may pass: a row that has ended stays there, and rides along unused.

    Returns:
        for each row how many tokens it gained, then these, then drafts that fell: N = γ + 2.
    """
    gained = verdict.num_accepted + 1
    text.scatter_(1, (positions + gained)[:, None], verdict.next_tokens[:, None])
    slots = positions[:, None] + torch.arange(1, gamma + 2, device=text.device)
    report = torch.cat((gained[:, None], text.gather(1, slots)), 1)
    positions.copy_((positions + gained).clamp(max=last))
    return report
