"""How the course's Chinese font was made: a large open font, cut down to the characters we print.

    python -m llmcourse.figures.subset_font DroidSansFallbackFull.ttf [poems.txt …]

Kept are the 6763 hanzi of GB 2312 with the punctuation that the source has, and the characters of
`fonts/characters.txt`: what occurs twice or more in the poems that the embedded models learnt.
Giving text files makes that list anew. The same source font always gives the same bytes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

from llmcourse.figures.fonts import HAN_FAMILY, HAN_FONT

CHARACTERS = HAN_FONT.parent / "characters.txt"
UNUSED_TABLES = ["GDEF", "GPOS", "GSUB", "vhea", "vmtx"]  # kerning and vertical writing


def gb2312() -> set[str]:
    """Every character of GB 2312: punctuation in its first rows, hanzi in rows 16 to 87."""
    cells = (bytes([row, cell]) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    return set("".join(cell.decode("gb2312", errors="ignore") for cell in cells))


def frequent(texts: list[Path], at_least: int = 2) -> set[str]:
    """Chinese characters and full-width marks that occur often enough in the texts."""
    counts = Counter()
    for text in texts:
        counts.update(text.read_text(encoding="utf-8"))
    return {ch for ch, count in counts.items() if count >= at_least and ord(ch) >= 0x2E80}


def write_subset(source: Path, characters: set[str], target: Path) -> int:
    """Writes the font with these characters, renamed; returns how many of them the source has."""
    font = TTFont(source, recalcTimestamp=False)
    covered = {ord(ch) for ch in characters} & set(font.getBestCmap())
    options = subset.Options(hinting=False, layout_features=[], notdef_outline=True, name_IDs=["*"])
    options.drop_tables += UNUSED_TABLES
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=covered)
    subsetter.subset(font)
    rename(font, source.name)
    font.save(target)
    return len(covered)


def rename(font: TTFont, source: str) -> None:
    """A name of its own: Droid is a trademark, and the licence asks to say what was changed."""
    names = font["name"]
    postscript = HAN_FAMILY.replace(" ", "")
    changed = f"Subset of {source} for the course's figures; hinting and layout tables removed"
    for entry, text in {1: HAN_FAMILY, 3: postscript, 4: HAN_FAMILY, 6: postscript, 10: changed}.items():
        names.setName(text, entry, 3, 1, 0x409)
    names.names = [record for record in names.names if record.nameID != 7]  # the trademark notice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="the font to cut down")
    parser.add_argument("texts", type=Path, nargs="*", help="texts that say which characters matter")
    arguments = parser.parse_args()
    if arguments.texts:
        extra = "".join(sorted(frequent(arguments.texts) - gb2312()))
        lines = (extra[start : start + 50] for start in range(0, len(extra), 50))
        CHARACTERS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wanted = gb2312() | set(CHARACTERS.read_text(encoding="utf-8").replace("\n", ""))
    covered = write_subset(arguments.source, wanted, HAN_FONT)
    print(f"{HAN_FONT}: {covered} of {len(wanted)} characters, {HAN_FONT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
