"""A lab as a student meets it: `make lab LAB=…`, an answer typed in, its check run, the verdict read."""

import pytest

from tests.browser.conftest import ROOT
from tests.browser.lab_page import LabPage
from tests.browser.server import copy_course, serve

LAB, SETUP = "02_kv_cache_and_roofline", "from llmcourse.grading.selfcheck import check"
NAME = "02.linear_costs"
ANSWER = """# Exercise 02.linear_costs
def linear_costs(rows, n_in, n_out, number_bytes):
    flops = {flops} * rows * n_in * n_out
    moved = (rows * n_in + n_in * n_out + rows * n_out) * number_bytes
    return flops, moved, flops / moved
"""


@pytest.fixture
def own_lab(page, chromium, tmp_path):
    """The page that `make lab LAB=…` opens, on the student's own copy."""
    course = copy_course(tmp_path / "course", [])
    with serve(course, tmp_path / "settings", LAB) as server:
        lab = LabPage(page, server)
        page.goto(server.opened)
        yield lab.wait_idle(120)
        lab.shut_down()


def place(lab, beginning):
    return next(cell.index for cell in lab.cells() if cell.source.startswith(beginning))


def checked(lab):
    """Runs the exercise's two cells; what the check shows on the page."""
    lab.run_cell(place(lab, f"# Exercise {NAME}"))
    check = place(lab, f'check("{NAME}"')
    assert lab.run_cell(check).error == ""
    verdict = lab.page.locator(f".jp-Cell[data-windowed-list-index='{check}'] [role=status]")
    verdict.first.wait_for(state="visible")
    return verdict.first.inner_text()


def test_an_answer_is_written_and_checked(own_lab, screenshots):
    lab = own_lab
    assert "my_labs" in lab.page.url
    lab.run_cell(next(cell.index for cell in lab.cells() if SETUP in cell.source))
    at = place(lab, f"# Exercise {NAME}")
    assert "not written" in checked(lab)
    lab.write(at, ANSWER.format(flops=1))
    wrong = checked(lab)
    lab.page.screenshot(path=screenshots / "lab_wrong.png")
    assert wrong.startswith("✗") and "hint" in wrong and "flops" in wrong
    lab.write(at, ANSWER.format(flops=2))
    right = checked(lab)
    lab.page.screenshot(path=screenshots / "lab_right.png")
    assert right.startswith("✓") and "hint" not in right
    assert lab.errors == []
    handed_out = (ROOT / "labs" / f"{LAB}.ipynb").read_bytes()
    assert (lab.server.course / "labs" / f"{LAB}.ipynb").read_bytes() == handed_out
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")
    own = lab.server.course / "my_labs" / f"{LAB}.ipynb"
    assert "flops = 2 * rows" in own.read_text(encoding="utf-8")
