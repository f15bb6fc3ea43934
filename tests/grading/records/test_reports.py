"""Tables, details and pages: made from the gradebook at any time, whole, and safe to open."""

import csv
import io
import json
import os
import re
import stat
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from llmcourse.grading.records import overview, reports
from llmcourse.grading.records.gradebook import FILE_NAME, Gradebook
from tests.grading.grades import EXERCISES, FOUND, LAB, question, result
from tests.grading.records.test_feedback import ATTACKS, SETTINGS, TAGS, Reader


@pytest.fixture
def book(tmp_path):
    with Gradebook(tmp_path / FILE_NAME) as book:
        yield book


def table(folder):
    with open(folder / "grades.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def details(folder):
    return json.loads((folder / "grades.json").read_text(encoding="utf-8"))["grades"]


def test_all_reports_say_the_same(book, tmp_path):
    book.record(result("ann"), "v1")
    book.record(result("张伟", passed=tuple(EXERCISES)), "v1")
    book.adjust("ann", LAB, "01.beam", "set", 4.0, "a slip")
    reports.write(book, tmp_path)
    ann, zhang = table(tmp_path)
    assert (ann["student"], ann["lab"], ann["status"], ann["points"]) == ("ann", LAB, "graded", "9.0")
    assert [ann[name] for name in EXERCISES] == ["2.0", "3.0", "4.0"]
    assert ann["adjusted"] == "01.beam: set to 4 points, a slip" and ann["tier"] == "landlock"
    assert zhang["student"] == "张伟" and zhang["points"] == zhang["max_points"] == "10.0"
    first, second = details(tmp_path)
    assert first["points"] == 9.0 and first["adjustments"][0]["reason"] == "a slip"
    beam = first["questions"][2]
    assert (beam["exercise"], beam["points"], beam["adjusted_points"]) == ("01.beam", 0.0, 4.0)
    assert second["student"] == "张伟" and second["sha256"] == "ab" and second["version"] == "v1"
    assert "9 of 10 points" in (tmp_path / "feedback/ann.html").read_text(encoding="utf-8")
    index = Reader((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "ann 9 of 10 ✓ ✓ ✗*" in index.text


def test_inputs_are_on_pages_unless_they_are_hidden(book, tmp_path):
    book.record(result(questions=(question("01.top_p", "fail", "one row: no", finding=FOUND),)), "v1")
    for shown in (True, False, True):
        book.show_inputs(shown)
        reports.write(book, tmp_path)
        page = (tmp_path / "feedback/ann.html").read_text(encoding="utf-8")
        assert (FOUND.given[0] in page) is (FOUND.expected in page) is shown and FOUND.hint in page
    (ann,) = details(tmp_path)
    assert ann["questions"][0]["finding"]["got"] == FOUND.got


def test_excel_is_told_the_encoding(book, tmp_path):
    book.record(result(), "v1")
    reports.write(book, tmp_path)
    data = (tmp_path / "grades.csv").read_bytes()
    assert data.startswith(b'\xef\xbb\xbf"student"') and data.endswith(b"\r\n")


def test_what_has_no_grade_has_empty_cells(book, tmp_path):
    book.record(result("ann"), "v1")
    book.record(result("bob", status="rejected", reason="no JSON"), "v1")
    book.record(result("eve", status="error", questions=()), "v1")
    gpu = (*result().questions[:2], question("01.beam", "not run", "not graded here: no GPU"))
    book.record(result("gil", questions=gpu), "v1")
    reports.write(book, tmp_path)
    _, bob, eve, gil = table(tmp_path)
    for one in (bob, eve):
        assert [one[key] for key in ("points", *EXERCISES)] == [""] * 4
    assert bob["status"] == "rejected" and bob["reason"] == "no JSON" and eve["status"] == "error"
    assert (gil["points"], gil["01.beam"], gil["flags"]) == (("5.0", "", "01.beam: not graded here: no GPU"))
    assert "01.beam: not graded here: no GPU" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [one["points"] for one in details(tmp_path)] == [5.0, None, None, 5.0]


FLAGGED = {"01.softmax": [], "01.top_p": ["forged reply"], "01.beam": ["forged reply"]}

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|'/C calc'!A0", '=HYPERLINK("http://x","y")']
FORMULAS += [
    "＝1+1",
    "＋1",
    "－1",
    "＠SUM",
    "﹦1",
    "\u22121",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u3000=1",
    "\x00=1",
]
FORMULAS += ["\u202e=1", "\ufeff=1", "\u200b=1", "\x1b[31m=1", "\u200d=1", "x;=1", "x; @SUM(A1)", ";;+1"]


def computes(cell):
    """Whether a spreadsheet takes a cell for a formula, or a part of it where `;` separates cells."""
    return any(re.match(r"[\s\u200c\u200d\"]*[=+@\u2212＝＋－＠﹦﹢﹣﹫-]", part) for part in cell.split(";"))


@pytest.mark.parametrize("attack", FORMULAS)
def test_no_cell_is_a_formula(book, tmp_path, attack):
    assert computes(re.sub("[\x00\u202e\ufeff\u200b]|\x1b\\[31m", "", attack))  # the check can fail
    whole = result(attack, reason=attack, flags=(attack,), lab=attack, tier=attack)
    book.record(whole, attack)
    book.record(result("bob", questions=(question(attack, "fail"),), lab=attack), "v1")
    book.adjust(attack, attack, None, "add", -1.0, attack)
    reports.write(book, tmp_path)
    text = (tmp_path / "grades.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    cells = [cell for row in rows for cell in row]
    assert len(rows) == 3 and sum("'" in cell for cell in cells) >= 6
    assert [cell for cell in cells if computes(cell)] == []
    assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_names_in_json_are_exact_and_do_nothing(book, tmp_path):
    names = ["=1+1", "a\u202eb", "a\x1b[2Jb", "a\u200db", "\u2028", "🦜", "a\U000e0041b", "张伟"]
    for name in names:
        book.record(result(name), "v1")
    reports.write(book, tmp_path)
    assert sorted(one["student"] for one in details(tmp_path)) == sorted(names)
    text = (tmp_path / "grades.json").read_text(encoding="utf-8")
    assert not re.search("[\x1b\u202e\u2028\U000e0041]", text) and "张伟" in text and "🦜" in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_overview_shows_what_strangers_write_as_text(book, tmp_path, attack):
    whole = result(
        attack, reason=attack, flags=(attack,), questions=(question(attack, "fail", attack),), lab=attack
    )
    book.record(whole, "v1")
    book.adjust(attack, attack, None, "add", 1.0, attack)
    reports.write(book, tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert set(reader.tags) <= set(TAGS) and {name for name, _ in reader.attributes} <= set(SETTINGS)
    links = [value for name, value in reader.attributes if name == "href"]
    assert len(links) == 1 and re.fullmatch(r"feedback/[\w.%~-]+\.html", links[0])
    assert "default-src 'none'" in page and " style=" not in page


def test_links_lead_to_pages(book, tmp_path):
    from urllib.parse import unquote

    for name in ("ann", "张伟", "Ann B", "100%", "a?b#c"):
        book.record(result(name), "v1")
    reports.write(book, tmp_path)
    reader = Reader((tmp_path / "index.html").read_text(encoding="utf-8"))
    links = [unquote(value) for name, value in reader.attributes if name == "href"]
    assert sorted(links) == sorted(f"feedback/{name}" for name in os.listdir(tmp_path / "feedback"))


def test_the_histogram_counts_every_student():
    drawn = ET.fromstring(overview.histogram([0.0, 0.05, 0.55, 0.95, 1.0, 1.3]))
    bars = [(float(bar.get("height")), bar[0].text) for bar in drawn.iter("rect")]
    assert [title.split(" in ")[0] for _, title in bars] == list("2000010003")
    assert [height for height, _ in bars] == pytest.approx([88.0, 0, 0, 0, 0, 44.0, 0, 0, 0, 132.0])
    assert bars[0][1] == "2 in [0, 10) %" and bars[9][1] == "3 in [90, 100] %"


def test_the_hardest_exercise_comes_first(book):
    book.record(result("ann", passed=("01.softmax", "01.beam")), "v1")
    book.record(result("bob", passed=("01.softmax",)), "v1")
    skipped = (question("01.top_p", "not run"), question("01.softmax"))
    book.record(result("eve", questions=skipped), "v1")
    found = [(judged.exercise, str(judged), judged.share) for judged in overview.hardest(book.rows(LAB))]
    assert found == [("01.top_p", "0 of 2", 0), ("01.beam", "1 of 2", 0.5), ("01.softmax", "3 of 3", 1)]


def test_a_part_of_the_points_is_no_pass(book):
    book.record(result("ann", questions=(replace(question("01.beam"), points=2.5),)), "v1")
    book.record(result("bob", questions=(question("01.beam"),)), "v1")
    page = overview.overview({LAB: book.rows(LAB)})
    assert '<td class="number">1 of 2, 1 in part</td><td class="number">75%</td>' in page


def test_what_is_to_look_at_stands_below_a_student_and_is_said_once(book, tmp_path):
    said = [question(name, "fail", "", ["cell 2: no module x", *own]) for name, own in FLAGGED.items()]
    book.record(result("ann", questions=tuple(said), flags=("an edited test",)), "v1")
    book.record(result("bob"), "v1")
    book.adjust("ann", LAB, None, "add", 1.0, "a good idea")
    reports.write(book, tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    ann, bob = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert [row.count("<td") for row in ann.split("<tr>")[1:]] == [len(EXERCISES) + 2, 1]
    assert f'colspan="{len(EXERCISES) + 2}"' in ann and bob.count("<tr>") == 1
    assert Reader(ann).text == (
        "ann 1 of 10 ✗ ✗ ✗ an edited test 01.softmax and 2 more: cell 2: no module x "
        "01.top_p, 01.beam: forged reply corrected: +1 points, a good idea"
    )


def test_labs_have_sections_of_their_own(book, tmp_path):
    book.record(result("ann"), "v1")
    book.record(result("ann", lab="02_flash", questions=(question("02.tile", max_points=4.0),)), "v1")
    reports.write(book, tmp_path)
    first, second = table(tmp_path)
    assert (first["02.tile"], second["02.tile"], second["01.beam"]) == ("", "4.0", "")
    page = Reader((tmp_path / "feedback/ann.html").read_text(encoding="utf-8")).text
    assert "Lab 01_decoding 5 of 10 points" in page and "Lab 02_flash 4 of 4 points" in page
    assert len(os.listdir(tmp_path / "feedback")) == 1


def test_an_empty_gradebook_gives_empty_reports(book, tmp_path):
    reports.write(book, tmp_path)
    assert table(tmp_path) == [] and details(tmp_path) == []
    assert "Nothing is graded yet" in (tmp_path / "index.html").read_text(encoding="utf-8")


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME}


def test_equal_reports_are_left_alone_and_lost_ones_made_again(book, tmp_path):
    book.record(result(), "v1")
    reports.write(book, tmp_path)
    before, times = contents(tmp_path), {p: p.stat().st_mtime_ns for p in contents(tmp_path)}
    (tmp_path / "index.html").unlink()
    reports.write(book, tmp_path)
    assert contents(tmp_path) == before
    assert [p.name for p in before if p.stat().st_mtime_ns != times[p]] == ["index.html"]


def test_nothing_partial_is_left_or_shown(book, tmp_path, monkeypatch):
    book.record(result(), "v1")
    reports.write(book, tmp_path)
    before = contents(tmp_path)
    (tmp_path / reports.PARTIAL).mkdir()
    (tmp_path / reports.PARTIAL / "draft").write_text("of a grader that was killed")
    book.record(result(passed=()), "v1")

    def fails(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        reports.write(book, tmp_path)
    assert contents(tmp_path) == before and not (tmp_path / reports.PARTIAL).exists()


def test_grades_are_for_their_owner_only(book, tmp_path):
    book.record(result(), "v1")
    reports.write(book, tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in contents(tmp_path)} == {0o600}


def test_the_secret_is_in_no_report(book, tmp_path):
    book.record(result(), "v1")
    reports.write(book, tmp_path)
    forms = (book.secret(), book.secret().hex().encode())
    assert not [path for path, data in contents(tmp_path).items() if any(form in data for form in forms)]
