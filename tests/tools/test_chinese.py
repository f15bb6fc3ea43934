"""The Chinese edition: built from the English cells, each paragraph translated, up to date and faithful."""

import json
import os
import re
import subprocess
import sys

import nbformat
import polib
import pytest

from llmcourse.figures import course_map, language
from llmcourse.grading import labs as released
from llmcourse.grading.exercises import catalogue
from tools import chinese, chinese_books, chinese_checks, labs, notebooks
from tools.chinese_checks import faults, problems

SOURCES = chinese.sources()
IDS = [f"{source.parent.parent.name}/{source.stem}" for source in SOURCES]
LAB = labs.SOLUTIONS / "source" / "01_decoding.py"
CHAPTER = notebooks.NOTEBOOKS / "source" / "01_decoding.py"


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_every_paragraph_is_translated_and_says_what_the_english_says(source):
    found = chinese_checks.problems_of(source)
    assert not found, "\n".join(found)


def entry(msgid: str, msgstr: str, **settings) -> polib.POEntry:
    return polib.POEntry(msgid=msgid, msgstr=msgstr, **settings)


@pytest.mark.parametrize(
    ("english", "translation"),
    [
        ("It keeps $k$ of 12,288 tokens.", "它在 12288 个词元中保留 $k$ 个。"),
        ("See [lab 1](../labs/01.ipynb) and `top_p`.", "参见 `top_p` 与[实验 1](../labs/01.ipynb)。"),
        ("## 1.1 The loop", "## 1.1 循环"),
        ("- one\n- two", "- 一\n- 二"),
        ("A sum of two:\n$$a\n+ b$$", "两者之和：\n$$a + b$$"),
        ("about {{ minutes }} minutes", "约 {{ minutes }} 分钟"),
        ("**Time** about 60 minutes.", "**时间** 约 60 分钟。"),
        ("| a | words |\n|---|---|\n| $x$ | more words |", "| a | 词 |\n|---|---|\n| $x$ | 更多词, 无妨 |"),
        ("Leviathan et al., ICML 2023, arXiv:2211.17192", "Leviathan 等，ICML 2023，arXiv:2211.17192"),
        ("Llama-3-8B, FlashAttention, GPTQ", "Llama-3-8B, FlashAttention, GPTQ"),
        ("It costs 3.5 times as much: `a, b`.", "开销为 3.5 倍：`a, b`。"),
        ("Two of three fall.", "3 个中有 2 个落选。"),
        ("Blocks of\n16. *Predict*: how many?", "块大小为 16。*预测*：多少？"),
        (
            "| symbol | term | 中文 |\n|---|---|---|\n| $v$ | how often it has come in all of it | 次 |",
            "| 符号 | 英文术语 | 中文 |\n|---|---|---|\n| $v$ | how often it has come in all of it | 次 |",
        ),
    ],
)
def test_a_faithful_translation_passes(english, translation):
    assert faults(english, translation) == []


@pytest.mark.parametrize(
    ("english", "translation", "fault"),
    [
        ("Some words here.", "", "is not translated"),
        ("Some words here.", "  \n", "is not translated"),
        ("It keeps $k$ tokens.", "它保留 $K$ 个词元。", r"lacks \$k\$"),
        ("It keeps $k$ tokens.", "它保留 k 个词元。", r"lacks \$k\$"),
        ("It keeps them all.", "它保留 $k$ 个词元。", r"has \$k\$, which the English has not"),
        ("A sum:\n$$a + b$$", "和：\n$$a - b$$", r"lacks \$\$a \+ b\$\$"),
        ("Call `top_p` now.", "现在调用 `top_k`。", "lacks `top_p`"),
        ("See [this](../a.ipynb).", "参见[此处](../b.ipynb)。", r"lacks \.\./a\.ipynb"),
        ("about {{ minutes }} minutes", "约 60 分钟", r"lacks \{\{ minutes \}\}"),
        ("About 60 minutes of it.", "约 50 分钟。", "lacks the number 60"),
        ("It costs 3.5 times as much.", "开销为 3 倍。", r"lacks the number 3\.5"),
        ("These are words of plain English.", "These are words of plain English.", "is not in Chinese"),
        (
            "First. The model reads all of its own text again for each token.",
            "首先。The model reads all of its own text again for each token.",
            "leaves in English: The model reads",
        ),
        ("First, second.", "首先,其次。", "half width after Han: '先,'"),
        ("A sentence here.", "一句话.", "half width"),
        ("A sentence here.", "一句话。。", "has '。。'"),
        ("## 1.1 The loop", "1.1 循环", "other headings"),
        ("- one\n- two", "- 一，二", "other headings, items or rows"),
        ("1. one\n2. two", "1. 一，2，二", "other headings, items or rows"),
        ("10. ten\n11. eleven", "10，十\n11，十一", "other headings, items or rows"),
        ("Both:\n1. one\n2. two", "两者：\n1. 一，2，二", "other headings, items or rows"),
        (
            "| symbol | term |\n|---|---|\n| how often it has come in all of it | a |",
            "| 符号 | 中文 |\n|---|---|\n| how often it has come in all of it | 一 |",
            "leaves in English: how often",
        ),
        (
            "| symbol | term | say |\n|---|---|---|\n| | a | how often it has come in all of it |",
            "| 符号 | 英文术语 | 说 |\n|---|---|---|\n| | a | how often it has come in all of it |",
            "leaves in English: how often",
        ),
    ],
)
def test_a_faulty_translation_is_told(english, translation, fault):
    assert any(re.search(fault, told) for told in faults(english, translation))


def test_new_changed_fuzzy_and_stale_paragraphs_are_told():
    entries = [
        entry("The first words.", "第一句。"),
        entry("The old words.", "旧句。"),
        entry("The third words.", "第三句。", flags=["fuzzy"]),
        entry("Gone long ago.", "早已删去。", obsolete=True),
    ]
    found = problems(["The first words.", "The new words.", "The third words.", "The first words."], entries)
    assert [(block, fault.split(";")[0]) for block, fault in found] == [
        ("The new words.", "is new or changed in English"),
        ("The third words.", "is marked fuzzy"),
        ("The old words.", "is no longer in the English text (stale)"),
    ]


def test_a_problem_names_notebook_and_paragraph(monkeypatch, tmp_path):
    source = tmp_path / "notebooks" / "source" / "01_trial.py"
    (source.parent / "zh").mkdir(parents=True)
    source.write_text("# %% [markdown]\n# # A title\n#\n# Words of the text.\n", encoding="utf-8")
    assert chinese_checks.problems_of(source) == [
        "notebooks/01_trial: has no PO file; run `python -m tools.chinese extract`"
    ]
    chinese.extract(source).save(str(chinese.po_of(source)))
    assert chinese_checks.problems_of(source) == [
        "notebooks/01_trial: “# A title” is not translated",
        "notebooks/01_trial: “Words of the text.” is not translated",
    ]


def test_extracting_keeps_what_is_translated(tmp_path):
    source = tmp_path / "notebooks" / "source" / "01_trial.py"
    (source.parent / "zh").mkdir(parents=True)
    write = lambda *words: source.write_text("# %% [markdown]\n# " + "\n#\n# ".join(words) + "\n")  # noqa: E731
    write("Old words of a sentence.", "Kept words.")
    book = chinese.extract(source)
    book[0].msgstr, book[1].msgstr = "一句旧话。", "保留的词。"
    book.save(str(chinese.po_of(source)))
    write("Old words of the sentence.", "Kept words.", "Another thing altogether!")
    assert [(e.msgid, e.msgstr, e.fuzzy) for e in chinese.extract(source)] == [
        ("Old words of the sentence.", "一句旧话。", True),
        ("Kept words.", "保留的词。", False),
        ("Another thing altogether!", "", False),
    ]


def test_blocks_keep_fenced_code_and_formulas_whole():
    parts = ["a", "```\nb\n\nc\n```", "$$\nd\n\ne\n$$", "f"]
    assert chinese.blocks("\n\n".join(parts)) == parts


def test_a_text_is_translated_block_by_block():
    translated = chinese_books.translate("# A title\n\n$x$\n\nMore words", {"# A title": "# 标题"})
    assert translated == ("# 标题\n\n$x$\n\nMore words", 1)


@pytest.mark.parametrize(
    ("link", "moved"),
    [
        ("../labs/01_decoding.ipynb", "../../labs/zh/01_decoding.ipynb"),
        ("02_kv_cache_and_roofline.ipynb#top", "02_kv_cache_and_roofline.ipynb#top"),
        ("01_decoding.ipynb#1.5-Random-sampling", "01_decoding.ipynb#1.5-随机采样"),
        ("../docs/sampling_explorer.png", "../../docs/sampling_explorer.png"),
        ("../README.md", "../../README.md"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("#top", "#top"),
        ("attachment:a.png", "attachment:a.png"),
    ],
)
def test_links_lead_to_the_chinese_page_or_to_the_same_file(link, moved):
    page = chinese_books.relink(
        f"[a]({link}), ![b]({link})", notebooks.NOTEBOOKS, chinese_books.counterparts()
    )
    assert page == f"[a]({moved}), ![b]({moved})"
    html = chinese_books.relink(f'<img src="{link}">', notebooks.NOTEBOOKS, chinese_books.counterparts())
    assert html == f'<img src="{moved}">'


def test_every_link_of_the_edition_leads_somewhere():
    books = {chinese_books.target_of(source): chinese_books.book_of(source) for source in SOURCES}
    texts = {
        path: "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        for path, book in books.items()
    }
    places = 0
    for page, text in texts.items():
        for _, link in chinese_books.LINK.findall(text):
            if chinese_books.ELSEWHERE.match(link):
                continue
            path, _, place = link.partition("#")
            target = (page.parent / path).resolve()
            assert target in texts or target.exists(), f"{page.name}: {link}"
            if place:
                found = chinese_books.HEADING.findall(texts[target])
                assert place in {heading.strip().replace(" ", "-") for heading in found}, link
                places += 1
    assert places > 15


def test_chapters_have_the_same_title_on_the_map_as_on_their_page():
    for chapter in course_map.read_course():
        source = notebooks.NOTEBOOKS / "source" / f"{chapter.stem}.py"
        title = chinese.translations(source)[f"# Chapter {chapter.number} · {chapter.title}"]
        assert title == f"# 第 {chapter.number} 章 · {language.translated(chapter.title)}"


class Marked(dict):
    """A made-up translation of whatever is asked, for books before they are translated."""

    def __contains__(self, block):
        return chinese.has_words(block)

    def get(self, block, default=None):
        return f"{block} （译）" if block in self else default


def test_a_chapter_has_the_english_code_and_a_note_that_leads_to_it():
    english = notebooks.convert(CHAPTER.read_text(encoding="utf-8"))
    book = chinese_books.book_of(CHAPTER, Marked())
    note, language, *cells = book.cells
    assert "](../01_decoding.ipynb)" in note.source and "没有译文" not in note.source
    assert 'language.use("zh")' in language.source and language.id == "zh-language"
    assert [(c.id, c.cell_type, c.metadata) for c in cells] == [
        (c.id, c.cell_type, c.metadata) for c in english.cells
    ]
    pairs = [(c, e) for c, e in zip(cells, english.cells, strict=True)]
    assert all(
        (c.source == e.source) is (e.cell_type == "code") for c, e in pairs if chinese.has_words(e.source)
    )
    assert "尚有 57 段没有译文" in chinese_books.book_of(CHAPTER, {}).cells[0].source


@pytest.mark.parametrize("source", labs.sources(), ids=lambda source: source.stem)
def test_a_chinese_lab_is_the_english_one_in_all_that_grading_sees(source, tmp_path, monkeypatch):
    monkeypatch.setattr(chinese_books, "target_of", lambda source: tmp_path / "zh" / f"{source.stem}.ipynb")
    monkeypatch.setattr(chinese_books, "translations", lambda source: Marked())
    made = released.read(chinese_books.build(source))
    wanted = released.read(labs.LABS / f"{source.stem}.ipynb")
    note, *cells = made["cells"]
    assert note["cell_type"] == "markdown" and made["metadata"] == wanted["metadata"]
    texts = released.differences({"cells": cells}, wanted)
    assert all(line.endswith(": source") for line in texts)
    code = [(c, w) for c, w in zip(cells, wanted["cells"], strict=True) if w["cell_type"] == "code"]
    assert [c for c, w in code if c != w] == []
    assert len(texts) == sum(c["cell_type"] == "markdown" for c in cells)


def test_a_chinese_lab_gives_no_solution_away(tmp_path, monkeypatch):
    monkeypatch.setattr(chinese_books, "target_of", lambda source: tmp_path / "zh" / f"{source.stem}.ipynb")
    answers = {cell.id: cell.source for cell in nbformat.read(labs.SOLUTIONS / "01_decoding.ipynb", 4).cells}
    hidden = released.cut(answers["01-softmax"])[1]
    secret = max((line for line in hidden if "#" not in line), key=len)
    leaky = {block: f"{block}\n\n{secret.strip()} （译）" for block in chinese.english(LAB)}
    monkeypatch.setattr(chinese_books, "translations", lambda source: leaky)
    with pytest.raises(released.LabError, match="gives away"):
        chinese_books.build(LAB)
    assert not (tmp_path / "zh" / "01_decoding.ipynb").exists()


def test_a_filled_chinese_lab_is_graded_as_the_english_one(tmp_path, monkeypatch):
    monkeypatch.setattr(chinese_books, "target_of", lambda source: tmp_path / "zh" / f"{source.stem}.ipynb")
    monkeypatch.setattr(chinese_books, "translations", lambda source: Marked())
    lab = released.read(chinese_books.build(LAB))
    answers = {cell.id: cell.source for cell in nbformat.read(labs.SOLUTIONS / "01_decoding.ipynb", 4).cells}
    for cell in lab["cells"]:
        if cell["id"] in ("01-softmax", "01-top_k"):
            cell["source"] = answers[cell["id"]]
    (tmp_path / "submitted").mkdir()
    (tmp_path / "submitted" / "李雷.ipynb").write_text(json.dumps(lab, ensure_ascii=False), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "llmcourse",
        "grade",
        "submitted",
        "--lab",
        "01_decoding",
        "--out",
        "grades",
    ]
    command += ["--json", "--quiet", "--i-trust-these-students"]
    environment = os.environ | {"PYTHONPATH": str(labs.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    points = sum(e.points for e in catalogue.labs()["01_decoding"] if e.name in ("01.softmax", "01.top_k"))
    grades = json.loads(done.stdout)["grades"]
    assert grades == [{"student": "李雷", "status": "graded", "points": points, "max": 100.0}]
