"""What a student runs: `check("01.top_p", top_p_filter)` says whether an answer is right, and why not.

It examines with the same exercise object as the grader, on seeds that are public. The student's function
runs here, in the notebook: this is a help, not a judgement.
"""

from __future__ import annotations

import copy
import html
import inspect
import random
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ipywidgets
from IPython.display import display

from llmcourse.grading.answer import Answer, Failure
from llmcourse.grading.compare import kind, show
from llmcourse.grading.exercise import Case, Exercise
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.printable import clean
from llmcourse.grading.process import replay
from llmcourse.grading.process.observe import observe
from llmcourse.grading.question import Verdict, arguments_of, counted, examine

PUBLIC_SEEDS = (0, 1, 2)
COLOURS = {  # of the edge and of the ground, readable in light and dark pages
    "pass": ("#2e7d32", "#edf7ee"),
    "fail": ("#c8481a", "#fdf1ec"),
    "not written": ("#7a828c", "#f2f3f5"),
}


class Report:
    """A verdict to look at: a widget, and the same words as HTML and as plain text where none runs."""

    def __init__(self, status: str, title: str, lines: Mapping[str, str]):
        self.status, self.title, self.lines = status, title, lines

    def __repr__(self) -> str:
        width = max(map(len, self.lines), default=0)
        lines = [f"    {name:{width}}  {text}" for name, text in self.lines.items()]
        return "\n".join([self.title, *lines])

    def html(self) -> str:
        """One box; nothing in it but this module's own tags."""
        edge, ground = COLOURS[self.status]
        style = f"border-left:4px solid {edge};background:{ground};color:#1d2733;padding:6px 12px"
        cell = "padding:0 12px 0 0;vertical-align:top;text-align:left;background:none"
        mono = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere"
        rows = "".join(
            f'<tr><td style="{cell}">{html.escape(name)}</td>'
            f'<td style="{cell};{mono if name != "hint" else ""}">{html.escape(text)}</td></tr>'
            for name, text in self.lines.items()
        )
        table = f'<table style="border:none;margin:4px 0 0;color:inherit">{rows}</table>' if rows else ""
        return f'<div role="status" style="{style}"><b>{html.escape(self.title)}</b>{table}</div>'

    def _repr_mimebundle_(self, include=None, exclude=None):
        page = self.html()
        live = ipywidgets.HTML(page)._repr_mimebundle_()
        return {**live, "text/html": page, "text/plain": repr(self)}


class SelfCheck:
    """Examines answers, and remembers how often each exercise failed: each time, the hint says more.

    Args:
        find: gives the exercise of a name, or raises `LookupError`.
        show: shows a `Report`.
    """

    def __init__(
        self,
        find: Callable[[str], Exercise] = catalogue.find,
        show: Callable[[Report], object] = display,
    ):
        self.find, self.show = find, show
        self.failed: Counter[str] = Counter()

    def __call__(self, name: object = None, function: object = None, seed: int | None = None) -> Verdict:
        """Examines an answer and shows what came out; a mistake of the student's raises nothing.

        Args:
            name: of the exercise, `01.top_p`.
            function: the answer; None where there is none yet.
            seed: draws the inputs; by default those of a few seeds, one after another.
        """
        exercise, mistake = self._find(name)
        if exercise is None:
            self.show(Report("fail", mistake, {}))
            return Verdict("fail", "exercise name", mistake)
        verdict, failed_seed = examine_here(exercise, function, PUBLIC_SEEDS if seed is None else (seed,))
        if verdict.status == "fail":
            self.failed[name] += 1
            rung = min(self.failed[name], len(exercise.hints))
            verdict = replace(verdict, hint=exercise.hints[rung - 1])
        elif verdict.passed:
            del self.failed[name]
        self.show(report(exercise, verdict, failed_seed, self.failed[name]))
        return verdict

    def _find(self, name: object) -> tuple[Exercise | None, str]:
        if type(name) is not str:
            return None, f'the name comes first: check("01.top_p", top_p_filter), got {kind(name)}'
        try:
            return self.find(name), ""
        except LookupError as error:
            return None, clean(str(error.args[0]))


check = SelfCheck()


def require(name: str, function: object, seed: int) -> None:
    """Raises where an answer is wrong: for test cells that a grader of another kind runs.

    Raises:
        AssertionError: the answer is wrong, or not written; says why.
        LookupError: there is no such exercise.
    """
    verdict, _ = examine_here(catalogue.find(name), function, (seed,))
    if not verdict.passed:
        raise AssertionError(f"{name}: {verdict.reason}")


def inputs(name: str, case: str, seed: int = 0) -> dict[str, Any]:
    """The arguments of one case, to look at or to call an answer with: `top_p_filter(**inputs(...))`.

    Raises:
        LookupError: there is no such exercise, or no such case of it.
    """
    drawn = {found.label: found for found in catalogue.find(name).cases(random.Random(seed))}
    if case not in drawn:
        raise LookupError(f"there is no case {case!r} of {name}; the cases are {', '.join(drawn)}")
    return arguments_of(drawn[case], dict(drawn[case].oracles))


def examine_here(exercise: Exercise, function: object, seeds: tuple[int, ...]) -> tuple[Verdict, int]:
    """The verdict over all seeds, or the first that is no pass, and its seed."""
    if function is None or function is Ellipsis:
        return Verdict("not written", reason="not written yet"), seeds[0]
    if not callable(function):
        reason = f"the answer: {exercise.function} must be a function, got {show(function)}"
        return Verdict("fail", "the answer", reason), seeds[0]
    call, source, run = call_in_process(function), source_of(function), 0
    for seed in seeds:
        verdict = examine(exercise, seed, call, source)
        run += verdict.cases_run
        if not verdict.passed:
            break
    return replace(verdict, cases_run=run), seed


def source_of(function: object) -> str:
    """What defines a function, empty where that cannot be known."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except Exception:  # the object is the student's: anything may happen
        return ""


def call_in_process(function: Callable) -> Callable[[Case], Answer]:
    """Puts cases to a function of this process; the notebook's stop button ends it at any time."""

    def call(case: Case) -> Answer:
        counts = counted(case)
        oracles = {name: _objecting(oracle) for name, oracle in counts.items()}
        given = {name: copy.deepcopy(value) for name, value in case.arguments.items()}
        started = time.perf_counter()
        seen = observe(function, given, oracles)
        seconds = time.perf_counter() - started
        if isinstance(seen.raised, KeyboardInterrupt):
            raise seen.raised
        error = None if seen.raised is None else _failure(seen.raised, function)
        calls = {name: oracle.calls for name, oracle in counts.items()}
        return Answer(seen.value, error, seen.operations, seen.mutated, seen.aliased, calls, seconds)

    return call


def _objecting(oracle: Callable) -> Callable:
    """The same function, with its objections as a student's process has them."""

    def asked(*arguments, **options):
        try:
            return oracle(*arguments, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(str(error)) from None

    return asked


def _failure(error: BaseException, function: Callable) -> Failure:
    code = getattr(function, "__code__", None)
    text, line = replay.shown(error, code.co_filename if code else "<")
    return Failure("raised", clean(f"{text} (line {line})" if line else text))


def report(exercise: Exercise, verdict: Verdict, seed: int, attempts: int) -> Report:
    """What a student is shown."""
    if verdict.passed:
        points = f"{exercise.points} {'point' if exercise.points == 1 else 'points'}"
        return Report("pass", f"✓ {exercise.name} passed: {points}, {verdict.cases_run} cases", {})
    if verdict.status == "not written":
        worth = f"{exercise.points} points, about {exercise.minutes} minutes"
        return Report("not written", f"○ {exercise.name} is not written yet: {worth}", {})
    lines = {"got": verdict.got, "expected": verdict.expected, "called with": verdict.given}
    if verdict.case:
        lines["inputs"] = f'selfcheck.inputs("{exercise.name}", "{verdict.case}", seed={seed})'
    rungs = len(exercise.hints)
    lines["hint"] = f"{verdict.hint} ({min(attempts, rungs)} of {rungs})"
    lines = {name: text for name, text in lines.items() if text}
    return Report("fail", f"✗ {exercise.name} failed at {verdict.reason}", lines)
