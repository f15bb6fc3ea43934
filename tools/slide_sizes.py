"""How high what stands on a slide is, estimated without a browser: prose, tables, prints and pictures.

The sizes are those of templates/course_slides/static/slides.css, where a slide is `WIDTH` by `HEIGHT` pixels,
as wide as a projector's picture. No text is set smaller than `SMALLEST` there, and a picture gives way to the
words beside it only as far as its own words can still be read.
"""

import base64
import re
import struct

from nbformat import NotebookNode

WIDTH, HEIGHT = 1280, 720
ROOM = 596.0  # pixels of a slide's height below its heading
SMALLEST = 14.5  # pixels of the smallest text, which are 14 on a screen of 1280 by 720
LINE_LETTERS, TABLE_LETTERS = 108, 160  # Latin letters in a line of text, and in a table's, cells included
LINE, HEAD, ROW, CELL_LINE, GAP = 32.6, 56.0, 34.0, 25.0, 14.0  # heights in pixels
CODE_LINE, PRINTED_LINE, WIDE_LINE, FRAME = 20.8, 22.1, 19.0, 30.0  # of code and prints; around them
VIEW_LINE = 35.6  # of coloured text
FORMULA, FOLDED = 88.0, 28.0
WIDE, WIDEST = 112, 132  # letters in a printed line, above which print is small; and then in one
PICTURE_WIDTH, PICTURE_HEIGHT = 1180.0, 540.0  # at most
LARGEST, LEGIBLE = 1.35, 1.0  # times its own size: a picture by itself, and at least beside words
PNG_SIZE = struct.Struct(">8s4x4sII")


def kind(block: str) -> str:
    """What a block of Markdown is: heading, table, list, formula, code, quote or prose."""
    patterns = (
        (r"#{1,6} ", "heading"),
        (r"\|", "table"),
        (r"([-*+]|\d+\.) ", "list"),
        (r"\$\$", "formula"),
        (r"```", "code"),
        (r">", "quote"),
    )
    return next((name for pattern, name in patterns if re.match(pattern, block)), "prose")


def height(block: str) -> float:
    """About how many pixels a block of Markdown takes on a slide."""
    if kind(block) == "heading":
        return HEAD
    if kind(block) == "table":
        rows = block.splitlines()[2:]
        columns = max(block.splitlines()[0].count("|") - 1, 1)
        wide = [max(_width(cell) for cell in row.strip("|").split("|")) for row in rows]
        per_line = max(1.2 * TABLE_LETTERS / columns, 20)
        return ROW + sum(ROW + CELL_LINE * int(width / per_line) for width in wide) + GAP
    if kind(block) == "formula":
        return FORMULA + 34.0 * block.count(r"\\") + GAP
    if kind(block) == "code":
        return PRINTED_LINE * block.count("\n") + GAP
    lines = sum(1 + _width(line) // LINE_LETTERS for line in re.split(r"\n(?=[-*+] |\d+\. )|<br>", block))
    return LINE * lines + GAP


def _width(text: str) -> int:
    """In Latin letters; a formula is about half as wide as its source, a link is as wide as its words."""
    plain = re.sub(r"\]\([^)]*\)", "", text)
    plain = re.sub(r"\$([^$]*)\$", lambda m: "x" * (len(re.sub(r"\\[a-z]+", "x", m[1])) * 2 // 3), plain)
    return sum(2 if ord(ch) >= 0x2E80 else 1 for ch in plain)


def code_height(source: str) -> float:
    return CODE_LINE * (source.count("\n") + 1) + FRAME


def output_height(output: NotebookNode) -> float:
    """About how many pixels an output takes, code not counted; a picture as large as it may be."""
    if output.output_type == "stream":
        letters, line = (WIDEST, WIDE_LINE) if is_wide(output) else (WIDE, PRINTED_LINE)
        broken = sum(max(_width(text) - 1, 0) // letters for text in output.text.splitlines())
        return line * (len(output.text.splitlines()) + broken) + FRAME
    data = output.get("data", {})
    if "image/png" in data:
        return picture_size(output)[1] + GAP
    if "text/markdown" in data:
        return height("".join(data["text/markdown"]))
    if "text/html" in data:
        page = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        parts = [re.sub(r"<[^>]*>", "", part).strip("\n") for part in re.split(r"(?=<div|<br)", page)]
        lines = sum(1 + _width(part) // LINE_LETTERS for part in parts if part)
        return max(ROW * page.count("<tr"), VIEW_LINE * lines + FRAME) + GAP
    return PRINTED_LINE * (str(data.get("text/plain", "")).count("\n") + 1) + FRAME


def is_wide(output: NotebookNode) -> bool:
    """Whether text was printed in lines that need small letters."""
    return output.output_type == "stream" and max(map(_width, output.text.splitlines()), default=0) > WIDE


def is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def own_size(output: NotebookNode) -> tuple[float, float]:
    """Pixels that a picture takes in the notebook: as wide as is said there, as high as its file has it.

    Raises:
        ValueError: the file is no PNG.
    """
    data = base64.b64decode("".join(output.data["image/png"])[:64])
    mark, name, wide, tall = PNG_SIZE.unpack_from(data)
    if mark != b"\x89PNG\r\n\x1a\n" or name != b"IHDR":
        raise ValueError("a saved picture must be a PNG, got another file; run and save its notebook again")
    shown = output.metadata.get("image/png", {}).get("width", wide)
    return shown, shown * tall / wide


def picture_size(output: NotebookNode, most: float = LARGEST) -> tuple[float, float]:
    """Pixels that a picture takes on a slide: `most` times its own size, or what fits where that does not."""
    wide, tall = own_size(output)
    scale = min(PICTURE_WIDTH / wide, PICTURE_HEIGHT / tall, most)
    return wide * scale, tall * scale


def slack(output: NotebookNode) -> float:
    """Pixels of height by which a picture may shrink for the words beside it."""
    return picture_size(output)[1] - picture_size(output, LEGIBLE)[1] if is_picture(output) else 0.0
