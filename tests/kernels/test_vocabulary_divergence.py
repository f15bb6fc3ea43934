"""The divergence over a vocabulary: its reference, what it refuses, how it cuts, and how much it holds."""

import math
import re
from unittest import mock

import pytest
import torch
from torch.autograd import gradcheck

from llmcourse.kernels import vocabulary_divergence as module
from llmcourse.kernels.vocabulary_divergence import (
    FULL,
    LEAST_LOGITS,
    MOST_LOGITS,
    ROW_TILE,
    best_chunk_rows,
    peak_bytes,
    vocabulary_divergence,
)
from tests.kernels.live_bytes import LiveBytes

ROWS, V, WIDTHS = 6, 11, (4, 5)
LLAMA_V = 128256


def draw(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    shapes = ((ROWS, WIDTHS[0]), (V, WIDTHS[0]), (ROWS, WIDTHS[1]), (V, WIDTHS[1]))
    labels = torch.tensor([3, -100, 0, 10, -100, 7])
    return [torch.randn(shape, dtype=dtype) for shape in shapes], labels


def brute_force(tensors, labels, kind, beta, temperature, hard_weight) -> float:
    """The sums of the docstring, a position at a time, in probabilities."""
    hidden, head, teacher, teacher_head = tensors
    losses = []
    for row in range(len(hidden)):
        if labels[row] == -100:
            continue
        z, t = head @ hidden[row], teacher_head @ teacher[row]
        q, p = (x.exp() / x.exp().sum() for x in (z / temperature, t / temperature))
        m = beta * p + (1 - beta) * q
        soft = {
            "forward_kl": kl(p, q),
            "reverse_kl": kl(q, p),
            "jensen_shannon": beta * kl(p, m) + (1 - beta) * kl(q, m),
        }
        hard = -math.log(z.exp()[labels[row]] / z.exp().sum())
        losses.append((1 - hard_weight) * temperature**2 * soft[kind] + hard_weight * hard)
    return sum(losses) / len(losses)


def kl(a, b) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (2.0, 0.3)])
def test_the_reference_is_the_sum_that_the_docstring_says(kind, temperature, hard_weight):
    tensors, labels = draw()
    given = {"divergence": kind, "beta": 0.2, "temperature": temperature, "hard_weight": hard_weight}
    found = vocabulary_divergence(*tensors, labels, **given).item()
    wanted = brute_force(tensors, labels, kind, 0.2, temperature, hard_weight)
    assert found == pytest.approx(wanted, rel=1e-12)
    others = ((kind, 0.2, temperature + 1, hard_weight), (kind, 0.2, temperature, hard_weight + 0.1))
    assert all(found != pytest.approx(brute_force(tensors, labels, *o), rel=1e-6) for o in others)
    leaves = [x.requires_grad_() for x in tensors[:2]]
    assert gradcheck(
        lambda *x: vocabulary_divergence(*x, *tensors[2:], labels, **given), leaves, fast_mode=True
    )


def test_the_ends_of_jensen_shannon_are_the_limits_of_its_gradient():
    tensors, labels = draw()
    leaves = [x.requires_grad_() for x in tensors[:2]]

    def gradient(kind: str, beta: float) -> torch.Tensor:
        loss = vocabulary_divergence(*tensors, labels, divergence=kind, beta=beta)
        return torch.autograd.grad(loss, leaves)[0]

    for end, near, kind in ((0, 1e-9, "forward_kl"), (1, 1 - 1e-9, "reverse_kl")):
        assert torch.equal(gradient("jensen_shannon", end), gradient(kind, 0.5))
        close = gradient("jensen_shannon", near) / 1e-9
        torch.testing.assert_close(close, gradient(kind, 0.5), rtol=1e-3, atol=1e-6)


def test_nothing_counted_is_no_loss_and_no_gradient():
    tensors, labels = draw()
    leaf = tensors[0].requires_grad_()
    loss = vocabulary_divergence(*tensors, torch.full_like(labels, -100), hard_weight=0.5)
    assert loss == 0 and not torch.autograd.grad(loss, leaf)[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: {"teacher_head": t[3][:-1]}, "teacher_head must have 11 rows, one for each"),
        (lambda t, _: {"teacher_hidden": t[2][:-1]}, "teacher_hidden must have 6 rows as student_"),
        (lambda t, _: {"student_head": t[3]}, "student_head must have 4 columns as student_"),
        (lambda t, _: {"student_head": t[1].float()}, "student_head must be in torch.float64"),
        (lambda t, _: {"student_hidden": t[0][None]}, "student_hidden must have 2 dimensions, (N, D)"),
        (lambda t, _: {"student_hidden": t[0].long()}, "student_hidden must be in one of float16, bfloat16"),
        (lambda t, _: {"teacher_hidden": t[2].to("meta"), "teacher_head": t[3].to("meta")}, "on cpu, got"),
        (lambda t, _: {"student_hidden": t[0][:0], "teacher_hidden": t[2][:0]}, "one row, got 0 and 11"),
        (lambda _, y: {"labels": y[:-1]}, "labels must have shape (6,), got (5,)"),
        (lambda _, y: {"labels": y.int()}, "labels must be in torch.int64"),
        (lambda _, y: {"labels": y + 1}, "labels must be in [0, 11) or -100, got -99"),
        (lambda *_: {"labels": None, "hard_weight": 0.5}, "labels must be given where hard_weight is 0.5"),
        (lambda *_: {"divergence": "kl"}, "divergence must be one of 'forward_kl', 'reverse_kl'"),
        (lambda *_: {"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        (lambda *_: {"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
        (lambda *_: {"temperature": True}, "temperature must be above 0 and finite, got True"),
        (lambda *_: {"beta": 1.1}, "beta must be in [0, 1], got 1.1; 0 is forward KL"),
        (lambda *_: {"hard_weight": -0.1}, "hard_weight must be in [0, 1], got -0.1"),
        (lambda *_: {"chunk_rows": 0}, "chunk_rows must be an integer of at least 1, got 0"),
        (lambda *_: {"backend": "triton"}, "backend must be one that can run, got 'triton'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    tensors, labels = draw()
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")
    given = {**dict(zip(names, tensors, strict=True)), "labels": labels}
    vocabulary_divergence(**given)
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        undecorated(vocabulary_divergence)(**{**given, **change(tensors, labels)})
    assert caught.type is ValueError


def undecorated(function):
    """Without the check of shapes that tests put before it: users have none."""
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize("hidden_size", [64, 1024, 4096])
@pytest.mark.parametrize("vocab_size", [11, 4096, 50257, LLAMA_V, 262144, 10**9])
@pytest.mark.parametrize("rows", [1, 100, 1024, 4096, 5000, 8192, 100_000])
def test_chunks_are_few_large_enough_and_not_too_large(rows, vocab_size, hidden_size):
    chunk = best_chunk_rows(rows, vocab_size, hidden_size)
    assert 1 <= chunk <= rows and (chunk == rows or chunk % ROW_TILE == 0)
    at_most = MOST_LOGITS // vocab_size  # rows, which a chunk may be beyond by less than a tile
    assert chunk <= ROW_TILE or chunk - ROW_TILE < at_most
    full = chunk >= min(rows, at_most)
    assert full or chunk * vocab_size > LEAST_LOGITS - vocab_size
    assert full or chunk * hidden_size >= FULL or 2 * chunk >= rows
    assert full or math.ceil(rows / chunk) <= 4


def test_chunks_of_the_shapes_that_are_timed():
    found = {(n, d): best_chunk_rows(n, LLAMA_V, d) for n in (1024, 4096, 8192, 65536) for d in (1024, 4096)}
    assert found == {
        (1024, 1024): 1024,
        (1024, 4096): 1024,
        (4096, 1024): 2048,
        (4096, 4096): 1152,
        (8192, 1024): 4096,
        (8192, 4096): 2048,
        (65536, 1024): 4224,
        (65536, 4096): 4224,
    }


def held(rows: int, width: int, backend: str, **given) -> int:
    """The most bytes that loss and backward pass hold beside their arguments, in bfloat16, without memory."""
    pytest.importorskip("triton", reason="Triton is made for Linux only")
    from llmcourse.kernels import vocabulary_divergence_triton as kernels

    shapes = ((rows, width), (LLAMA_V, width), (rows, 4096), (LLAMA_V, 4096))
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    leaves = [x.requires_grad_() for x in tensors[:2]]
    with (
        mock.patch.object(module, "resolve", lambda name, *_: name),
        mock.patch.object(kernels, "launch", lambda *_: None),
        mock.patch.object(kernels, "scaled", lambda x, _, dtype: x.to(dtype)),
        LiveBytes(*tensors) as memory,
    ):
        loss = vocabulary_divergence(*tensors, backend=backend, **given)
        grads = torch.autograd.grad(loss, leaves)
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 2
    return memory.peak


@pytest.mark.parametrize("rows", [4096, 8192])
@pytest.mark.parametrize("width", [1024, 4096])
def test_a_fifth_of_the_memory_is_more_than_enough(rows, width):
    """At 128k tokens, and what is held is what `peak_bytes` says."""
    ours, naive = held(rows, width, "triton"), held(rows, width, "reference")
    assert ours <= 0.12 * naive
    assert ours == pytest.approx(peak_bytes(rows, LLAMA_V, width), rel=1e-3)
    spared = 2 * 2 * LLAMA_V * (rows - best_chunk_rows(rows, LLAMA_V, width))
    assert held(rows, width, "triton", chunk_rows=rows) - ours == pytest.approx(spared, rel=1e-3), "no chunks"


def test_many_roundings_cost_a_sum_in_fp32():
    few, many = (peak_bytes(4096, LLAMA_V, 1024, chunk_rows=chunk) for chunk in (512, 511))
    assert many > few and many - few == pytest.approx(2 * LLAMA_V * 1024, rel=0.05)


def test_live_bytes_are_counted():
    with LiveBytes() as memory:
        a = torch.empty(1000, dtype=torch.uint8)
        b = a[:10].clone()
        del a
        c = torch.empty(500, dtype=torch.uint8)
    assert memory.peak == 1010 and len(b) + len(c) == 510
