"""Tree attention: the backbone reads the last token and all nodes behind it in one pass.

A node sees the text, its own ancestors and itself, and stands at its depth behind the last token, whatever
lies beside it (Cai et al. 2024, section 2.1.2). Afterwards the keys and values of the accepted path are moved
to where they would lie had it been read alone, and the other nodes are forgotten. `speculative.read_tree`
is the slow truth: every node as a text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor, apply, widen
from llmcourse.kernels.tree_mask import TreeMask
from llmcourse.speculative.target import CachedTarget
from llmcourse.speculative.tree import ROOT, DraftTree


def mask_of(tree: DraftTree, device: torch.device | str = "cpu") -> TreeMask:
    """What the last token of a text and the nodes behind it see of each other: T = N + 1."""
    sees = pad(tree.ancestors(), (1, 0, 1, 0))
    sees[:, 0] = True
    return TreeMask(sees.to(device))


class TreeTarget(CachedTarget):
    """A decoder with a cache that reads trees, and gives hidden states, which Medusa's heads need."""

    @torch.no_grad()
    def start_hidden(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B C"]:
        """As `start`, but the last hidden state of each prompt."""
        self.cache = self.model.new_cache(len(prompts), capacity)
        hidden = self._hidden_at_ends(prompts, self.cache)
        self.cache.truncate([len(prompt) for prompt in prompts])
        return hidden

    @torch.no_grad()
    def read_tree(self, tokens: Int[Tensor, "B T"], mask: TreeMask) -> Float[Tensor, "B T C"]:
        """The hidden state at each row's last token and at each of the nodes behind it."""
        seen, positions = self.cache.visible(mask.sees), self.cache.lengths[:, None] + mask.depths
        return self.model.hidden_states(tokens, self.cache, mask=seen, positions=positions)

    def keep(self, num_read: int, paths: Sequence[Sequence[int] | None]) -> None:
        """Of what was read last keeps each row's last token and the nodes of its accepted path.

        Args:
            num_read: T.
            paths: nodes from the root's child on; None for a row that has ended, which keeps nothing.
        """
        kept = [[] if path is None else [0, *(node + 1 for node in path)] for path in paths]
        self.cache.keep(num_read, kept)


def node_logits(
    logits: Float[Tensor, "B T V"],  # T = N + 1
    drafts: Int[Tensor, "B N"],
    tree: DraftTree,
    history: History,
    processors: Sequence[Processor] = (),
) -> Float[Tensor, "B T V"]:
    """What the processors make of the logits after each text and each of its nodes.

    Each node is a text of its own to them: the history with its path appended, so that a penalty sees the
    drafts above a node and none beside it. The history is left as it was.
    """
    logits = widen(logits)
    if not processors:
        return logits
    batch, size = len(logits), len(tree) + 1
    paths = [tree.path(node) for node in range(ROOT, len(tree))]
    deepest = max(map(len, paths))
    text = history.select(torch.arange(batch).repeat_interleave(size).to(history.tokens.device))
    text.tokens = pad(text.tokens, (0, deepest))  # room for the paths
    if deepest:
        padded = [[*path, *[0] * (deepest - len(path))] for path in paths]
        own = drafts[:, torch.tensor(padded, device=drafts.device)]  # (B, T, deepest)
        text.extend(own.flatten(0, 1), [len(path) for path in paths] * batch)
    return widen(apply(processors, logits.flatten(0, 1), text)).unflatten(0, (batch, size))
