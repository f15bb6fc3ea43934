"""What lab 6 is drawn from, that right answers in any style pass, and that mistakes are told by name."""

import math
from statistics import fmean

import pytest
import torch

from llmcourse.grading.answer import Answer
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.distillation.drawn import OWN_WORK
from llmcourse.grading.exercises.distillation.kd_loss import kd_loss
from llmcourse.grading.exercises.distillation.mixed_loss import mixed_loss
from llmcourse.grading.exercises.distillation.read_table import read_table
from llmcourse.grading.exercises.distillation.reverse_kl import reverse_kl
from llmcourse.grading.exercises.distillation.soften import soften
from llmcourse.grading.exercises.distillation.top_k_teacher import top_k_teacher
from llmcourse.grading.exercises.distillation.train_step import train_step
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.names_used import names_used
from llmcourse.grading.question import examine
from llmcourse.grading.rules import Evidence
from tests.grading.exercises.answers import cases, drawn_once, unchecked
from tests.grading.exercises.distillation_answers import STYLES
from tests.grading.exercises.mistakes import assert_told

SEEDS = range(20)
FEWEST_MISTAKES, FEWEST_STYLES = 12, 3
LAB = catalogue.labs()["06_distillation"]


def arguments(name, seed):
    return {case.label: case.arguments for case in cases(name, seed)}


@pytest.mark.parametrize(
    ("name", "answer"),
    [pytest.param(name, answer, id=answer.__name__) for name, styles in STYLES.items() for answer in styles],
)
def test_right_answers_in_other_styles_pass_with_all_rules(name, answer):
    exercise = catalogue.find(name)
    with unchecked():
        for seed in SEEDS:
            verdict = examine(drawn_once(exercise, seed), seed, InProcess(answer))
            assert verdict.earned == 1, (seed, verdict)


@pytest.mark.parametrize("exercise", LAB, ids=lambda exercise: exercise.name)
def test_there_are_a_dozen_mistakes_and_three_styles_for_each(exercise):
    assert len(exercise.mutants) >= FEWEST_MISTAKES
    assert len(set(STYLES[exercise.name])) >= FEWEST_STYLES


@pytest.mark.parametrize(
    ("name", "mistake", "told"),
    [
        ("06.soften", "multiplies by the temperature", "dividing makes"),
        ("06.soften", "divides by its square", "belongs to the loss"),
        ("06.soften", "divides probabilities", "after the softmax"),
        ("06.soften", "counts in bits", "natural logarithm"),
        ("06.soften", "overflows", "infinite in float32"),
        ("06.soften", "has 0 times an infinity", "in an entropy it is 0"),
        ("06.kd_loss", "forgets T²", "t² is missing"),
        ("06.kd_loss", "has the divergence the wrong way round", "weight by the teacher"),
        ("06.kd_loss", "has a mean over all numbers", "reduction='mean' does that"),
        ("06.kd_loss", "has distributions of columns", "dim=-1"),
        ("06.kd_loss", "has the teacher's gradient", "the teacher is fixed"),
        ("06.kd_loss", "forgets the chain rule", "a factor 1/t"),
        ("06.kd_loss", "sees no mask", "mask.sum() of them"),
        ("06.kd_loss", "adds a little before the logarithm", "log_softmax has"),
        ("06.reverse_kl", "has the divergence of the last exercise", "the student's own"),
        ("06.reverse_kl", "holds the weights fixed", "do not detach"),
        ("06.reverse_kl", "does not subtract the divergence", "adds up to 0"),
        ("06.reverse_kl", "leaves out the student's entropy", "own entropy"),
        ("06.mixed_loss", "swaps the shares", "swapped"),
        ("06.mixed_loss", "softens the hard part", "there t is 1"),
        ("06.mixed_loss", "takes two softmaxes", "takes logits"),
        ("06.mixed_loss", "takes no label for token 0", "out of both parts"),
        ("06.mixed_loss", "has a mean over nothing", "0 / 0"),
        ("06.top_k_teacher", "leaves the rest out", "bucket is missing"),
        ("06.top_k_teacher", "scales the teacher up", "scaled up to 1"),
        ("06.top_k_teacher", "takes the student's likeliest", "teacher's: gather"),
        ("06.top_k_teacher", "subtracts the student's from 1", "logsumexp"),
        ("06.top_k_teacher", "lets the rest go below 0", "counts as 0"),
        ("06.projection_loss", "has the projection the wrong way round", "weight.t"),
        ("06.projection_loss", "has a mean of means of texts", "each **position** counts"),
        ("06.projection_loss", "divides by all positions", "lengths.sum()"),
        ("06.projection_loss", "takes padding for left", "on the right"),
        ("06.projection_loss", "multiplies with the mask", "0 · nan"),
        ("06.train_step", "has a teacher with gradients", "detach it"),
        ("06.train_step", "has a mean of means", "number of all positions"),
        ("06.train_step", "keeps the last part's gradient", "at each part"),
        ("06.train_step", "makes a step for each part", "once"),
        ("06.train_step", "makes a step of its own for each part", "once"),
        ("06.train_step", "makes a step for each part's share", "once"),
        ("06.soften", "adds a billionth before the logarithm", "adds up"),
        ("06.train_step", "clips always", "never makes them longer"),
        ("06.train_step", "clips each gradient", "one norm and one factor"),
        ("06.train_step", "clips each part", "clip once"),
        ("06.calibration", "has a plain mean over bins", "n_b / n"),
        ("06.calibration", "compares overall means", "bin by bin"),
        ("06.calibration", "divides by an empty bin", "row of zeros"),
        ("06.calibration", "has bins that hold their lower ends", "ends there"),
        ("06.read_table", "does not see pairs", "the runs are pairs"),
        ("06.read_table", "has the spread of one pair", "√s"),
        ("06.read_table", "takes the best seed", "that went badly"),
        ("06.read_table", "leaves out lost domains", "is mixed"),
        ("06.read_table", "always asks for two errors", "is k"),
    ],
)
def test_a_mistake_is_told_by_name(name, mistake, told):
    assert_told(catalogue.find(name), mistake, told)


def finite_differences(loss, z):
    """The gradient of a loss, number by number, in float64."""
    step, found = 1e-4, torch.zeros_like(z)
    for place in range(z.numel()):
        moved = [
            z.clone().index_put_(tuple(torch.unravel_index(torch.tensor(place), z.shape)), value)
            for value in (z.flatten()[place] + step, z.flatten()[place] - step)
        ]
        found.view(-1)[place] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    return found


def double_kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_the_gradients_are_those_of_the_losses():
    """Against differences of the losses as float64 has them."""
    for seed in range(5):
        given = arguments("06.kd_loss", seed)["positions that do not count"]
        z, teacher, t = (given[n] for n in ("student_logits", "teacher_logits", "temperature"))
        log_p = (teacher.double() / t).log_softmax(-1)

        def forward(z, log_p=log_p, t=t, mask=given["mask"]):
            return t**2 * double_kl(log_p, (z / t).log_softmax(-1))[mask].mean()

        assert torch.allclose(
            kd_loss(**given)[1].double(), finite_differences(forward, z.double()), atol=1e-5
        )
        given = arguments("06.reverse_kl", seed)["some rows"]
        log_p = given["teacher_logits"].double().log_softmax(-1)

        def reverse(z, log_p=log_p):
            return double_kl(z.log_softmax(-1), log_p).mean()

        slope = finite_differences(reverse, given["student_logits"].double())
        assert torch.allclose(reverse_kl(**given)[1].double(), slope, atol=1e-5)


def test_what_is_very_sure_has_probabilities_of_0_in_float32():
    for seed in SEEDS:
        for name, who in (("06.kd_loss", "student"), ("06.kd_loss", "teacher"), ("06.reverse_kl", "teacher")):
            given = arguments(name, seed)[f"a {who} that is very sure"]
            probs = (given[f"{who}_logits"] / given.get("temperature", 1.0)).softmax(-1)
            assert ((probs == 0).sum(-1) == probs.shape[1] - 1).all()


def test_entropy_is_at_most_that_of_equal_shares():
    for seed in SEEDS:
        for given in arguments("06.soften", seed).values():
            probs, entropy = soften(**given)
            possible = given["logits"].isfinite().sum(-1)
            assert (entropy >= 0).all() and (entropy <= possible.log() + 1e-5).all()
            assert torch.allclose(probs.sum(-1), torch.ones(len(probs)))


def test_a_bucket_never_sees_more_than_the_whole_and_with_it_is_never_below_0():
    """The data-processing inequality, for a whole distribution that is stored in part."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        student, teacher = 3 * torch.randn(2, 4, 30, generator=generator)
        log_p = teacher.log_softmax(-1)
        whole = double_kl(log_p.double(), student.double().log_softmax(-1))
        before = torch.zeros(4)
        for k in (1, 4, 16):
            stored, ids = log_p.topk(k)
            found = top_k_teacher(student, ids.int(), stored)
            assert (found > -1e-5).all() and (found < whole + 1e-4).all() and (found > before - 1e-4).all()
            before = found


def test_the_stored_ones_leave_something_over_but_where_they_are_to_pass_1():
    for seed in SEEDS:
        for label, given in arguments("06.top_k_teacher", seed).items():
            mass = given["log_probs"].double().exp().sum(-1)
            if label == "stored probabilities above 1":
                assert (mass > 1 + 1e-5).all()
            else:
                assert (mass < 0.9).all()
            assert all(len(set(row)) == len(row) for row in given["ids"].tolist())


def test_parts_may_be_cut_anywhere():
    for seed in SEEDS:
        given = arguments("06.train_step", seed)["parts that are clipped"]
        whole = [tuple(torch.cat(each) for each in zip(*given["parts"], strict=True))]
        once, accumulated = (train_step(**{**given, "parts": parts}) for parts in (whole, given["parts"]))
        assert math.isclose(once[0], accumulated[0], rel_tol=1e-5)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(once[2:], accumulated[2:], strict=True))


UNCLIPPED = ("one part, nothing to clip", "parts of different sizes", "a temperature near 0")


def test_norms_lie_where_the_cases_say():
    for seed in SEEDS:
        for label, given in arguments("06.train_step", seed).items():
            norm = train_step(**given)[1]
            if label == "nothing to learn":
                assert norm == 0
                continue
            clipped = label not in UNCLIPPED
            assert (norm > 1.2 * given["max_norm"]) if clipped else (norm < 0.6 * given["max_norm"]), label
            assert norm > (0.001 if label == "a temperature near 0" else 0.01)


def test_no_confidence_lies_near_an_end_but_where_it_is_at_one():
    for seed in SEEDS:
        for label, given in arguments("06.calibration", seed).items():
            probs = given["probs"].double()
            assert torch.allclose(probs.sum(-1), torch.ones(len(probs), dtype=torch.float64), atol=1e-6)
            first, second = probs.topk(2).values.T
            assert (first > second + 1e-4).all(), label
            places = first * given["num_bins"]
            near = (places - places.round()).abs() < 1e-3
            inner = near & (places.round() < given["num_bins"])
            assert inner.any() == (label == "confidences at an end"), label


def test_the_table_has_all_four_claims_and_no_gain_is_near_its_bound():
    for seed in SEEDS:
        for label, given in arguments("06.read_table", seed).items():
            gains, errors, claims = read_table(**given)
            if label == "all four claims":
                assert sorted(claims) == ["better", "mixed", "not shown", "worse"]
            if label == "differences that are all alike":
                assert (errors == 0).all() and claims == ["better", "not shown"]
            else:
                assert ((gains.abs() / errors / given["k"] - 1).abs() > 0.05).all(), label


def test_pairs_are_surer_than_two_means():
    """Else nothing would be seen of them."""
    ratios = []
    for seed in SEEDS:
        given = arguments("06.read_table", seed)["all four claims"]
        own = given["losses"].std(-1) / 2
        ratios.append((read_table(**given)[1] / (own[:1] ** 2 + own[1:] ** 2).sqrt()).mean().item())
    assert fmean(ratios) < 0.2


def test_a_batch_without_labels_is_no_loss_of_nothing():
    given = arguments("06.mixed_loss", 0)["nothing has a label"]
    assert mixed_loss(**given) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from llmcourse.distillation.losses import kd\ndef f(x):\n    return kd(x)", "distillation"),
        ("from llmcourse.kernels import divergence\ndef f(x):\n    return divergence(x)", "kernels"),
        ("import torchmetrics as m\ndef f(x):\n    return m.functional(x)", "torchmetrics"),
        ("from trl import GKDTrainer as G\ndef f(x):\n    return G.loss(x)", "trl"),
        ("def f(x):\n    distillation = x.softmax(-1)\n    return distillation", ""),
    ],
)
def test_what_distils_by_itself_is_no_own_work(source, said):
    broken = OWN_WORK(Evidence(Answer(), used=names_used(source, "f")))
    assert broken.startswith(f"uses {said}") if said else broken == ""
