"""The bilingual glossary, drawn from the tables of symbols (symbol | term | 中文) of all chapters and labs.

A row may define several things at once, `teacher, student | 教师模型，学生模型`: they are taken apart where
both columns have as many, and what one left to its neighbour to say is put back: `features of the stream,
and inside the MLP` are features, too. What has one name in Chinese, and a word in common in English, is one
entry.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import labs, notebooks

TARGET = labs.ROOT / "docs" / "glossary.md"
HEADER = re.compile(r"\| *symbol *\| *term *\| *中文 *\|")
LEADING = re.compile(r"(?:(?:a|an|the|its|their|to|and|or|also) )+")
NOUN_ENDS = re.compile(r" (?:of|to|in|that|so|inside|per|between) ")
LEANING = re.compile(r"\b(?:it|they|that|each|those)\b")  # a row with such a word needs its neighbours
SMALL = re.compile(r"the|and|for|are|has|how|who|what|with|from|often|they|that|each|those")
LONGEST_NAME = 5  # letters by which words are told apart: "block" and "blocks" are one
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
    if "：" in chinese and "；" not in chinese:  # what follows explains, and names no things of its own
        yield symbol, term, chinese
        return
    for marks, han in ((";", ";；"), (":", ";；"), (";", ",，;；、"), (",", ",，、"), (",;", ",，、;；")):
        parts, words = split(term, marks), split(chinese, han)
        if len(parts) == len(words) > 1:
            # What stands after a colon is of one kind with what is before it, and has no symbol.
            symbols = [symbol, *[""] * (len(parts) - 1)] if marks == ":" else _symbols(symbol, parts)
            for row in zip(symbols, parts, words, strict=True):
                yield from taken_apart(*row)
            return
    pair = term.split(" and ")
    if len(pair) == 2 == len(words := split(chinese, ",，、;；")) and (
        " of " in f" {pair[1]}" or " " in pair[0]
    ):
        if " of " in pair[1] and " of " not in pair[0]:  # "work and traffic of an operation"
            pair[0] += f" of {pair[1].split(' of ', 1)[1]}"
        yield from zip(_symbols(symbol, pair), pair, words, strict=True)
        return
    yield symbol, term, chinese


def pieces(symbol: str) -> list[str]:
    """The single symbols of a column, `$a,\\ b$` being two."""
    inside = re.fullmatch(r"\$([^$]*)\$", symbol)
    if inside and "(" not in symbol:
        return [f"${piece.strip().removeprefix(BLANK).strip()}$" for piece in inside[1].split(",")]
    return split(symbol, ",;")


def _symbols(symbol: str, parts: list[str]) -> list[str]:
    """A symbol for each term; the last terms have none where there are fewer."""
    found = pieces(symbol)
    if "$" not in symbol and any(part.startswith("of ") for part in parts):
        return [symbol] * len(parts)  # a name for all of it together, such as W8A8
    if len(found) > len(parts):
        return [symbol] * len(parts)
    for part in parts[len(found) :]:
        found.append(found[-1] if found and re.match("or |also ", part) else "")
    return found


def named(symbol: str) -> str:
    """A symbol without what it is equal to or an element of."""
    formula = re.fullmatch(r"\$([^$]*)\$(?: *=.*)?", symbol)
    if formula is None:
        return symbol
    name = re.split(r" *(?:=|\\in |\\propto)", formula[1])[0].strip()
    return f"${name}$"


def heads(parts: Sequence[str]) -> list[str]:
    """The terms of a row as a glossary lists them: no articles, and nothing left to the neighbour to say."""
    found: list[str] = []
    for part in parts:
        head = re.sub(r" *\(chapter \d\)", "", re.sub(r"^\$[^$]*\$, *", "", part.strip()))
        if leading := LEADING.match(head):
            head = head[leading.end() :]
        if found:
            noun = NOUN_ENDS.split(found[-1])[0]
            head = re.sub(r"^(?:that )?(?=(?:of|inside|per|between) )", f"{noun} ", head)
            head = re.sub(r"^(?:it |(?=is ))", f"{found[-1].split()[0]} ", head)
        if head.endswith("-"):  # semi-, non-autoregressive
            head += parts[-1].rsplit("-", 1)[-1]
        elif re.fullmatch(r"\w+al", head) and len(parts) > 1:  # traditional, continuous batching
            head += f" {parts[-1].split()[-1]}"
        found.append(re.sub(r"^(what [^:]+): (\w+)$", r"\2: \1", head))
    return found


def place_of(source: Path) -> str:
    kind = "lab" if source.is_relative_to(labs.SOLUTIONS) else "chapter"
    return f"{kind} {int(source.stem.split('_')[0])}"


def terms() -> list[Term]:
    """Every term of every table, in the order of the chapters, each chapter before its lab."""
    sources = [*notebooks.sources(), *labs.sources()]
    found = []
    for source in sorted(sources, key=lambda s: (s.stem, s.is_relative_to(labs.SOLUTIONS))):
        for symbol, term, chinese, *_ in tables(source.read_text(encoding="utf-8")):
            rows = list(taken_apart(symbol, term, full_width(chinese)))
            for head, (one, _, words) in zip(heads([row[1] for row in rows]), rows, strict=True):
                found.append(Term(head, words, named(one), place_of(source)))
    return found


def full_width(chinese: str) -> str:
    """Marks of the Chinese column as Chinese sets them."""
    return re.sub(r"(?<=[\u4e00-\u9fff]) ?([,;:]) *(?!\d)", lambda m: HAN_MARK[m[1]], chinese)


def key(english: str) -> str:
    """A term without articles, explanations and case: what two tables mean by the same words."""
    bare = re.split(r"[,:(]| here | in dB", english)[0]
    return re.sub(r"^(?:a|an|the|its|their|to) ", "", bare.strip().lower())


def words_of(chinese: str) -> frozenset[str]:
    """The names of the Chinese column, without explanations."""
    return frozenset(split(re.sub(r"[(（].*?[)）]|：.*$", "", chinese).strip(), ",;，；、"))


def conflicts(found: list[Term]) -> list[str]:
    """Terms that two tables translate differently, with both places; what one alone leaves out is no odds."""
    by_key: dict[str, dict[frozenset[str], Term]] = defaultdict(dict)
    for term in found:
        words, known = words_of(term.chinese), by_key[key(term.english)]
        if not any(words <= other or other <= words for other in known):
            known[words] = term
    return [
        f"{name}: " + " but ".join(f"{term.chinese} in {term.place}" for term in different.values())
        for name, different in by_key.items()
        if len(different) > 1
    ]


def stems(english: str) -> set[str]:
    """Words of a term that carry its meaning, as far as they are told apart."""
    words = re.findall(r"[a-z]{3,}", re.sub(r"\$[^$]*\$", "", english.lower()))
    return {word[:LONGEST_NAME] for word in words if not SMALL.fullmatch(word)}


def entries(found: Sequence[Term]) -> list[Term]:
    """One term for each thing, in its shortest words, with all its symbols and where it comes first."""
    single = {word for term in found if len(words_of(term.chinese)) == 1 for word in words_of(term.chinese)}
    several = [t for t in found if len(words_of(t.chinese)) > 1 and words_of(t.chinese) <= single]
    groups: list[list[Term]] = []
    for term in (term for term in found if term not in several):
        for group in groups:
            same = words_of(term.chinese) == words_of(group[0].chinese)
            if same and any(stems(term.english) & stems(other.english) for other in group):
                group.append(term)
                break
        else:
            groups.append([term])
    return [_joined(group, several, found) for group in groups]


def _joined(group: Sequence[Term], several: Sequence[Term], found: Sequence[Term]) -> Term:
    """What the rows of one thing come to; rows of several things tell only where it comes first."""
    best = min(group, key=lambda t: (bool(LEANING.search(key(t.english))), len(key(t.english).split())))
    with_it = [term for term in several if words_of(best.chinese) <= words_of(term.chinese)]
    first = min([*group, *with_it], key=found.index)
    symbols = dict.fromkeys(piece for term in group for piece in pieces(term.symbol))
    return Term(best.english, best.chinese, ", ".join(symbols), first.place)


def page() -> str:
    """The glossary in Markdown, by the alphabet."""
    listed = sorted(entries(terms()), key=lambda term: (key(term.english), term.chinese))
    rows = (f"| {term.english} | {term.chinese} | {term.symbol} | {term.place} |" for term in listed)
    return TOP + "\n".join(rows) + "\n"
