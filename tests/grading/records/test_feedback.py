"""A student's page says what matters, runs nothing, and is nobody else's."""

import base64
import hashlib
import os
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from llmcourse.grading.records import feedback
from llmcourse.grading.records.adjustments import Adjustment, Row
from llmcourse.grading.records.feedback import file_name, student_page
from llmcourse.grading.results import Finding
from tests.grading.grades import EXERCISES, FOUND, question, result

TAGS = """html head meta title style body section article h1 h2 h3 p ul li span bdi
    dl dt dd div table thead tbody tr th td a br svg rect text""".split()  # noqa: SIM905
SETTINGS = """lang charset http-equiv content name class href role aria-label viewbox width height
    colspan x y fill-opacity text-anchor font-size title""".split()  # noqa: SIM905


class Reader(HTMLParser):
    """The tags, attributes and texts of a page, as a browser takes them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def row(whole=None, adjustments=()):
    return Row(whole or result(), "v1", "2026-01-02T03:04:05+00:00", EXERCISES, tuple(adjustments))


def shown(*rows):
    return Reader(student_page(rows)).text


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<a href='javascript:alert(1)'>x</a>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<!-- ",
    "]]><script>",
    "<plaintext>",
    "&lt;script&gt;",
    "<script\x00>",
    "\x1b[31m<b>red</b>",
    "＜script＞",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_strangers_write_is_text(attack):
    found = Finding((attack, attack), attack, attack, attack, attack)
    failed = question("01.softmax", "fail", attack, [attack], finding=found)
    questions = (failed, question(attack, "pass", attack))
    whole = result(attack, reason=attack, flags=(attack,), questions=questions, lab=attack)
    changes = [Adjustment(None, "add", 1.0, attack, "2026"), Adjustment(attack, "set", 1.0, attack, "2026")]
    for status in ("graded", "rejected", "error"):
        broken = result(attack, status=status, reason=attack, flags=(attack,), lab=attack)
        reader = Reader(student_page([row(whole, changes), row(broken, changes)]))
        assert set(reader.tags) <= set(TAGS)
        assert {name for name, _ in reader.attributes} <= set(SETTINGS)
        assert not [value for _, value in reader.attributes if attack in (value or "")]
        shown = re.sub(r"\x1b\[31m|\x00", "", attack)
        assert reader.text.count(" ".join(shown.split())) > 5


def test_the_policy_forbids_everything_but_the_one_style():
    page = student_page([row()])
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": f"'sha256-{digest}'",
    }
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "style=" not in page and "<script" not in page and "http://" not in page and "https://" not in page


def test_directions_of_writing_do_not_leak():
    page = student_page([row(result("ann\u202egpj.exe", reason="\u2066x", flags=("\u200fy",)))])
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
    assert "<bdi>anngpj.exe</bdi>" in page


def test_points_reasons_and_how_it_was_graded_are_there():
    questions = (
        question("01.softmax"),
        question("01.top_p", "fail", "ties: got 2 tokens, expected 3", ["a forged reply was ignored"]),
        question("01.beam", "not run", "needs a GPU"),
    )
    text = shown(row(result(questions=questions, flags=("edited test restored",), tier="namespace")))
    for part in (
        "ann Lab 01_decoding 2 of 10 points, 5 not graded yet Noted about the notebook: edited test restored",
        "01.softmax passed 2 of 2",
        "01.top_p not passed 0 of 3 ties: got 2 tokens, expected 3 Noted: a forged reply was ignored",
        "01.beam not graded yet – of 5 needs a GPU",
        "graded in isolation (landlock, seccomp, namespaces) at 2026-01-02T03:04:05+00:00; file ab",
    ):
        assert part in text


def test_what_an_answer_failed_with_is_shown_as_check_shows_it():
    failed = question("01.top_p", "fail", "one row: token 0: got 1, expected -inf", finding=FOUND)
    slipped = question("01.beam", "fail", "one row: got None", finding=Finding(got="None", slip="no return"))
    page = student_page([row(result(questions=(question("01.softmax"), failed, slipped)))])
    assert (
        "one row: token 0: got 1, expected -inf called with logits = float32 (1, 3) [[1, 2, 3]] p = 0.5 "
        "got [1, 2, 3] expected [-inf, 2, 3] hint Sort" in Reader(page).text
    )
    assert "one row: got None got None slip no return" in Reader(page).text and page.count("<dl>") == 2


def test_a_drawing_keeps_its_lines():
    drawn = Finding(got="step 0\nslot 0 S1", expected="step 0\nslot 0 S2")
    page = student_page([row(result(questions=(question("01.beam", "fail", "a", finding=drawn),)))])
    assert re.findall(r'<dd class="value"><bdi>(.*?)</bdi></dd>', page) == [
        *("step 0", "slot 0 S1", "step 0", "slot 0 S2")
    ]


def test_what_is_corrected_by_hand_does_not_wait_for_a_machine():
    questions = (question("01.softmax"), question("01.beam", "not run", "needs a GPU"))
    given = [Adjustment("01.beam", "set", 4.0, "run elsewhere", "2026")]
    text = shown(row(result(questions=questions), given))
    assert "01.beam not graded yet 4 of 5 (was 0)" in text and ", 5 not graded yet" not in text


def test_an_instructor_may_keep_inputs_back():
    failed = question("01.top_p", "fail", "one row: token 0: got 1, expected -inf", finding=FOUND)
    text = Reader(student_page([row(result(questions=(failed,)))], inputs=False)).text
    assert "got 1, expected -inf hint Sort" in text and "other inputs: inputs, values and hints" in text
    assert not [part for part in (*FOUND.given, FOUND.got, FOUND.expected, "called with") if part in text]


def test_corrections_are_shown_where_they_count():
    changes = [
        Adjustment("01.beam", "set", 4.0, "right but for a slip", "2026-02-03T00:00:00"),
        Adjustment(None, "add", -1.0, "a day late", "2026-02-04T00:00:00"),
    ]
    text = shown(row(adjustments=changes))
    assert "8 of 10 points Corrected by hand: -1 points (2026-02-04): a day late 01.softmax" in text
    assert "01.beam not passed 4 of 5 (was 0)" in text
    assert "set to 4 points (2026-02-03): right but for a slip" in text


def test_no_grade_is_never_shown_as_0_points():
    rejected = shown(row(result(status="rejected", reason="x.ipynb is no JSON")))
    assert "could not be graded x.ipynb is no JSON" in rejected and "0 of" not in rejected
    failed = shown(row(result(status="error", reason="no memory", questions=())))
    assert "to be graded again The grader failed" in failed and "0 of" not in failed


def test_without_isolation_it_says_so():
    assert "graded without isolation" in shown(row(result(tier="none")))


@pytest.mark.parametrize("student", ["ann", "s1234567", "ann.smith", "a-b_c", "x" * 80])
def test_plain_names_stay(student):
    assert file_name(student) == f"{student}.html"


AWKWARD = [
    *("Ann", "ann", "ANN", "José", "Jose\u0301", "josé", "张伟", "علی", "straße", "STRASSE", "strasse"),
    *("con", "CON", "aux.x", "nul", "com1", "lpt9.txt", ".", "..", "...", ".ann", "ann.", "ann ", " ann"),
    *("a/b", "a\\b", "a:b", "a_b", "a\x00b", "a\nb", "a*b?", "ann~1", "-rf", "", "'; DROP TABLE", "../../x"),
    *("<script>", "शर्मा", "ß", "ss", "ı", "i", "I", "\u212a", "k", "K", "Å", "\u212b", "A\u030a", "\udcff"),
    *("x" * 81, "x" * 82, "X" * 300, "名" * 300, "名" * 301, "e\u0301" * 400, "a\u202eb", "ab"),
]


def test_names_are_safe_on_every_disk():
    for student in AWKWARD:
        name = file_name(student)
        stem = name.removesuffix(".html")
        assert not re.search(r'[/\\:*?"<>|\x00-\x1f\u202e]', name)
        assert not name.startswith((".", " ")) and stem.rstrip(". ") == stem
        assert stem.split(".")[0].lower() not in feedback.DEVICES
        for form in ("NFC", "NFD"):
            assert len(unicodedata.normalize(form, name).encode()) <= 255
    assert "शर्मा" in file_name("शर्मा")


def test_no_two_students_share_a_file():
    def as_disks_see_it(name):
        return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())

    students = set(AWKWARD)
    names = {as_disks_see_it(file_name(student)) for student in students}
    assert len(names) == len(students)


def test_names_can_be_written(tmp_path):
    for student in AWKWARD:
        (tmp_path / file_name(student)).write_text(student, encoding="utf-8", errors="replace")
    assert len(os.listdir(tmp_path)) == len(set(AWKWARD))
