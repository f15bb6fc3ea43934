"""The Chinese edition: the same code cells, with the Markdown between them translated.

A translation is a PO file, `notebooks/source/zh/NAME.po` or `solutions/source/zh/NAME.po`, which any editor
for translators opens. Its unit is a block: what stands between two blank lines of a Markdown cell.

    python -m tools.chinese extract [NAME …]    brings the PO files up to date with the English text
"""

import re
from collections.abc import Iterator
from pathlib import Path

import polib

from llmcourse.grading.exercises import catalogue
from tools import labs, notebooks

FENCE = re.compile(r"^(```|\$\$)", re.MULTILINE)


def blocks(markdown: str) -> list[str]:
    """The parts of a Markdown text between blank lines; fenced code and displayed formulas stay whole."""
    parts = re.split(r"\n\s*\n", markdown.strip())
    joined: list[str] = []
    for part in parts:
        if joined and len(FENCE.findall(joined[-1])) % 2:
            joined[-1] += f"\n\n{part}"
        else:
            joined.append(part)
    return joined


def has_words(block: str) -> bool:
    """Whether there is anything to translate: formulas, code and pictures alone are the same in Chinese."""
    bare = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|<[^>]*>", " ", block, flags=re.DOTALL)
    return re.search(r"[A-Za-z]{2}", bare) is not None


def english(source: Path) -> Iterator[str]:
    """The blocks of a chapter's or lab's text that have words in them, in their order."""
    text = source.read_text(encoding="utf-8")
    if source.is_relative_to(labs.SOLUTIONS):
        text = labs.expand(text, catalogue.labs()[source.stem])
    for cell in notebooks.convert(text).cells:
        if cell.cell_type == "markdown":
            yield from filter(has_words, blocks(cell.source))


def po_of(source: Path) -> Path:
    return source.parent / "zh" / f"{source.stem}.po"


def extract(source: Path) -> polib.POFile:
    """A PO file of the text as it is now, with what is translated already."""
    path = po_of(source)
    old = {entry.msgid: entry for entry in polib.pofile(str(path))} if path.exists() else {}
    book = polib.POFile(wrapwidth=0)
    book.metadata = {"Language": "zh_CN", "Content-Type": "text/plain; charset=UTF-8"}
    for block in dict.fromkeys(english(source)):
        book.append(old.get(block) or polib.POEntry(msgid=block, msgstr=""))
    return book


def main() -> None:
    for source in [*notebooks.sources(), *labs.sources()]:
        extract(source).save(str(po_of(source)))


if __name__ == "__main__":
    main()
