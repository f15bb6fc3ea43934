"""What lab 4 is drawn from, and that its mistakes are told by name."""

import random
from fractions import Fraction

import pytest
import torch

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.speculative import drawn, models
from llmcourse.grading.exercises.speculative.residual import residual
from llmcourse.grading.exercises.speculative.speculative_loop import speculative_loop
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import arguments_of, counted, examine
from llmcourse.speculative import verify_drafts
from tests.grading.exercises.answers import cases
from tests.grading.exercises.mistakes import assert_told, mutant

LOOP = catalogue.find("04.speculative_loop")


@pytest.mark.parametrize(
    ("name", "mistake", "told"),
    [
        ("04.accept_drafts", "always accepts", "a draft was kept that the target doubts"),
        ("04.accept_drafts", "reads q at the wrong place", "q is read at another place than the draft"),
        ("04.accept_drafts", "accepts 10 % more often", "closer than 10 %"),
        ("04.residual", "does not renormalise", "sum to less than 1"),
        ("04.speed_up", "forgets the target's own token", "the token after the drafts is missing"),
        ("04.look_up", "finds the end itself", "the end was found at the end"),
        ("04.speculative_loop", "writes no token where all stand", "it wrote no token more"),
        ("04.speculative_loop", "reads q at the wrong place", "q is read at another place than the draft"),
        ("04.speculative_loop", "always accepts", "a draft was kept that the target doubts"),
        ("04.speculative_loop", "does not renormalise what is left", "does not sum to 1"),
        ("04.speculative_loop", "leaves rejected drafts in the cache", "still in the cache"),
        ("04.speculative_loop", "leaves one of them in the cache", "one place too late"),
        ("04.speculative_loop", "accepts 10 % more often", "closer to its number than 10 %"),
        ("04.speculative_loop", "forgets a token too many", "one place too early"),
        ("04.speculative_loop", "takes the first rows of p", "the first call reads the prompt too"),
        ("04.speculative_loop", "judges every step by the first numbers", "row i is for step i"),
        ("04.speculative_loop", "draws with a draft's number", "it has one of its own"),
        ("04.speculative_loop", "judges what is behind a fall", "the first that falls ends the step"),
        ("04.speculative_loop", "returns the prompt as well", "begin with the prompt"),
        ("04.cascade_threshold", "chooses on the test", "choose on held_out alone"),
        ("04.cascade_threshold", "does all on the test", "choose on held_out alone"),
        ("04.cascade_threshold", "counts a question that either model has right", "either model is right"),
    ],
)
def test_a_mistake_is_told_by_name(name, mistake, told):
    assert_told(catalogue.find(name), mistake, told)


def test_a_prompt_read_by_itself_is_a_pass_too_many():
    found = mutant(LOOP, "reads the prompt by itself")
    verdict = examine(LOOP, 0, InProcess(found.function))
    assert verdict.reason == "passes of the target: target was called 4 times, expected 3"
    assert "whole prompt" in verdict.hint


def test_a_text_read_again_is_refused_by_the_target():
    found = mutant(LOOP, "reads the whole text again")
    assert "target reads at most" in examine(LOOP, 0, InProcess(found.function)).reason


@pytest.mark.parametrize(
    "answer",
    [
        lambda p, q, drafts, uniforms: (uniforms >= p.amax(-1)[:, :-1]).long().cumprod(-1).sum(-1),
        lambda p, q, drafts, uniforms: torch.zeros(len(p), dtype=torch.int64),
        lambda p, q, drafts, uniforms: torch.ones(len(p), dtype=torch.int64) + drafts.shape[1],
    ],
)
def test_a_mistake_of_another_kind_is_not_called_a_place_that_moved(answer):
    """A count says little: the named mistakes give others than most mistakes do."""
    exercise = catalogue.find("04.accept_drafts")
    for seed in range(5):
        verdict = examine(exercise, seed, InProcess(answer))
        assert verdict.status == "fail" and "another place" not in verdict.hint


@pytest.mark.parametrize("seed", range(20))
def test_drafts_that_stand_and_what_is_left_are_together_what_the_target_says(seed):
    """By exact sums, p(x) = min(p, q)(x) + (1 - Σ min(p, q)) p'(x)."""
    rng = random.Random(seed)
    p, q = (drawn.distributions([drawn.shares(rng, 7)]).double() for _ in "pq")
    both = torch.minimum(p, q)
    torch.testing.assert_close(both + (1 - both.sum()) * residual(p, q), p)


@pytest.mark.parametrize("seed", range(20))
def test_a_number_is_no_ratio_and_no_share_of_a_sum(seed):
    rng = random.Random(seed)
    parts = range(1, drawn.WHOLE + 1)
    for _ in range(20):
        number = drawn.point(rng, 0.0, 1.0)
        assert float(torch.tensor(number, dtype=torch.float32)) == number
        assert all((Fraction(number) * part).denominator > 1 for part in parts)


@pytest.mark.parametrize("near", [False, True])
def test_so_many_drafts_stand_as_a_case_wants(near):
    rng, gamma, counts = random.Random(7), 3, [1, 3, 0, 2]
    shares = models.Shares(11, 6)
    drafter, target, text = models.Drafter(shares), models.CachedTarget(shares, 4, 2), [0, 1]
    uniforms = models.numbers(rng, drafter, text, gamma, counts, 2, near)
    assert uniforms.shape == (6, 4)
    for count, numbers in zip(counts, uniforms[:4], strict=True):
        drafts, q = drafter(text, gamma)
        p = torch.stack([drawn.distributions(shares([*text, *drafts[:n]])) for n in range(gamma + 1)])
        drafts = torch.tensor([drafts])
        verdict = verify_drafts(p[None], q[None], drafts, numbers[None])
        assert verdict.num_accepted.tolist() == [count]
        text = [*text, *verdict.emitted(drafts)[0]]
    new = speculative_loop(target, drafter, text[:2], gamma, len(text) - 2, uniforms)
    assert new == text[2:]


def test_a_step_reads_the_last_token_and_the_drafts_alone():
    """All that a real cache would have to hold is there, and none of it is read twice."""
    (case, *_) = [case for case in cases("04.speculative_loop", 3) if case.label == "a draft falls"]
    read, arguments = [], arguments_of(case, counted(case))
    target = arguments["target"]

    def watched(tokens, cache):
        read.append((len(tokens), 0 if cache is None else len(cache)))
        return target(tokens, cache)

    new = speculative_loop(**(arguments | {"target": watched}))
    gamma, prompt = arguments["gamma"], arguments["prompt"]
    assert read[0] == (len(prompt) + gamma, 0) and {tokens for tokens, _ in read[1:]} == {gamma + 1}
    assert all(held < len(prompt) + len(new) for _, held in read)
    held = [held for _, held in read[1:]]
    assert held == sorted(held) and held[0] >= len(prompt)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: drawn.doubted(random.Random(0), [drawn.WHOLE]), "p must leave room for a draft"),
        (lambda: drawn.point(random.Random(0), 0.5, 0.5), "low and high must have room"),
        (lambda: drawn.telling(dict, lambda: 1, [lambda: 1]), "draw must tell the mistakes"),
        (lambda: drawn.telling(dict, lambda: 1, [], [lambda: 2, lambda: 2]), "draw must tell the mistakes"),
    ],
)
def test_what_cannot_be_drawn_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    ("tokens", "cache", "error", "said"),
    [
        ([], None, ValueError, "target must be given 1 to"),
        ([9], None, ValueError, r"token ids in \[0, 6\)"),
        (torch.tensor([1]), None, TypeError, "a list of token ids"),
        ([1, 2, 3], torch.tensor([1]), ValueError, "reads at most 2 tokens at once with 1 in the cache"),
        ([1], [1], TypeError, r"cache\[:n\] of one"),
    ],
)
def test_a_target_refuses_what_is_no_text(tokens, cache, error, said):
    with pytest.raises(error, match=said):
        models.CachedTarget(models.Shares(1, 6), 2, 2)(tokens, cache)
