"""Learning to fill blocks: what is masked is predicted from the text before the block and the rest of it.

    L = − mean log p(x_i | x_<s, y_s … y_e)   over the masked places i of all blocks [s, e] but their first

Each row stands twice in one pass, finished and noisy, as in the vectorised training of Block Diffusion
(Arriola et al. 2025): the noisy copy of a block sees the finished text before it, so that all blocks of
a row are learnt at once. A block is masked throughout, as a first pass finds it, or by a share that is
uniform in [0, 1] (Ghazvininejad et al. 2019, section 2.2, of a conditional masked language model). Its first
place is left out, being the backbone's own: masked where all are, and given elsewhere, as in decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.blockwise.adapters import BlockDecoder
from llmcourse.blockwise.masks import FINISHED, block_mask, block_starts
from llmcourse.decoding.errors import require, require_integer

SIZES = (2, 4, 8, 16, 32, 64)
FULL_SHARE = 0.5  # of the blocks are masked throughout


@dataclass(frozen=True)
class Noise:
    """Which places of each row are masked, and in which block every place lies.

    Attributes:
        starts: where the block of each place starts; 0 before the first block.
        masked: what is hidden from the model.
    """

    starts: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]

    @property
    def wanted(self) -> Bool[Tensor, "B L"]:
        """The places to predict: masked, in a block, and not its first."""
        places = torch.arange(self.starts.shape[1], device=self.starts.device)
        return self.masked & (self.starts > 0) & (places > self.starts)


def draw_noise(
    num_rows: int, length: int, sizes: Sequence[int], generator: torch.Generator, device: torch.device | str
) -> Noise:
    """A block size for each row, where its blocks start, and masks; drawn on the CPU, the same everywhere.

    Args:
        sizes: of blocks, from which each row takes one at random, at least 1.

    Raises:
        ValueError: no sizes, or a number below 1.
    """
    require(len(sizes) > 0, "sizes", "at least one block size", "none", "use (2, 4, 8, 16)")
    for size in sizes:
        require_integer(1, "sizes", size, "a block holds a token")
    chosen = torch.tensor(sizes)[torch.randint(len(sizes), (num_rows,), generator=generator)]
    firsts = 1 + (torch.rand(num_rows, generator=generator) * chosen).long()  # so that blocks start anywhere
    starts = block_starts(length, chosen, firsts)
    # One number for each block, kept at its start.
    share, whole = (torch.rand(num_rows, length, generator=generator).gather(1, starts) for _ in range(2))
    first = torch.arange(length) == starts
    some = (torch.rand(num_rows, length, generator=generator) < share) & ~first
    return Noise(starts.to(device), torch.where(whole < FULL_SHARE, True, some).to(device))


def all_masked(num_rows: int, length: int, size: int, device: torch.device | str) -> Noise:
    """What a first pass sees: blocks of one size, from the second token of each row on, masked throughout."""
    starts = block_starts(length, torch.full((num_rows,), size, device=device))
    return Noise(starts, torch.ones_like(starts, dtype=torch.bool))


def noisy_hidden_states(
    model: BlockDecoder, rows: Int[Tensor, "B L"], noise: Noise
) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B L C"]]:
    """Hidden states of the finished copy of each row, the backbone's own, and of the noisy one."""
    length, starts = rows.shape[1], noise.starts
    place = torch.arange(length, device=rows.device).expand_as(rows)
    masks = model.mask_ids(length)[place - starts]
    token_ids = torch.cat((rows, torch.where(noise.masked, masks, rows)), 1)
    positions = torch.cat((place, place), 1)
    roles = torch.cat((torch.full_like(starts, FINISHED), starts), 1)
    mask = block_mask(positions, roles, positions, roles)
    hidden = model.hidden_states(token_ids, roles != FINISHED, mask=mask, positions=positions)
    return hidden[:, :length], hidden[:, length:]


def denoising_loss(model: BlockDecoder, rows: Int[Tensor, "B L"], noise: Noise) -> Float[Tensor, ""]:
    """Mean nats for each wanted token; 0 where none is wanted. Each is read one place to its left."""
    _, noisy = noisy_hidden_states(model, rows, noise)
    wanted = noise.wanted
    logits = model.logits(noisy[:, :-1][wanted[:, 1:]])  # only what is predicted meets the vocabulary
    total = F.cross_entropy(logits.float(), rows[wanted], reduction="sum")
    return total / wanted.sum().clamp(min=1)


@torch.no_grad()
def first_pass_loss(model: BlockDecoder, rows: Int[Tensor, "B L"], size: int) -> Float[Tensor, ""]:
    """Mean nats of every token but a row's first when blocks of `size` are guessed in one pass.

    A block's first token is predicted by the backbone, so that with size 1 this is the backbone's loss. The
    text before a block is the true one.

    Raises:
        ValueError: a size below 1.
    """
    require_integer(1, "size", size, "use 1 for the backbone's own loss")
    noise = all_masked(*rows.shape, size, rows.device)
    finished, noisy = noisy_hidden_states(model, rows, noise)
    hidden = torch.where(noise.wanted[:, 1:, None], noisy[:, :-1], finished[:, :-1])
    return F.cross_entropy(model.logits(hidden).flatten(0, 1).float(), rows[:, 1:].flatten())
