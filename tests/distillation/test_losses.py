"""Soft and hard labels, against sums that are written out in float64, and against planted mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from llmcourse.distillation import Response, forward_kl, hard_loss, jensen_shannon, response_loss, reverse_kl
from llmcourse.distillation.losses import relative_entropy

B, T, V = 2, 3, 7


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.randn(*(shape or (B, T, V)), generator=torch.Generator().manual_seed(seed))).to(dtype)


STUDENT, TEACHER = logits(0), logits(1)
MASK = torch.tensor([[True, False, True], [True, True, False]])
LABELS = torch.tensor([[3, -100, 0], [6, 1, -100]])


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def by_hand(of, temperature: float, mask: torch.Tensor | None = None) -> float:
    """The mean of T² of(p, q) over the positions that count."""
    found = []
    for row in range(B):
        for place in range(T):
            if mask is None or mask[row, place]:
                p = softmax(TEACHER[row, place].tolist(), temperature)
                q = softmax(STUDENT[row, place].tolist(), temperature)
                found.append(temperature**2 * of(p, q))
    return sum(found) / len(found)


def jsd(beta: float):
    def of(p, q):
        m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return of


KINDS = {
    "forward": (forward_kl, kl),
    "reverse": (reverse_kl, lambda p, q: kl(q, p)),
    "jensen_shannon": (jensen_shannon, jsd(0.5)),
    "near the teacher": (lambda *a, **k: jensen_shannon(*a, beta=0.9, **k), jsd(0.9)),
    "at 0": (lambda *a, **k: jensen_shannon(*a, beta=0, **k), kl),
    "at 1": (lambda *a, **k: jensen_shannon(*a, beta=1, **k), lambda p, q: kl(q, p)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1, 0.5, 3.0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "some"])
def test_divergences_are_their_sums(kind, temperature, mask):
    loss, of = KINDS[kind]
    found = loss(STUDENT, TEACHER, temperature=temperature, mask=mask)
    assert found.item() == pytest.approx(by_hand(of, temperature, mask), rel=1e-12)


def test_mistakes_are_far_from_these_sums():
    """Without T², the wrong way round, over the wrong axis, a mean over tokens too."""
    true = by_hand(kl, 2.0)
    log_p, log_q = (TEACHER / 2).log_softmax(-1), (STUDENT / 2).log_softmax(-1)
    wrong = {
        "no T²": relative_entropy(log_p, log_q).mean(),
        "the other way": 4 * relative_entropy(log_q, log_p).mean(),
        "over positions": 4
        * relative_entropy((TEACHER / 2).log_softmax(1), (STUDENT / 2).log_softmax(1)).mean(),
        "over tokens too": 4 * relative_entropy(log_p, log_q).mean() / V,
    }
    assert {name for name, value in wrong.items() if value.item() == pytest.approx(true, rel=0.02)} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind):
    loss, _ = KINDS[kind]
    student = STUDENT.clone().requires_grad_()
    assert gradcheck(lambda s: loss(s, TEACHER, temperature=2.0, mask=MASK), (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_gets_no_gradient(kind):
    loss, _ = KINDS[kind]
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_the_gradient_of_forward_kl_is_that_of_the_paper():
    """T (q − p) over the number of positions: Hinton et al. 2015, equation 2, times T²."""
    student = STUDENT.clone().requires_grad_()
    forward_kl(student, TEACHER, temperature=4.0).backward()
    wanted = 4 * ((STUDENT / 4).softmax(-1) - (TEACHER / 4).softmax(-1)) / (B * T)
    torch.testing.assert_close(student.grad, wanted)


def test_gradients_keep_their_size_at_high_temperatures():
    """Equation 4: (z − v) / N for logits without a mean, whatever T; without T² they would vanish."""
    student = STUDENT.clone().requires_grad_()
    forward_kl(student, TEACHER, temperature=1000.0).backward()
    centred = [each - each.mean(-1, keepdim=True) for each in (STUDENT, TEACHER)]
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / V / (B * T), rtol=0, atol=1e-3)
    assert student.grad.abs().max() > 0.05


def test_the_dial_reaches_both_ends():
    """JSD(β) / β and JSD(β) / (1 − β) go to the two KLs, and so do the directions of their gradients."""
    for beta, scale, end in ((1e-5, 1e-5, forward_kl), (1 - 1e-5, 1e-5, reverse_kl)):
        near, there = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
        value, limit = jensen_shannon(near, TEACHER, beta=beta) / scale, end(there, TEACHER)
        assert value.item() == pytest.approx(limit.item(), rel=1e-3)
        value.backward(), limit.backward()
        assert F.cosine_similarity(near.grad.flatten(), there.grad.flatten(), dim=0) > 0.9999


def test_both_sides_share_the_middle_alike():
    assert jensen_shannon(STUDENT, TEACHER).item() == pytest.approx(jensen_shannon(TEACHER, STUDENT).item())
    apart = 100 * F.one_hot(torch.tensor([0, 1]), V).double()
    assert jensen_shannon(apart[:1], apart[1:]).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_where_nothing_differs(kind):
    assert KINDS[kind][0](TEACHER + 5, TEACHER, temperature=2).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_logits_are_widened(kind):
    loss, _ = KINDS[kind]
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    found = loss(student, teacher, temperature=2)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        loss(student.double(), teacher.double(), temperature=2).item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_do_not_exist_for_either_add_nothing(kind):
    """A vocabulary that is padded, by −inf for both."""
    padding = torch.full((B, T, 2), -math.inf, dtype=torch.float64)
    student = torch.cat((STUDENT, padding), -1).requires_grad_()
    loss = KINDS[kind][0]
    found = loss(student, torch.cat((TEACHER, padding), -1))
    assert found.item() == pytest.approx(loss(STUDENT, TEACHER).item())
    found.backward()
    alone = STUDENT.clone().requires_grad_()
    loss(alone, TEACHER).backward()
    torch.testing.assert_close(student.grad[..., :V], alone.grad)


def test_what_the_teacher_rules_out():
    """Forward KL does without it, reverse KL is infinite; the gradient of the first is finite."""
    teacher, student = TEACHER.clone(), STUDENT.clone().requires_grad_()
    teacher[..., 0] = -math.inf
    loss = forward_kl(student, teacher)
    assert loss.isfinite() and reverse_kl(STUDENT, teacher) == math.inf
    loss.backward()
    assert student.grad.isfinite().all() and (student.grad[..., 0] > 0).all()


def test_hard_labels_are_cross_entropy():
    wanted = -STUDENT.log_softmax(-1)
    kept = [
        wanted[row, place, LABELS[row, place]] for row in range(B) for place in range(T) if MASK[row, place]
    ]
    assert hard_loss(STUDENT, LABELS).item() == pytest.approx(sum(kept).item() / 4)
    assert hard_loss(STUDENT, LABELS.int()).item() == hard_loss(STUDENT, LABELS).item()


def test_a_batch_without_labels_is_worth_nothing():
    student = STUDENT.clone().requires_grad_()
    for loss in (
        hard_loss(student, torch.full((B, T), -100)),
        forward_kl(student, TEACHER, mask=torch.zeros(B, T, dtype=torch.bool)),
    ):
        assert loss.item() == 0
        loss.backward()
        assert not student.grad.any()


@pytest.mark.parametrize("weight", [0, 0.3, 1])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_soft_and_hard_labels_are_mixed(divergence, weight):
    response = Response(divergence, 2.0, 0.2, weight)
    soft = {
        "forward_kl": forward_kl(STUDENT, TEACHER, temperature=2.0, mask=MASK),
        "reverse_kl": reverse_kl(STUDENT, TEACHER, temperature=2.0, mask=MASK),
        "jensen_shannon": jensen_shannon(STUDENT, TEACHER, temperature=2.0, beta=0.2, mask=MASK),
    }[divergence]
    wanted = (1 - weight) * soft + weight * hard_loss(STUDENT, LABELS)
    torch.testing.assert_close(response_loss(response, STUDENT, TEACHER, LABELS), wanted)


def test_without_labels_all_positions_count():
    torch.testing.assert_close(response_loss(Response(), STUDENT, TEACHER), forward_kl(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"labels must be given where hard_weight is 0.1, got None; give"):
        response_loss(Response(hard_weight=0.1), STUDENT, TEACHER)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, True])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got"):
        Response(temperature=temperature)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"divergence": "kl"},
            "divergence must be 'forward_kl' or 'reverse_kl' or 'jensen_shannon', got 'kl'",
        ),
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        (
            {"hard_weight": -0.1},
            r"hard_weight must be in \[0, 1\], got -0.1; 0 learns from the teacher alone",
        ),
    ],
)
def test_responses_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Response(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_other_vocabularies_and_temperatures_are_refused(kind):
    loss = KINDS[kind][0]
    with pytest.raises(ValueError, match="teacher's vocabulary must be of 7 tokens as the student's, got 6"):
        loss(STUDENT, TEACHER[..., :6])
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got 0; use 1"):
        loss(STUDENT, TEACHER, temperature=0)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 2"):
        jensen_shannon(STUDENT, TEACHER, beta=2)
