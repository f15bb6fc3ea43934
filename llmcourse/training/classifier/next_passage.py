"""Does this passage follow that one? The second objective of pre-training: it teaches to compare two texts.

    L = L_masked + CE(W h_START, follows)

Every row becomes a pair, START first SEPARATOR second; in half of them the second passage is another row's,
of the same kind of text (next sentence prediction, Devlin et al. 2019, section 3.1). Without it nothing asks
the first token's state about the rest, and a fine-tuning has to learn from few examples how texts are
compared. A few tokens between the passages are left out (that is ours), lest half a word gives the answer
away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.early_exit.classifier.encoder import SEPARATOR, START

GAP = 8  # tokens between two passages that neither shows
FOLLOWS = 0.5  # of the rows


def pair_rows(
    windows: Int[Tensor, "B W"], kinds: Sequence[int], generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, " B"]]:
    """Rows of two passages, and whether the second follows the first; a row is `GAP` shorter than a window.

    Where the first passage ends is drawn for each row, in the middle half.

    Args:
        windows: running text; of one kind after the other.
        kinds: how many windows of each kind there are; a stranger is the window before, of the same kind. Of
            a kind with a single window all follow.
        generator: on the device of the windows.
    """
    batch, length, device = len(windows), windows.shape[1] - GAP, windows.device
    strange = torch.cat([part.roll(1, 0) for part in windows.split(list(kinds))])
    follows = torch.rand(batch, generator=generator, device=device) < FOLLOWS
    ends = torch.randint(length // 4, 3 * length // 4, (batch, 1), generator=generator, device=device)
    second = torch.where(follows[:, None], windows, strange)[:, GAP - 1 : -1]  # after SEPARATOR and the gap
    places = torch.arange(length, device=device)
    rows = torch.where(places < ends, windows[:, :length], second)
    rows = torch.where(places == ends, SEPARATOR, rows)
    rows[:, 0] = START
    for part in follows.split(list(kinds)):
        if len(part) == 1:
            part.fill_(True)
    return rows, follows


def follows_loss(
    head: nn.Linear, states: Float[Tensor, "B T C"], follows: Bool[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the answer that the first token's state gives."""
    return F.cross_entropy(head(states[:, 0]).float(), follows.long())
