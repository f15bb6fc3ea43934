"""Notebooks are what their texts say, and building them is repeatable."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools import notebooks
from tools.notebooks import WIDGET_VIEW, BuildError, build, convert, differences, sources, tidy

TEXT = """\
# %% [markdown]
# # A title

# %% name="first" tags=["nbval-check-output"]
print("out")
1 + 1

# %%
x = 2

# %%
x = 2
"""


def test_every_notebook_is_built_from_its_text():
    assert sources(), "no chapter in notebooks/source"
    stems = {path.stem for path in notebooks.NOTEBOOKS.glob("*.ipynb")}
    assert stems == {source.stem for source in sources()}
    assert [line for source in sources() for line in differences(source)] == []


def test_conversion_is_repeatable_and_keeps_tags_and_names():
    book = convert(TEXT)
    assert book == convert(TEXT)
    assert [cell.cell_type for cell in book.cells] == ["markdown", "code", "code", "code"]
    assert book.cells[1].metadata == {"name": "first", "tags": ["nbval-check-output"]}
    assert book.cells[1].id == "first"
    nbformat.validate(book)


def test_an_edit_leaves_the_other_ids_alone():
    before = [cell.id for cell in convert(TEXT).cells]
    after = [cell.id for cell in convert(TEXT.replace("# A title", "# Another")).cells]
    assert before[1:] == after[1:] and before[0] != after[0]
    assert len(set(before)) == 4  # equal cells are told apart


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source" / "01_trial.py"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_build_runs_the_cells_and_repeats_to_the_byte(source):
    assert differences(source) == ["01_trial.ipynb is not built; run `make notebooks`"]
    first = build(source).read_bytes()
    assert build(source).read_bytes() == first
    book = nbformat.reads(first.decode(), as_version=4)
    assert [cell.execution_count for cell in book.cells[1:]] == [1, 2, 3]
    assert book.cells[1].outputs[0].text == "out\n"
    assert book.cells[1].outputs[1].data["text/plain"] == "2"
    assert book.metadata == notebooks.METADATA
    assert differences(source) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 2\n", "x = 3\n"),
        ("# # A title", "# # B title"),
        ("check", "ignore"),
        ("# %%\n", "# %% [markdown]\n"),
    ],
)
def test_an_edit_on_one_side_is_noticed(source, monkeypatch, old, new):
    monkeypatch.setattr(notebooks, "run", lambda book, folder: None)
    build(source)
    assert differences(source) == []
    source.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    assert differences(source) != []


def test_a_cell_that_raises_stops_the_build_and_keeps_the_old_notebook(source):
    old = source.parent.parent / "01_trial.ipynb"
    old.write_text("old", encoding="utf-8")
    source.write_text(TEXT + "\n# %%\nraise OSError('no such luck')\n", encoding="utf-8")
    with pytest.raises(BuildError, match="no such luck"):
        build(source)
    assert old.read_text(encoding="utf-8") == "old"


def widget(**data):
    return new_output("display_data", data={WIDGET_VIEW: {"model_id": "1"}, "text/plain": "VBox()"} | data)


DOT = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgZGIGAAAOAAfXb+R4AAAAAElFTkSuQmCC"
)


def test_widgets_are_left_out_and_their_pictures_stay():
    picture = new_output("display_data", data={"image/png": DOT, "text/plain": "<Figure>"})
    printed = new_output("stream", name="stdout", text="words")
    beside = new_code_cell("beside", outputs=[printed, picture, widget()])
    within = new_code_cell("within", outputs=[widget(**{"image/png": DOT})])
    tidy(new_notebook(cells=[beside, within]))
    assert beside.outputs == [printed, picture]
    assert within.outputs[0].data == {"image/png": DOT, "text/plain": "VBox()"}


def test_a_widget_without_a_picture_is_refused():
    with pytest.raises(BuildError, match="no static picture in the cell\nexplore"):
        tidy(new_notebook(cells=[new_code_cell("explore", outputs=[widget()])]))
