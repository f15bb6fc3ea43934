"""How much memory the tensors of a call take up at once, as the operations show it."""

import pytest
import torch

from llmcourse.grading.process.allocations import Allocations
from llmcourse.grading.process.operations import Operations

KIB = 1024


def peak(function, *given):
    operations = Operations(given)
    with operations:
        function(*given)
    return operations.allocations.peak_bytes


def made(numbers=256):
    return torch.zeros(numbers)  # a KiB of float32, unless told otherwise


def keeps_both():
    first = made()
    return first, made()


def lets_go():
    first = made()
    del first
    return made()


def in_place():
    return made().add_(1).exp_()


def views():
    whole = made().view(16, 16)
    return whole, whole.T, whole[3:], whole.flatten().detach()


def one_by_one():
    total = made()
    for _ in range(50):
        total = total + 1
    return total


@pytest.mark.parametrize(
    ("function", "kibibytes"), [(keeps_both, 2), (lets_go, 1), (in_place, 1), (views, 1), (one_by_one, 2)]
)
def test_what_is_alive_at_once_counts_and_each_memory_once(function, kibibytes):
    assert peak(function) == kibibytes * KIB


def test_arguments_do_not_count_nor_views_of_them_but_copies_do():
    x = made()
    assert peak(lambda x: x[3:].view(-1).add_(1), x) == 0
    assert peak(lambda rows: rows[0].clone(), [x]) == KIB
    assert peak(lambda named: named["x"] * 2, {"x": x}) == KIB


def test_a_matrix_is_seen_also_where_it_lives_within_one_line():
    q = torch.zeros(64, 4)
    whole = peak(lambda q: (q @ q.T).softmax(-1) @ q, q)
    tiles = peak(lambda q: [(q[i : i + 8] @ q[:8].T).sum(-1) for i in range(0, 64, 8)], q)
    assert whole >= 2 * 64 * 64 * 4 and tiles < 64 * 64 * 4


def test_addresses_that_are_used_again_are_counted_again():
    allocations = Allocations()
    for size in (1, 2, 3):
        tensor = made(size * 256)
        allocations.note(tensor)
        del tensor
    assert allocations.peak_bytes == 3 * KIB


def test_values_that_are_no_dense_tensors_are_passed_over():
    allocations = Allocations({"text": "x", "rows": [1, None]})
    allocations.note([torch.eye(3).to_sparse(), torch.empty(5, device="meta"), "x", None, {"n": 1}])
    assert allocations.peak_bytes == 0
