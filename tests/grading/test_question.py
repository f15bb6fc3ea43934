"""An examination stops at the first thing that is wrong, says it, and knows our faults from a student's."""

import random
from dataclasses import replace

import pytest
import torch

from llmcourse.grading import slips
from llmcourse.grading.answer import Answer, Failure
from llmcourse.grading.compare import Close, Exact
from llmcourse.grading.exercise import Case, Exercise, Mutant, Oracle
from llmcourse.grading.question import ExerciseError, examine, given
from llmcourse.grading.rules import Forbid, NoMutation, OracleCalls

HINTS = ("think", "think more", "it is a sum")


def double(x):
    return 2 * x


def cases(rng: random.Random) -> list[Case]:
    return [Case({"x": torch.full((2,), float(rng.random()))}, label) for label in ("first", "second")]


def exercise(**parts) -> Exercise:
    parts = {
        **{
            "name": "09.double",
            "function": "double",
            "title": "Double",
            "points": 2,
            "minutes": 5,
            "level": 1,
        },
        **{"asks": "Twice.", "signature": "double(x)", "cases": cases, "reference": double},
        **{"comparison": Close(axes=("place",)), "hints": HINTS, "rules": (NoMutation(), Forbid(("add",)))},
        "mutants": tuple(Mutant(f"{i}", double, "first") for i in range(4)),
        **parts,
    }
    return Exercise(**parts)


def answering(*answers):
    """A call that gives these answers, one after another, and then right ones."""
    waiting = list(answers)
    return lambda case: waiting.pop(0) if waiting else Answer(double(case.arguments["x"]))


def test_all_cases_right_is_a_pass():
    verdict = examine(exercise(), 0, answering())
    assert verdict.passed and verdict.status == "pass" and verdict.cases_run == 2
    assert (verdict.check, verdict.reason, verdict.hint) == ("", "", "")


def test_the_first_wrong_case_is_told():
    right = cases(random.Random(7))[0].arguments["x"] * 2
    asked = []
    call = answering(Answer(right), Answer(torch.zeros(2)))
    verdict = examine(exercise(), 7, lambda case: asked.append(case.label) or call(case))
    assert asked == ["first", "second"] and not verdict.passed
    assert verdict.check == verdict.case == "second" and verdict.cases_run == 2
    assert verdict.first_difference.startswith("place 0: got 0, expected 0.")
    assert verdict.reason == f"second: {verdict.first_difference}"
    assert verdict.got == "[0, 0]" and verdict.expected.startswith("[0.") and verdict.hint == "think"
    assert len(verdict.given) == 1 and verdict.given[0].startswith("x = float32 (2,) [0.")


def test_a_broken_rule_is_told_by_its_name_and_after_the_value():
    right = cases(random.Random(7))[0].arguments["x"] * 2
    verdict = examine(exercise(), 7, answering(Answer(right, mutated=("x",))))
    assert (verdict.check, verdict.case) == ("arguments stay as they were", "first")
    assert verdict.reason == "arguments stay as they were: x was changed in place; work on a copy"
    assert examine(exercise(), 7, answering(Answer(right + 1, mutated=("x",)))).check == "first"
    assert examine(exercise(), 7, answering(Answer(right, operations=("add",)))).check == "own work"
    assert examine(exercise(), 7, answering(), {"add"}).check == "own work"


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (Failure("missing", "there is no function double"), "not written", "not written yet"),
        (Failure("raised", "NotImplementedError"), "not written", "not written yet"),
        (
            Failure("raised", "NotImplementedError: 09.double is not written yet"),
            "not written",
            "not written yet",
        ),
        (
            Failure("raised", "NotImplementedError: \"x\" not implemented for 'Half'"),
            "fail",
            "first: raised: NotI",
        ),
        (Failure("raised", "NotImplementedErrors: no"), "fail", "first: raised: NotImplementedErrors: no"),
        (
            Failure("raised", "ZeroDivisionError: a\nb\x1b[31m"),
            "fail",
            "first: raised: ZeroDivisionError: a b",
        ),
        (Failure("time limit", "after 5 s"), "fail", "first: time limit: after 5 s"),
        (Failure("forged reply"), "fail", "first: forged reply"),
    ],
)
def test_an_answer_without_a_value(failure, status, reason):
    verdict = examine(exercise(), 0, answering(Answer(error=failure)))
    assert verdict.status == status and verdict.reason.startswith(reason)
    assert not verdict.passed and verdict.first_difference == "" and verdict.reason.isprintable()


def test_unwritten_parts_of_a_written_answer_are_a_fail():
    right = cases(random.Random(0))[0].arguments["x"] * 2
    verdict = examine(
        exercise(), 0, answering(Answer(right), Answer(error=Failure("raised", "NotImplementedError")))
    )
    assert verdict.status == "fail" and verdict.reason == "second: raised: NotImplementedError"
    gone = examine(exercise(), 0, answering(Answer(right), Answer(error=Failure("missing"))))
    assert gone.status == "fail" and gone.reason == "second: double is not defined"


def broken(*arguments, **more):
    raise KeyError("ours")


def root(x):
    if x < 0:
        raise ValueError(f"x must be at least 0, got {x}")
    return [x]


def refusing() -> Exercise:
    drawn = [Case({"x": 1.0}, "a square"), Case({"x": -1.0}, "below 0", raises=ValueError)]
    return exercise(cases=lambda rng: drawn, reference=root, comparison=Exact())


NO = Failure("raised", "ValueError: no", ("ValueError",))
BOTH, LOST = ("KeyError", "LookupError", "ValueError"), ("IndexError", "LookupError")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(error=NO), ""),
        (Answer(error=Failure("raised", "Both (a kind of KeyError and ValueError): no", BOTH)), ""),
        (Answer(error=Failure("raised", "UnicodeError: no", ("UnicodeError", "ValueError"))), ""),
        (
            Answer(error=Failure("raised", "ValueError (not Python's own): no")),
            "below 0: got raised: ValueError (not Python's own): no, expected a ValueError",
        ),
        (
            Answer(error=Failure("raised", "Lost (a kind of IndexError): a kind of ValueError", LOST)),
            "below 0: got raised: Lost (a kind of IndexError): a kind of ValueError, expected a ValueError",
        ),
        (
            Answer(error=Failure("raised", "Lost: (a kind of ValueError)")),
            "below 0: got raised: Lost: (a kind of ValueError), expected a ValueError",
        ),
        (Answer([1.0]), "below 0: got [1], expected a ValueError"),
        (Answer(None), "below 0: got None, expected a ValueError"),
        (
            Answer(error=Failure("raised", "IndexError: far", LOST)),
            "below 0: got raised: IndexError: far, expected a ValueError",
        ),
        (
            Answer(error=Failure("raised", "ValueErrors: mine")),
            "below 0: got raised: ValueErrors: mine, expected a ValueError",
        ),
        (
            Answer(error=Failure("time limit", "ValueError", ("ValueError",))),
            "below 0: got time limit: ValueError, expected a ValueError",
        ),
        (
            Answer(error=NO, mutated=("x",)),
            "below 0: x was changed before the ValueError; look first",
        ),
    ],
)
def test_what_is_not_to_be_answered_has_to_be_refused(answer, reason):
    verdict = examine(refusing(), 0, answering(Answer([1.0]), answer))
    assert (verdict.status, verdict.reason) == ("fail" if reason else "pass", reason)


def test_a_refusal_where_there_is_an_answer_is_wrong():
    refusal = Answer(error=NO)
    verdict = examine(refusing(), 0, answering(refusal))
    assert (verdict.status, verdict.check) == ("fail", "a square")


@pytest.mark.parametrize("reference", [lambda x: [x], lambda x: [] if x > 0 else [][0]])
def test_a_reference_that_does_not_refuse_is_our_fault(reference):
    broken = replace(refusing(), reference=reference, comparison=lambda got, expected: None)
    with pytest.raises(ExerciseError, match="reference"):
        examine(broken, 0, answering(Answer([1.0]), Answer([1.0])))


@pytest.mark.parametrize("part", ["cases", "reference", "comparison"])
def test_our_own_faults_are_not_the_students(part):
    with pytest.raises(ExerciseError, match=f"the {part} of exercise 09.double raised KeyError"):
        examine(exercise(**{part: broken}), 0, answering(Answer(torch.zeros(2))))


def test_what_the_machinery_raises_goes_through():
    with pytest.raises(ZeroDivisionError):
        examine(exercise(), 0, lambda case: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        examine(exercise(), 0, lambda case: (_ for _ in ()).throw(KeyboardInterrupt))


def test_the_reference_cannot_spoil_what_the_student_gets():
    def spoils(x):
        return x.mul_(2)

    seen = []
    examine(exercise(reference=spoils), 3, lambda case: Answer(seen.append(case.arguments["x"].clone())))
    assert torch.equal(seen[0], cases(random.Random(3))[0].arguments["x"])


def test_oracles_are_counted_for_the_reference():
    def asks(rng):
        return [Case({"model": Oracle("m"), "n": 2}, "one", {"m": lambda: 5})]

    parts = {"cases": asks, "reference": lambda model, n: [model() for _ in range(n)], "comparison": Exact()}
    counting = exercise(**parts, rules=(OracleCalls("m"),))
    assert examine(counting, 0, lambda case: Answer([5, 5], oracle_calls={"m": 2})).passed
    verdict = examine(counting, 0, lambda case: Answer([5, 5], oracle_calls={"m": 3}))
    assert verdict.reason == "forward passes: m was called 3 times, expected 2"
    assert verdict.given == ("model = the model", "n = 2")


def test_arguments_are_shown_with_their_values_in_lines_of_bounded_length():
    rows = torch.arange(48.0).reshape(4, 12)
    arguments = {"logits": rows, "many": torch.zeros(8, 300), "tokens": [[1, 2], []], "k": 3}
    shown = given(Case({**arguments, "long": [[0.123456] * 12] * 12, "odd": "\x1b[31m\n"}, "one"))
    assert shown[0] == "logits = float32 (4, 12)" and shown[1].startswith("  [0, 1, 2, 3, ")
    assert shown[4].endswith(" 46, 47]")
    assert shown[5] == "many = float32 (8, 300)" and shown[6].endswith("0, 0, … 288 more]")
    assert shown[11:14] == ("  … 3 more rows", "tokens = [[1, 2], []]", "k = 3")
    assert len(shown[14]) == len("long = ") + 400 and shown[14].endswith("…")
    assert all(line.isprintable() for line in shown)


def test_of_a_matrix_the_shape_is_enough_where_the_value_was_right():
    rows = torch.arange(48.0).reshape(4, 12)
    case = Case({"logits": rows, "tokens": [[1, 2], []]}, "one")
    assert given(case, rows=False) == ("logits = float32 (4, 12)", "tokens = [[1, 2], []]")
    asked = exercise(cases=lambda rng: [Case({"x": rows}, "one")], comparison=Close())
    broken = examine(asked, 7, answering(Answer(2 * rows, mutated=("x",))))
    assert broken.given == ("x = float32 (4, 12)",)
    assert len(examine(asked, 7, answering(Answer(rows))).given) == 5


def test_a_known_mistake_has_its_own_hint_where_it_is_made():
    def breaks(x):
        raise RuntimeError("not on this machine")

    def known(function, caught_by="first"):
        return Mutant("known", function, caught_by, "you add one")

    def hint(value, *mutants):
        return examine(exercise(mutants=(*mutants, *exercise().mutants)), 7, answering(Answer(value))).hint

    adds_one = known(lambda x: 2 * x + 1)
    assert hint(RIGHT + 1, adds_one) == hint(RIGHT + 1, known(breaks), adds_one) == "you add one"
    assert hint(RIGHT + 2, adds_one) == hint(RIGHT + 1, known(breaks)) == "think"
    assert hint(RIGHT + 1, known(lambda x: 2 * x + 1, "second")) == "think"
    both = exercise(mutants=(adds_one, *exercise().mutants), hints_at={"first": "mind the first"})
    found = examine(both, 7, answering(Answer(RIGHT + 1)))
    assert found.hint == "you add one" and found.own_hint


def broken_at(**parts):
    """How an exercise fails with an answer, and what is said then."""
    hints_at = parts.pop("hints_at", {})
    verdict = examine(exercise(hints_at=hints_at), 7, answering(*parts.pop("answers")))
    assert verdict.status == "fail" and not (verdict.slip and verdict.hint)
    return verdict.slip or verdict.hint


NAMES = "keep the parameter names: double(x)"
RIGHT = cases(random.Random(7))[0].arguments["x"] * 2


def raised(message):
    return Answer(error=Failure("raised", message))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([Answer(RIGHT.double())], slips.FORM),
        ([Answer(RIGHT[:1])], slips.FORM),
        ([Answer(None)], slips.FORM),
        ([Answer(RIGHT), Answer(RIGHT.double())], slips.FORM),
        ([Answer(RIGHT, mutated=("x",))], slips.RULE),
        ([Answer(RIGHT, operations=("add",))], slips.RULE),
        ([raised("NameError: name 'n' is not defined (line 2)")], slips.NO_NAME),
        ([Answer(RIGHT), raised("TypeError: no (line 2)")], slips.BY_ERROR["TypeError"]),
        ([raised("TypeError: double() got an unexpected keyword argument 'x'")], NAMES),
        ([raised("TypeError: test.<locals>.<lambda>() got an unexpected keyword argument 'x'")], NAMES),
        ([raised("TypeError: double() missing 1 required positional argument: 'y'")], NAMES),
        (
            [raised("TypeError: mine() got an unexpected keyword argument 'x' (line 2)")],
            slips.BY_ERROR["TypeError"],
        ),
        ([Answer(RIGHT), raised("NotImplementedError")], slips.BY_ERROR["NotImplementedError"]),
        ([raised("RuntimeError: shapes (line 2)")], slips.ERROR),
        ([raised("")], slips.ERROR),
        ([Answer(error=Failure("time limit", "took more than 5 s"))], slips.BY_KIND["time limit"]),
        ([Answer(error=Failure("process ended"))], slips.STOPPED),
        ([Answer(RIGHT + 1)], "think"),
        ([Answer(RIGHT), Answer(RIGHT)], "think"),
        ([Answer(RIGHT), raised("RuntimeError: k is too large (line 2)")], "think"),
    ],
)
def test_a_slip_is_named_and_gets_no_hint(answers, said):
    assert broken_at(answers=answers) == said


def test_where_a_rule_held_before_the_hint_is_that_of_the_case():
    rule, second = "arguments stay as they were", cases(random.Random(7))[1].arguments["x"] * 2
    broken = [Answer(RIGHT), Answer(second, mutated=("x",))]
    assert (
        broken_at(answers=broken, hints_at={rule: "copy", "second": "mind the second"}) == "mind the second"
    )
    assert broken_at(answers=broken, hints_at={rule: "copy"}) == "copy"
    assert broken_at(answers=broken, hints_at={"second": "mind the second"}) == slips.RULE


def test_a_hint_for_the_check_that_failed_goes_before_the_others():
    own = {"second": "mind the second", "arguments stay as they were": "copy", "first": "mind the first"}
    for answers, said in (
        ([Answer(RIGHT), Answer(RIGHT)], "mind the second"),
        ([Answer(RIGHT + 1)], "mind the first"),
        ([raised("RuntimeError: not for this (line 2)")], "mind the first"),
        ([Answer(RIGHT, mutated=("x",))], "copy"),
        ([Answer(RIGHT, operations=("add",))], slips.RULE),
        ([Answer(RIGHT.double())], slips.FORM),
        ([raised("NameError: name 'n' is not defined (line 2)")], slips.NO_NAME),
    ):
        assert broken_at(answers=answers, hints_at=own) == said
