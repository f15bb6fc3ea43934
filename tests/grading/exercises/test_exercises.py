"""What holds for every exercise: right answers pass, wrong ones fail by the check that is meant for them."""

from __future__ import annotations

import ast
import doctest
import inspect
import random
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llmcourse.grading.answer import Oracle
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.names_used import names_used
from llmcourse.grading.process import wire
from llmcourse.grading.question import examine
from llmcourse.grading.selfcheck import PUBLIC_SEEDS
from tests.grading.exercises.answers import (
    EVERY,
    EXERCISES,
    OTHER_ROADS,
    answered_once,
    cases,
    directly,
    drawn_once,
    right,
    tensors,
    unchecked,
)
from tests.usual_speed import slowness

SEEDS, SOME_SEEDS, MUTANT_SEEDS = range(200), range(20), range(20)
SLOWEST_CASE_S = 0.05

every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
mutants = pytest.mark.parametrize(
    ("exercise", "mutant"),
    [pytest.param(e, m, id=f"{e.name} {m.name}") for e in EXERCISES for m in e.mutants],
)


def same(one, other) -> bool:
    if isinstance(one, Oracle) or isinstance(other, Oracle):
        return one == other
    return type(one) is type(other) and wire.encode(one) == wire.encode(other)


def test_lab_1_has_ten_exercises_and_a_hundred_points():
    lab = catalogue.labs()["01_decoding"]
    assert len(lab) == 10 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}


def test_lab_2_has_twelve_exercises_and_a_hundred_points_half_of_them_for_counting():
    lab = catalogue.labs()["02_kv_cache_and_roofline"]
    assert len(lab) == 12 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}
    counting = [exercise for exercise in lab if ".roofline." in exercise.reference.__module__]
    assert len(counting) == 6 and sum(exercise.points for exercise in counting) == 50


def test_lab_3_has_eight_exercises_and_a_hundred_points():
    lab = catalogue.labs()["03_flash_attention_and_batching"]
    assert len(lab) == 8 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}


def test_lab_4_has_twelve_exercises_and_a_hundred_points_half_of_them_for_drafts_and_cascades():
    lab = catalogue.labs()["04_speculative_medusa_early_exit"]
    assert len(lab) == 12 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}
    first = [exercise for exercise in lab if ".speculative." in exercise.reference.__module__]
    assert first == list(lab[:6]) and sum(exercise.points for exercise in first) == 50


def test_lab_5_has_nine_exercises_and_a_hundred_points():
    lab = catalogue.labs()["05_quantization"]
    assert len(lab) == 9 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}


def test_lab_6_has_nine_exercises_and_a_hundred_points():
    lab = catalogue.labs()["06_distillation"]
    assert len(lab) == 9 and sum(exercise.points for exercise in lab) == 100
    assert {exercise.level for exercise in lab} == {1, 2, 3, 4, 5}


def test_every_exercise_is_answered_by_another_road():
    assert {exercise.name for exercise in EVERY} == set(OTHER_ROADS)


@every
def test_the_reference_passes(exercise):
    """By its value on many seeds, and by its rules on the public ones."""
    light = replace(exercise, rules=())
    source = inspect.getsource(inspect.getmodule(exercise.reference))
    for seed in PUBLIC_SEEDS:
        used = names_used(source, exercise.function)
        verdict = examine(drawn_once(exercise, seed), seed, InProcess(right(exercise)), used)
        assert verdict.earned == 1 and verdict.cases_run == len(cases(exercise.name, seed))
    with unchecked():
        for seed in SEEDS:
            verdict = examine(drawn_once(light, seed), seed, directly(exercise.reference))
            assert verdict.earned == 1, (seed, verdict)


@every
def test_the_answer_by_another_road_passes(exercise):
    """The package's own code where there is a counterpart: what is right does not hang on how it is done."""
    light = replace(exercise, rules=())
    if exercise.name == "01.beam_search":  # the package stops early, which is exact without a length penalty
        light = replace(light, comparison=lambda got, expected: None)
    with unchecked():
        for seed in SOME_SEEDS:
            verdict = examine(drawn_once(light, seed), seed, directly(OTHER_ROADS[exercise.name]))
            assert verdict.earned == 1, (seed, verdict)


def test_beam_search_agrees_with_the_package_where_both_search_to_the_end():
    exercise, compared = catalogue.find("01.beam_search"), 0
    for seed in SOME_SEEDS:
        for case in cases(exercise.name, seed):
            if case.arguments["length_penalty"] == 0:
                answer = directly(OTHER_ROADS[exercise.name])(case)
                expected = directly(exercise.reference)(case)
                assert exercise.comparison(answer.value, expected.value) is None, (seed, case.label)
                compared += 1
    assert compared >= 4 * len(SOME_SEEDS)


@every
def test_the_stub_is_not_written(exercise):
    def stub(**arguments):
        raise NotImplementedError(f"{exercise.name} is not written yet")

    assert examine(exercise, 0, InProcess(stub)).status == "not written"


@mutants
def test_each_mutant_fails_by_its_check(exercise, mutant):
    call = InProcess(mutant.function)
    for seed in MUTANT_SEEDS:
        with answered_once(), unchecked() if seed else nullcontext():
            verdict = examine(drawn_once(exercise, seed), seed, call)
        assert (verdict.status, verdict.check) == ("fail", mutant.caught_by), (seed, verdict)
        assert verdict.reason.startswith(f"{mutant.caught_by}: ") and "\n" not in verdict.reason
        if mutant.hint:
            assert verdict.hint == mutant.hint and verdict.own_hint and not verdict.slip
    assert set(PUBLIC_SEEDS) <= set(MUTANT_SEEDS)


@mutants
def test_a_hint_for_a_mistake_is_of_a_value_that_is_wrong(exercise, mutant):
    if mutant.hint:
        assert mutant.caught_by in {case.label for case in cases(exercise.name, 0)}
        assert "\n" not in mutant.hint and len(mutant.hint) < 400


@every
def test_hints_for_a_check_are_for_checks_that_there_are(exercise):
    checks = {case.label for case in cases(exercise.name, 0)} | {rule.name for rule in exercise.rules}
    assert set(exercise.hints_at) <= checks
    first = cases(exercise.name, 0)[0].label
    assert exercise.own_hint("any other", first, True) == "" and len(exercise.hints) >= 3
    assert exercise.starter or first not in exercise.hints_at  # there the ladder begins


def test_a_half_right_lab_has_exactly_its_half():
    """Every second answer is right, the others nearly: they get every case right but the last kinds."""
    answers = [(e, e.mutants[-2].function if place % 2 else right(e)) for place, e in enumerate(EXERCISES)]
    earned = [examine(e, 0, InProcess(function)).earned * e.points for e, function in answers]
    assert earned == [0 if place % 2 else e.points for place, e in enumerate(EXERCISES)]


@every
def test_answers_that_know_the_visible_cases_fail_others(exercise):
    known = [case for seed in PUBLIC_SEEDS for case in cases(exercise.name, seed)]

    def by_heart(**arguments):
        for case in known:
            if all(same(arguments[name], value) for name, value in tensors(case).items()):
                return exercise.reference(**arguments)
        return None

    if exercise.name not in (
        "01.greedy_loop",
        "01.beam_search",
        "02.cached_loop",
        "03.online_softmax",
        "04.speculative_loop",
        "04.entropy_exit",
        "04.block_decoding",
    ):  # there the model is the input
        light = replace(drawn_once(exercise, 0), rules=())
        assert examine(light, 0, directly(by_heart)).passed
    assert examine(drawn_once(exercise, 99), 99, directly(by_heart)).status == "fail"


@every
def test_no_argument_is_the_answer(exercise):
    for name in cases(exercise.name, 0)[0].arguments:
        verdict = examine(drawn_once(exercise, 0), 0, directly(lambda name=name, **given: given[name]))
        assert verdict.status == "fail", name


@every
def test_expected_values_are_in_no_argument(exercise):
    """But where the right answer is to leave the input as it is; and that is no case's only question."""
    for seed in SOME_SEEDS:
        given_away = []
        for case in cases(exercise.name, seed):
            expected = directly(exercise.reference)(case).value
            given_away += [case.label for value in tensors(case).values() if same(value, expected)]
        assert len(given_away) <= 3 and len(set(given_away)) < len(cases(exercise.name, seed)) / 2, given_away


@every
def test_cases_are_what_the_signature_says_and_can_be_sent(exercise):
    parameters = list(inspect.signature(exercise.reference).parameters)
    assert exercise.signature == f"{exercise.function}({', '.join(parameters)})"
    for seed in SOME_SEEDS:
        drawn = cases(exercise.name, seed)
        assert len({case.label for case in drawn}) == len(drawn) >= 4
        for case in drawn:
            assert list(case.arguments) == parameters
            wire.encode(tensors(case))
            wire.encode(directly(exercise.reference)(case).value)


@every
def test_a_seed_gives_the_same_cases_and_another_seed_others(exercise):
    once, again, other = ([tensors(c) for c in exercise.cases(random.Random(s))] for s in (5, 5, 6))
    assert [wire.encode(arguments) for arguments in once] == [wire.encode(arguments) for arguments in again]
    assert [wire.encode(arguments) for arguments in once] != [wire.encode(arguments) for arguments in other]


@every
def test_every_mutant_has_a_check_and_most_checks_a_mutant(exercise):
    labels = {case.label for case in cases(exercise.name, 0)}
    checks = labels | {rule.name for rule in exercise.rules}
    caught = {mutant.caught_by for mutant in exercise.mutants}
    assert caught <= checks and len(caught) >= 4
    assert len({mutant.name for mutant in exercise.mutants}) == len(exercise.mutants)


@pytest.mark.alone
@every
def test_no_case_takes_long(exercise):
    """In time of this process, as a core of usual speed would take it."""

    def once(seed) -> float:
        started = time.process_time()
        verdict = examine(exercise, seed, InProcess(right(exercise)))
        return (time.process_time() - started) / verdict.cases_run / slowness()

    assert min(once(seed) for seed in (300, 301, 302)) < SLOWEST_CASE_S


@every
def test_the_text_has_what_a_student_needs(exercise):
    assert exercise.signature.split("(")[0] in exercise.asks and "returns" in exercise.asks
    given = [value for case in cases(exercise.name, 0) for value in case.arguments.values()]
    if any(isinstance(value, torch.Tensor | Oracle) for value in given):
        assert re.search(r"\((len\(texts\)|[A-Z])(, [A-Z])*,?\)", exercise.asks)  # a shape
    assert all("\n" not in hint and "return " not in hint and len(hint) < 400 for hint in exercise.hints)


@every
def test_the_lines_of_a_box_stay_lines(exercise):
    """Markdown makes one paragraph of them, unless each but the last says that it ends."""
    lines = re.sub(r"```.*?```", "", exercise.asks, flags=re.DOTALL).splitlines()
    for line, following in pairwise(lines):
        if line.startswith("> ") and following.startswith("> "):
            assert line.endswith("<br>"), line


@every
def test_the_examples_are_true(exercise):
    (example,) = re.findall(r"```python\n(.*?)```", exercise.asks, re.DOTALL)
    names = {"torch": torch, exercise.function: exercise.reference}
    test = doctest.DocTestParser().get_doctest(example, names, exercise.name, None, 0)
    found = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=found.append)
    assert test.examples and found == []


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("01.find_the_bug", "logits.softmax(-1).sort", "(logits / temperature).softmax(-1).sort"),
        ("02.find_the_bug", "angles[-1:, None]", "angles[lengths, None]"),
        ("03.find_the_bug", "length % size", "length - place * size"),
    ],
)
def test_the_bug_is_one_line_away_from_right(name, wrong, right):
    exercise = catalogue.find(name)
    assert exercise.starter.count(wrong) == 1
    for source, status in ((exercise.starter, "fail"), (exercise.starter.replace(wrong, right), "pass")):
        names = {"torch": torch}
        exec(source, names)
        assert examine(exercise, 0, InProcess(names[exercise.function])).status == status


def test_a_box_of_pseudocode_written_down_is_right():
    """As the text of 02.cached_loop has it, line by line."""

    def loop(step, prompt, chunk, max_new_tokens, end_token):
        cache, new = None, []
        if max_new_tokens == 0:
            return new
        for start in range(0, len(prompt), chunk):
            logits, cache = step(prompt[start : start + chunk], cache)
        while True:
            token = int(logits.argmax())
            new.append(token)
            if token == end_token or len(new) == max_new_tokens:
                return new
            logits, cache = step([token], cache)

    exercise = catalogue.find("02.cached_loop")
    assert examine(exercise, 0, InProcess(loop)).earned == 1
    assert exercise.asks.index("**stop**") < exercise.asks.index(r"\mathcal{M}(u', K, V)")


def test_a_prompt_that_is_read_for_nothing_is_told_so():
    exercise = catalogue.find("02.cached_loop")
    (mutant,) = [m for m in exercise.mutants if m.name == "reads the prompt for nothing"]
    verdict = examine(exercise, 0, InProcess(mutant.function))
    assert verdict.reason == "forward passes: step was called 2 times, expected 0"
    assert verdict.hint == exercise.hints_at["no new tokens allowed"] and verdict.own_hint


@pytest.mark.parametrize(
    ("name", "mutant", "hinted"),
    [
        ("03.tiled_attention", "is a softmax of one query after another", "the scores of one query"),
        ("03.tiled_attention", "makes rows of scores, no tiles", "Scores belong to a tile"),
        ("03.tiled_attention", "copies the keys", "a copy of the keys"),
        ("03.tiled_attention", "is a plain softmax", "PyTorch's softmax needs all scores of a row"),
        ("03.online_softmax", "has one peak for all rows", "m has a value for each row"),
    ],
)
def test_right_values_on_the_wrong_road_are_told_which_road_it_is(name, mutant, hinted):
    exercise = catalogue.find(name)
    (function,) = [m.function for m in exercise.mutants if m.name == mutant]
    verdict = examine(exercise, 0, InProcess(function))
    assert verdict.own_hint and hinted in verdict.hint and not verdict.slip


def test_the_picture_of_a_schedule_is_drawn_with_its_first_difference_in_time():
    exercise = catalogue.find("03.continuous_batching")
    (mutant,) = [mutant for mutant in exercise.mutants if mutant.name == "counts END as one more"]
    verdict = examine(exercise, 0, InProcess(mutant.function))
    assert verdict.reason == "the lecture's picture: slot 2, step 4: got 'S3', expected 'END'"
    for drawn, cell in ((verdict.got, "[ S3 ]"), (verdict.expected, "[END ]")):
        lines = drawn.split("\n")
        assert len(lines) == 1 + 4 and len({*map(len, lines)}) == 1 and all(map(str.isprintable, lines))
        assert drawn.count("[") == 1 and lines[3].index(cell) == lines[0].index("4") - 2


def test_the_picture_of_a_long_schedule_is_cut_around_the_difference():
    expected = [["a"] * 40, ["b"] * 40]
    got = [["a"] * 40, ["b"] * 30 + ["\x1bveryodd"] + ["c"] * 9]
    found = catalogue.find("03.continuous_batching").comparison(got, expected)
    head, _, row = found.got.split("\n")
    assert head.split()[1:] == [str(step) for step in range(24, 36)] and "[ve… ]" in row
    assert catalogue.find("03.continuous_batching").comparison(got[:1], expected).reason == (
        "got 1 slot, expected 2"
    )


def test_what_reads_blocks_is_called_so():
    exercise = catalogue.find("03.online_softmax")
    verdict = examine(exercise, 0, InProcess(lambda read, num_blocks: (read(0)[0], read(0)[0])))
    assert re.fullmatch(
        r"read = a function; the scores of a block have \d rows and \d columns", verdict.given[0]
    )


def test_a_batch_that_is_thought_never_to_turn_is_a_mistake_and_no_slip():
    exercise = catalogue.find("02.turning_batch")
    (mutant,) = [mutant for mutant in exercise.mutants if mutant.name == "looks no further than 1,024"]
    verdict = examine(exercise, 0, InProcess(mutant.function))
    assert re.match(r"a late turn: got None: no batch turns it; expected \d[\d,]+$", verdict.reason)
    assert verdict.hint == exercise.hints_at["a late turn"] and not verdict.slip


def test_only_the_bugs_have_a_starter():
    with_one = [exercise for exercise in EXERCISES if exercise.starter]
    assert [exercise.name for exercise in with_one] == [
        "01.find_the_bug",
        "02.find_the_bug",
        "03.find_the_bug",
    ]
    for exercise in with_one:
        ast.parse(exercise.starter)


def test_names_are_found_and_others_answered_with_the_nearest():
    assert catalogue.find("01.top_p").function == "top_p_filter"
    for name, near in (("top_p", "01.top_p"), ("01.topp", "01.top_p"), ("1.softmax", "01.softmax")):
        with pytest.raises(LookupError, match=re.escape(f"no exercise {name!r}; did you mean {near}")):
            catalogue.find(name)
    with pytest.raises(LookupError, match=r"did you mean 01\.softmax or 01\.greedy_loop or"):
        catalogue.find("zzz")
