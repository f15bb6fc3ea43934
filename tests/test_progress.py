"""Bars: the same items, the time left on standard error, nothing where nobody wants them."""

import sys

import nbformat
import pytest

from llmcourse import timing
from llmcourse.progress import bar
from tools import notebooks


@pytest.fixture
def shown(monkeypatch):
    """As a reader has it: the suite itself shows none."""
    monkeypatch.delenv("TQDM_DISABLE")


@pytest.mark.parametrize("items", [range(3), {"a": 1, "b": 2}.items(), (n for n in range(2))])
def test_items_come_as_they_are(items, shown):
    kept = list(items)
    assert list(bar(kept, "items")) == kept
    assert list(bar(iter(kept), "items", total=len(kept))) == kept


def test_it_says_how_many_are_done_and_when_all_will_be(shown, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bar(None, "texts", total=8, initial=2, unit="text") as moved:
        moved.update(2)
        moved.refresh()
    found = capfd.readouterr().err
    assert "texts:  50%" in found and "4/8 [00:00<" in found and "text/s" in found
    assert found.rstrip(" \r").rpartition("\r")[2] != found  # it is wiped away at the end
    assert found.endswith("\r")


def test_in_a_file_the_end_stays(shown, capfd):
    list(bar(range(8), "texts"))
    assert capfd.readouterr().err.count("\r") == 2, "the begin and the end: each is a line there"


def test_what_is_soon_over_shows_none(shown, capfd):
    list(bar(range(3), "items", after_s=60))
    assert "items" not in capfd.readouterr().err


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_none_is_shown_where_none_is_wanted(shown, capfd, monkeypatch, value):
    list(bar(range(3), "items", shown=False))
    monkeypatch.setenv("TQDM_DISABLE", value)
    list(bar(range(3), "items"))
    assert capfd.readouterr().err == ""


def test_a_long_measurement_shows_one(shown, capfd, monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE_S", 0)
    timing.measure(lambda: None, warmup=1, repeats=2, progress="texts")
    assert "texts" in capfd.readouterr().err
    timing.measure(lambda: None, warmup=1, repeats=2)
    assert capfd.readouterr().err == ""


def test_a_built_notebook_keeps_no_bar(tmp_path, monkeypatch):
    code = "from llmcourse.progress import bar\nfor _ in bar(range(3), 'items'):\n    pass"
    with monkeypatch.context() as patch:
        patch.delenv("TQDM_DISABLE")
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebooks.run(book, tmp_path)
        assert book.cells[0].outputs == []
        patch.setattr(notebooks, "QUIET", {})
        notebooks.run(book, tmp_path)
        (left,) = book.cells[0].outputs  # of what a reader sees, who saves it
        assert left.data == {"text/plain": ""}
        book.cells[0].source = code.replace("pass", "break")
        notebooks.run(book, tmp_path)
        (left,) = book.cells[0].outputs
        assert notebooks.WIDGET_VIEW not in left.data and "items:" in left.data["text/plain"]
