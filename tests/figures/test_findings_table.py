"""The doctor's report as a table."""

from types import SimpleNamespace

import pytest

from llmcourse import doctor
from llmcourse.doctor import Finding
from llmcourse.figures.findings_table import findings_table

FOUND = (
    Finding("machine", "device", "a <laptop>"),
    Finding("packages", "torch", "2.9"),
    Finding("packages", "numpy", "1.0, needs >=1.26", "missing", "run `make lab`"),
    Finding("packages", "tqdm", "4.66"),
)


def test_each_finding_is_a_row_with_its_state_and_remedy():
    table = findings_table(FOUND, "One is missing.")
    assert [row[1] for row in table.rows] == ["device", "torch", "numpy", "tqdm"]
    page = table._repr_html_()
    assert "✗ missing" in page and page.count("✓ here") == 3
    assert "run <code>make lab</code>" in page and "One is missing." in page
    assert "a &lt;laptop&gt;" in page and "<laptop>" not in page
    assert page.count("<b>Packages</b>") == 1
    assert "→ run `make lab`" in repr(table)


def test_what_is_in_order_is_told_in_one_line():
    table = findings_table(FOUND, "", short=("packages",))
    assert [row[1] for row in table.rows] == ["device", "2 of them", "numpy"]
    assert table.rows[1][2] == "torch, tqdm"


def test_backquotes_that_do_not_pair_stay():
    page = findings_table([Finding("a", "b", "c", "note", "a ` and <b>")], "")._repr_html_()
    assert "a ` and &lt;b&gt;" in page


def test_an_unknown_state_is_refused():
    with pytest.raises(ValueError, match="status must be one of ok, note, missing, got 'odd' for x"):
        findings_table([SimpleNamespace(section="a", name="x", value="y", status="odd", remedy="")], "")


def test_the_real_report_fits():
    report = doctor.examine()
    table = findings_table(report.findings, report.verdict)
    assert len(table.rows) == len(report.findings)
