"""Handouts hold all of a chapter, with contents and links that lead somewhere; browsers print them."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import browser as browser_of_tools
from tools import handouts, page_assets
from tools.exported_pages import chapters
from tools.handouts import PrintError, for_print, page, print_page

TEXT = "# Chapter 1 · A\n\nSee [two](02_b.ipynb), [the web](https://example.org/), [lab](../labs/01_a.ipynb)."
BOOK = new_notebook(
    cells=[
        new_markdown_cell(TEXT),
        new_markdown_cell("# Part one\n\n## 1.1 First & last\n\nWords.\n\n### Small\n\n## 1.2 $x$"),
        new_code_cell("print(1)", outputs=[new_output("stream", name="stdout", text="1\n")]),
    ]
)


def anchors(text):
    return set(re.findall(r'id="([^"]+)"', text))


def test_the_contents_lead_to_the_headings():
    text = page(BOOK, "01_a")
    contents = re.search(r'<nav class="contents">.*?</nav>', text, re.DOTALL)[0]
    assert re.findall(r'<li class="(\w+)">', contents) == ["part", "section", "section"]
    assert "Small" not in contents and "¶" not in contents
    assert set(re.findall(r'href="#([^"]+)"', contents)) <= anchors(text)
    assert text.index("Chapter 1") < text.index('<nav class="contents">') < text.index("Words.")


def test_links_lead_to_pages_and_in_print_to_the_web_or_within():
    text = page(BOOK, "01_a")
    assert 'href="02_b.html"' in text and 'href="https://example.org/"' in text
    assert "../labs" not in text
    printed = for_print(text)
    assert "02_b.html" not in printed and ">two<" not in printed and "two" in printed
    assert 'href="https://example.org/"' in printed and 'href="#1.2-$x$"' in printed


@pytest.mark.parametrize("path", chapters().values(), ids=chapters())
def test_every_chapter_is_there_whole(path):
    book = nbformat.read(path, as_version=4)
    text = page(book, path.stem)
    links = re.findall(r'href="#([^"]+)"', text)
    assert len(links) > 8 and set(links) <= anchors(text)
    pictures = sum("image/png" in o.get("data", {}) for c in book.cells for o in c.get("outputs", ()))
    assert text.count("data:image/png") >= pictures and 'alt="No description' not in text
    assert text.count('class="jp-Cell jp-CodeCell') == sum(c.cell_type == "code" for c in book.cells)
    assert re.findall(r'(?:src|href)="((?:https?:)?//[^"]+)"', text) == []  # nothing is fetched


def test_pictures_and_rows_are_not_cut_but_long_code_and_tables_are_and_pages_are_numbered():
    text = page(BOOK, "01_a")
    whole = {
        part.strip() for part in re.search(r"([^}/]*)\{ break-inside: avoid; \}\n\.jp", text)[1].split(",")
    }
    assert {"img", "tr", "blockquote"} <= whole
    assert not whole & {".highlight", "pre", "table", ".jp-OutputArea-child", ".jp-OutputArea-output"}
    assert not re.search(r"\ntable \{[^}]*break-inside", text)
    assert "pre.short" in whole and handouts.kept_whole("<pre>a\nb</pre>") == '<pre class="short">a\nb</pre>'
    long = "<pre>" + "a" * 9 + "\n</pre><pre>" + "b\n" * 20 + "</pre>"
    assert handouts.kept_whole(long).count('class="short"') == 1
    assert re.search(r"\npre \{ orphans: 4; widows: 4; \}", text), "no line by itself"
    assert 'counter(page) " / " counter(pages)' in text


@pytest.fixture
def browser(tmp_path):
    """A stand-in for a browser: writes down how it was called, and a PDF."""

    def make(body):
        path = tmp_path / "a browser"
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/line"\n{body}\n', encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


WRITES = 'for one in "$@"; do case "$one" in --print-to-pdf=*) printf %s "%PDF-1.4" >"${one#*=}";; esac; done'


def test_a_page_is_printed_whole_or_not_at_all(browser, tmp_path):
    folder = tmp_path / "handouts"
    folder.mkdir()
    pdf = folder / "01_a.pdf"
    print_page(browser(WRITES), "<a href='x'>page</a>", folder, pdf)
    assert pdf.read_bytes() == b"%PDF-1.4" and [path.name for path in folder.iterdir()] == ["01_a.pdf"]
    line = (tmp_path / "line").read_text(encoding="utf-8").splitlines()
    assert "--headless" in line and "--no-pdf-header-footer" in line
    assert line[-1].startswith("file://") and line[-1].endswith("/.01_a.print.html")


@pytest.mark.parametrize(
    ("body", "told"), [("echo broken >&2; exit 3", "failed: broken"), ("exit 0", "wrote no PDF of 01_a")]
)
def test_a_browser_that_fails_leaves_the_old_pdf(browser, tmp_path, body, told):
    folder = tmp_path / "handouts"
    folder.mkdir()
    (folder / "01_a.pdf").write_bytes(b"old")
    with pytest.raises(PrintError, match=told):
        print_page(browser(body), "page", folder, folder / "01_a.pdf")
    assert [path.name for path in folder.iterdir()] == ["01_a.pdf"]
    assert (folder / "01_a.pdf").read_bytes() == b"old"


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(handouts, "BUILD", tmp_path / "build")
    monkeypatch.setattr(handouts, "ROOT", tmp_path)
    monkeypatch.setattr(handouts, "provide", lambda assets, into: None)
    monkeypatch.setattr("sys.argv", ["handouts", "01_decoding"])
    return handouts.main


def test_without_a_browser_there_are_pages_and_a_word(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CHROME", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser_of_tools, "NAMES", ("chromium",))
    assert command() == 0
    assert [path.name for path in (tmp_path / "build" / "handouts").iterdir()] == ["01_decoding.html"]
    assert "No PDF: neither Chromium nor Chrome is found" in capsys.readouterr().out


def test_with_one_there_is_a_pdf_too(command, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("CHROME", browser(WRITES))
    assert command() == 0
    names = sorted(path.name for path in (tmp_path / "build" / "handouts").iterdir())
    assert names == ["01_decoding.html", "01_decoding.pdf"]


def test_what_cannot_be_had_ends_in_a_line(command, monkeypatch, capsys):
    def offline(assets, into):
        raise page_assets.AssetError("mathjax cannot be downloaded")

    monkeypatch.setattr(handouts, "provide", offline)
    assert command() == 2
    assert capsys.readouterr().err.strip() == "error: mathjax cannot be downloaded"
