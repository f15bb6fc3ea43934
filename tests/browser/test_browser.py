"""Where there is no browser that runs, its tests are skipped with a reason, and nbval runs the chapters."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.browser import browser
from tests.browser.browser import run_twice

CHAPTER, SOLUTION = Path("notebooks/01.ipynb"), Path("solutions/01.ipynb")


class IPyNbCell(SimpleNamespace):
    """As nbval names what it collects."""


def test_without_playwright_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda name: None)
    assert browser.installed.__wrapped__() == ("", "playwright is not installed")


@pytest.fixture
def items():
    test = Path("tests/browser/test_chapters.py")
    cells = [IPyNbCell(path=path, name=f"Cell {i}") for path in (CHAPTER, SOLUTION) for i in range(2)]
    in_browser = SimpleNamespace(path=test, callspec=SimpleNamespace(params={"chapter": CHAPTER}))
    other = SimpleNamespace(path=Path("tests/test_model.py"))
    return [*cells, in_browser, other]


def test_a_chapter_that_runs_in_the_browser_runs_only_there(items):
    assert [(cell.path, cell.name) for cell in run_twice(items, "chromium")] == [
        (CHAPTER, "Cell 0"),
        (CHAPTER, "Cell 1"),
    ]


def test_nbval_runs_a_chapter_that_no_browser_runs(items):
    assert run_twice(items, "") == []
    unasked = [item for item in items if not hasattr(item, "callspec")]  # as after `-k`
    assert run_twice(unasked, "chromium") == []
