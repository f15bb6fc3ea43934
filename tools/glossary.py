"""The bilingual glossary, drawn from the tables of symbols (symbol | term | 中文) of all chapters and labs.

A row may define several things at once, `teacher, student | 教师模型，学生模型`: they are taken apart where
both columns have as many. A term's row names the chapters and labs whose tables have it, the first one first.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import labs, notebooks

TARGET = labs.ROOT / "docs" / "glossary.md"
HEADER = re.compile(r"\| *symbol *\| *term *\| *中文 *\|")
BLANK = "\\ "  # a blank within a formula
HAN_MARK = {",": "，", ";": "；", ":": "：", "(": "（", ")": "）"}
TOP = """\
# Glossary · 术语表

Terms of the course in English and in simplified Chinese, with their symbols and where they are introduced.
Drawn from the tables of symbols in the chapters and labs by `python -m tools.chinese glossary`; never edited.

本表由各章与各实验开头的符号表自动生成，请勿直接修改。

| English | 中文 | symbol | introduced in |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Term:
    """One thing that a table of symbols defines.

    Attributes:
        place: "chapter 3" or "lab 3".
    """

    english: str
    chinese: str
    symbol: str
    place: str


def cells(row: str) -> list[str]:
    """The columns of a table's row; a bar within a formula or code does not part them."""
    parts, depth = [""], ""
    for index, ch in enumerate(row.strip().strip("|")):
        if ch in "$`" and depth in ("", ch):
            depth = "" if depth else ch
        if ch == "|" and not depth and row[index] != "\\":
            parts.append("")
        else:
            parts[-1] += ch
    return [part.strip() for part in parts]


def tables(text: str) -> Iterator[list[str]]:
    """The rows of a text's tables of symbols, each as its columns."""
    inside = False
    for line in text.splitlines():
        line = line.removeprefix("# ").strip()
        if HEADER.match(line):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not re.fullmatch(r"[|: -]+", line):
            yield cells(line)


def split(text: str, marks: str) -> list[str]:
    """The parts between marks that stand outside brackets and formulas."""
    parts, depth, formula = [""], 0, False
    for ch in text:
        formula ^= ch == "$"
        depth += (ch in "(（") - (ch in ")）")
        if ch in marks and not depth and not formula:
            parts.append("")
        else:
            parts[-1] += ch
    return [part.strip() for part in parts if part.strip()]


def taken_apart(symbol: str, term: str, chinese: str) -> Iterator[tuple[str, str, str]]:
    """A row as single terms, where its columns have as many parts; else as it is."""
    for marks, han in ((";", ";；"), (";", ",，;；、"), (",", ",，、"), (",;", ",，、;；")):
        terms, words = split(term, marks), split(chinese, han)
        if len(terms) == len(words) > 1:
            for row in zip(_symbols(symbol, len(terms)), terms, words, strict=True):
                yield from taken_apart(*row)
            return
    yield symbol, term, chinese


def _symbols(symbol: str, count: int) -> list[str]:
    """As many symbols as terms, `$a,\\ b$` being two; else the whole for each."""
    parts = split(symbol, ",;") if len(split(symbol, ",;")) == count else []
    inside = re.fullmatch(r"\$([^$]*)\$", symbol)
    if not parts and inside and "(" not in symbol:
        parts = [f"${piece.strip().removeprefix(BLANK).strip()}$" for piece in inside[1].split(",")]
    return parts if len(parts) == count else [symbol] * count


def place_of(source: Path) -> str:
    kind = "lab" if source.is_relative_to(labs.SOLUTIONS) else "chapter"
    return f"{kind} {int(source.stem.split('_')[0])}"


def terms() -> list[Term]:
    """Every term of every table, in the order of the chapters, each chapter before its lab."""
    sources = [*notebooks.sources(), *labs.sources()]
    found = []
    for source in sorted(sources, key=lambda s: (s.stem, s.is_relative_to(labs.SOLUTIONS))):
        for symbol, term, chinese, *_ in tables(source.read_text(encoding="utf-8")):
            for one, english, words in taken_apart(symbol, term, full_width(chinese)):
                found.append(Term(english, words, one, place_of(source)))
    return found


def full_width(chinese: str) -> str:
    """Marks of the Chinese column as Chinese sets them."""
    return re.sub(r"(?<=[\u4e00-\u9fff]) ?([,;:]) *(?!\d)", lambda m: HAN_MARK[m[1]], chinese)


def key(english: str) -> str:
    """A term without articles, explanations and case: what two tables mean by the same words."""
    bare = re.split(r"[,:(]| here | in dB", english)[0]
    return re.sub(r"^(?:a|an|the|its|their|to) ", "", bare.strip().lower())


def conflicts(found: list[Term]) -> list[str]:
    """Terms that two tables translate differently, with both places; what one alone leaves out is no odds."""
    by_key: dict[str, dict[frozenset[str], Term]] = defaultdict(dict)
    for term in found:
        words = frozenset(split(re.sub(r"[(（].*?[)）]|^.*：", "", term.chinese), ",;，；、"))
        known = by_key[key(term.english)]
        if not any(words <= other or other <= words for other in known):
            known[words] = term
    return [
        f"{name}: " + " but ".join(f"{term.chinese} in {term.place}" for term in different.values())
        for name, different in by_key.items()
        if len(different) > 1
    ]


def page() -> str:
    """The glossary in Markdown, by the alphabet."""
    groups: dict[tuple[str, str], list[Term]] = defaultdict(list)
    for term in terms():
        groups[key(term.english), term.chinese].append(term)
    rows = []
    for group in sorted(groups.values(), key=lambda group: (key(group[0].english), group[0].chinese)):
        symbols = dict.fromkeys(term.symbol for term in group if term.symbol)
        columns = (group[0].english, group[0].chinese, ", ".join(symbols), group[0].place)
        rows.append(f"| {' | '.join(columns)} |")
    return TOP + "\n".join(rows) + "\n"
