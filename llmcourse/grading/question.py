"""One question: every case of a seed is asked, and the first thing that is wrong is put into words.

The answers come from `call`: in the notebook from the student's function itself, in grading from a process
that sees nothing but the arguments. What is right is worked out here, beside it.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from llmcourse.grading import slips
from llmcourse.grading.answer import Answer, Failure, Oracle
from llmcourse.grading.compare import Difference, dtype, show
from llmcourse.grading.exercise import Case, Exercise, Mutant
from llmcourse.grading.printable import clean
from llmcourse.grading.rules import Evidence

Status = Literal["pass", "fail", "not written", "not run"]
LONGEST_ARGUMENT, MOST_ROWS = 400, 5  # characters of an argument or of a row, and rows, that are shown
# As the stub raises it; PyTorch too raises this type, where an operation lacks a dtype.
UNWRITTEN = re.compile(r"NotImplementedError\b(?!.*not implemented for)")


class ExerciseError(RuntimeError):
    """The exercise itself is broken: nothing can be said of the answer."""


@dataclass(frozen=True)
class Verdict:
    """What the examination of one answer came to.

    All texts are single lines of printable characters, but `got` and `expected` may have several.

    Args:
        check: what failed: the label of a case, or the name of a rule.
        reason: why, with the check and the first difference.
        got, expected: the part of both values that shows it.
        first_difference: `row 0, token 17: got -inf, expected 2.31`.
        slip: what kind of slip it was, where nothing says that the idea is wrong.
        hint: that of this very check, or the first of those for all; empty for a slip.
        own_hint: whether it is that of the check, or of a known mistake.
        given: the arguments of the case that failed, a line each; of a matrix the shape alone, where the
            value was right.
        case: its label, also where it was a rule that it broke.
        share: of the points, that a pass is worth. Below 1 the answer is near, and the texts say of the
            case where it is farthest off what they say of one that failed.
    """

    status: Status
    check: str = ""
    reason: str = ""
    got: str = ""
    expected: str = ""
    first_difference: str = ""
    hint: str = ""
    cases_run: int = 0
    given: tuple[str, ...] = ()
    case: str = ""
    slip: str = ""
    share: float = 1.0
    own_hint: bool = False

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def earned(self) -> float:
        """The share of the points."""
        return self.share if self.passed else 0.0

    @property
    def near(self) -> bool:
        """Whether it earns a part of them only."""
        return 0 < self.earned < 1

    def _ipython_display_(self) -> None:
        """Nothing, as the last value of a cell: `check` has shown it already."""


def examine(
    exercise: Exercise, seed: int, call: Callable[[Case], Answer], used: Collection[str] = frozenset()
) -> Verdict:
    """Asks the cases of a seed one after another, up to the first that earns nothing.

    Args:
        call: puts one case to the student's function. What it raises goes through: it is no answer.
        used: names that the function needs from outside, for rules about what it may use; see `names_used`.

    Raises:
        ExerciseError: the cases, the reference, the comparison or a rule raised.
    """
    cases = _ours(exercise, "cases", exercise.cases, random.Random(seed))
    nearest = Verdict("pass", cases_run=len(cases))  # of what is not right, what earns least
    for number, case in enumerate(cases, 1):
        expected, reference_calls = _ours(exercise, "reference", _expected, exercise, case)
        answer = call(case)
        evidence = Evidence(answer, reference_calls, used, case.allows)
        wrong = _ours(exercise, "comparison", _wrong, exercise, case, evidence, expected)
        if wrong is None:
            continue
        if number == 1 and _unwritten(answer):
            return Verdict("not written", reason="not written yet")
        found = _told(exercise, case, answer, *wrong, number)
        if not found.passed:
            return found
        if found.share < nearest.share:
            nearest = replace(found, cases_run=len(cases))
    return nearest


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of the verdicts on one answer, at least one, that which earns least; the first failure ends it."""
    found = None
    for verdict in verdicts:
        if found is None or verdict.earned < found.earned:
            found = verdict
        if not verdict.passed:
            break
    return found


class Counted:
    """An oracle that counts how often it is asked."""

    def __init__(self, oracle: Callable):
        self.oracle, self.calls = oracle, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.oracle(*arguments, **options)


def counted(case: Case) -> dict[str, Counted]:
    """The oracles of a case; each counts from now on."""
    return {name: Counted(oracle) for name, oracle in case.oracles.items()}


def arguments_of(case: Case, oracles: Mapping[str, Callable]) -> dict[str, Any]:
    """Copies of the arguments, the oracles among them as functions."""
    return {
        name: oracles[value.name] if isinstance(value, Oracle) else copy.deepcopy(value)
        for name, value in case.arguments.items()
    }


def given(case: Case, rows: bool = True) -> tuple[str, ...]:
    """The arguments of a case, each in a line; long ones cut.

    Args:
        rows: whether those of a matrix are shown, each in a line below its shape.
    """
    return tuple(line for name, value in case.arguments.items() for line in _argument(name, value, rows))


def _argument(name: str, value: Any, with_rows: bool) -> list[str]:
    if isinstance(value, Oracle):
        return [f"{name} = {value.shown}"]
    if not (isinstance(value, Tensor) and value.dim() == 2):
        return [f"{name} = {show(value, LONGEST_ARGUMENT)}"]
    if not with_rows:
        return [f"{name} = {dtype(value)} {tuple(value.shape)}"]
    rows = [f"  {show(row, LONGEST_ARGUMENT)}" for row in value[:MOST_ROWS].tolist()]
    more = [f"  … {len(value) - MOST_ROWS} more rows"] if len(value) > MOST_ROWS else []
    return [f"{name} = {dtype(value)} {tuple(value.shape)}", *rows, *more]


def _expected(exercise: Exercise, case: Case) -> tuple[Any, dict[str, int]]:
    oracles = counted(case)
    try:
        expected = exercise.reference(**arguments_of(case, oracles))
    except Exception as error:
        if case.raises is None or type(error) is not case.raises:
            raise
        return None, {}
    if case.raises is not None:
        raise AssertionError(f"nothing at {case.label!r}, where it has to raise {case.raises.__name__}")
    right = expected if case.measured is None else case.measured
    return right, {name: oracle.calls for name, oracle in oracles.items()}


def _wrong(
    exercise: Exercise, case: Case, evidence: Evidence, expected: Any
) -> tuple[str, Difference] | None:
    answer = evidence.answer
    if case.raises is not None:
        difference = _not_raised(case.raises.__name__, answer)
        return (case.label, difference) if difference else None
    if answer.error is not None:
        return case.label, Difference(_failure(exercise, answer.error), "", show(expected))
    if difference := exercise.comparison(answer.value, expected):
        return case.label, difference
    for rule in exercise.rules:
        if broken := rule(evidence):
            return rule.name, Difference(broken)
    return None


def _not_raised(wanted: str, answer: Answer) -> Difference | None:
    """Whatever `except` takes for the one that is wanted will do, a class of the student's own among it."""
    error = answer.error
    if error is not None and error.kind == "raised" and wanted in error.kinds:
        changed = ", ".join(sorted(clean(name, 40) for name in answer.mutated))
        return Difference(f"{changed} was changed before the {wanted}; look first") if changed else None
    got = show(answer.value) if error is None else clean(str(error), 300)
    return Difference(f"got {got}, expected a {wanted}", got, wanted)


def _told(
    exercise: Exercise, case: Case, answer: Answer, check: str, difference: Difference, number: int
) -> Verdict:
    """What is wrong, in words; a pass where it is near enough to earn something."""
    slip = _slip(exercise, case, check, difference, answer, number == 1)
    known = "" if slip else _known_mistake(exercise, case, answer, check)
    own = known or ("" if slip else exercise.own_hint(check, case.label, number == 1))
    return Verdict(
        "pass" if difference.share else "fail",
        check,
        clean(f"{check}: {difference.reason}", 400),
        difference.got,
        difference.expected,
        "" if answer.error else difference.reason,
        "" if slip else own or exercise.hints[0],
        number,
        given(case, rows=check == case.label),
        case.label,
        slip,
        difference.share or 1.0,
        bool(own),
    )


def _known_mistake(exercise: Exercise, case: Case, answer: Answer, check: str) -> str:
    """The hint of the mutant that fails here with this very value; empty where there is none."""
    if answer.error is not None or check != case.label:
        return ""
    for mutant in exercise.mutants:
        if mutant.hint and mutant.caught_by == check:
            with suppress(Exception):  # some cannot run everywhere
                if exercise.comparison(answer.value, _mistaken(mutant, case)) is None:
                    return mutant.hint
    return ""


def _mistaken(mutant: Mutant, case: Case) -> Any:
    """What this wrong answer gives."""
    return mutant.function(**arguments_of(case, counted(case)))


def _slip(
    exercise: Exercise, case: Case, check: str, difference: Difference, answer: Answer, first: bool
) -> str:
    hinted = check in exercise.hints_at
    if answer.error is not None:
        return slips.of_failure(answer.error, first, hinted, exercise.signature)
    return slips.of_difference(difference, check != case.label, hinted)


def _failure(exercise: Exercise, failure: Failure) -> str:
    if failure.kind == "missing":
        return f"{exercise.function} is not defined"
    return clean(str(failure), 300)


def _unwritten(answer: Answer) -> bool:
    error = answer.error
    if error is None:
        return False
    return error.kind == "missing" or (error.kind == "raised" and bool(UNWRITTEN.match(error.message)))


def _ours(exercise: Exercise, part: str, function: Callable, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise ExerciseError(f"the {part} of exercise {exercise.name} raised {error!r}; mend it") from error
