"""Chinese text in figures on machines without a Chinese font: one is carried in the package.

matplotlib takes each glyph from the first family of a list that has it, so Latin letters come
from its own DejaVu Sans and Chinese ones from ours (see `fonts/README.md`).
"""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager

HAN_FONT = Path(__file__).parent / "fonts" / "LLMCourseHan.ttf"
HAN_FAMILY = "LLM Course Han"
FAMILIES = ["DejaVu Sans", HAN_FAMILY]
WEB_FAMILIES = f"'DejaVu Sans','Noto Sans CJK SC','PingFang SC','Microsoft YaHei','{HAN_FAMILY}',sans-serif"
MISSING = "□"


def install_fonts() -> list[str]:
    """Makes the Chinese font known to matplotlib, for this process only.

    Nothing is written to the user's font cache and no default is changed; calling it again
    does nothing.

    Returns:
        the families to put into `font.family`, in order.

    Raises:
        FileNotFoundError: the package was installed without its font.
    """
    manager = font_manager.fontManager
    if not any(font.name == HAN_FAMILY for font in manager.ttflist):
        if not HAN_FONT.is_file():
            raise FileNotFoundError(f"the package's Chinese font is missing at {HAN_FONT}; reinstall it")
        manager.addfont(HAN_FONT)
        # It has one weight; standing in for bold too keeps matplotlib from complaining.
        manager.ttflist.append(replace(manager.ttflist[-1], weight=700))
    return list(FAMILIES)


@cache
def covered_characters() -> frozenset[int]:
    """The code points that at least one of our families can draw."""
    install_fonts()
    paths = [font_manager.findfont(family, fallback_to_default=False) for family in FAMILIES]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def readable(text: str) -> str:
    """The text with every character that no font of ours has, control characters too, as `□`.

    A model can write any character; without this a rare one would warn at every redraw.
    """
    covered = covered_characters()
    return "".join(ch if ch == "\n" or ord(ch) in covered else MISSING for ch in text)


def chinese(text: str) -> frozenset[str]:
    """The characters of a text that our Chinese font is there for."""
    covered = covered_characters()
    return frozenset(ch for ch in text if ord(ch) >= 0x2E80 and ord(ch) in covered)


@lru_cache(maxsize=256)
def web_font(characters: frozenset[str]) -> str:
    """CSS that brings these characters to browsers without a Chinese font, about 130 bytes for each.

    Several rules of this kind add up on a page, since each one names its characters. `""` for none.
    """
    if not characters:
        return ""
    options = subset.Options(hinting=False, layout_features=[], name_IDs=[])
    font, file = TTFont(HAN_FONT, lazy=True, recalcTimestamp=False), BytesIO()
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(characters))
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(file)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    ranges = ",".join(f"U+{ord(ch):X}" for ch in sorted(characters))
    source = f"url(data:font/woff;base64,{data}) format('woff')"
    return f"@font-face{{font-family:'{HAN_FAMILY}';src:{source};unicode-range:{ranges}}}"
