"""The language of what figures and widgets say: English as written, or simplified Chinese by a catalogue.

    from llmcourse.figures import language
    language.use("zh")

Functions that compute and draw know nothing of it. Where a figure is painted and where a view shows its
controls and its text, each text is looked up in `chinese.json`, which maps English to Chinese. An entry may
have places for what changes, `step {#} of {#}`: `{#}` takes a number, `{w}` a word and `{}` anything, which
is translated in turn; the Chinese repeats them in their order, or numbered, `{1} … {0}`. What no entry fits
stays English. So do the texts of models: on a page they are marked `translate="no"`, and in figures, where a
token may well be "time" or "step", they are the model's `own`.

The choice holds for the process, that is for one notebook: it is the reader's, not the cell's.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

CATALOGUE = Path(__file__).with_name("chinese.json")
LANGUAGES = ("en", "zh")
NUMBER = r"[-−+±]?(?:\d[\d,.]*(?:e-?\d+)?|∞|inf)(?: ?[%×])?"
PLACES = {"{#}": f"({NUMBER})", "{w}": r"(\S+)", "{}": "(.+?)"}
PLACE = re.compile(r"\{(\d*)\}|\{#\}|\{w\}")
# What parts a text into those that are looked up one by one, and what stands there in Chinese:
# sentences before entries with places are tried, clauses after.
SENTENCES = ((" · ", " · "), (". ", "。"))
CLAUSES = (("; ", "；"), (": ", "："), (", ", "，"))
MARK = re.compile(r"[●■◆▲▼◂▸◯○━┄╌┊│▬★☆✓✗┆▨▢╎◇□△]+ +")
TAG = re.compile(r"(<[^>]*>)")
TOLD = re.compile(r'(title|aria-label|alt)="([^"]*)"')
NO_TRANSLATION = 'translate="no"'
AS_IT_IS = ("style", "code")  # elements whose texts are never translated
OPEN, CLOSE = (
    "\N{FIRST STRONG ISOLATE}",
    "\N{POP DIRECTIONAL ISOLATE}",
)  # invisible, around what is a model's own
OWN = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
STAND_IN = 0xE000  # private characters, which no entry has

_chosen = ["en"]


def use(language: str) -> None:
    """Chooses the language of figures and widgets that are shown from now on.

    Raises:
        ValueError: there is no such language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    _chosen[0] = language


def current() -> str:
    return _chosen[0]


@cache
def catalogue() -> dict[str, str]:
    """English to Chinese, with places for what changes."""
    groups = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {english: chinese for group in groups.values() for english, chinese in group.items()}


@dataclass(frozen=True)
class _Template:
    """An entry with places: how English looks, which of its places hold quoted text, and the Chinese."""

    english: re.Pattern
    quoted: tuple[bool, ...]
    chinese: str

    @classmethod
    def of(cls, english: str, chinese: str) -> _Template:
        parts = re.split(r"(\{[#w]?\})", english)
        pattern = "".join(PLACES.get(part) or re.escape(part) for part in parts)
        quoted = tuple(before.endswith("“") for before in parts[:-1:2])
        return cls(re.compile(pattern, re.DOTALL), quoted, chinese)

    def filled(self, values: Sequence[str]) -> str:
        pairs = zip(values, self.quoted, strict=True)
        done = [value if quoted else translated(value) for value, quoted in pairs]
        rest = iter(done)
        return PLACE.sub(lambda place: done[int(place[1])] if place[1] else next(rest), self.chinese)


@cache
def _templates() -> list[_Template]:
    """Entries with places, those that say most first."""
    entries = [(english, chinese) for english, chinese in catalogue().items() if PLACE.search(english)]
    entries.sort(key=lambda entry: -len(PLACE.sub("", entry[0])))
    return [_Template.of(*entry) for entry in entries]


def text(english: str) -> str:
    """A text of a figure or control in the language that is chosen."""
    return _unmarked(english) if _chosen[0] == "en" else translated(english)


def own(text: str) -> str:
    """A model's text, which no language changes; marked only if a word of it is one of the catalogue, too."""
    text = _unmarked(text)
    return f"{OPEN}{text}{CLOSE}" if _catalogue_words() & set(re.findall("[A-Za-z]+", text)) else text


@cache
def _catalogue_words() -> frozenset[str]:
    return frozenset(word for english in catalogue() for word in re.findall("[A-Za-z]{2,}", english))


def _unmarked(text: str) -> str:
    return OWN.sub(r"\1", text) if OPEN in text else text


@lru_cache(maxsize=4096)
def translated(english: str) -> str:
    """A text in Chinese, as far as the catalogue has it: whole, by an entry with places, or in parts."""
    if kept := OWN.findall(english):
        places = (chr(STAND_IN + index) for index in range(len(kept)))
        chinese = translated(OWN.sub(lambda _: next(places), english))
        return chinese.translate({STAND_IN + index: one for index, one in enumerate(kept)})
    bare = english.strip()
    if not re.search(r"[A-Za-z]", bare):
        return english
    before, after = english[: len(english) - len(english.lstrip())], english[len(english.rstrip()) :]
    return before + _looked_up(bare) + after


def _looked_up(bare: str) -> str:
    if (whole := catalogue().get(bare)) is not None:
        return whole
    if "\n" in bare:
        return "\n".join(map(translated, bare.split("\n")))
    if match := MARK.match(bare):
        return match.group() + translated(bare[match.end() :])
    if (parts := apart(bare, *SENTENCES[0])) or (parts := apart(bare, *SENTENCES[1])):
        return parts
    if bare[-1] in ".:" and (shorter := translated(bare[:-1])) != bare[:-1]:
        return shorter + {".": "。", ":": "："}[bare[-1]]
    for template in _templates():
        if match := template.english.fullmatch(bare):
            return template.filled(match.groups())
    return next((parts for mark in CLAUSES if (parts := apart(bare, *mark))), bare)


def apart(english: str, mark: str, chinese: str) -> str:
    """A text translated part by part, `""` where the mark does not part it. Quotes stay whole."""
    parts, depth = [""], 0
    for index, ch in enumerate(english):
        depth += (ch in "“(") - (ch in "”)")
        parts[-1] += ch
        if depth <= 0 and english.startswith(mark, index - len(mark) + 1) and index + 1 >= len(mark):
            parts[-1] = parts[-1][: -len(mark)]
            parts.append("")
    if len(parts) == 1:
        return ""
    new = [translated(part) for part in parts]
    if new == parts:
        return english
    # The end of a sentence that stays English stays, too: it may be the text that a figure is about.
    marks = [mark if new[i] == parts[i] and mark == ". " else chinese for i in range(len(parts) - 1)]
    return "".join(map("".join, zip(new, [*marks, ""], strict=True)))


def page(source: str) -> str:
    """HTML in the language that is chosen: its texts and what its titles tell, but for what is marked."""
    return _unmarked(source) if _chosen[0] == "en" else _page(source)


def _page(source: str) -> str:
    parts, shut = [], ""  # the element whose texts are left alone
    for part in TAG.split(source):
        if part.startswith("<"):
            name = part.strip("</> ").split(" ", 1)[0]
            if shut:
                shut = "" if part == f"</{shut}>" else shut
            elif NO_TRANSLATION in part or name in AS_IT_IS:
                shut = name
            parts.append(TOLD.sub(_told, part))
        else:
            parts.append(part if shut else html.escape(translated(html.unescape(part)), quote=False))
    return "".join(parts)


def _told(match: re.Match) -> str:
    return f'{match[1]}="{html.escape(translated(html.unescape(match[2])))}"'


def table(markdown: str) -> str:
    """A Markdown table and the lines around it in the language that is chosen, cell by cell."""
    if _chosen[0] == "en":
        return _unmarked(markdown)
    return "\n".join("|".join(map(translated, line.split("|"))) for line in markdown.split("\n"))
