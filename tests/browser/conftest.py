"""A browser, where one is installed, and one JupyterLab for all chapters.

Where a chapter's browser test runs, that is the chapter's one run: it asserts what nbval would, so the cells
that nbval collected of the same notebook are left out. Without a browser, or these tests, nbval runs them.
"""

import re
from pathlib import Path

import pytest

from tests.browser.browser import headless, installed, run_twice
from tests.browser.server import ROOT, copy_course, serve

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "screenshots"
WIDTH, HEIGHT = 1024, 1400  # so high that a whole view is seen at once
MILLISECONDS = 120_000  # for anything that has no limit of its own, on a machine that is busy


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Long tests first, and no chapter twice."""
    mine = [item for item in items if Path(item.path).parent == Path(__file__).parent]
    twice = run_twice(items, installed()[0]) if mine else []
    if twice:
        config.hook.pytest_deselected(items=twice)
    items[:] = [*mine, *(item for item in items if item not in mine and item not in twice)]


@pytest.fixture(scope="module")
def chromium():
    """For a file at a time: see `headless`."""
    with headless() as browser:
        yield browser


@pytest.fixture
def page(chromium):
    """An empty page of a small screen, that forgets everything in the end."""
    context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(MILLISECONDS)
    page = context.new_page()
    page.heard = []
    page.on("console", lambda message: page.heard.append(f"{message.type}: {message.text}"))
    yield page
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that fails with a page open leaves its picture, and says what its console said."""
    report = yield
    page = item.funcargs.get("page") if report.failed and hasattr(item, "funcargs") else None
    if page is not None and not page.is_closed():
        picture = SCREENSHOTS / f"failed_{re.sub(r'[^a-z0-9]+', '_', item.name)}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture)
        report.sections.append((f"Console of the page, pictured in {picture}", "\n".join(page.heard)))
    return report


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    """`make lab` on a copy of the chapters."""
    folder = tmp_path_factory.mktemp("course")
    with serve(copy_course(folder / "course", CHAPTERS), folder / "settings") as running:
        yield running


@pytest.fixture(scope="session")
def screenshots():
    """The folder where pictures of the pages are kept, to be looked at; git ignores it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
