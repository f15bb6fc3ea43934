"""Slides are cut by rule: one idea on each, nothing lost, nothing too long."""

import base64
import re
import struct
import subprocess
import tempfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import exported_pages, page_assets, slide_sizes, slides
from tools.browser import find_browser
from tools.exported_pages import chapters
from tools.slide_sizes import ROOM, height, kind, output_height, own_size, picture_size
from tools.slides import blocks, cut, gist, page, pieces, sentences, slideshow

LONG = "This is a first sentence of a paragraph. " + "Here is another one that says much more. " * 12


def book(*cells):
    return new_notebook(cells=list(cells))


def png(wide, tall):
    """The beginning of a picture's file, which says its size; in base64, as notebooks have it."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", wide, tall, 8, 2, 0, 0, 0)
    return base64.b64encode(head + bytes(24)).decode()


def picture(wide, tall, alt="a picture"):
    """As views leave it: drawn at twice its size, and only its width is said."""
    data = {"image/png": png(2 * wide, 2 * tall), "text/plain": alt}
    return new_output("display_data", data=data, metadata={"image/png": {"width": wide, "alt": alt}})


def printed(lines, letters=20):
    return new_output("stream", name="stdout", text="\n".join(["x" * letters] * lines) + "\n")


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("## A title", "heading"),
        ("| a | b |\n|---|---|", "table"),
        ("- one\n- two", "list"),
        ("1. one", "list"),
        ("$$x$$", "formula"),
        ("```\ncode\n```", "code"),
        ("> said", "quote"),
        ("**Bold** words", "prose"),
        ("$x$ is prose", "prose"),
    ],
)
def test_kinds_of_blocks(block, name):
    assert kind(block) == name


def test_formulas_and_code_with_blank_lines_stay_whole():
    text = "One.\n\n$$a\n\nb$$\n\n```\nc\n\nd\n```\n\nTwo."
    assert blocks(text) == ["One.", "$$a\n\nb$$", "```\nc\n\nd\n```", "Two."]
    assert blocks("$$a$$\n\nb\n\n$$c$$") == ["$$a$$", "b", "$$c$$"]


def test_sentences_end_where_they_do():
    text = "As Fan et al. 2018 say (see 1.5. It matters), $a. B$ holds. `x. Y` too! Is it 3.5? **Yes.** "
    text += "中文。好的。"
    assert sentences(text) == [
        "As Fan et al. 2018 say (see 1.5. It matters), $a. B$ holds.",
        "`x. Y` too!",
        "Is it 3.5?",
        "**Yes.**",
        "中文。",
        "好的。",
    ]
    assert sentences("no end") == ["no end"]


def test_of_long_prose_the_beginning_is_shown_and_all_is_said():
    full = new_code_cell("f()", outputs=[printed(18)])
    (slide,) = cut(book(new_markdown_cell(f"## T\n\n{LONG}"), full))
    shown = slide.cells[0]
    assert shown.source.startswith("This is a first sentence") and len(shown.source) <= slides.PROSE_LETTERS
    assert slide.notes == [LONG.strip()]
    (slide,) = cut(book(new_markdown_cell("## T\n\nShort.")))
    assert slide.notes == []


def test_what_leads_on_to_the_next_block_is_kept():
    assert gist(f"{LONG}And so:").endswith("And so:")
    assert not gist(f"{LONG}And so.").endswith("And so.")


def test_headings_begin_slides_and_a_part_shares_one_with_its_first_section():
    text = "# Part one\n\n## 1.1 First\n\nWords.\n\n### More\n\nWords.\n\n## 1.2 Second\n\nWords."
    found = cut(book(new_markdown_cell(text)))
    assert [(slide.heading, slide.level) for slide in found] == [("Part one", 1), ("1.2 Second", 2)]
    shown = [cell.source for cell in found[0].cells]
    assert shown == ["#### 1.1 First", "Words.", "#### More", "Words."]


def test_a_small_heading_is_that_of_the_slide_that_it_begins():
    full = [new_code_cell("f()", outputs=[printed(14)]) for _ in range(2)]
    found = cut(book(new_markdown_cell("## T"), full[0], new_markdown_cell("### More"), full[1], full[1]))
    assert [(slide.heading, slide.level) for slide in found] == [("T", 2), ("More", 3), ("More", 3)]
    assert not any(cell.source.startswith("#") for slide in found for cell in slide.cells)


def test_long_tables_are_cut_between_rows_with_their_head_again():
    rows = [f"| word {i} | more words |" for i in range(40)]
    table = "\n".join(["| a | b |", "|---|---|", *rows])
    parts = pieces(table)
    assert len(parts) > 1 and all(height(part) <= ROOM for part in parts)
    assert all(part.splitlines()[:2] == ["| a | b |", "|---|---|"] for part in parts)
    assert [row for part in parts for row in part.splitlines()[2:]] == rows
    assert pieces("\n".join(table.splitlines()[:8])) == ["\n".join(table.splitlines()[:8])]


def test_long_lists_are_cut_between_items():
    items = [f"- item {i}\n  that goes on" for i in range(20)]
    parts = pieces("\n".join(items))
    assert len(parts) == 3 and "\n".join(parts) == "\n".join(items)


def test_a_full_slide_goes_on_under_the_same_heading():
    cells = [new_markdown_cell("## T"), *(new_code_cell("f()", outputs=[printed(16)]) for _ in range(3))]
    found = cut(book(*cells))
    assert len(found) > 1 and {slide.heading for slide in found} == {"T"}
    assert [slide.level for slide in found] == [2] + [3] * (len(found) - 1)


def test_slides_of_a_section_are_filled_alike():
    cells = [new_markdown_cell("## T"), *(new_code_cell("f()", outputs=[printed(8)]) for _ in range(4))]
    assert [len(slide.cells) for slide in cut(book(*cells))] == [2, 2], "not three and a nearly empty one"


def test_what_leads_on_with_a_colon_stays_with_what_follows():
    rows = [new_code_cell("f()", outputs=[printed(15)]) for _ in range(2)]
    found = cut(book(new_markdown_cell("## T"), rows[0], new_markdown_cell("And so:"), rows[1]))
    assert [len(slide.cells) for slide in found] == [1, 2]


def test_a_slide_with_room_shows_more_of_its_prose_and_its_code():
    crowded = book(new_markdown_cell(f"## T\n\n{LONG}"), new_code_cell("f()", outputs=[printed(18)]))
    (slide,) = cut(crowded)
    little = slide.cells[0].source
    assert len(little) <= slides.PROSE_LETTERS and "open" not in slide.cells[1].metadata["tags"]
    airy = book(new_markdown_cell(f"## T\n\n{LONG}"), new_code_cell("f()", outputs=[printed(1)]))
    (slide,) = cut(airy)
    assert len(slide.cells[0].source) > len(little) and "open" in slide.cells[1].metadata["tags"]
    assert re.search(r'<details class="code" open(="")?>', page(slideshow([slide]), "x"))
    assert '<details class="code">' in page(slideshow(cut(crowded)), "x")


def test_a_picture_makes_room_for_the_words_beside_it():
    cells = (
        new_markdown_cell("## T\n\nTwo lines of prose."),
        new_code_cell("f()", outputs=[picture(860, 460)]),
    )
    (slide,) = cut(book(*cells))
    size = slide.cells[-1].outputs[0].metadata["image/png"]
    assert 460 <= size["height"] < 540 and size["alt"] == "a picture"
    assert size["width"] / size["height"] == pytest.approx(860 / 460, rel=0.01)
    assert "height" not in cells[1].outputs[0].metadata["image/png"], "the chapter itself is left alone"


@pytest.mark.parametrize(("wide", "tall"), [(860, 811), (860, 420), (860, 187), (300, 900)])
def test_a_picture_is_as_high_as_its_file_says(wide, tall):
    shown = picture(wide, tall)
    assert own_size(shown) == (wide, tall)
    shown.metadata["image/png"]["height"] = 400  # that of another picture
    assert own_size(shown) == (wide, tall)
    size = picture_size(shown)
    assert size[0] / size[1] == pytest.approx(wide / tall) and size[1] <= ROOM
    assert output_height(shown) == pytest.approx(size[1] + 14)


def test_fonts_within_a_view_take_no_room():
    text = "<div>" + "word " * 100 + "</div>"
    plain, dressed = (
        new_output("display_data", data={"text/html": page})
        for page in (text, f"<style>{LONG}</style>{text}")
    )
    assert output_height(plain) == output_height(dressed) < 300


def test_what_is_no_png_is_refused():
    shown = picture(8, 6)
    shown.data["image/png"] = base64.b64encode(b"GIF89a" * 20).decode()
    with pytest.raises(ValueError, match="a saved picture must be a PNG"):
        own_size(shown)


def test_several_pictures_go_onto_several_slides_and_the_code_is_shown_once():
    cell = new_code_cell("f()", outputs=[picture(860, 460), picture(860, 460)])
    found = cut(book(new_markdown_cell("## T"), cell))
    tags = [cell.metadata["tags"] for slide in found for cell in slide.cells]
    assert len(found) == 2 and tags == [["folded"], ["output-alone"]]


def test_long_prints_are_shortened_and_wide_ones_small():
    cell = new_code_cell("f()", outputs=[printed(60, 118)])
    (slide,) = cut(book(new_markdown_cell("## T"), cell))
    (shown,) = slide.cells
    assert shown.outputs[0].text.splitlines()[-1] == "…" and "wide" in shown.metadata["tags"]
    assert len(shown.outputs[0].text.splitlines()) == slides.MAX_PRINTED
    assert len(cell.outputs[0].text.splitlines()) == 60


def test_code_without_output_is_shown():
    (slide,) = cut(book(new_markdown_cell("## T"), new_code_cell("def f(): ...")))
    assert "folded" not in slide.cells[0].metadata.get("tags", [])


@pytest.mark.parametrize(
    "question", ["Which? *Predict*: a or b?", "Commit yourself: how many?", "*预测*哪个"]
)
def test_an_answer_is_not_shown_with_the_question(question):
    asks = new_markdown_cell(f"## T\n\n{question}")
    cells = [new_code_cell("def f(): ..."), *(new_code_cell("f()", outputs=[printed(2)]) for _ in range(2))]
    made = slideshow(cut(book(asks, *cells, new_markdown_cell("So it is."))))
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in made.cells]
    assert kinds == ["slide", "-", "-", "fragment", "-", "-"]
    text = page(made, "x")
    assert text.count('class="fragment"') == 1 and text.index('class="fragment"') < text.index("So it is.")
    (slide,) = cut(book(new_markdown_cell("## T\n\nWords."), cells[1]))
    assert "fragment" not in str(slideshow([slide]).cells)


def test_a_question_late_in_a_paragraph_is_shown():
    shown = gist(f"{LONG}*Predict*: which is it? And why?")
    assert shown.startswith("This is a first sentence")
    assert shown.endswith("says much more. … *Predict*: which is it? And why?")
    assert "…" not in gist("One. *Predict*: which is it?")


@pytest.mark.parametrize("path", chapters().values(), ids=chapters())
def test_no_chapter_shows_an_answer_with_its_question(path):
    asked, questions = False, 0
    for cell in slideshow(cut(nbformat.read(path, as_version=4))).cells:
        place = cell.metadata["slideshow"]["slide_type"]
        if place in ("slide", "subslide", "fragment"):
            asked = False
        if cell.cell_type == "markdown" and place != "notes" and slides.ASKS.search(cell.source):
            asked, questions = True, questions + 1
        assert not (asked and cell.get("outputs")), cell.source
    whole = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    blocks_that_ask = [block for source in whole for block in blocks(source) if slides.ASKS.search(block)]
    assert questions == len(blocks_that_ask) >= 3, "every question is on a slide"


def test_the_exporter_is_told_where_slides_begin():
    text = f"# One\n\nWords.\n\n## Two\n\n{LONG * 2}\n\n### Three\n\nWords."
    made = slideshow(cut(book(new_markdown_cell(text))))
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in made.cells]
    assert kinds == ["slide", "-", "slide", "notes", "-", "-", "-"]
    assert len({cell.id for cell in made.cells}) == len(made.cells)
    nbformat.validate(made)


def test_a_page_has_sections_notes_folded_code_and_nothing_from_the_network():
    cells = [
        new_markdown_cell(
            f"# Chapter 1 · A\n\n{LONG}\n\nSee [two](02_b.ipynb#x) and [lab](../labs/01_a.ipynb)."
        ),
        new_code_cell("print(1)", outputs=[picture(800, 300, "bars <of> speeds")]),
    ]
    text = page(slideshow(cut(book(*cells))), "01_a")
    assert text.count('<aside class="notes">') == 1 and text.count('<details class="code">') == 1
    assert 'href="02_b.html"' in text and "../labs" not in text and "lab" in text
    assert 'alt="bars &lt;of&gt; speeds"' in text and "<title>Chapter 1 · A</title>" in text
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert {"reveal/dist/reveal.js", "reveal/dist/reveal.css"} <= set(sources)
    assert [source for source in sources if re.match(r"(https?:)?//", source)] == []
    assert "cdn" not in text.lower().replace("data:image", "")


def test_widgets_are_the_pictures_that_they_left():
    text = page(slideshow(cut(nbformat.read(chapters()["01_decoding"], as_version=4))), "01_decoding")
    assert "widgets.SamplingExplorer" in re.sub(r"<[^>]*>", "", text)
    assert "widget-view" not in text and text.count("<img") >= 8


@pytest.mark.parametrize("path", chapters().values(), ids=chapters())
def test_every_chapter_has_about_one_slide_for_each_two_minutes_and_none_is_crowded(path):
    chapter = nbformat.read(path, as_version=4)
    found = cut(chapter)
    assert 20 <= len(found) <= 64
    assert all(slide.cells for slide in found)
    for slide in found:
        assert slide.used - slide.slack <= ROOM + 1 or len(slide.cells) == 1, slide.heading
        assert slide.used - slide.slack <= 1.2 * ROOM, slide.heading
    assert sum(slide.used < 0.4 * ROOM for slide in found) <= 0.12 * len(found), "few are nearly empty"
    pictures = sum("image/png" in o.get("data", {}) for c in chapter.cells for o in c.get("outputs", ()))
    shown = sum(
        "image/png" in o.get("data", {}) for s in found for c in s.cells for o in c.get("outputs", ())
    )
    assert shown == pictures


@pytest.mark.parametrize("path", chapters().values(), ids=chapters())
def test_pictures_keep_their_shape_and_fit(path):
    """From the page's attributes, and the size that is written in each picture's file."""
    text = page(slideshow(cut(nbformat.read(path, as_version=4))), path.stem)
    drawn = re.findall(r"<img[^>]*data:image/png;base64,[^>]*>", text)
    assert len(drawn) >= 5
    for tag in drawn:
        start = base64.b64decode(re.search(r"base64,([A-Za-z0-9+/]{64})", tag)[1])
        natural = struct.unpack(">II", start[16:24])
        wide, tall = (int(re.search(rf'\b{side}="?(\d+)', tag)[1]) for side in ("width", "height"))
        assert wide / tall == pytest.approx(natural[0] / natural[1], rel=0.01)
        assert wide <= slides.WIDTH - 80 and tall <= 560, "what slides.css lets it have"


def test_no_text_is_set_small():
    css = (exported_pages.TEMPLATES / "course_slides" / "static" / "slides.css").read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", css.replace(".controls", ""))]
    icons = [size for size in sizes if size < slide_sizes.SMALLEST]
    assert len(sizes) > 10 and icons == [6.0], "only the arrows of reveal.js are measured in small letters"
    assert f"max-height: {560}px" in css and "max-width: 100%" in css


def test_chapters_are_those_of_an_edition_without_the_front_page(tmp_path, monkeypatch):
    for name in ("00_start_here", "01_a", "zh/01_a"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(exported_pages, "ROOT", tmp_path)
    assert list(chapters()) == ["01_a"] and chapters("zh")["01_a"].parent.name == "zh"
    with pytest.raises(ValueError, match="EDITION must be a folder of notebooks/ with chapters, got 'fr'"):
        chapters("fr")
    with pytest.raises(ValueError, match="no chapter '02_b'; there are: 01_a"):
        exported_pages.chosen(["02_b"])


def test_an_unknown_chapter_ends_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["slides", "09_nothing"])
    assert slides.main() == 2
    assert capsys.readouterr().err.startswith("error: no chapter '09_nothing'; there are: 01_decoding")


def test_the_command_writes_a_page_for_each_chapter(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slides, "BUILD", tmp_path / "build")
    monkeypatch.setattr(slides, "ROOT", tmp_path)
    monkeypatch.setattr(slides, "provide", lambda assets, into: None)
    monkeypatch.setattr("sys.argv", ["slides", "01_decoding"])
    assert slides.main() == 0
    assert [path.name for path in (tmp_path / "build" / "slides").iterdir()] == ["01_decoding.html"]
    assert re.search(r"build/slides/01_decoding\.html: \d+ slides", capsys.readouterr().out)


@pytest.mark.parametrize("target", ["slides", "handouts"])
def test_make_hands_on_chapters_and_edition(target):
    line = ["make", "-n", target, "CHAPTERS=01_decoding 05_quantization", "EDITION=zh"]
    said = subprocess.run(line, cwd=exported_pages.ROOT, capture_output=True, text=True, check=True).stdout
    assert f"-m tools.{target} 01_decoding 05_quantization --edition zh" in said


BROWSER, NO_BROWSER = find_browser()
WHEELS = [page_assets.BUILD / "wheels" / asset.wheel for asset in (page_assets.REVEAL, page_assets.MATHJAX)]


@pytest.mark.skipif(not BROWSER, reason=NO_BROWSER)
@pytest.mark.skipif(
    not all(w.exists() for w in WHEELS), reason="reveal.js is not here: run `make slides` once"
)
def test_in_a_browser_the_slides_start_and_set_their_formulas(tmp_path):
    page_assets.provide((page_assets.REVEAL, page_assets.MATHJAX), tmp_path)
    text = page(slideshow(cut(nbformat.read(chapters()["02_kv_cache_and_roofline"], as_version=4))), "x")
    (tmp_path / "x.html").write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        line += ["--virtual-time-budget=20000", "--dump-dom", f"{(tmp_path / 'x.html').as_uri()}#/2"]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    shown = re.search(r'<section[^>]*class="present"[^>]*data-ready="yes"', ended.stdout)
    assert ended.returncode == 0 and shown and 'class="MathJax"' in ended.stdout
