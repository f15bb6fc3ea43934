"""Faults planted in a small notebook: each is found by what looks at the chapters."""

import nbformat
import pytest

from tests.browser.lab_page import CellError, LabPage
from tests.browser.moves import Mover
from tests.browser.saved_outputs import differences
from tests.browser.view_page import ViewOnPage

VIEW = """from llmcourse.costs import MODELS
from llmcourse.figures.widgets import MemoryCalculator
from llmcourse.hardware import datasheet
machines = {name: datasheet(name) for name in ("RTX 4090", "H200")}
"""
SOUND = "MemoryCalculator(machines, machine='H200')"
TWINS = "machines = {name: machines['H200'] for name in ('H200', 'its twin')}\n"
DEAF = f"view = {SOUND}; view.refresh = lambda: None; view"
LATE = """view = MemoryCalculator(machines, machine='H200'); refresh, last = view.refresh, view.inputs
def one_behind():
    global last
    shown, last = last, view.inputs
    type(view).inputs = property(lambda self: shown)
    refresh()
    type(view).inputs = inputs
inputs = type(view).inputs
view.refresh = one_behind
view"""
LOUD = "from IPython.display import Javascript, display; display(Javascript('console.error(\\'planted\\')'))"


@pytest.fixture
def lab(page, server):
    return LabPage(page, server)


@pytest.fixture
def planted(lab, server):
    """Opens a notebook of the given cells."""

    def open_notebook(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, server.course / "planted.ipynb")
        return lab.open("planted.ipynb")

    yield open_notebook
    lab.shut_down()


def view_of(lab):
    cell = lab.run_all()[-1]
    return ViewOnPage(lab, cell.count, cell.index)


def test_a_sound_view_passes_also_after_a_restart(planted):
    lab = planted(VIEW + SOUND)
    names = Mover(view_of(lab), "MemoryCalculator").move_all()
    assert len(names) == 7 and {"machine", "batch (rows)"} < set(names)
    lab.restart()
    cell = lab.run_cell(0)
    Mover(ViewOnPage(lab, cell.count, cell.index), "MemoryCalculator").move_all()
    assert lab.errors == []


@pytest.mark.parametrize("fault", [DEAF, LATE], ids=["deaf", "late"])
def test_a_control_that_is_not_followed_is_found(planted, fault, monkeypatch):
    monkeypatch.setattr("tests.browser.view_page.SECONDS", 5)
    mover = Mover(view_of(planted(VIEW + fault)), "MemoryCalculator")
    batch = next(control for control in mover.view.controls() if control.name == "batch (rows)")
    with pytest.raises(AssertionError, match=r"batch \(rows\).*on the page, and by the pure function"):
        mover.move(batch)


def test_a_control_that_changes_nothing_is_found(planted):
    lab = planted(VIEW + TWINS + SOUND)
    mover = Mover(view_of(lab), "MemoryCalculator")
    with pytest.raises(AssertionError, match="'machine': moved, and nothing changes"):
        mover.move(mover.view.controls()[0])


def test_a_list_of_one_entry_is_left_alone(planted):
    lab = planted(VIEW + "view = " + SOUND + "\nview.machine.options = ['H200']\nview")
    names = Mover(view_of(lab), "MemoryCalculator").move_all()
    assert "machine" not in names and len(names) == 6


def test_a_cell_that_raises_is_found(planted):
    with pytest.raises(CellError, match="cell 1: ZeroDivisionError"):
        planted("1", "1 / 0", "2").run_all()


def test_an_error_in_the_console_is_found(planted):
    lab = planted("1", LOUD)
    lab.run_all()
    assert any("planted" in error for error in lab.errors)


def test_another_output_than_the_saved_one_is_found(tmp_path, request):
    saved = [nbformat.v4.new_output("stream", text=text) for text in ("one\n", "two\n")]
    cells = [nbformat.v4.new_code_cell("print()", outputs=[each], execution_count=1) for each in saved]
    cells[1].metadata.tags = ["nbval-check-output"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "saved.ipynb")
    other = [[nbformat.v4.new_output("stream", text="three\n")] for _ in cells]
    (said,) = differences(tmp_path / "saved.ipynb", other, request.session)
    assert said.startswith("Cell 1") and "three" in said
