"""What is wrong with a translation, block by block: missing, stale, or not saying what the English says.

A translator may move things around in a sentence, so what must be kept is compared as a bag: formulas, code,
links, placeholders and numbers.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polib

from tools.chinese import english, po_of

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
DISPLAYED = re.compile(r"\$\$.*?\$\$", re.DOTALL)
CODE = re.compile(r"`[^`]+`")
PLACEHOLDER = re.compile(r"\{\{.*?\}\}")
FORMULA = re.compile(r"(?<!\\)\$[^$]+\$")
LINK = re.compile(r"\]\(([^)\s]+)\)|<(https?:[^>]+)>|(?:src|href)=\"([^\"]+)\"")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
HAN = re.compile(r"[\u4e00-\u9fff]")
# A mark of half width between Han, or closing a line after Han; the commas of numbers are no such mark.
HALF_WIDTH = re.compile(
    r"[\u4e00-\u9fff][,;:!?](?=\s*[\u4e00-\u9fff]|\s*$)|[\u4e00-\u9fff]\.(?=\s|$)", re.MULTILINE
)
TWICE = re.compile(r"[，。；：、]{2,}")
ITEM = r"\s*(?:[-*+]|\d+\.) "
FIRST_ITEM = r"\s*(?:[-*+]|1\.) "  # a line of a paragraph may begin with another number (CommonMark 5.3)
TERMS = "英文术语"  # what the column of English terms is called in Chinese
EXCERPT = 60


def kept_apart(block: str) -> tuple[Counter, str]:
    """What a translation must hold unchanged, and the words that are left of the block."""
    found: Counter = Counter()
    for pattern in (FENCED, DISPLAYED, CODE, PLACEHOLDER, FORMULA):
        found.update(" ".join(match.split()) for match in pattern.findall(block))
        block = pattern.sub(" ", block)
    found.update(link for match in LINK.finditer(block) for link in match.groups() if link)
    return found, LINK.sub("]", block)


def numbers(words: str) -> Counter:
    """The numbers in plain words, without the commas that group their digits."""
    return Counter(match.replace(",", "").rstrip(".") for match in NUMBER.findall(words))


def faults(msgid: str, msgstr: str) -> list[str]:
    """What is wrong with one translation, in words; empty when nothing is.

    Formulas, code, links and placeholders must be the same ones, as often or oftener; numbers of the
    English must all occur (Chinese may write others, such as 3 for "three").
    """
    if not msgstr.strip():
        return ["is not translated"]
    (wanted, words), (given, chinese) = kept_apart(msgid), kept_apart(msgstr)
    found = [f"lacks {thing}" for thing in wanted if given[thing] < 1]
    found += [f"has {thing}, which the English has not" for thing in given if thing not in wanted]
    lost = numbers(words) - numbers(chinese)
    found += [f"lacks the number {number}" for number in lost if not given[number]]
    if not HAN.search(chinese) and HAN.search(msgid) is None and _sentence(words):
        found.append("is not in Chinese")
    elif (left := _left_in_english(words, _without_terms(chinese))) is not None:
        found.append(f"leaves in English: {left}")
    found += [
        f"has a mark of half width after Han: {m.group()!r}" for m in HALF_WIDTH.finditer(_prose(chinese))
    ]
    found += [f"has {m.group()!r}" for m in TWICE.finditer(chinese)]
    if (rows := _shape(msgid)) != _shape(msgstr):
        found.append(f"has other headings, items or rows: {_shape(msgstr)}, the English {rows}")
    return found


def _sentence(words: str) -> bool:
    return len(re.findall(r"\b[a-z]{2,}\b", words)) > 2


def _left_in_english(words: str, chinese: str) -> str | None:
    """A run of eight English words or more that stands in both; titles are shorter or in italics."""
    bare = re.sub(r"\*[^*]+\*|“[^”]*”|\"[^\"]*\"", " ", chinese)
    for match in re.finditer(r"(?:[A-Za-z'’-]+,? ){7,}[A-Za-z'’-]+", " ".join(bare.split())):
        if match.group() in " ".join(words.split()) and len(re.findall(r"\b[a-z]+\b", match.group())) > 5:
            return match.group()
    return None


def _without_terms(chinese: str) -> str:
    """A table without its columns of English terms, which a table of symbols keeps beside the Chinese."""
    kept, terms = [], -1
    for line in chinese.splitlines():
        columns = line.split("|")
        if not line.lstrip().startswith("|"):
            terms = -1
        elif TERMS in map(str.strip, columns):
            terms = [column.strip() for column in columns].index(TERMS)
        kept.append("|".join(text for index, text in enumerate(columns) if index != terms))
    return "\n".join(kept)


def _prose(text: str) -> str:
    """Without tables, where short cells may be set off as they like."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("|"))


def _shape(block: str) -> tuple[int, int, int]:
    """How many headings, items of lists and rows of tables a block has."""
    lines = DISPLAYED.sub("", FENCED.sub("", block)).splitlines()
    headings, rows = (
        sum(re.match(start, line) is not None for line in lines) for start in (r"\s*#{1,6} ", r"\s*\|")
    )
    items = 0
    for index, line in enumerate(lines):
        begins = ITEM if items or index == 0 else FIRST_ITEM
        items += re.match(begins, line) is not None
    return headings, items, rows


def problems(blocks: Iterable[str], entries: Iterable[polib.POEntry]) -> list[tuple[str, str]]:
    """Every (block, fault) of a PO file against the English blocks as they are now."""
    wanted = list(dict.fromkeys(blocks))
    present = {entry.msgid: entry for entry in entries if not entry.obsolete}
    found = []
    for block in wanted:
        entry = present.get(block)
        if entry is None:
            found.append((block, "is new or changed in English; run `python -m tools.chinese extract`"))
        elif entry.fuzzy:
            found.append((block, "is marked fuzzy"))
        else:
            found += [(block, fault) for fault in faults(block, entry.msgstr)]
    stale = [block for block in present if block not in set(wanted)]
    return found + [(block, "is no longer in the English text (stale)") for block in stale]


def problems_of(source: Path) -> list[str]:
    """The faults of a chapter's or lab's translation, each with the file and the block's beginning."""
    path = po_of(source)
    kind = path.parent.parent.parent.name
    if not path.exists():
        return [f"{kind}/{source.stem}: has no PO file; run `python -m tools.chinese extract`"]
    found = problems(english(source), polib.pofile(str(path)))
    return [f"{kind}/{source.stem}: “{_excerpt(block)}” {fault}" for block, fault in found]


def _excerpt(block: str) -> str:
    line = " ".join(block.split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
