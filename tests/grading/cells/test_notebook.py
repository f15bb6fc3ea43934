"""A notebook is read whatever its dialect, or refused in one clear line."""

import json
import os

import nbformat
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcourse.grading.cells import notebook
from llmcourse.grading.cells.notebook import MAX_CELLS, MAX_NESTING, Unreadable, read
from tests.grading.handed_in import book, cell


def refusal(data) -> str:
    with pytest.raises(Unreadable) as caught:
        read(data)
    message = str(caught.value)
    assert message.isprintable() and message.startswith("the notebook ") and len(message) < 300
    return message


def test_cells_carry_what_grading_needs():
    data = book(
        cell("# Title", kind="markdown"),
        cell("import torch", "01-setup", locked=True),
        cell(["a = 1\n", "b = 2"], demo=True),
        cell("plain", kind="raw"),
    )
    cells = read(data).cells
    assert [c.index for c in cells] == [0, 1, 2, 3]
    assert [c.kind for c in cells] == ["markdown", "code", "code", "raw"]
    assert [c.grade_id for c in cells] == [None, "01-setup", None, None]
    assert [c.locked for c in cells] == [False, True, False, False]
    assert [c.demo for c in cells] == [False, False, True, False]
    assert cells[2].source == "a = 1\nb = 2"
    assert read(data).flags == ()


def test_what_nbformat_writes_is_read():
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 'é 😀'")])
    assert [c.source for c in read(nbformat.writes(made).encode()).cells] == ["x = 'é 😀'"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_and_byte_order_marks(encoding):
    data = json.dumps(json.loads(book(cell("x = 'é'"))), ensure_ascii=False).encode(encoding)
    assert read(data).cells[0].source == "x = 'é'"


def test_line_ends_of_other_systems():
    data = book(cell("a\r\nb\rc\n")).replace(b", ", b",\r\n")
    assert read(data).cells[0].source == "a\nb\nc\n"


@pytest.mark.parametrize("minor", [0, 4, 5, 99])
def test_bare_cells_unknown_keys_and_nan_do_not_matter(minor):
    bare = {"cell_type": "code", "source": "x", "surprise": {"deep": [1]}}
    data = book(bare, nbformat_minor=minor, extra=float("nan"), more=float("inf"))
    assert read(data.replace(b'"metadata": {}, ', b"")).cells[0].source == "x"


@pytest.mark.parametrize(
    "metadata",
    [
        *(None, [], "x", {"nbgrader": 3}),
        {"nbgrader": {"grade_id": 7, "locked": "yes"}, "tags": "demo"},
        {"nbgrader": {"grade_id": "x" * 101}, "tags": {"demo": 1}},
        {"nbgrader": {"grade_id": ""}},
    ],
)
def test_metadata_of_another_form_is_none(metadata):
    found = read(book({"cell_type": "code", "source": "x", "metadata": metadata})).cells[0]
    assert (found.grade_id, found.locked, found.demo) == (None, False, False)


def test_halves_of_characters_are_replaced_and_flagged():
    found = read(book(cell("x = '\ud800'"), cell("y = '\ud83d\ude00'")))
    assert [c.source for c in found.cells] == ["x = '?'", "y = '😀'"]
    assert len(found.flags) == 1 and found.flags[0].startswith("cell 1 ")


def test_a_missing_format_is_read_and_flagged():
    found = read(json.dumps({"cells": [cell("x")]}).encode())
    assert len(found.cells) == 1 and len(found.flags) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xff\xd8\xff\xe0 a picture", "not text in UTF-8"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"[]", "no notebook"),
        (b"null", "no notebook"),
        (b'"abc"', "no notebook"),
        (b"{", "not JSON"),
        (book(cell("x"))[:-20], "not JSON"),
        (b'{"nbformat": 4}', "no list of cells"),
        (book(nbformat=3), "format 3; open it in JupyterLab and save it"),
        (json.dumps({"worksheets": [{"cells": []}]}).encode(), "format 3; open it in JupyterLab"),
        (book(nbformat=2), "format 2; open it in JupyterLab"),
        (book(nbformat=5), "format 5; save it as format 4"),
        (book(nbformat="4"), "nbformat must be 4"),
        (book(nbformat=True), "nbformat must be 4"),
        (book(nbformat=10**300), "nbformat must be 4"),
        (b'{"nbformat": ' + b"9" * 5000 + b"}", "not JSON"),
        (book("x"), "cell 1 should be"),
        (book(cell("x"), cell("x", kind="heading")), "cell 2 should be"),
        (book({"cell_type": ["code"], "source": ""}), "cell 1 should be"),
        (book({"cell_type": "code"}), "source is no text: cell 1"),
        (book(cell(["x", 3])), "source is no text: cell 1"),
        (book(cell({"a": "b"})), "source is no text: cell 1"),
    ],
)
def test_what_is_no_notebook_is_named(data, words):
    assert words in refusal(data)


def test_size_cells_and_code_are_bounded(monkeypatch):
    assert len(read(book(*[cell("x")] * MAX_CELLS)).cells) == MAX_CELLS
    assert "2,001 cells" in refusal(book(*[cell("x")] * (MAX_CELLS + 1)))
    assert "MiB of code" in refusal(book(cell("x" * 2**19), cell("y" * (2**19 + 1))))
    assert len(read(book(cell("x" * 2**20), cell("y" * 2**20, kind="markdown"))).cells) == 2
    monkeypatch.setattr(notebook, "MAX_BYTES", 100)
    assert "MiB are read" in refusal(book() + b" " * 100)


def test_values_and_nesting_are_bounded_before_they_exist(monkeypatch):
    def nested(depth):
        return book(deep=None).replace(b"null", b"[" * depth + b"]" * depth)

    assert read(nested(MAX_NESTING - 1)).cells == ()
    assert "nested deeper" in refusal(nested(MAX_NESTING))
    assert "nested deeper" in refusal(b"[" * 500_000)
    assert read(book(text="[" * 500_000)).cells == ()  # in a string they are none
    monkeypatch.setattr(notebook, "MAX_VALUES", 1_000)
    assert "1,000 values" in refusal(book(many=[0] * 1_001))
    assert "1,000 values" in refusal(book(many=[{}] * 400))
    assert "1,000 values" in refusal(b'["' * 5_000)
    assert read(book(text=',{}"\\' * 5_000)).cells == ()


def test_nothing_is_given_to_the_parser_that_is_refused_for_its_size(monkeypatch):
    monkeypatch.setattr(notebook.json, "loads", lambda text: pytest.fail("was parsed"))
    refusal(b"[" * 2_000_000)
    refusal(b'{"":' * 200)


def test_a_file_is_read_but_not_through_a_link(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(book(cell("x")))
    assert read(path) == read(str(path)) == read(path.read_bytes())
    os.symlink(path, tmp_path / "link.ipynb")
    assert "symbolic link" in refusal(tmp_path / "link.ipynb")
    assert "cannot be read" in refusal(tmp_path / "none.ipynb")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["nbgrader", "tags"]), inner, max_size=4)
    ),
    max_leaves=12,
)
CELLS = st.fixed_dictionaries(
    {}, optional={"cell_type": st.just("code") | JSON, "source": st.text() | JSON, "metadata": JSON}
)
BOOKS = st.fixed_dictionaries({}, optional={"nbformat": st.just(4) | JSON, "cells": st.lists(CELLS | JSON)})


@given(BOOKS | JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_notebook_or_unreadable(value):
    _read_or_refuse(json.dumps(value).encode())


@given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 40))
@example(b"\x00\x00\xfe\xff", 0, 0)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_notebook_or_unreadable(garbage, at, dropped):
    whole = book(cell("x = 1", "01-top_p"), cell("text", kind="markdown"))
    _read_or_refuse(garbage)
    _read_or_refuse(whole[:at] + garbage + whole[at + dropped :])


def _read_or_refuse(data):
    try:
        for found in read(data).cells:
            found.source.encode()
    except Unreadable as unreadable:
        assert str(unreadable).isprintable()
