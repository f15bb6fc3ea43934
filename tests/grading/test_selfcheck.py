"""The self-check: one box, in HTML and in plain text, and nothing that a student does stops it."""

import html
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llmcourse.grading import selfcheck
from llmcourse.grading.exercise import Case, Oracle
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.decoding.top_p import top_p_filter
from llmcourse.grading.in_notebook.box import Report
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.question import ExerciseError, Verdict
from llmcourse.grading.selfcheck import NO_LIMIT, PUBLIC_SEEDS, SelfCheck, require

NAME = "01.top_p"
TOP_P = catalogue.find(NAME)
HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\x1b[31m\u202e\n</td>"


def zeros(logits, p):
    return torch.zeros_like(logits)


def stub(logits, p):
    raise NotImplementedError(f"{NAME} is not written yet")


@pytest.fixture
def desk():
    """A check of its own, and the reports that it showed."""
    shown = []
    check = SelfCheck(show=shown.append)
    check.shown = shown
    return check


class Tags(HTMLParser):
    """Which tags and attributes a page has."""

    def __init__(self, page):
        super().__init__()
        self.found = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found |= {tag, *(name for name, _ in attributes)}


def test_a_right_answer_passes_and_says_what_it_is_worth(desk):
    verdict = desk(NAME, top_p_filter)
    assert verdict.passed and isinstance(verdict, Verdict)
    assert verdict.cases_run == 7 * len(PUBLIC_SEEDS)
    (report,) = desk.shown
    assert (report.status, repr(report)) == ("pass", "✓ 01.top_p passed: 12 points, 21 cases")


def test_a_wrong_answer_shows_what_is_wrong_and_with_what(desk):
    verdict = desk(NAME, zeros)
    assert verdict.status == "fail" and verdict.check == "one row"
    text = repr(desk.shown[0])
    assert text.startswith("✗ 01.top_p failed at one row: row 0, token 0: got 0, expected -inf\n")
    for part in ("got ", "expected ", "called with ", "inputs ", "hint "):
        assert f"\n    {part}" in text
    assert verdict.got in text and verdict.expected in text and f"{TOP_P.hints[0]} (1 of 3)" in text


@pytest.mark.parametrize("nothing", [stub, None, ...])
def test_what_is_not_written_is_neutral(desk, nothing):
    verdict = desk(NAME, nothing)
    assert verdict.status == "not written" and not verdict.passed
    assert repr(desk.shown[0]) == "○ 01.top_p is not written yet: 12 points, about 20 minutes"
    assert not desk.wrong[NAME] and desk.shown[0].status == "not written"


def test_what_this_machine_cannot_run_is_said_to_be_so_and_gives_no_points():
    shown = []
    elsewhere = replace(TOP_P, obstacle=lambda: "it needs a GPU")
    verdict = SelfCheck(find=lambda name: elsewhere, show=shown.append)(NAME, top_p_filter)
    assert (verdict.status, verdict.earned, verdict.cases_run) == ("not run", 0, 0)
    later = "the points are given where the lab is graded"
    assert repr(shown[0]) == f"– 01.top_p was not run here: it needs a GPU; {later}"
    assert "<b>–" in shown[0].html()


def test_the_hint_says_more_with_each_failure(desk):
    found = [desk(NAME, zeros).hint for _ in range(5)]
    assert found == [*TOP_P.hints, TOP_P.hints[-1], TOP_P.hints[-1]]
    assert f"{TOP_P.hints[-1]} (3 of 3)" in repr(desk.shown[-1])
    assert desk("01.top_k", lambda logits, k: logits).hint == catalogue.find("01.top_k").hints[0]
    desk(NAME, top_p_filter)
    assert desk(NAME, zeros).hint == TOP_P.hints[0]


def test_an_unwritten_answer_is_no_failure_to_learn_from(desk):
    desk(NAME, stub)
    assert desk(NAME, zeros).hint == TOP_P.hints[0]


def not_defined(logits, p):
    return logitz


def no_return(logits, p):
    top_p_filter(logits, p)


@pytest.mark.parametrize(
    "slip",
    [not_defined, no_return, lambda logits, p: logits.double(), lambda logits: logits, "no function"],
)
def test_a_slip_is_named_and_no_hint_is_used_up(desk, slip):
    for _ in range(3):
        verdict = desk(NAME, slip)
        assert verdict.status == "fail" and verdict.hint == ""
        text = repr(desk.shown[-1])
        assert "\n    hint" not in text and ("\n    slip " in text) is (slip != "no function")
    assert desk(NAME, zeros).hint == TOP_P.hints[0]


def test_a_hint_of_the_check_is_shown_there_and_then_with_the_others(desk):
    def whole_tie(logits, p):
        kept = top_p_filter(logits, p)
        bar = kept.where(kept.isfinite(), torch.inf).amin(-1, keepdim=True)
        return logits.masked_fill(logits < bar, -torch.inf)

    desk(NAME, zeros)
    own = TOP_P.hints_at["a tie at the edge"]
    assert desk(NAME, whole_tie).hint == own and repr(desk.shown[-1]).endswith(own)
    # Those for all begin anew with this mistake, though one of them was shown for another.
    assert desk(NAME, whole_tie).hint == f"{own} {TOP_P.hints[0]}" and "(1 of 3)" in repr(desk.shown[-1])
    assert desk(NAME, zeros).hint == TOP_P.hints[1] and "(2 of 3)" in repr(desk.shown[-1])
    assert desk(NAME, whole_tie).hint == f"{own} {TOP_P.hints[1]}"
    desk(NAME, top_p_filter)
    assert desk(NAME, whole_tie).hint == own


def talks(logits, p):
    for number in range(3000):
        print("mass", number)
    return top_p_filter(logits, p)


def test_what_an_answer_prints_is_shown_in_part(desk, capsys):
    shown = ["mass 0", "mass 1", "mass 2", "mass 3", "mass 4", "… and 2,995 more lines"]
    for function in (talks, lambda logits, p: talks(logits, p) * 0):
        desk(NAME, function)
        lines = re.findall(r"^ +(?:printed +)?((?:mass|…) .*)", repr(desk.shown[-1]), re.MULTILINE)
        assert lines == shown and "\n".join(shown) in desk.shown[-1].html()
    assert capsys.readouterr() == ("", "")
    desk(NAME, top_p_filter)
    assert "printed" not in repr(desk.shown[-1])


def test_the_lines_are_those_of_the_case_that_failed(desk):
    def talks_of_k(logits, k):
        print(f"k is {k}")
        return catalogue.find("01.top_k").reference(logits, k) if k > 1 else logits

    assert desk("01.top_k", talks_of_k).check == "k = 1"
    assert "printed      k is 1\n" in repr(desk.shown[0])


class TestTimeLimit:
    """In seconds that are few enough to wait for."""

    @pytest.fixture
    def hasty(self, desk):
        find = desk.find
        desk.find = lambda name: replace(find(name), time_limit_s=0.1)
        return desk

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of a process's own here")
    def test_an_endless_loop_is_ended_and_said_to_be(self, hasty, capsys):
        def endless(logits, p):
            given_up = time.monotonic() + 30
            while time.monotonic() < given_up:
                print("still here")

        verdict = hasty(NAME, endless)
        assert verdict.reason == "one row: time limit: took more than 0.1 s"
        assert verdict.slip.startswith("an endless loop") and "still here" in repr(hasty.shown[0])
        assert capsys.readouterr() == ("", "") and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert hasty("01.top_k", catalogue.find("01.top_k").reference).passed

    def test_where_there_is_no_limit_it_is_said_once(self, monkeypatch):
        monkeypatch.setattr(selfcheck, "can_limit", lambda: False)
        shown = []
        check = SelfCheck(show=shown.append)
        check(NAME, zeros)
        check(NAME, top_p_filter)
        assert [NO_LIMIT in repr(report) for report in shown] == [True, False]


def test_one_seed_alone(desk):
    assert desk(NAME, top_p_filter, seed=12345).cases_run == 7
    assert "seed=12345" in repr((desk(NAME, zeros, 12345), desk.shown[-1])[1])


@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("01.topp", top_p_filter, "there is no exercise '01.topp'; did you mean 01.top_p"),
        ("top_p", top_p_filter, "there is no exercise 'top_p'; did you mean 01.top_p"),
        (HOSTILE, top_p_filter, "there is no exercise '<script>"),
        (top_p_filter, NAME, 'the name comes first: check("01.top_p", top_p_filter), got a function'),
        (None, None, 'the name comes first: check("01.top_p", top_p_filter), got None'),
        (NAME, 3, "✗ 01.top_p failed at the answer: top_p_filter must be a function, got 3"),
        (NAME, NAME, "✗ 01.top_p failed at the answer: top_p_filter must be a function, got '01.top_p'"),
        (NAME, lambda: 1, "✗ 01.top_p failed at one row: raised: TypeError: "),
        (NAME, torch.nn.Linear, "✗ 01.top_p failed at one row: raised: TypeError: "),
        (NAME, print, "✗ 01.top_p failed at one row: raised: TypeError: "),
    ],
)
def test_mistakes_in_the_call_are_answered(desk, name, function, said):
    verdict = desk(name, function)
    assert verdict.status == "fail" and repr(desk.shown[0]).startswith(said)
    assert "<script" not in desk.shown[0].html()


def raising(error):
    def answer(logits, p):
        raise error

    return answer


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("by\nzero"), "raised: ZeroDivisionError: by zero (line "),
        (SystemExit(3), "raised: SystemExit: 3 (line "),
        (GeneratorExit(), "raised: GeneratorExit (line "),
        (Mute(), "raised: Mute: its message cannot be shown (line "),
        (RecursionError(HOSTILE), "raised: RecursionError: <script>"),
    ],
)
def test_whatever_an_answer_raises_is_told(desk, error, said):
    assert desk(NAME, raising(error)).reason.startswith(f"one row: {said}")
    assert all(line.isprintable() for line in repr(desk.shown[0]).split("\n"))


def test_the_line_is_that_of_the_answer(desk):
    def answer(logits, p):
        first = logits.softmax(-1)
        return first[5000]

    line = answer.__code__.co_firstlineno + 2
    assert desk(NAME, answer).reason.endswith(f"(line {line})")


def test_the_stop_button_stops_and_leaves_nothing_behind(desk):
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        desk(NAME, raising(KeyboardInterrupt()))
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)) == before
    assert _get_current_dispatch_mode() is None and not desk.shown
    assert desk(NAME, zeros).hint == TOP_P.hints[0] and desk(NAME, top_p_filter).passed


def test_a_broken_exercise_is_not_blamed_on_the_student():
    broken = replace(TOP_P, cases=lambda rng: 1 / 0)
    with pytest.raises(ExerciseError, match=r"the cases of exercise 01.top_p raised ZeroDivisionError"):
        SelfCheck(find=lambda name: broken, show=print)(NAME, zeros)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits, p: HOSTILE,
        lambda logits, p: [HOSTILE] * 99,
        lambda logits, p: type(HOSTILE.replace("\n", ""), (), {})(),
        raising(ValueError(HOSTILE)),
    ],
)
def test_what_a_student_writes_is_only_text(desk, answer):
    desk(NAME, answer)
    page, text = desk.shown[0].html(), repr(desk.shown[0])
    assert Tags(page).found == {"div", "b", "table", "tr", "td", "role", "style"}
    assert "script" in page and "<script" not in page and "<img" not in page
    assert "\x1b" not in page + text and "\u202e" not in page + text


def test_every_text_of_a_report_is_escaped():
    report = Report("fail", HOSTILE, {HOSTILE: HOSTILE})
    assert Tags(report.html()).found == {"div", "b", "table", "tr", "td", "role", "style"}
    assert html.escape(HOSTILE) in report.html()


@pytest.mark.parametrize("function", [zeros, stub, top_p_filter])
def test_the_output_is_a_widget_with_html_and_text(desk, function):
    desk(NAME, function)
    bundle = desk.shown[0]._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert bundle["text/plain"] == repr(desk.shown[0]) and bundle["text/html"] == desk.shown[0].html()
    json.dumps(bundle)


def outputs(*cells):
    """What cells of a notebook show, one output each."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    client = NotebookClient(book, kernel_name="python3", timeout=120)
    client.on_comm_open_jupyter_widget = lambda message: None
    client.execute()
    for cell in book.cells:
        if cell.outputs:
            (output,) = cell.outputs
            yield output


def test_a_notebook_shows_one_output_and_goes_on():
    wrong, none = outputs(
        "from llmcourse.grading.selfcheck import check\n\ndef top_p_filter(logits, p):\n    return 1 / 0",
        "check('01.top_p', top_p_filter);",
        "check('01.top_p', None);",
    )
    for output, start in ((wrong, "✗ 01.top_p failed at"), (none, "○ 01.top_p is not")):
        assert output.output_type == "display_data" and output.data["text/plain"].startswith(start)
        assert "application/vnd.jupyter.widget-view+json" in output.data and "text/html" in output.data
    assert "ZeroDivisionError: division by zero (line 4)" in wrong.data["text/plain"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of a process's own here")
def test_a_notebook_is_not_flooded_and_does_not_hang():
    ended, flooded, after = outputs(
        """
from dataclasses import replace
from llmcourse.grading.selfcheck import check
find = check.find
check.find = lambda name: replace(find(name), time_limit_s=0.5)

def endless(logits, p):
    display("before the loop")
    while True:
        pass

def talks(logits, p):
    for n in range(3000):
        display(n)
        print("and", n)
""",
        "check('01.top_p', endless);",
        "check.find = find\ncheck('01.top_p', talks);",
        "display('as ever')",
    )
    assert "time limit: took more than 0.5 s" in ended.data["text/plain"]
    assert "printed      'before the loop'\n" in ended.data["text/plain"]
    assert "… and 5,995 more lines" in flooded.data["text/plain"]
    assert after.data["text/plain"] == "'as ever'"


def test_plain_python_prints_the_text():
    code = (
        "from llmcourse.grading.selfcheck import check, PUBLIC_SEEDS;"
        "print(check('01.top_k', lambda logits, k: logits).status); check('01.top_k', None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("✗ 01.top_k failed at one row: row 0, token 0: got ")
    assert done.stdout.endswith("fail\n○ 01.top_k is not written yet: 8 points, about 10 minutes\n")


def test_require_raises_where_check_shows():
    require(NAME, top_p_filter, 5)
    with pytest.raises(AssertionError, match=r"^01\.top_p: one row: row 0, token 0: got 0, expected -inf$"):
        require(NAME, zeros, 5)
    with pytest.raises(AssertionError, match=r"^01\.top_p: not written yet$"):
        require(NAME, stub, 5)
    with pytest.raises(LookupError, match=r"no exercise 'top_p'"):
        require("top_p", top_p_filter, 5)


def test_inputs_gives_the_case_that_the_report_names(desk):
    given = selfcheck.inputs(NAME, "a tie at the edge", seed=1)
    assert list(given) == ["logits", "p"] and torch.equal(top_p_filter(**given), top_p_filter(**given))
    model = selfcheck.inputs("01.greedy_loop", "the length limit")["logits_of"]
    assert model([0]).shape == model([0, 1]).shape
    with pytest.raises(
        LookupError, match=r"there is no case 'x' of 01\.top_p; the cases are one row, several"
    ):
        selfcheck.inputs(NAME, "x")
    desk(NAME, zeros)
    call = repr(desk.shown[0]).split("\n    inputs")[1].split("\n")[0].strip()
    assert set(eval(call, {"selfcheck": selfcheck})) == {"logits", "p"}


def test_changes_in_place_are_seen_and_the_case_stays_as_it_is():
    def changes(logits, texts, same, row):
        logits[0] = -torch.inf
        texts[0].append(5)
        row.append(print)
        return same

    given = {"logits": torch.zeros(2), "texts": [[1]], "same": torch.full((2,), torch.nan), "row": []}
    case = Case(given, "one")
    answer = InProcess(changes)(case)
    assert answer.mutated == ("logits", "texts", "row") and answer.aliased == ("same",)
    assert case.arguments["texts"] == [[1]] and not case.arguments["logits"].any()


def test_operations_are_those_of_the_answer_not_of_the_model():
    case = catalogue.find("01.greedy_loop").cases(random.Random(0))[0]

    def answer(logits_of, prompt, max_new_tokens, end_token):
        return [int(logits_of(prompt).exp().argmax())]

    found = InProcess(answer)(case)
    assert {"exp", "argmax"} <= set(found.operations) and found.oracle_calls == {"logits_of": 1}
    busy = Case({"model": Oracle("m")}, "one", {"m": lambda: torch.ones(2).cumsum(0)})
    assert "cumsum" not in InProcess(lambda model: model().exp())(busy).operations
    asks_badly = InProcess(lambda logits_of, **rest: logits_of(torch.zeros(1)))(case)
    assert str(asks_badly.error).startswith("raised: ValueError: logits_of must be given a list of token ids")


def test_the_forbidden_is_found_through_a_helper(desk):
    def helper(x):
        return torch.nn.functional.softmax(x, -1)

    assert desk("01.softmax", lambda logits, temperature: helper(logits / temperature)).check == "own work"
    by_source = "def softmax_with_temperature(logits, temperature): return logits.softmax(-1)"
    names = {}
    exec(by_source, names)  # without a source that can be found: what ran tells
    assert desk("01.softmax", names["softmax_with_temperature"]).check in ("own work", "one row")
