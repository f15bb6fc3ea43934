"""Builds the Chinese notebooks: the English book cell by cell, its Markdown replaced, its ids kept.

Metadata, ids and code are those of the English book, so a Chinese lab is graded by the same hidden tests.
Two cells come first: a note that says what this is, and the choice of language for figures.
"""

import os
import posixpath
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from llmcourse.grading import labs as released
from llmcourse.grading.exercises import catalogue
from tools import labs, notebooks
from tools.chinese import blocks, has_words, translations

CHINESE = "zh"
LINK = re.compile(r"(\]\(|\bsrc=\"|\bhref=\")([^)\s\"]+)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|/", re.IGNORECASE)  # a scheme, a place on the page, a root
LANGUAGE = (
    'from llmcourse.figures import language\n\nlanguage.use("zh")  # 图表与控件改用中文；"en" 则换回英文'
)
NOTE = (
    "> **中文版** 本页由英文版 [{stem}]({english}) 与译文 `{po}` 自动生成：代码单元与英文版完全相同，"
    "只有文字换成了中文；图表与控件中的文字也译成中文，程序打印的内容与报错保持英文。{gaps}"
    "请不要直接修改本文件：改译文后运行 `make chinese` 即可重新生成。"
)
GAPS = "尚有 {count} 段没有译文，以英文显示。"


def translate(markdown: str, chinese: Mapping[str, str]) -> tuple[str, int]:
    """A Markdown text in Chinese, and how many of its blocks had to stay English."""
    parts = blocks(markdown)
    missing = sum(has_words(part) and part not in chinese for part in parts)
    return "\n\n".join(chinese.get(part, part) for part in parts), missing


def target_of(source: Path) -> Path:
    """Where a Chinese chapter or lab lies: beside the English one, in a folder `zh`."""
    folder = labs.LABS if source.is_relative_to(labs.SOLUTIONS) else notebooks.NOTEBOOKS
    return folder / CHINESE / f"{source.stem}.ipynb"


def relink(markdown: str, folder: Path, known: Mapping[Path, Mapping[str, str]]) -> str:
    """Links that were written for a page in `folder`, as they must be one folder further down.

    Args:
        known: English notebooks that have a Chinese counterpart, and the headings of each in both; a link
            to one leads to the other, and to the same heading there.
    """

    def moved(match: re.Match) -> str:
        before, link = match.groups()
        if ELSEWHERE.match(link):
            return match.group()
        path, mark, place = link.partition("#")
        target = Path(os.path.normpath(folder / path))
        if target in known:
            place = known[target].get(unquote(place), place)
            target = target.parent / CHINESE / target.name
        relative = os.path.relpath(target, folder / CHINESE).replace(os.sep, posixpath.sep)
        return f"{before}{relative}{mark}{place}"

    return LINK.sub(moved, markdown)


def headings(source: Path) -> dict[str, str]:
    """The places on a page that its headings make, the English and the Chinese one of each."""
    found = {}
    for pair in translations(source).items():
        places = ([line.strip().replace(" ", "-") for line in HEADING.findall(text)] for text in pair)
        found |= dict(zip(*places, strict=False))
    return found


@cache
def counterparts() -> dict[Path, dict[str, str]]:
    """The English notebooks of which there is a Chinese one, with their headings."""
    chapters = {notebooks.target_of(source): headings(source) for source in notebooks.sources()}
    return chapters | {labs.LABS / f"{source.stem}.ipynb": headings(source) for source in labs.sources()}


def book_of(source: Path, chinese: Mapping[str, str] | None = None) -> NotebookNode:
    """The Chinese book of a chapter, or of a lab with its solutions still in it; not yet run."""
    chinese = translations(source) if chinese is None else chinese
    text, is_lab = source.read_text(encoding="utf-8"), source.is_relative_to(labs.SOLUTIONS)
    book = labs.book_of(text, catalogue.labs()[source.stem]) if is_lab else notebooks.convert(text)
    folder, known, gaps = target_of(source).parent.parent, counterparts(), 0
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source, missing = translate(cell.source, chinese)
            cell.source = relink(cell.source, folder, known)
            gaps += missing
    po = f"{source.parent.relative_to(labs.ROOT).as_posix()}/zh/{source.stem}.po"
    note = NOTE.format(
        stem=source.stem,
        english=f"../{source.stem}.ipynb",
        po=po,
        gaps=GAPS.format(count=gaps) if gaps else "",
    )
    first = [new_markdown_cell(note, id="zh-note")]
    if any(
        "llmcourse.figures" in c.source or "figures" in c.source for c in book.cells if c.cell_type == "code"
    ):
        first.append(new_code_cell(LANGUAGE, id="zh-language"))
    book.cells[:0] = first
    nbformat.validate(book)
    return book


def build(source: Path, run: bool = False) -> Path:
    """Writes one Chinese notebook; labs by the same release, with its search for leaks, as the English ones.

    Args:
        run: executes a chapter, so that it is saved with outputs; labs have none.

    Raises:
        BuildError: text and catalogue disagree, or a cell raised.
        LabError: the lab would give a solution away.
    """
    book, target = book_of(source), target_of(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_relative_to(labs.SOLUTIONS):
        with tempfile.TemporaryDirectory() as folder:
            solution = Path(folder) / target.name
            solution.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
            return released.release(solution, target)
    if run:
        notebooks.run(book, target.parent)
        notebooks.tidy(book)
        nbformat.validate(book)
    target.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
    return target
