"""Each chapter in a browser: it opens, runs to its end from the menu, and every control of its views answers.

Pictures of the views, as wide as a window of 1024 pixels leaves them, are kept in `build/screenshots/`.
"""

import pytest

from tests.browser.conftest import CHAPTERS
from tests.browser.lab_page import LabPage
from tests.browser.moves import Mover
from tests.browser.saved_outputs import differences
from tests.browser.view_page import ViewOnPage


def views_of(lab, cells):
    """Each view of a chapter that has run, by the name of its class."""
    kinds = lab.kernel.ask("inside.views()")
    for cell in cells:
        if kind := kinds.get(str(cell.count)):
            yield kind, ViewOnPage(lab, cell.count, cell.index)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_and_its_views_answer(chapter, page, server, screenshots, request):
    lab = LabPage(page, server).open(f"notebooks/{chapter.name}")
    try:
        cells = lab.run_all()
        different = differences(chapter, [cell.outputs for cell in cells], request.session)
        assert not different, "\n".join(different)
        faults = []
        for name, view in views_of(lab, cells):
            view.root.screenshot(path=screenshots / f"{chapter.stem}_{name}.png")
            try:
                assert view.too_wide() == [], f"{name}: wider than the page"
                assert Mover(view, name).move_all()
            except AssertionError as error:  # the other views are looked at all the same
                faults.append(str(error))
        assert not faults, "\n".join(faults)
        assert lab.errors == []
    finally:
        lab.shut_down()
