"""Text of strangers, made fit for a terminal, a table or a page: nothing in it acts or hides.

Names, file names and messages come from submissions. Escape sequences move a terminal's cursor,
bidirectional controls reverse what is read (Boucher & Anderson 2021, Trojan Source), and half
surrogates cannot be written at all.
"""

from __future__ import annotations

import re
import unicodedata

_CSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")  # colours and cursor moves
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
_BLANKS = "\t\n\v\f\r\x85"


def acts(character: str) -> bool:
    """Whether a character is no text: a control, a direction, an invisible mark, half a surrogate."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def clean(text: str, limit: int | None = None) -> str:
    """One line of characters that can be seen; others are removed, line breaks become blanks.

    Args:
        limit: characters that are kept; a longer text ends with an ellipsis.
    """
    if limit is not None and len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"
    return "".join(map(_shown, _CSI.sub("", text)))


def _shown(character: str) -> str:
    if not acts(character):
        return character
    category = unicodedata.category(character)
    if category in ("Zl", "Zp") or character in _BLANKS:
        return " "
    return "\ufffd" if category == "Cs" else ""


def escape_acting(text: str) -> str:
    r"""A JSON text with `\u` escapes in place of characters that act; a reader of JSON sees no difference."""
    return "".join(_escaped(c) if acts(c) and c != "\n" else c for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
