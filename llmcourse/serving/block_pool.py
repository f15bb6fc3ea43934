"""Memory for keys and values in blocks of equal size, each with a count of the requests that use it.

As an operating system's pages (Kwon et al. 2023, PagedAttention, section 4.2): a request takes the next
block when it is about to fill the last one, so at most one block a request is partly empty. Full blocks
are shared by requests whose texts begin alike. A block that nobody uses any more keeps what it holds
until its space is needed, the least recently used one first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from llmcourse.decoding.errors import require_integer
from llmcourse.serving.prefix_index import BlockHash, PrefixIndex, chained_hash


class BlockError(RuntimeError):
    """A block was asked for or given back in a way that cannot be."""


class OutOfBlocks(BlockError):
    """More blocks were asked for than have no user."""


class UnknownBlock(BlockError):
    """A number that is no block of this pool, or one that holds nothing to share."""


class DoubleFree(BlockError):
    """A block given back that has no user."""


class BlockPool:
    """A fixed number of blocks of `block_size` tokens.

    Args:
        num_blocks: how many there are.
        block_size: tokens that each holds.
        reuse_prefixes: whether blocks are kept for texts that begin alike.
        hash_block: the hash that finds them, see `prefix_index`.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        reuse_prefixes: bool = True,
        hash_block: BlockHash = chained_hash,
    ):
        require_integer(1, "num_blocks", num_blocks, "use the free memory over the bytes of a block")
        require_integer(1, "block_size", block_size, "use 16")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reuse_prefixes = reuse_prefixes
        self.num_evictions = 0
        self._users = [0] * num_blocks
        self._empty = deque(range(num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # no user, but a known prefix: oldest first
        self._index = PrefixIndex(block_size, hash_block)

    @property
    def num_free(self) -> int:
        """Blocks that have no user, those kept for their contents included."""
        return len(self._empty) + len(self._idle)

    @property
    def num_kept(self) -> int:
        """Blocks that have no user and are kept for their contents."""
        return len(self._idle)

    def users(self, block: int) -> int:
        """How many requests use the block.

        Raises:
            UnknownBlock: the pool has no such block.
        """
        self._check_known(block)
        return self._users[block]

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Blocks for one user each; empty ones first, then those that nobody has used for longest.

        Raises:
            OutOfBlocks: fewer have no user; none is taken then.
        """
        if count > self.num_free:
            raise OutOfBlocks(
                f"count must be at most {self.num_free}, the blocks without a user of {self.num_blocks}, "
                f"got {count}; free blocks, preempt a request, or make the pool larger"
            )
        return [self._take() for _ in range(count)]

    def share(self, blocks: Sequence[int]) -> None:
        """One more user for each of the blocks; those that are kept for their contents are taken up again.

        Raises:
            UnknownBlock: the pool has no such block, or it is empty; none is shared then.
        """
        for block in blocks:
            self._check_known(block)
            if not self._users[block] and block not in self._idle:
                raise UnknownBlock(f"block {block} is empty and holds nothing to share; allocate it")
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """One user less for each block of a table.

        The last block is given up first: where space is needed, a text loses its end before its
        beginning, which more texts share and without which the end cannot be found.

        Raises:
            UnknownBlock: the pool has no such block; none is freed then.
            DoubleFree: a block has no user, or is listed twice; none is freed then.
        """
        self._check_in_use(blocks)
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._index:
                self._idle[block] = None
            else:
                self._index.forget(block)
                self._empty.append(block)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The full blocks that hold the longest known beginning of a text; `share` them to use them."""
        return self._index.match(tokens) if self.reuse_prefixes else []

    def register(self, table: Sequence[int], tokens: Sequence[int], first: int, last: int) -> None:
        """Makes the blocks first … last − 1 of a table known, now that all their tokens are computed.

        Raises:
            UnknownBlock: the pool has no such block.
        """
        if not self.reuse_prefixes:
            return
        size = self.block_size
        for i in range(first, last):
            self._check_known(table[i])
            own = tuple(tokens[i * size : (i + 1) * size])
            self._index.register(table[i], table[i - 1] if i else None, own)

    def _take(self) -> int:
        """A block without a user."""
        if self._empty:
            block = self._empty.popleft()
        else:
            block, _ = self._idle.popitem(last=False)
            self._index.forget(block)
            self.num_evictions += 1
        self._users[block] = 1
        return block

    def _check_known(self, block: int) -> None:
        if not 0 <= block < self.num_blocks:
            raise UnknownBlock(
                f"block must be in [0, {self.num_blocks - 1}], got {block}; use what allocate returned"
            )

    def _check_in_use(self, blocks: Iterable[int]) -> None:
        seen = set()
        for block in blocks:
            self._check_known(block)
            if not self._users[block] or block in seen:
                raise DoubleFree(f"block {block} has no user left to give it back; free a table once")
            seen.add(block)
