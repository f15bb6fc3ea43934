"""Where a block's distributions come from: one pass over what is new of the text and the block after it.

A block that was just finished is read, by the backbone, in the same pass that makes the first guess at the
next one: a pass a block is then all there is. Further passes over a block read the block alone. What a block
computes is never kept, for it saw masks; what a finished text computes is, as in any cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.blockwise.adapters import BlockDecoder
from llmcourse.blockwise.masks import EMPTY, FINISHED, block_mask, block_mask_by_definition


@runtime_checkable
class BlockSource(Protocol):
    """What block decoding asks for logits. It serves one batch at a time: `start` begins anew.

    Attributes:
        model: backbone and adapters.
    """

    model: BlockDecoder

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        """Takes the prompts, of any lengths, to be read in the first pass.

        Args:
            capacity: tokens to make room for in each row: the longest prompt and what may follow it.
        """
        ...

    def read(self, block: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        """The distribution of each place of the block that follows each text, in one pass.

        Args:
            block: what is known of it, masks elsewhere. The same one may be read again with other content.
        """
        ...

    def finish(self, block: Int[Tensor, "B n"]) -> None:
        """Appends the block to the texts."""
        ...


class CachedBlocks:
    """Finished text is kept in a KV cache; a pass reads what was finished since, and the block."""

    def __init__(self, model: BlockDecoder):
        self.model = model

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self.cache = self.model.backbone.new_cache(len(prompts), capacity)
        self._unread = torch.tensor(padded, device=self.model.device)  # (B, P)
        self._counts = [len(prompt) for prompt in prompts]  # of tokens to read; 0 once they are
        self._held = [0] * len(prompts)  # tokens in the cache, known to the host

    @torch.no_grad()
    def read(self, block: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        guessed = block if block.shape[1] > 1 else block[:, :0]  # one token alone needs no mask
        if any(self._counts):
            hidden = self._pass(guessed)
            ends = torch.tensor(self._counts, device=block.device)[:, None] - 1
            places = ends + torch.arange(
                block.shape[1], device=block.device
            )  # each token is read to its left
            hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
            self._first = hidden[:, :1]
            self._held = [held + count for held, count in zip(self._held, self._counts, strict=True)]
            self._counts = [0] * len(self._counts)
        else:
            rest = self._pass(guessed)[:, :-1] if guessed.shape[1] else self._first[:, :0]
            hidden = torch.cat((self._first, rest), 1)
        return self.model.logits(hidden)

    def finish(self, block: Int[Tensor, "B n"]) -> None:
        self._unread, self._counts = block, [block.shape[1]] * len(block)

    def _pass(self, block: Int[Tensor, "B n"]) -> Float[Tensor, "B T C"]:
        """Hidden states of `unread | block | padding`; the cache keeps the first part of it."""
        size, device = block.shape[1], block.device
        counts = torch.tensor(self._counts, device=device)[:, None]
        width = max(self._counts) + size
        index = torch.arange(width, device=device)
        in_block = (index >= counts) & (index < counts + size)  # (B, T)
        token_ids = torch.zeros_like(in_block, dtype=torch.long)
        if max(self._counts):
            token_ids[:, : self._unread.shape[1]] = self._unread
        token_ids.scatter_(1, counts + torch.arange(size, device=device).expand(len(block), -1), block)
        if size:
            mask = self._mask(in_block, counts, size)
            hidden = self.model.hidden_states(token_ids, in_block, self.cache, mask=mask)
        else:
            hidden = self.model.hidden_states(token_ids, cache=self.cache)
        self._keep([held + count for held, count in zip(self._held, self._counts, strict=True)], width)
        return hidden

    def _mask(self, in_block: Tensor, counts: Tensor, size: int) -> Tensor:
        held = torch.tensor(self._held, device=counts.device)[:, None]
        start = held + counts  # of the block, (B, 1)
        positions = held + torch.arange(in_block.shape[1], device=counts.device)
        slots = torch.arange(self.cache.extent + in_block.shape[1], device=counts.device).expand(
            len(start), -1
        )
        key_starts = torch.where(slots < start, FINISHED, torch.where(slots < start + size, start, EMPTY))
        return block_mask(positions, torch.where(in_block, start, FINISHED), slots, key_starts)

    def _keep(self, lengths: list[int], width: int) -> None:
        """Rolls the cache back to the finished text: blocks and padding are forgotten."""
        if lengths != [held + width for held in self._held]:
            self.cache.truncate(lengths)


class UncachedBlocks:
    """The slow truth: every pass reads each text and its block anew, by the mask's definition."""

    def __init__(self, model: BlockDecoder):
        self.model = model

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.texts = [list(prompt) for prompt in prompts]

    @torch.no_grad()
    def read(self, block: Int[Tensor, "B n"]) -> Float[Tensor, "B n V"]:
        return torch.stack([self._row(*row) for row in zip(self.texts, block.tolist(), strict=True)])

    def _row(self, text: list[int], block: list[int]) -> Float[Tensor, "n V"]:
        block = block if len(block) > 1 else []
        token_ids = torch.tensor([[*text, *block]], device=self.model.device)
        positions = torch.arange(token_ids.shape[1])[None]
        starts = torch.where(positions < len(text), FINISHED, len(text))
        mask = block_mask_by_definition(positions, starts, positions, starts).to(self.model.device)
        in_block = (starts != FINISHED).to(self.model.device)
        hidden = self.model.hidden_states(token_ids, in_block, mask=mask)[0]
        return self.model.logits(hidden[len(text) - 1 : len(text) - 1 + max(1, len(block))])

    def finish(self, block: Int[Tensor, "B n"]) -> None:
        for text, tokens in zip(self.texts, block.tolist(), strict=True):
            text.extend(tokens)
