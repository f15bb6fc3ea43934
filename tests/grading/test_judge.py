"""From a notebook to points: what pays, what does not, and what one cell may cost another."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llmcourse.grading import assembly, judge, names_used, sitting, slips
from llmcourse.grading.intake.submissions import Submission
from llmcourse.grading.process.nursery import MachineryError, Nursery
from llmcourse.grading.results import Finding
from llmcourse.grading.sandbox.policy import available_tier

ROOT = Path(__file__).resolve().parents[2]
SOLUTION = json.loads((ROOT / "solutions" / "01_decoding.ipynb").read_text(encoding="utf-8"))
SECRET = b"known to nobody"


@pytest.fixture(scope="module")
def lab():
    return assembly.judged_lab("01_decoding")


@pytest.fixture(scope="module")
def nursery():
    with Nursery(available_tier()[0]) as nursery:
        yield nursery


def submission(changes=()):
    """The solution, with other sources for the cells of some exercises."""
    book = json.loads(json.dumps(SOLUTION))
    for cell in book["cells"]:
        source = "".join(cell["source"])
        for name, changed in dict(changes).items():
            if source.startswith(f"# Exercise {name}\n"):
                cell["source"] = f"# Exercise {name}\n{changed}"
    return Submission.of("alice", json.dumps(book).encode())


def graded(lab, nursery, changes=(), secret=SECRET):
    result = judge.grade(submission(changes), lab, nursery, secret)
    return result, {question.exercise: question for question in result.questions}


def test_the_solution_gets_every_point(lab, nursery):
    result, questions = graded(lab, nursery)
    assert (result.status, result.points, result.max_points) == ("graded", 100, 100)
    assert list(questions) == [exercise.name for exercise in lab.exercises]
    assert not result.flags, "its hidden tests are no edit"


def test_a_wrong_answer_costs_its_own_points_alone(lab, nursery):
    wrong = "def top_k_filter(logits, k):\n    return logits.clone()"
    result, questions = graded(lab, nursery, {"01.top_k": wrong})
    assert questions["01.top_k"].points == 0 and "expected" in questions["01.top_k"].reason
    assert result.points == 100 - questions["01.top_k"].max_points


def test_what_an_answer_failed_with_is_kept_for_its_student(lab, nursery):
    changes = {
        "01.top_k": "def top_k_filter(logits, k):\n    return torch.zeros_like(logits)",
        "01.top_p": "def top_p_filter(logits, p):\n    return logitz",
        "01.contrastive": "def contrastive_scores(expert_logits, amateur_logits, alpha):\n    return None",
    }
    _, questions = graded(lab, nursery, changes)
    wrong, undefined, empty = (questions[name].finding for name in changes)
    assert wrong.given[0].startswith("logits = float32 (1, ") and wrong.given[2].startswith("k = ")
    assert "0, 0" in wrong.got and "-inf" in wrong.expected and wrong.slip == ""
    assert wrong.hint == lab.exercises[2].hints[0]
    assert undefined.slip == slips.NO_NAME and empty.slip == slips.FORM and empty.hint == undefined.hint == ""
    assert questions["01.softmax"].finding == Finding()


def test_an_endless_cell_costs_its_own_points_alone(lab, nursery, monkeypatch):
    monkeypatch.setattr(sitting, "LOAD_LIMIT_S", 1.0)
    result, questions = graded(lab, nursery, {"01.top_k": "while True:\n    pass"})
    assert questions["01.top_k"].points == 0 and "time limit" in questions["01.top_k"].reason
    assert result.points == 100 - questions["01.top_k"].max_points
    assert "left out" in questions["01.beam_search"].flags[0], "its grade says so"


def test_why_a_function_is_missing_is_told(lab, nursery):
    broken = "import notthere\nraise ValueError('early')"
    _, questions = graded(lab, nursery, {"01.top_k": broken})
    reason = questions["01.top_k"].reason
    assert "not written" in reason and "No module named 'notthere'" in reason and "early" in reason


def test_the_machinery_s_failure_is_no_judgement(lab, nursery):
    class Broken(Nursery):
        asked = 0

        def worker(self, cells):
            Broken.asked += 1
            raise MachineryError("the fork server died")

    result, questions = graded(lab, Broken(nursery.tier))
    assert result.status == "error" and Broken.asked == 2 * len(questions)
    assert {(q.status, q.points) for q in questions.values()} == {("error", 0)}
    assert "the fork server died" in questions["01.top_k"].reason


def test_a_failure_of_the_machinery_that_passes_costs_nothing(lab, nursery):
    """The second try is with a new fork server: the old one cannot start a worker any more."""
    few = replace(lab, exercises=tuple(e for e in lab.exercises if e.name == "01.top_k"))
    with nursery.worker([]):  # so that there is a fork server
        pass
    shutil.rmtree(nursery._server._root)
    result, questions = graded(few, nursery)
    assert (result.status, questions["01.top_k"].status) == ("graded", "pass")


def test_seeds_are_the_course_s_own_and_the_file_s():
    assert judge.seeds(b"a", "01.top_k", "f") == judge.seeds(b"a", "01.top_k", "f")
    whose = [
        (b"a", "01.top_k", "f"),
        (b"b", "01.top_k", "f"),
        (b"a", "01.top_p", "f"),
        (b"a", "01.top_k", "g"),
    ]
    drawn = [seed for one in whose for seed in judge.seeds(*one)]
    assert len(set(drawn)) == len(drawn) == 4 * judge.SEEDS


def test_what_does_not_judge_is_there():
    parts = {path.stem for path in Path(judge.__file__).parent.iterdir()}
    assert parts >= judge.NOT_JUDGING


BEFORE = {
    "broken": "for for for",
    "ipython": "x = 1\n%matplotlib inline\ny = 'is it?'",
    "command": "files = !ls",
    "blanks": '"""\n' + " " * 40_000 + 'x\n"""',
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_nothing_hides_a_forbidden_name(lab, nursery, before):
    """Neither broken cells nor IPython's own lines; and none of them takes long."""
    result = with_scipy(lab, nursery, before)
    assert result.points == 0 and "uses scipy" in result.reason and result.seconds < 20


UNREADABLE = {
    "padded": ("#" * 50_001, "50,001 characters long, at most 50,000 are read"),
    "deep": ("x = " + "-" * 45_000 + "1", "nested too deep to be read"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_cell_that_cannot_be_read_is_left_out_and_costs_nothing_else(lab, nursery, name):
    cell, why = UNREADABLE[name]
    result = with_scipy(lab, nursery, cell)
    assert result.points == 0 and "uses scipy" in result.reason
    result = added_before_top_p(lab, nursery, cell)
    assert result.status == "pass" and result.flags == (f"cell left out: {why}",)


def test_an_answer_that_cannot_be_read_gets_no_points_and_says_why(lab, nursery):
    right = next(text for text in map(text_of, SOLUTION["cells"]) if text.startswith("# Exercise 01.top_k\n"))
    for code, passed in ((right.ljust(50_000, "#"), True), (right.ljust(50_001, "#"), False)):
        result, questions = graded(lab, nursery, {"01.top_k": code.split("\n", 1)[1]})
        question = questions["01.top_k"]
        assert (question.status == "pass") == passed and result.points == 100 - 8 * (not passed)
    assert question.reason.startswith(
        "not written yet: cell left out: 50,001 characters long, at most 50,000"
    )


def test_what_lies_beyond_the_most_that_is_read_does_not_run(lab, nursery, monkeypatch):
    monkeypatch.setattr(names_used, "LONGEST_SOURCE", 10_000)
    why = "cell left out: at most 10,000 characters of a notebook are read"
    result = added_before_top_p(lab, nursery, "#" * 9_990)
    assert result.status == "pass" and result.flags == (why,)
    padded = added_before_top_p(lab, nursery, "#", lambda answer: answer.ljust(9_990, "#"))
    assert padded.points == 0 and padded.reason == f"not written yet: {why}"


def text_of(cell):
    return "".join(cell["source"])


def with_scipy(lab, nursery, before):
    """The result of a right answer to 01.top_p that refers to scipy, below another cell."""
    again = "def top_p_filter(logits, p):\n    scipy.special.softmax\n    return held(logits, p)"
    return added_before_top_p(
        lab,
        nursery,
        before,
        lambda answer: f"{answer.replace('def top_p_filter', 'def held')}\nimport scipy.special\n{again}",
    )


def added_before_top_p(lab, nursery, before, change=lambda answer: answer):
    """The result of 01.top_p below another cell, its answer changed."""
    book = json.loads(submission().read())
    place, cell = next(
        (place, cell)
        for place, cell in enumerate(book["cells"])
        if text_of(cell).startswith("# Exercise 01.top_p\n")
    )
    cell["source"] = change(text_of(cell))
    added = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": before}
    book["cells"].insert(place, added)
    result = judge.grade(Submission.of("alice", json.dumps(book).encode()), lab, nursery, SECRET)
    return {question.exercise: question for question in result.questions}["01.top_p"]


def test_what_cannot_be_read_is_rejected_with_its_reason(lab, nursery):
    result = judge.grade(Submission.of("alice", b"no notebook"), lab, nursery, SECRET)
    assert result.status == "rejected" and result.reason and not result.questions


def test_the_version_follows_the_lab_s_text(lab):
    other = replace(lab, text=replace(lab.text, locked={**lab.text.locked, "01-setup": "import math"}))
    assert judge.version(lab) == judge.version(lab) != judge.version(other)
