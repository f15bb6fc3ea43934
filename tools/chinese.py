"""The Chinese edition: the same code cells, with the Markdown between them translated.

A translation is a PO file, `notebooks/source/zh/NAME.po` or `solutions/source/zh/NAME.po`, which any editor
for translators opens. Its unit is a block: what stands between two blank lines of a Markdown cell.

    python -m tools.chinese extract [NAME …]    brings the PO files up to date with the English text
    python -m tools.chinese check [NAME …]      names what is untranslated, stale or at odds with the English
    python -m tools.chinese build [NAME …]      writes notebooks/zh/NAME.ipynb and labs/zh/NAME.ipynb;
                                                with --run, chapters are run as the English ones are
    python -m tools.chinese glossary            writes docs/glossary.md from the tables of symbols

NAME is a chapter and its lab, such as 01_decoding; without one, all are meant.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import polib

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.labs import LabError
from tools import labs, notebooks


def blocks(markdown: str) -> list[str]:
    """The parts of a Markdown text between blank lines; fenced code and displayed formulas stay whole."""
    parts = re.split(r"\n\s*\n", markdown.strip())
    joined: list[str] = []
    for part in parts:
        if joined and any(joined[-1].count(mark) % 2 for mark in ("```", "$$")):
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
    """A PO file of the text as it is now, with what is translated already.

    A block whose English has changed keeps its translation, marked fuzzy until somebody has mended it.
    """
    path = po_of(source)
    old = {entry.msgid: entry for entry in polib.pofile(str(path))} if path.exists() else {}
    book = polib.POFile(wrapwidth=0)
    book.metadata = {"Language": "zh_CN", "Content-Type": "text/plain; charset=UTF-8"}
    new = list(dict.fromkeys(english(source)))
    left = [block for block in old if block not in new]
    for block in new:
        book.append(old.get(block) or _like(block, left, old))
    return book


def _like(block: str, left: list[str], old: dict[str, polib.POEntry]) -> polib.POEntry:
    """The translation of what a block was before, by how alike they are; an empty one if it is new."""
    for before in difflib.get_close_matches(block, left, n=1):
        left.remove(before)
        return polib.POEntry(msgid=block, msgstr=old[before].msgstr, flags=["fuzzy"], previous_msgid=before)
    return polib.POEntry(msgid=block, msgstr="")


def translations(source: Path) -> dict[str, str]:
    """What a chapter's or lab's PO file says for each block; a block without a translation is left out."""
    path = po_of(source)
    entries = polib.pofile(str(path)) if path.exists() else []
    return {entry.msgid: entry.msgstr for entry in entries if entry.msgstr and not entry.obsolete}


def sources() -> list[Path]:
    """Every text of a chapter, then of a lab."""
    return [*notebooks.sources(), *labs.sources()]


def main() -> int:
    from tools import chinese_books, chinese_checks, glossary

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("extract", "check", "build", "glossary"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_decoding; default all")
    parser.add_argument("--run", action="store_true", help="run the chapters that are built")
    options = parser.parse_args()
    if options.what == "glossary":
        glossary.TARGET.write_text(glossary.page(), encoding="utf-8")
        return 0
    known = {source.stem for source in sources()}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"error: no chapter {unknown[0]!r}; there are: {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    chosen = [source for source in sources() if source.stem in (options.names or known)]
    if options.what == "extract":
        for source in chosen:
            extract(source).save(str(po_of(source)))
        return 0
    if options.what == "check":
        found = [line for source in chosen for line in chinese_checks.problems_of(source)]
        print("\n".join([*found, f"{len(found)} to mend"]))
        return bool(found)
    for source in chosen:
        try:
            print(chinese_books.build(source, run=options.run).relative_to(labs.ROOT), flush=True)
        except (notebooks.BuildError, LabError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
