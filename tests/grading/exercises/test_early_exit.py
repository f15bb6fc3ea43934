"""What the exercises about early exit are drawn from, and that their mistakes are told by name."""

import math
import random
from contextlib import suppress

import pytest
import torch

from llmcourse import early_exit
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.early_exit import choices, drawn
from llmcourse.grading.exercises.early_exit import patience_exit as patience_exercise
from llmcourse.grading.exercises.early_exit.choices import exit_threshold
from llmcourse.grading.exercises.early_exit.entropy_exit import Leave, nats
from llmcourse.grading.exercises.early_exit.layers import MARGIN, NEAREST, Exits
from llmcourse.grading.exercises.early_exit.patience_exit import patience_exit
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import examine
from tests.grading.exercises.answers import answered_once, cases, drawn_once, unchecked
from tests.grading.exercises.mistakes import assert_told, mutant

SEEDS, WRONG_SEEDS = range(20), range(30)


def fails_for_every_seed(name, answer):
    """Whichever case it fails at: what is wrong is caught by more than one."""
    exercise = catalogue.find(name)
    with answered_once(), unchecked():
        for seed in WRONG_SEEDS:
            verdict = examine(drawn_once(exercise, seed), seed, InProcess(answer))
            assert verdict.status == "fail", seed


@pytest.mark.parametrize(
    ("name", "mistake", "told"),
    [
        ("04.entropy_exit", "counts bits", "1.44 times"),
        ("04.entropy_exit", "compares the other way", "the other way round"),
        ("04.entropy_exit", "forgets the sign", "minus sign"),
        ("04.entropy_exit", "leaves a layer late", "a layer after the one that was sure"),
        ("04.entropy_exit", "takes the surest layer", "the surest of all"),
        ("04.patience_exit", "leaves a layer late", "a layer late"),
        ("04.patience_exit", "leaves a layer early", "a layer early"),
        ("04.patience_exit", "wants all layers of one mind", "streak may begin anywhere"),
        ("04.patience_exit", "counts without a reset", "back to 0"),
        ("04.exit_threshold", "is on the wrong side of the budget", "more layers than the budget allows"),
        ("04.exit_threshold", "saves as many layers as it can", "saves most layers"),
        ("04.exit_threshold", "spends as much as it may", "spends most of the budget"),
        ("04.exit_threshold", "asks only those that left early", "a share of all tokens"),
        ("04.exit_threshold", "wants less than the budget", "at most the budget"),
    ],
)
def test_a_mistake_is_told_by_name(name, mistake, told):
    assert_told(catalogue.find(name), mistake, told)


@pytest.mark.parametrize("mistake", ["runs all layers", "runs the last layer twice"])
def test_a_layer_that_is_run_for_nothing_is_counted(mistake):
    exercise = catalogue.find("04.entropy_exit")
    verdict = examine(exercise, 0, InProcess(mutant(exercise, mistake).function))
    assert verdict.reason.startswith("layers run: exit_logits was called") and "expected" in verdict.reason
    assert "for nothing" in verdict.hint


@pytest.mark.parametrize("nats", [0.05, 0.5, 1.0, 2.0])
def test_logits_have_the_entropy_and_the_favourite_that_are_asked_for(nats):
    for seed in SEEDS:
        logits = drawn.of_entropy(random.Random(seed), 9, 4, nats)
        assert early_exit.entropy(logits).item() == pytest.approx(nats, abs=1e-4)
        assert drawn.entropy(logits.tolist()) == pytest.approx(nats, abs=1e-4)
        assert int(logits.argmax()) == 4


def test_no_entropy_is_near_a_threshold():
    """But where it is 0, exactly, and so is the threshold; one case has a margin of its own."""
    exact = 0
    for seed in SEEDS:
        for case in cases("04.entropy_exit", seed):
            rows = torch.tensor(case.oracles["exit_logits"].said)
            off = (early_exit.entropy(rows) - case.arguments["threshold"]).abs()
            margin = NEAREST if case.label == "just below the threshold" else MARGIN
            assert ((off > margin / 2) | (off == 0)).all()
            exact += int((off == 0).sum())
    assert exact == len(SEEDS)


def test_an_entropy_just_below_the_threshold_is_below_it_in_every_way_to_compute_it():
    for seed in SEEDS:
        (case,) = [c for c in cases("04.entropy_exit", seed) if c.label == "just below the threshold"]
        rows = torch.tensor(case.oracles["exit_logits"].said)
        for p in (rows.softmax(-1), rows.exp() / rows.exp().sum(-1, keepdim=True), rows.double().softmax(-1)):
            sure = -(p * p.log()).sum(-1) < case.arguments["threshold"]
            assert torch.equal(sure, early_exit.entropy(rows) < case.arguments["threshold"])


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_an_entropy_that_is_rounded_fails_for_every_seed(digits):
    fails_for_every_seed("04.entropy_exit", Leave(measure=lambda row: round(nats(row).item(), digits)))


@pytest.mark.parametrize("count", [3, 5, 10, 20])
def test_an_entropy_of_the_likeliest_tokens_fails_for_every_seed(count):
    def of_these(row):
        p = row.softmax(-1).topk(min(count, len(row))).values
        return -torch.where(p == 0, 0.0, p * p.log()).sum()

    fails_for_every_seed("04.entropy_exit", Leave(measure=of_these))
    least = lambda row: nats(row.topk(min(count, len(row))).values)  # noqa: E731
    fails_for_every_seed("04.entropy_exit", Leave(measure=least))


@pytest.mark.parametrize("least", [-1.0, -10.0, -20.0, -40.0])
def test_another_logit_for_an_impossible_answer_fails_for_every_seed(least):
    fails_for_every_seed("04.entropy_exit", Leave(measure=lambda row: nats(row.clamp(min=least))))
    fails_for_every_seed("04.entropy_exit", Leave(measure=lambda row: nats(row.nan_to_num(neginf=least))))


@pytest.mark.parametrize(
    ("layer", "error", "said"),
    [
        (0, ValueError, r"a layer in \[1, 2\], got 0"),
        (3, ValueError, "got 3"),
        (1.0, TypeError, "an int"),
        (torch.tensor(1), TypeError, "an int"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(layer, error, said):
    with pytest.raises(error, match=said):
        Exits(((0.0, 1.0), (1.0, 0.0)))(layer)


def test_a_layer_may_be_given_by_its_name():
    exercise = catalogue.find("04.entropy_exit")

    def by_name(exit_logits, num_layers, threshold):
        return exercise.reference(lambda number: exit_logits(n=number), num_layers, threshold)

    assert examine(exercise, 0, InProcess(by_name)).passed


def test_what_an_exit_says_cannot_be_changed():
    exits = Exits(((0.0, 1.0),))
    exits(1)[0] = math.nan
    assert exits(1).tolist() == [0.0, 1.0]


def test_sizes_and_patience_do_not_say_where_a_row_leaves():
    """Over many seeds, the same sizes come with several answers, in each case that leaves a choice."""
    left = {}
    for seed in range(100):
        for case in cases("04.patience_exit", seed):
            logits, patience = case.arguments.values()
            layers, _ = patience_exit(logits, patience)
            sizes = (len(logits), logits.shape[1], patience)
            left.setdefault(case.label, {}).setdefault(sizes, set()).add(tuple(layers.tolist()))
    for label in (
        "a streak",
        "a streak that breaks",
        "an answer of 0",
        "several rows",
        "two favourites",
        "a patience of 1",
    ):
        answers = left[label].values()
        assert len(answers) >= 4 and sum(len(each) > 1 for each in answers) >= len(answers) / 2, label
    assert all(len(sizes) >= 4 for sizes in left.values())


def test_token_0_is_a_favourite_in_cases_of_its_own():
    """A row begins with it and does not leave there; a row leaves with it and changes its mind."""
    patience_of = set()
    for seed in SEEDS:
        for case in cases("04.patience_exit", seed):
            logits, patience = case.arguments.values()
            favourites, (layers, answers) = logits.argmax(-1), patience_exit(logits, patience)
            if case.label in ("a streak", "a streak that breaks"):
                assert (favourites != 0).all()
            if case.label == "a first favourite of 0":
                assert (favourites[:patience] == 0).all() and (answers != 0).all()
            if case.label == "an answer of 0":
                assert favourites[0] != 0 and answers.tolist() == [0] and favourites[-1] != 0
                assert layers < len(logits) - 1 and favourites[layers] == 0
            if case.label == "a long patience":
                patience_of.add(patience)
                assert layers < len(logits) or answers == favourites[-2]
    assert patience_of == {5, 6}


@pytest.mark.parametrize(
    "wrong", [patience_exercise._over_one_layer, patience_exercise._forgives_one], ids=["passes", "forgives"]
)
def test_a_count_that_outlives_one_layer_fails_for_every_seed(wrong):
    fails_for_every_seed("04.patience_exit", wrong)


def test_ties_are_exact_and_decide():
    """Where two answers are as likely, another favourite would leave at another layer."""
    for seed in SEEDS:
        (case,) = [case for case in cases("04.patience_exit", seed) if case.label == "two favourites"]
        logits, patience = case.arguments.values()
        best = logits.topk(2).values
        assert ((best[..., 0] == best[..., 1]).sum(0) == patience + 1).all()
        turned, _ = patience_exit(logits.flip(-1), patience)
        assert turned.tolist() != patience_exit(logits, patience)[0].tolist()


def test_a_budget_is_exact_in_every_precision():
    """Shares of 8, 16 or 32 tokens, entropies and thresholds in parts of a nat: float32 holds them all."""
    for seed in SEEDS:
        for case in cases("04.exit_threshold", seed):
            numbers = [*case.arguments["thresholds"], case.arguments["budget"]]
            assert torch.tensor(numbers, dtype=torch.float32).tolist() == numbers
            if not case.raises:
                figures = list(exit_threshold(**case.arguments))
                assert torch.tensor(figures, dtype=torch.float32).tolist() == figures


def test_layers_and_tokens_are_drawn():
    """In each case by itself, so that no number of them can be written down."""
    sizes = {}
    for seed in SEEDS:
        for case in cases("04.exit_threshold", seed):
            sizes.setdefault(case.label, set()).add(case.arguments["entropies"].shape)
    for label, shapes in sizes.items():
        layers, tokens = map(set, zip(*shapes, strict=True))
        assert len(layers) >= 3 and len(tokens) >= 2, label


def test_only_one_case_has_an_entropy_that_is_a_threshold():
    for seed in SEEDS:
        for case in cases("04.exit_threshold", seed):
            thresholds = torch.tensor(case.arguments["thresholds"])
            equal = torch.isin(case.arguments["entropies"], thresholds).any()
            assert bool(equal) == (case.label == "an entropy that is a threshold")


@pytest.mark.parametrize(
    "wrong",
    [*choices.HASTY, choices.rounds_budget, choices.rounds_to_a_digit, choices.weighs_more],
    ids=["goes up", "goes down", "rounds the budget", "rounds to a digit", "weighs"],
)
def test_a_choice_that_is_nearly_right_fails_for_every_seed(wrong):
    fails_for_every_seed("04.exit_threshold", wrong)


def test_agreement_goes_up_and_down():
    """So that neither the fewest layers nor the most within a budget are always best."""
    up_and_down = 0
    for seed in SEEDS:
        entropies, favourites, thresholds, _ = cases("04.exit_threshold", seed)[0].arguments.values()
        shares = [exit_threshold(entropies, favourites, [t], len(entropies))[2] for t in thresholds]
        up_and_down += shares != sorted(shares, reverse=True)
    assert up_and_down == len(SEEDS)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (type("Both", (KeyError, ValueError), {}), "pass"),
        (type("Own", (ValueError,), {}), "pass"),
        (type("ValueError", (Exception,), {}), "fail"),
        (LookupError, "fail"),
    ],
)
def test_a_refusal_is_what_a_caller_would_catch_as_one(kind, status):
    exercise = catalogue.find("04.exit_threshold")

    def refuses(**given):
        try:
            return exit_threshold(**given)
        except ValueError:
            raise kind("none") from None

    verdict = examine(exercise, 0, InProcess(refuses))
    assert (verdict.status, verdict.check) == (status, "" if status == "pass" else "more than can be saved")


def best_so_far(first, replaces):
    """A loop that keeps the best it has seen, as many would write it."""

    def answer(entropies, favourites, thresholds, budget):
        best = first
        for threshold in thresholds:
            with suppress(ValueError):
                _, layers, agreement = exit_threshold(entropies, favourites, [threshold], budget)
                found = (agreement, -layers, -threshold)
                best = found if replaces(found, best) else best
        if best == first:
            raise ValueError("no threshold keeps to the budget")
        return -best[2], -best[1], best[0]

    return answer


def test_a_loop_that_begins_with_less_than_anything_is_right():
    exercise = catalogue.find("04.exit_threshold")
    right = best_so_far((-1.0, 0.0, 0.0), lambda found, best: found > best)
    for seed in SEEDS:
        assert examine(drawn_once(exercise, seed), seed, InProcess(right)).passed, seed


@pytest.mark.parametrize(
    "replaces",
    [lambda found, best: found > best, lambda found, best: found[0] > best[0]],
    ids=["all of it", "agreement alone"],
)
def test_a_loop_that_begins_with_nothing_agreed_fails_for_every_seed(replaces):
    fails_for_every_seed("04.exit_threshold", best_so_far((0.0, 0.0, 0.0), replaces))


def test_in_one_case_nothing_agrees_and_the_cost_decides():
    for seed in SEEDS:
        (case,) = [c for c in cases("04.exit_threshold", seed) if c.label == "no agreement at all"]
        threshold, layers, agreement = exit_threshold(**case.arguments)
        assert agreement == 0
        others = [other for other in case.arguments["thresholds"] if other != threshold]
        found = exit_threshold(**{**case.arguments, "thresholds": others})
        assert (found[1], found[0]) > (layers, threshold) and found[2] == 0
