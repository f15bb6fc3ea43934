"""Rows of two passages: where the second comes from, what is left out, and how often it follows."""

import pytest
import torch

from llmcourse.early_exit.classifier.encoder import SEPARATOR, START
from llmcourse.training.classifier.next_passage import GAP, follows_loss, pair_rows

LENGTH = 24
KINDS = (5, 3)


@pytest.fixture
def windows():
    """Every token tells its window and its place: 100 times the one, plus the other."""
    return 100 * torch.arange(1, sum(KINDS) + 1)[:, None] + torch.arange(LENGTH + GAP)


def drawn(windows, kinds=KINDS, seed=0):
    return pair_rows(windows, kinds, torch.Generator().manual_seed(seed))


def test_a_row_is_a_passage_a_separator_and_another(windows):
    rows, follows = drawn(windows)
    assert rows.shape == (sum(KINDS), LENGTH)
    before = [4, 0, 1, 2, 3, 7, 5, 6]  # of the same kind
    for number, (row, right) in enumerate(zip(rows.tolist(), follows.tolist(), strict=True)):
        end = row.index(SEPARATOR)
        assert row[0] == START and LENGTH // 4 <= end < 3 * LENGTH // 4
        assert row[1:end] == windows[number, 1:end].tolist()
        source = windows[number if right else before[number]]
        assert row[end + 1 :] == source[end + GAP : LENGTH + GAP - 1].tolist()


def test_half_of_them_follow_and_every_end_is_drawn(windows):
    """Of 4,000: a deviation is 32, five are allowed (a false alarm in two million runs)."""
    many = [drawn(windows, seed=seed) for seed in range(500)]
    assert abs(sum(int(follows.sum()) for _, follows in many) - 2000) < 160
    ends = {int((row == SEPARATOR).nonzero()) for rows, _ in many for row in rows}
    assert ends == set(range(LENGTH // 4, 3 * LENGTH // 4))


def test_a_kind_with_one_window_has_no_strangers(windows):
    for seed in range(20):
        _, follows = drawn(windows, (7, 1), seed)
        assert follows[-1]


def test_the_loss_reads_the_first_token_alone():
    states = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    head, follows = torch.nn.Linear(8, 2), torch.tensor([True, False, True, True])
    log_p = head(states[:, 0]).log_softmax(-1)
    expected = -log_p[range(4), follows.long()].mean()
    torch.testing.assert_close(follows_loss(head, states, follows), expected)
