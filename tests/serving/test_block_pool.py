import pytest

from llmcourse.serving.block_pool import BlockPool, DoubleFree, OutOfBlocks, UnknownBlock


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """A table of new blocks that hold these tokens, the full ones known."""
    table = pool.allocate(pool.blocks_for(len(tokens)))
    pool.register(table, tokens, 0, len(tokens) // pool.block_size)
    return table


def test_blocks_are_given_once_and_taken_back():
    pool = BlockPool(4, 2)
    table = pool.allocate(3)
    assert len(set(table)) == 3 and pool.num_free == 1
    assert [pool.users(block) for block in table] == [1, 1, 1]
    pool.free(table)
    assert pool.num_free == 4 and pool.num_kept == 0
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]


def test_too_many_blocks_are_refused_and_none_is_taken():
    pool = BlockPool(4, 2)
    pool.allocate(3)
    with pytest.raises(OutOfBlocks, match=r"count must be at most 1, .* of 4, got 2"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_block_is_freed_once():
    pool = BlockPool(4, 2)
    a, b = pool.allocate(2)
    pool.free([a])
    with pytest.raises(DoubleFree, match=f"block {a} has no user"):
        pool.free([b, a])
    assert pool.users(b) == 1  # nothing was freed
    with pytest.raises(DoubleFree, match="free a table once"):
        pool.free([b, b])
    assert pool.users(b) == 1


@pytest.mark.parametrize("block", [-1, 4])
def test_foreign_blocks_are_refused(block):
    pool = BlockPool(4, 2)
    for use in (pool.free, pool.share):
        with pytest.raises(UnknownBlock, match=rf"block must be in \[0, 3\], got {block}"):
            use([block])
    with pytest.raises(UnknownBlock):
        pool.users(block)
    with pytest.raises(UnknownBlock):
        pool.register([block], [1, 2], 0, 1)


def test_an_empty_block_is_not_shared():
    pool = BlockPool(4, 2)
    used = pool.allocate(1)
    with pytest.raises(UnknownBlock, match="block 3 is empty"):
        pool.share([*used, 3])
    assert pool.users(used[0]) == 1


@pytest.mark.parametrize("wrong", [{"num_blocks": 0}, {"block_size": 0}, {"block_size": -1}])
def test_a_pool_needs_blocks_of_tokens(wrong):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        BlockPool(**({"num_blocks": 4} | wrong))


def test_shared_blocks_are_free_when_the_last_user_leaves():
    pool = BlockPool(4, 2)
    table = filled(pool, [1, 2, 3, 4])
    pool.share(pool.match([1, 2, 3, 4]))
    pool.free(table)
    assert [pool.users(block) for block in table] == [1, 1] and pool.num_free == 2
    pool.free(table)
    assert pool.num_free == 4 and pool.num_kept == 2


def test_the_longest_known_beginning_is_found():
    pool = BlockPool(8, 2)
    table = filled(pool, [1, 2, 3, 4, 5])
    assert pool.match([1, 2, 3, 4, 5, 6]) == table[:2]  # the third block is not full
    assert pool.match([1, 2, 3]) == table[:1]
    assert pool.match([1, 2, 9, 9]) == table[:1]
    assert pool.match([1]) == pool.match([3, 4]) == pool.match([9, 2, 3, 4]) == []


def test_the_same_tokens_elsewhere_are_another_block():
    """Keys depend on all that went before: [3, 4] after [1, 2] is not [3, 4] after [5, 6]."""
    pool = BlockPool(8, 2)
    one, other = filled(pool, [1, 2, 3, 4]), filled(pool, [5, 6, 3, 4])
    assert pool.match([1, 2, 3, 4]) == one and pool.match([5, 6, 3, 4]) == other


def test_a_second_copy_is_not_kept():
    pool = BlockPool(8, 2)
    one, other = filled(pool, [1, 2]), filled(pool, [1, 2])
    pool.free(other)
    assert pool.num_kept == 0
    pool.free(one)
    assert pool.num_kept == 1 and pool.match([1, 2]) == one


def test_without_reuse_nothing_is_kept():
    pool = BlockPool(4, 2, reuse_prefixes=False)
    pool.free(filled(pool, [1, 2, 3, 4]))
    assert pool.num_kept == 0 and pool.match([1, 2, 3, 4]) == []


def test_kept_blocks_are_written_over_when_no_empty_one_is_left_oldest_first():
    pool = BlockPool(4, 2)
    old, new = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.free(old)
    pool.free(new)
    pool.share(old)
    pool.free(old)  # used again: now the other one is the oldest
    pool.allocate(2)
    assert pool.num_evictions == 0 and pool.num_kept == 2
    assert pool.allocate(1) == new and pool.num_evictions == 1
    assert pool.match([3, 4]) == [] and pool.match([1, 2]) == old


def test_a_text_loses_its_end_before_its_beginning():
    pool = BlockPool(3, 2)
    table = filled(pool, [1, 2, 3, 4, 5, 6])
    pool.free(table)
    assert pool.allocate(1) == table[2:]
    assert pool.match([1, 2, 3, 4, 5, 6]) == table[:2]


def test_a_collision_costs_a_reuse_and_nothing_more():
    pool = BlockPool(8, 2, hash_block=lambda parent, tokens: 7)
    one = filled(pool, [1, 2])
    assert pool.match([3, 4]) == []
    assert pool.match([1, 2]) == one
    other = filled(pool, [3, 4])
    assert pool.match([3, 4]) == other and pool.match([1, 2]) == []
    pool.free(one)
    pool.free(other)
    assert pool.num_free == 8 and sorted(pool.allocate(8)) == list(range(8))


def test_a_block_is_not_found_after_another_beginning_with_the_same_hash():
    """[1, 2] and [8, 9] collide; the block after [1, 2] must not follow [8, 9]."""
    pool = BlockPool(
        8, 2, hash_block=lambda parent, tokens: 0 if tokens in ((1, 2), (8, 9)) else hash(tokens)
    )
    filled(pool, [1, 2, 3, 4])
    start = filled(pool, [8, 9])
    assert pool.match([8, 9, 3, 4]) == start


def test_a_beginning_that_was_written_over_is_known_again_when_computed_again():
    pool = BlockPool(4, 2)
    first, copy = filled(pool, [1, 2]), filled(pool, [1, 2, 3, 4])
    pool.free(first)
    pool.allocate(2)  # writes over the block that is found for [1, 2]
    assert pool.match([1, 2, 3, 4]) == []
    pool.free(copy)
    table = filled(pool, [1, 2, 3, 4])
    assert pool.match([1, 2, 3, 4]) == table
