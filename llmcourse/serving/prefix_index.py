"""Finding blocks that hold the beginning of a text: each full block is known by a chained hash.

    h_i = hash(h_{i-1}, tokens of block i)

The hash of a block stands for all the text up to its end, since keys and values depend on everything
before them (vLLM, automatic prefix caching). A hash may collide, so what it finds is compared, token by
token and predecessor by predecessor: a collision costs a reuse, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

BlockHash = Callable[[int, tuple[int, ...]], int]


def chained_hash(parent: int, tokens: tuple[int, ...]) -> int:
    """Of a block, from that of the block before it (0 for the first) and its own tokens."""
    return hash((parent, tokens))


@dataclass(eq=False, slots=True)
class Prefix:
    """A text up to the end of a full block: the one before it, and the tokens of the block; never changed."""

    parent: Prefix | None
    tokens: tuple[int, ...]
    hash: int


class PrefixIndex:
    """From the beginning of a text to the blocks that hold it.

    Args:
        block_size: tokens in a block.
        hash_block: the hash, to be replaced where collisions are to be seen.
    """

    def __init__(self, block_size: int, hash_block: BlockHash = chained_hash):
        self._block_size = block_size
        self._hash = hash_block
        self._found: dict[int, tuple[Prefix, int]] = {}  # hash to prefix and the block that holds its end
        self._prefix: dict[int, Prefix] = {}  # block to prefix, of blocks that are not found themselves too

    def __contains__(self, block: int) -> bool:
        """Whether texts are led to this block; one that holds what another does already is not found."""
        prefix = self._prefix.get(block)
        return prefix is not None and self._found.get(prefix.hash) == (prefix, block)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known beginning of a text, in order; full blocks only."""
        blocks: list[int] = []
        prefix = None
        for start in range(0, len(tokens) - self._block_size + 1, self._block_size):
            own = tuple(tokens[start : start + self._block_size])
            prefix, block = self._lookup(self._hash_after(prefix, own), prefix, own)
            if prefix is None:
                break
            blocks.append(block)
        return blocks

    def register(self, block: int, parent: int | None, tokens: tuple[int, ...]) -> None:
        """From now on, `block` holds these tokens after those of block `parent` (None: none before)."""
        before = None if parent is None else self._prefix[parent]
        number = self._hash_after(before, tokens)
        known, _ = self._lookup(number, before, tokens)
        if known is None:
            known = Prefix(before, tokens, number)
            self._found[number] = known, block  # of two with one hash, the later is found
        self._prefix[block] = known

    def forget(self, block: int) -> None:
        """What the block holds will be written over."""
        prefix = self._prefix.pop(block, None)
        if prefix is not None and self._found.get(prefix.hash) == (prefix, block):
            del self._found[prefix.hash]

    def _hash_after(self, before: Prefix | None, tokens: tuple[int, ...]) -> int:
        return self._hash(before.hash if before else 0, tokens)

    def _lookup(
        self, number: int, before: Prefix | None, tokens: tuple[int, ...]
    ) -> tuple[Prefix | None, int]:
        """What is known by this hash of these tokens after that prefix, and the block that holds them."""
        prefix, block = self._found.get(number, (None, -1))
        if prefix is not None and prefix.parent is before and prefix.tokens == tokens:
            return prefix, block
        return None, -1
