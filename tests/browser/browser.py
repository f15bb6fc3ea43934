"""Which browser the tests use, if any, and what is then left to it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.browser import find_browser

CHAPTER_TEST = "test_chapters.py"
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")  # needed as root, and where /dev/shm is small


@cache
def installed() -> tuple[str, str]:
    """The path of a Chromium that runs, `""` if there is none, and then the reason."""
    if importlib.util.find_spec("playwright") is None:
        return "", "playwright is not installed"
    return find_browser()


@contextmanager
def headless() -> Iterator:
    """Playwright's browser; without one the test is skipped with the reason.

    Inside runs Playwright's event loop, in which other tests of the process cannot begin their own.
    """
    path, reason = installed()
    if not path:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def run_twice(items: list[SimpleNamespace], browser: str) -> list[SimpleNamespace]:
    """The cells that nbval collected of chapters whose one run is in the browser.

    Args:
        items: pytest's, of all tests.
        browser: its path, `""` if there is none.
    """
    chapters = {_chapter(item) for item in items} - {None} if browser else set()
    return [item for item in items if type(item).__name__ == "IPyNbCell" and Path(item.path) in chapters]


def _chapter(item: SimpleNamespace) -> Path | None:
    """The notebook that a test runs in the browser."""
    is_chapter = Path(item.path).name == CHAPTER_TEST and hasattr(item, "callspec")
    return item.callspec.params.get("chapter") if is_chapter else None
