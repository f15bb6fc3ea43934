"""Whether the attacks are worth anything: all of the list are there, and without walls they succeed."""

import importlib
import os
import re
import tempfile
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from llmcourse.grading import assembly
from llmcourse.grading.exercises import catalogue as exercises
from llmcourse.grading.intake.submissions import Submission, collect
from llmcourse.grading.judge import grade
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.sandbox.policy import Tier
from llmcourse.grading.selfcheck import SelfCheck
from tests.grading.attacks import imitating, spying
from tests.grading.attacks.attack import LAB, Places, Scene, answered
from tests.grading.attacks.catalogue import ATTACKS, BY_NAME, ON_BATCHES, ROWS, attacks_of, outcomes
from tests.grading.attacks.grading import honest_book, marked, places
from tests.grading.handed_in import entry, zipped

# What these do when nothing stops them harms nobody but this test's own folders.
SUCCEED = {
    "10-forks": r"BREACH: fork",
    "18-hidden-tests": r"BREACH: open .*top_k\.py",
    "20-gradebook": r"BREACH: read .*gradebook\.sqlite",
}


def judged(*exercises):
    """The lab, with these exercises only."""
    lab = assembly.judged_lab(LAB)
    return replace(lab, exercises=tuple(e for e in lab.exercises if e.name in exercises))


def test_the_list_has_45_rows():
    assert list(ROWS) == list(range(1, 46))
    assert len({title for title, _ in ROWS.values()}) == 45
    assert {number for attack in ATTACKS for number in attack.numbers} <= set(ROWS)
    assert len(BY_NAME) == len(ATTACKS)


@pytest.mark.parametrize("number", ROWS, ids=lambda number: f"{number} {ROWS[number][0]}")
def test_a_row_is_attacked_and_what_must_come_of_it_is_demanded(number):
    demanded = set().union(*map(outcomes, attacks_of(number)))
    assert set(ROWS[number][1]) <= demanded
    if number in ON_BATCHES:
        module, name = ON_BATCHES[number]
        assert callable(attrgetter(name)(importlib.import_module(f"tests.grading.attacks.{module}")))
    else:
        assert demanded


def test_every_attack_demands_that_something_comes_of_it():
    """Points that are lost go with a reason, a rejection too; a known limit says what it gets points for."""
    for attack in ATTACKS:
        assert outcomes(attack) or attack.passes, attack.name
        assert all([*attack.zero.values(), *attack.flags]), attack.name
        assert bool(attack.reason) == (attack.status == "rejected"), attack.name


def test_what_is_looked_for_is_there():
    """A file that had another name by now would never be found, whatever the walls."""
    where = Places(*map(Path, ("submissions", "out", "home", "temporary", "canaries")))
    named = re.findall(r'"(<<(?:package|repository)>>/[^"<{]+\.\w+)"', spying.HIDDEN_TESTS)
    assert len(named) == 10
    assert [path for path in map(where.filled_in, named) if not os.path.exists(path)] == []


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the fork server is Linux's")
def test_without_walls_attacks_succeed():
    """The same submissions, trusted: then they read and write, and the suite would see it."""
    lab = judged("01.top_k")
    with places(None) as where, Nursery(Tier.NONE) as nursery:
        where.out.mkdir()
        (where.out / "gradebook.sqlite").write_bytes(b"SQLite format 3\0")
        for name, pattern in SUCCEED.items():
            attack = BY_NAME[name]
            attack.place(Scene(honest_book(), where, name))
            data = (where.submissions / f"{name}.ipynb").read_bytes()
            result = grade(Submission.of(name, data), lab, nursery, b"secret")
            (question,) = result.questions
            assert re.search(pattern, question.reason), question
            with pytest.raises(AssertionError):
                assert not re.search("BREACH", question.reason)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the fork server is Linux's")
def test_a_daemon_is_gone_even_without_walls(monkeypatch):
    """11: where it can be started, it is found and ended."""
    lab = judged("01.top_k")
    with places(None) as where:
        mark = str(where.temporary).encode()
        monkeypatch.setattr(tempfile, "tempdir", str(where.temporary))
        attack = BY_NAME["11-daemon"]
        attack.place(Scene(honest_book(), where, attack.name))
        data = (where.submissions / f"{attack.name}.ipynb").read_bytes()
        with Nursery(Tier.NONE) as nursery:
            result = grade(Submission.of(attack.name, data), lab, nursery, b"secret")
            assert [question.status for question in result.questions] == ["pass"]
            assert (where.canaries / "daemon").exists()  # it ran
            assert len(marked(mark)) == 1  # the fork server
        assert marked(mark) == []


def test_the_visible_cases_are_all_that_is_checked_in_the_notebook():
    """28: the hard-coded answers pass `check`, so that it is fresh inputs that find them out."""
    namespace = {}
    exec("import torch\n" + answered("01.top_k", imitating.visible_cases()), namespace)
    assert SelfCheck(show=lambda report: None)("01.top_k", namespace["top_k_filter"]).passed


def test_an_archive_of_all_submissions_cannot_reach_out(tmp_path):
    """35: the traps of archives, in the one that an instructor downloads."""
    archive = tmp_path / "all.zip"
    names = (
        "../../x/01_decoding.ipynb",
        "/tmp/attack-left.ipynb",
        "a/../../b.ipynb",
        "..\\c.ipynb",
        "ann.ipynb",
    )
    archive.write_bytes(zipped({entry(name): b"{}" for name in names}))
    found = collect(archive, LAB)
    assert sorted(s.student for s in found if not s.problem) == ["ann"]
    assert len([s for s in found if s.problem]) == len(names) - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip"]


def test_exercises_are_those_that_are_attacked():
    known = {exercise.name for exercise in exercises.labs()[LAB]}
    assert {name for attack in ATTACKS for name in (*attack.zero, *attack.passes)} <= known
