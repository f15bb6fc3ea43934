"""Token arrays, the order of windows, and the sequences of a step."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.training.tokenizer import add_start
from llmcourse.training.tokens import ALIGN_EVERY, Domain, batch, encode_documents, shares
from tests.tiny_tokenizer import tiny_tokenizer_json

QUICK = settings(deadline=None, max_examples=60)


def counting(size: int, name: str = "numbers") -> Domain:
    """A domain whose tokens are their own positions."""
    return Domain(name, torch.arange(size, dtype=torch.int32))


def starts(domain: Domain, first: int, count: int, length: int, seed: int = 0) -> list[int]:
    return domain.windows(first, count, length, seed)[:, 0].tolist()


sizes = st.tuples(st.integers(1, 9), st.integers(0, 60)).map(lambda p: (p[0], 2 * p[0] + p[1]))


class TestEncode:
    def test_documents_come_back_between_separators(self):
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())
        add_start(tokenizer)  # as a prompt has; between documents the separator does
        documents = [f"poem {n}: 明月光 🙂\n" for n in range(1100)]  # more than two chunks
        tokens = encode_documents(tokenizer, documents, 0, "poems")
        assert tokens.dtype == np.uint16 and tokens[-1] == 0 and (tokens == 0).sum() == len(documents)
        rows = np.split(tokens, np.flatnonzero(tokens == 0) + 1)[:-1]
        assert [tokenizer.decode(row[:-1].tolist()) for row in rows] == documents


class TestWindows:
    @QUICK
    @given(sizes, st.integers(0, 5), st.integers(0, 3))
    def test_each_epoch_cuts_the_text_and_visits_every_window_once(self, size, epoch, seed):
        length, tokens = size
        domain, per_epoch = counting(tokens), tokens // length - 1
        windows = domain.windows(epoch * per_epoch, per_epoch, length, seed)
        assert windows.dtype == torch.int64 and windows.shape == (per_epoch, length)
        assert torch.equal(windows, windows[:, :1] + torch.arange(length)), "consecutive tokens"
        first = sorted(windows[:, 0].tolist())
        assert first == [first[0] + k * length for k in range(per_epoch)] and 0 <= first[0] < length

    @QUICK
    @given(sizes, st.lists(st.integers(0, 9), min_size=1, max_size=9))
    def test_taken_in_parts_it_is_the_same_stream(self, size, counts):
        length, tokens = size
        whole = starts(counting(tokens), 0, sum(counts) + 1, length)
        domain, parts = counting(tokens), []
        for count in [*counts, 1]:
            parts += starts(domain, len(parts), count, length) if count else []
        assert parts == whole
        assert starts(counting(tokens), sum(counts), 1, length) == whole[-1:], "from a later step on"

    @pytest.mark.parametrize("tokens", [16, 17, 23, 24])
    def test_every_offset_occurs_and_the_last_window_stays_inside(self, tokens):
        domain, length, per_epoch = counting(tokens), 8, tokens // 8 - 1
        lowest, highest = [], []
        for epoch in range(200):
            windows = domain.windows(epoch * per_epoch, per_epoch, length, 0)
            lowest.append(windows.min().item())
            highest.append(windows.max().item())
        assert set(lowest) == set(range(length))
        assert max(highest) == tokens // length * length - 2, "at most a window's length is never read"

    def test_epochs_and_seeds_differ_in_order(self):
        domain = counting(1000)
        orders = [
            [start // 8 for start in starts(domain, epoch * 124, 124, 8, seed)]
            for epoch, seed in ((0, 0), (1, 0), (0, 1))
        ]
        assert len({tuple(order) for order in orders}) == 3
        assert all(order != sorted(order) for order in orders)

    def test_every_fourth_window_begins_with_a_document(self):
        tokens = torch.arange(1, 1001, dtype=torch.int32)
        tokens[6::20] = 0  # a separator after every nineteen tokens
        windows = Domain("short", tokens, separator=0).windows(0, 120, 8, 0)
        plain = Domain("short", tokens).windows(0, 120, 8, 0)
        aligned = (windows[:, 0] == 0).nonzero().flatten().tolist()
        assert set(range(0, 120, ALIGN_EVERY)) <= set(aligned)
        others = [row for row in range(120) if row % ALIGN_EVERY]
        assert torch.equal(windows[others], plain[others])
        cut_at = starts(counting(1000), 0, 120, 8)[::ALIGN_EVERY]
        following = [start + (6 - start) % 20 for start in cut_at]  # 6, 26, … 986
        expected = [border if border < 1000 else 6 for border in following]  # after the last the first
        assert (windows[::ALIGN_EVERY, 1] - 2).tolist() == expected

    def test_text_without_a_border_is_cut_anywhere(self):
        plain = counting(100)
        aligned = Domain("numbers", plain.tokens, separator=5000)
        assert starts(aligned, 0, 11, 8) == starts(plain, 0, 11, 8)

    def test_a_border_too_near_the_end_is_not_begun_with(self):
        tokens = torch.arange(1, 101, dtype=torch.int32)
        tokens[[40, 97]] = 0
        windows = Domain("two", tokens, separator=0).windows(0, 11, 8, 0)  # one epoch
        assert (windows[::ALIGN_EVERY, 1] == 42).all(), "the one that leaves room, from wherever"

    def test_too_few_tokens(self):
        assert counting(16).windows(0, 1, 8, 0).shape == (1, 8)
        with pytest.raises(ValueError, match="'few' has 15 tokens, fewer than two windows of 8"):
            counting(15, "few").windows(0, 1, 8, 0)


class TestShares:
    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 60))
    def test_largest_remainder_and_at_least_one(self, weights, more):
        batch_size = len(weights) + more
        counts = shares([float(w) for w in weights], batch_size)
        assert sum(counts) == batch_size and min(counts) >= 1
        exact = [Fraction(w * batch_size, sum(weights)) for w in weights]
        if min(exact) < 1:
            return
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))
        rounded_up = [share - floor(share) for c, share in zip(counts, exact, strict=True) if c > share]
        rounded_down = [share - floor(share) for c, share in zip(counts, exact, strict=True) if c < share]
        assert min(rounded_up, default=1) >= max(rounded_down, default=0)

    def test_by_hand(self):
        assert shares([0.45, 0.15, 0.40], 64) == [29, 9, 26]  # 28.8, 9.6, 25.6: 64 = 28 + 9 + 25 + 2
        assert shares([0.9, 0.05, 0.05], 4) == [2, 1, 1]
        assert shares([1.0, 1.0, 1.0, 9.0], 4) == [1, 1, 1, 1]
        assert shares([1.0, 1.0, 1.0], 3) == [1, 1, 1]

    def test_more_domains_than_sequences(self):
        with pytest.raises(ValueError, match="batch_size must be at least 3, one a domain, got 2"):
            shares([1.0, 1.0, 1.0], 2)


class TestBatch:
    DOMAINS = (counting(4000, "a"), Domain("b", torch.arange(10_000, 14_000, dtype=torch.int32)))

    def batch(self, step: int, **changes):
        return batch(self.DOMAINS, [3.0, 1.0], step, 8, 17, seed=0, **changes)

    def test_every_domain_has_its_share(self):
        rows = self.batch(0)
        assert rows.shape == (8, 17)
        assert ((rows < 10_000).all(1).sum(), (rows >= 10_000).all(1).sum()) == (6, 2)

    def test_processes_divide_the_batch(self):
        for world in (2, 4, 8):
            parts = [self.batch(3, rank=rank, world=world) for rank in range(world)]
            assert {part.shape for part in parts} == {(8 // world, 17)}
            together = torch.cat(parts)
            assert sorted(together.tolist()) == sorted(self.batch(3).tolist())

    def test_steps_walk_through_the_windows(self):
        steps = [self.batch(step) for step in range(30)]
        for domain, rows in ((self.DOMAINS[0], slice(0, 6)), (self.DOMAINS[1], slice(6, 8))):
            seen = torch.cat([step[rows] for step in steps])
            assert torch.equal(seen, domain.windows(0, len(seen), 17, 0))
        assert torch.equal(self.batch(29), steps[29]), "whatever came before"
