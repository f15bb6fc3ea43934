"""A stored teacher: sums written out in float64, what merging outcomes keeps to, and what is biased."""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from llmcourse.distillation import (
    Response,
    TopK,
    forward_kl,
    hard_loss,
    jensen_shannon,
    reverse_kl,
    stored_loss,
)
from llmcourse.distillation import stored_teacher as module
from llmcourse.distillation.stored_teacher import stored_loss_of_hidden
from tests.distillation.test_losses import LABELS, MASK, STUDENT, TEACHER, B, T, V, kl, logits, softmax
from tests.kernels.live_bytes import LiveBytes


def stored(k: int = 3, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> TopK:
    return TopK.of(TEACHER, k, temperature=temperature, dtype=dtype)


def by_hand(k: int, temperature: float, of, mask: torch.Tensor | None = None) -> float:
    found = []
    for row in range(B):
        for place in range(T):
            if mask is None or mask[row, place]:
                p = softmax(TEACHER[row, place].tolist(), temperature)
                q = softmax(STUDENT[row, place].tolist(), temperature)
                best = sorted(range(V), key=p.__getitem__, reverse=True)[:k]
                found.append(temperature**2 * of([p[i] for i in best], [q[i] for i in best]))
    return sum(found) / len(found)


def bucket(p, q):
    return kl([*p, 1 - sum(p)], [*q, 1 - sum(q)])


def renormalised(p, q):
    return kl([x / sum(p) for x in p], q)


@pytest.mark.parametrize("temperature", [1, 2.5])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_both_ways_are_their_sums(k, temperature):
    response, teacher = Response(temperature=temperature), stored(k, temperature)
    found = stored_loss(response, STUDENT, teacher)
    assert found.item() == pytest.approx(by_hand(k, temperature, bucket), rel=1e-6)
    found = stored_loss(response, STUDENT, teacher, rest="renormalised")
    assert found.item() == pytest.approx(by_hand(k, temperature, renormalised), rel=1e-6)


def test_the_other_divergences_see_the_bucket_too():
    reverse = stored_loss(Response("reverse_kl"), STUDENT, stored())
    assert reverse.item() == pytest.approx(by_hand(3, 1, lambda p, q: bucket(q, p)), rel=1e-6)

    def jsd(p, q):
        m = [0.2 * x + 0.8 * y for x, y in zip(p, q, strict=True)]
        return 0.2 * bucket(p, m) + 0.8 * bucket(q, m)

    found = stored_loss(Response("jensen_shannon", beta=0.2), STUDENT, stored())
    assert found.item() == pytest.approx(by_hand(3, 1, jsd), rel=1e-6)


@pytest.mark.parametrize(
    ("divergence", "whole"),
    [("forward_kl", forward_kl), ("reverse_kl", reverse_kl), ("jensen_shannon", jensen_shannon)],
)
def test_more_tokens_come_nearer_to_the_whole_from_below(divergence, whole):
    """Merging outcomes never adds to a divergence; with one other token nothing is merged."""
    found = [stored_loss(Response(divergence), STUDENT, stored(k)).item() for k in range(1, V)]
    assert found == sorted(found)
    assert found[0] < 0.95 * found[-1] and found[-1] == pytest.approx(
        whole(STUDENT, TEACHER).item(), rel=1e-6
    )


def test_a_student_that_is_the_teacher_is_left_alone_by_the_bucket_only():
    """Renormalised, it is asked to be surer: the gradient pushes other tokens down."""
    for rest, loss in (("bucket", 0.0), ("renormalised", by_hand(3, 1, lambda p, q: -math.log(sum(p))))):
        student = TEACHER.clone().requires_grad_()
        found = stored_loss(Response(), student, stored(), rest=rest)
        found.backward()
        assert found.item() == pytest.approx(loss, abs=1e-6)
        others = student.grad.scatter(-1, stored().ids.long(), 0.0)
        assert (others.abs().max() < 1e-7) == (rest == "bucket") and others.min() >= -1e-7


HIDDEN = logits(5, B, T, 4)
HEAD = logits(6, V, 4)


def by_rows(loss, chunk_rows):
    """The loss, and the gradients of hidden states and head."""
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, HEAD)]
    found = loss(leaves[0], lambda rows: F.linear(rows, leaves[1]), chunk_rows)
    return found.detach(), *torch.autograd.grad(found, leaves)


@pytest.mark.parametrize("chunk_rows", [1, 2, 4, None])
@pytest.mark.parametrize(
    "response", [Response(temperature=2.0, hard_weight=0.3), Response("reverse_kl"), Response(hard_weight=1)]
)
def test_some_rows_at_a_time_give_the_loss_of_all(response, chunk_rows):
    """Chunks in which one position counts, two, or none weigh by their positions."""
    teacher = stored(3, response.temperature)
    whole = by_rows(lambda h, head, _: stored_loss(response, head(h), teacher, LABELS), None)
    found = by_rows(
        lambda h, head, rows: stored_loss_of_hidden(response, h, head, teacher, LABELS, chunk_rows=rows),
        chunk_rows,
    )
    torch.testing.assert_close(found, whole)
    nothing = torch.full_like(LABELS, -100)
    found = by_rows(
        lambda h, head, rows: stored_loss_of_hidden(response, h, head, teacher, nothing, chunk_rows=rows),
        chunk_rows,
    )
    assert not any(value.any() for value in found)


@pytest.mark.parametrize("chunk_rows", [1, 4, None])
def test_some_rows_at_a_time_are_stored_alike(chunk_rows):
    whole = TopK.of(F.linear(HIDDEN, HEAD), 3, temperature=2.0)
    found = TopK.of_hidden(
        HIDDEN, lambda rows: F.linear(rows, HEAD), V, 3, temperature=2.0, chunk_rows=chunk_rows
    )
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.log_probs, whole.log_probs)
    assert (found.vocab_size, found.temperature) == (whole.vocab_size, whole.temperature)


def test_logits_never_exist_in_full():
    """What teacher and loss hold is a few chunks; all rows at once take several times their logits."""
    rows, vocab_size, width = 64, 1024, 4
    logits_bytes = 4 * rows * vocab_size

    def held(chunk_rows: int) -> float:
        hidden, head = torch.randn(rows, width), torch.randn(vocab_size, width)
        labels = torch.zeros(rows, dtype=torch.long)
        leaf = hidden.clone().requires_grad_()
        with (
            mock.patch.object(module, "CHUNK_LOGITS", chunk_rows * vocab_size),
            LiveBytes(hidden, head, labels, leaf) as memory,
        ):
            teacher = TopK.of_hidden(hidden, lambda x: F.linear(x, head), vocab_size, 3)
            loss = stored_loss_of_hidden(Response(), leaf, lambda x: F.linear(x, head), teacher, labels)
            torch.autograd.grad(loss, leaf)
        return memory.peak / logits_bytes

    assert held(4) < 0.7 and held(rows) > 3


@pytest.mark.parametrize("rest", ["bucket", "renormalised"])
def test_gradients_are_those_of_differences(rest):
    response = Response(temperature=2.0, hard_weight=0.3)
    student = STUDENT.clone().requires_grad_()
    teacher = stored(3, 2.0)
    assert gradcheck(lambda s: stored_loss(response, s, teacher, LABELS, rest=rest), (student,))


def test_hard_labels_and_masks_are_those_of_the_whole_teacher():
    response, teacher = Response(temperature=2.0, hard_weight=0.3), stored(3, 2.0)
    wanted = 0.7 * by_hand(3, 2.0, bucket, MASK) + 0.3 * hard_loss(STUDENT, LABELS).item()
    assert stored_loss(response, STUDENT, teacher, LABELS).item() == pytest.approx(wanted, rel=1e-6)
    alone = stored_loss(Response(hard_weight=1), STUDENT, stored(), LABELS)
    assert alone.item() == hard_loss(STUDENT, LABELS).item()


def test_what_is_stored():
    teacher = stored(3, dtype=torch.float16)
    log_p = TEACHER.log_softmax(-1)
    assert torch.equal(teacher.ids.long(), log_p.argsort(-1, descending=True)[..., :3])
    assert teacher.ids.dtype == torch.int32 and teacher.log_probs.dtype == torch.float16
    torch.testing.assert_close(
        teacher.log_probs.double().exp().sum(-1), torch.ones(B, T).double(), atol=2e-3, rtol=0
    )
    assert teacher.bytes_per_token == 3 * 4 + 4 * 2 and teacher.k == 3


def test_sixteen_bits_cost_little():
    exact, rounded = (
        stored_loss(Response(), STUDENT, stored(3, dtype=d)) for d in (torch.float32, torch.float16)
    )
    assert exact.item() != rounded.item() == pytest.approx(exact.item(), abs=2e-3)


def test_a_teacher_that_is_nearly_sure_has_a_rest():
    """1 − p is 1e-7 here, which one minus a number in fp16 would not show; reverse KL stays finite."""
    sure = torch.tensor([[16.0, 0.0, -1.0, -2.0]])
    teacher = TopK.of(sure, 1)
    assert teacher.log_probs[0, 1].item() == pytest.approx(
        math.log(softmax(sure[0].tolist(), 1)[1] * 1.5), abs=0.02
    )
    assert 1 - teacher.log_probs[0, 0].exp() == 0
    student = torch.zeros(1, 4, requires_grad=True)
    loss = stored_loss(Response("reverse_kl"), student, teacher)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"k": V}, "k must be below the vocabulary, 7, got 7; store less, or ask the teacher"),
        ({"temperature": 0}, "temperature must be above 0 and finite, got 0"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float16 or torch.float32, got torch.bfloat16"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TopK.of(TEACHER, **{"k": 3} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student_logits": logits(3, B, T, 8)},
            "teacher's vocabulary must be of 8 tokens as the student's, got 7",
        ),
        (
            {"response": Response(temperature=2)},
            "temperature must be 1.0 as stored, got 2; store the teacher anew",
        ),
        ({"response": Response(hard_weight=0.5)}, "labels must be given where hard_weight is 0.5"),
        ({"rest": "dropped"}, "rest must be 'bucket' or 'renormalised', got 'dropped'"),
        (
            {"rest": "renormalised", "response": Response("reverse_kl")},
            "rest must be 'bucket' for reverse_kl, got 'renormalised'; or take forward_kl",
        ),
    ],
)
def test_losses_that_cannot_be_taken_are_refused(changes, message):
    given = {"response": Response(), "student_logits": STUDENT, "teacher": stored()} | changes
    with pytest.raises(ValueError, match=message):
        stored_loss(**given)
