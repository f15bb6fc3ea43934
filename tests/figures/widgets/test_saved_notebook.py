"""A notebook with a view, run headless: what it saves shows a picture where no widget can run."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

CODE = """
from llmcourse import pretrained
from llmcourse.figures.widgets import SamplingExplorer
explorer = SamplingExplorer({{"tiny": pretrained.load({folder!r})}}, "Once upon a time")
explorer
"""


@pytest.fixture(scope="module")
def saved(tiny_checkpoint):
    cells = [nbformat.v4.new_code_cell(CODE.format(folder=str(tiny_checkpoint)))]
    cells.append(nbformat.v4.new_code_cell("explorer.step.click(); explorer.picture"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.on_comm_open_jupyter_widget = lambda message: None
    client.execute()
    return notebook


def test_view_picture_and_words_are_saved_side_by_side(saved):
    (output,) = saved.cells[0].outputs
    assert set(output.data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert output.data["image/png"].startswith("iVBORw0KGgo")
    assert output.data["text/plain"].startswith("tiny, after “Once upon a time”: 300 of 300 tokens kept")


def test_a_figure_alone_is_saved_too(saved):
    (output,) = saved.cells[1].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["image/png"].startswith("iVBORw0KGgo")


def test_a_page_that_cannot_run_widgets_shows_the_picture(saved):
    saved.metadata.pop("widgets", None)
    page, _ = HTMLExporter().from_notebook_node(saved)
    assert page.count("<img") == 2
