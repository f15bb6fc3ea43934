"""Demonstrations and the table of points: nothing that a student has not written stops a notebook."""

import inspect
import signal
import time
from types import FunctionType

import pytest

from llmcourse.grading import lab_view
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.lab_view import NOTHING_YET, once_written, points_so_far

LAB = "01_decoding"
EXERCISES = catalogue.labs()[LAB]


def answer():
    """Stands for a student's function."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotImplementedError("01.top_p is not written yet"), "01.top_p is not written yet; run"),
        (NotImplementedError(), "answer not written; run"),
        (TypeError("no \x1b[31mcolour"), "of answer: TypeError: no "),
        (AssertionError(), "of answer: AssertionError: "),
    ],
)
def test_what_an_answer_raises_is_told_in_a_line(capsys, error, said):
    with once_written(answer):
        raise error
    out = capsys.readouterr().out
    assert out.startswith(NOTHING_YET) and said in out
    assert out.count("\n") == 1 and "\x1b" not in out


def test_what_works_is_shown_and_a_stop_is_a_stop(capsys):
    with once_written(answer):
        print("a text")
    assert capsys.readouterr().out == "a text\n"
    with pytest.raises(KeyboardInterrupt), once_written(answer):
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of a process's own here")
def test_what_takes_too_long_is_ended(monkeypatch, capsys):
    monkeypatch.setattr(lab_view, "LIMIT_S", 0.1)
    given_up = time.monotonic() + 30
    with once_written(answer):
        while time.monotonic() < given_up:
            pass
    assert capsys.readouterr().out == f"{NOTHING_YET} of answer: ended after 0.1 s; does a loop never end?\n"


def test_no_more_is_printed_than_somebody_would_read(capsys):
    with once_written(answer):
        for number in range(3000):
            print("line", number)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["line 0", "line 1"] and len(lines) == 31
    assert lines[-1] == "… and 2,970 more lines"


def as_written_here(function):
    """As if a notebook had it: the course's own functions are no answers."""
    bare = inspect.unwrap(function)  # of what checks shapes
    return FunctionType(bare.__code__, {**bare.__globals__, "__name__": "__main__"})


def test_points_are_those_of_the_answers_as_they_stand():
    right = {exercise.function: as_written_here(exercise.reference) for exercise in EXERCISES}
    assert points_so_far(LAB, right).total == (100, 100)
    first, second, *_ = EXERCISES
    names = {first.function: right[first.function], second.function: lambda *arguments, **named: None}
    table = points_so_far(LAB, names)
    assert table.total == (first.points, 100)
    states = [state for _, _, state, _, _ in table.rows]
    assert states == ["✓ passed", "✗ failed", *["○ not written"] * (len(EXERCISES) - 2)]


def test_the_table_reads_the_same_as_text_and_as_a_page():
    table = points_so_far(LAB, {})
    assert len(repr(table).splitlines()) == len(EXERCISES) + 1
    for shown in (repr(table), table._repr_html_()):
        assert all(exercise.name in shown for exercise in EXERCISES) and "0 of 100" in shown


def test_an_unknown_lab_is_named():
    with pytest.raises(LookupError, match="99_nothing"):
        points_so_far("99_nothing", {})
