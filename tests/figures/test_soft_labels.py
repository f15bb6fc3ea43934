"""What soft labels push at one position: against the gradients by hand, and that the drawing shows them."""

import math

import pytest
import torch

from llmcourse.distillation import Response, forward_kl, jensen_shannon, reverse_kl
from llmcourse.figures.soft_labels import by_temperature, soft_labels
from llmcourse.figures.soft_labels_plot import RANGE, SoftLabelsPlot, in_words, plot_soft_labels

WORDS = ["coffee", "water", "tea", "rice", "chai", "happy", "logs"]
TEACHER = torch.tensor([0.60, 0.20, 0.10, 0.05, 0.03, 0.015, 0.005]).log()
STUDENT = torch.tensor([0.30, 0.10, 0.05, 0.05, 0.10, 0.100, 0.300]).log()
LOSSES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}


def soft(response=None, student=STUDENT, teacher=TEACHER, **changes):
    return soft_labels(student, teacher, WORDS.__getitem__, response, **changes)


def slow_push(name, temperature, beta):
    """Of forward and reverse KL by hand, of Jensen–Shannon by differences of the loss."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (TEACHER, STUDENT))
    if name == "forward_kl":
        return (p - q) / temperature
    if name == "reverse_kl":
        ratio = (q / p).log()
        return -q * (ratio - (q * ratio).sum()) / temperature
    found = []
    for token in range(len(WORDS)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = STUDENT.double()
            moved[token] += step
            loss = jensen_shannon(moved[None], TEACHER.double()[None], beta=beta, temperature=temperature)
            ends.append(loss.item() / temperature**2)
        found.append(-(ends[0] - ends[1]) / 2e-5)
    return torch.tensor(found)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [0.5, 1, 4])
@pytest.mark.parametrize("squared", [True, False])
def test_loss_and_push_are_those_of_training(name, temperature, squared):
    data = soft(Response(name, temperature, 0.3), squared=squared)
    options = {"beta": 0.3} if name == "jensen_shannon" else {}
    whole = LOSSES[name](STUDENT[None].double(), TEACHER[None].double(), temperature=temperature, **options)
    factor = temperature**2 if squared else 1
    assert data.plain_loss == pytest.approx(whole.item() / temperature**2)
    assert data.loss == pytest.approx(factor * data.plain_loss)
    expected = factor * slow_push(name, temperature, 0.3)
    assert data.push == pytest.approx(expected[list(data.token_ids)].tolist(), rel=1e-5, abs=1e-9)
    assert data.moved == pytest.approx(expected.clamp(min=0).sum().item(), rel=1e-5)


def test_pushes_add_up_to_nothing_with_those_of_all_others():
    data = soft(rows=3)
    assert sum(data.push) + data.others_push == pytest.approx(0, abs=1e-12)
    assert sum(data.teacher) + data.others_teacher == pytest.approx(1)
    assert sum(data.student) + data.others_student == pytest.approx(1)
    assert data.others_push == pytest.approx(0.195 - 0.300, abs=1e-6)


def test_both_sides_are_softened():
    data = soft(Response(temperature=2))
    p, q = ((logits / 2).softmax(-1).tolist() for logits in (TEACHER, STUDENT))
    assert data.token_ids == tuple(range(7))
    assert data.teacher == pytest.approx(p) and data.student == pytest.approx(q)
    entropies = [-sum(x * math.log(x) for x in side) for side in (p, q)]
    assert [data.teacher_entropy, data.student_entropy] == pytest.approx(entropies)


def test_listed_are_the_likeliest_of_either_side_in_the_teachers_order():
    assert soft(rows=3).labels == ("coffee", "water", "logs")
    assert soft(Response(temperature=16), rows=3).labels == ("coffee", "water", "logs")  # whatever the loss
    assert 3 in soft(rows=3, follows=3).token_ids and len(soft(rows=3, follows=3).token_ids) == 3
    assert soft().pushed_most == ("coffee", "logs")


def test_a_student_that_is_its_teacher_is_left_alone():
    data = soft(student=TEACHER, response=Response("reverse_kl", 2))
    assert data.loss == pytest.approx(0, abs=1e-12) and data.moved == pytest.approx(0, abs=1e-12)


def test_the_curve_is_the_same_at_every_temperature():
    for name in LOSSES:
        curve = by_temperature(STUDENT, TEACHER, Response(name, beta=0.3), (0.5, 1, 8))
        for t, loss, moved in zip(curve.temperatures, curve.losses, curve.moved, strict=True):
            data = soft(Response(name, t, 0.3), squared=False)
            assert (loss, moved) == pytest.approx((data.plain_loss, data.moved), rel=1e-4)


def test_without_t_squared_the_push_vanishes_as_it_should():
    """Twice the temperature, a quarter of the push: what T² is for."""
    curve = by_temperature(STUDENT, TEACHER, Response(), (100, 200))
    assert curve.moved[0] / curve.moved[1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft(student=STUDENT[:3]), "teacher's vocabulary must be of 3 tokens"),
        (lambda: soft(Response(hard_weight=0.5)), "hard_weight must be 0, got 0.5"),
        (lambda: soft(follows=7), r"follows must be in \[0, 7\), got 7"),
        (lambda: soft(rows=0), "rows must be an integer of at least 1, got 0"),
        (lambda: soft(student=STUDENT * math.nan), "forward_kl of these logits must be finite"),
        (lambda: by_temperature(STUDENT, TEACHER, Response(), (1, 0)), "temperature must be above 0"),
        (lambda: by_temperature(STUDENT[:3], TEACHER, Response()), "teacher's vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reverse_kl_says_that_a_ruled_out_token_is_beyond_it():
    ruled = TEACHER.clone()
    ruled[6] = -math.inf
    assert math.isfinite(soft(teacher=ruled).loss)
    with pytest.raises(ValueError, match=r"reverse_kl of these logits must be finite, got inf"):
        soft(Response("reverse_kl"), teacher=ruled)


def test_marks_bars_and_rings_are_where_the_numbers_are():
    response = Response("forward_kl", 2)
    data, curve = soft(response, rows=4, follows=2), by_temperature(STUDENT, TEACHER, response)
    picture = plot_soft_labels(data, curve, teacher="base", student="draft")
    sides, pushes, losses, moved = picture.axes
    teacher, student = sides.lines[0], sides.lines[1]
    assert list(teacher.get_xdata()) == [*data.teacher, data.others_teacher]
    assert list(student.get_xdata()) == [*data.student, data.others_student]
    up, down = pushes.collections
    ends = sorted(path.vertices[1, 0] for bars in (up, down) for path in bars.get_paths())
    assert ends == pytest.approx(sorted([*data.push, data.others_push]))
    assert all(path.vertices[:, 0].min() >= 0 for path in up.get_paths())
    rings = [axes.lines[-1].get_ydata()[0] for axes in (losses, moved)]
    assert rings == pytest.approx([data.loss, data.moved])
    assert list(losses.lines[0].get_ydata()) == [4 * y if t == 2 else t * t * y for t, y in _points(curve)]
    assert list(losses.lines[1].get_ydata()) == list(curve.losses)
    assert "KL(teacher ‖ student) at T = 2" in picture.alt and "coffee: teacher" in picture.alt
    picture.png(1.0)


def _points(curve):
    return zip(curve.temperatures, curve.losses, strict=True)


def test_without_t_squared_rings_are_on_the_dashed_lines():
    response = Response("reverse_kl", 4)
    data, curve = soft(response, squared=False), by_temperature(STUDENT, TEACHER, response)
    picture = plot_soft_labels(data, curve)
    assert picture.axes[2].lines[-1].get_ydata()[0] == pytest.approx(data.plain_loss)
    assert "not multiplied by T²" in in_words(data)


@pytest.mark.parametrize("log_scale", [False, True])
def test_one_figure_shows_one_position_after_the_other(log_scale):
    plot = SoftLabelsPlot(7)
    for response in (Response(), Response("jensen_shannon", 16, 0.0)):
        for student in (STUDENT, STUDENT.flip(0), TEACHER, torch.tensor([90.0] + [0.0] * 6)):
            data = soft(response, student)
            curve = by_temperature(student, TEACHER, response)
            picture = plot.update(data, curve, "A title", log_scale=log_scale)
            picture.png(1.0)
            at = picture.axes[2].lines[-1].get_ydata()[0]
            assert RANGE[0] <= at <= RANGE[1]
            low, high = picture.axes[0].get_xlim()
            assert all(low <= x <= high for line in picture.axes[0].lines[:2] for x in line.get_xdata())
    assert picture.axes[0].get_xscale() == ("log" if log_scale else "linear")


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ValueError, match="data must have at most 3 tokens, got 7"):
        SoftLabelsPlot(3).update(soft(), by_temperature(STUDENT, TEACHER, Response()))
