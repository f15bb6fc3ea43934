"""Slides of each chapter: `make slides` writes build/slides/NAME.html for reveal.js, with speaker notes.

A chapter's notebook is cut up by rule, and nbconvert's slides exporter writes it out:

- a heading begins a slide, and so does what no longer fits; sections go to the right, their parts down;
- of prose a slide shows how a paragraph begins, and the notes all of it; tables, lists, formulas and
  quotations stay whole, or are cut between rows and items where they are too long;
- of a code cell it shows what came out, and the code folded; where nothing came out, the code, small;
- widgets appear as the pictures that they left.

    python -m tools.slides [NAME …] [--edition zh]     all chapters, or those named
"""

import copy
import re
import sys
from dataclasses import dataclass, field

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.exported_pages import MATHJAX_URL, ROOT, TEMPLATES, chosen, lead_to_pages, named_pictures, parse
from tools.page_assets import BUILD, MATHJAX, REVEAL, AssetError, provide

WIDTH, HEIGHT = 1024, 768
ROOM = 620.0  # pixels of a slide's height below its heading, with the code folded
PROSE_LETTERS, LINE_LETTERS = 260, 92  # of a paragraph that are shown; in a line of text
LINE, HEAD, ROW, CODE_LINE, GAP = 31.0, 62.0, 33.0, 17.5, 14.0  # heights in pixels
FORMULA, FOLDED = 88.0, 34.0
PICTURE_WIDTH, PICTURE_HEIGHT, SHRINK = 920.0, 590.0, 0.36  # at most; may lose
WIDE = 96  # letters of a printed line, above which print is small
SHORT, OVERRUN = 112.0, 90.0  # what is so high may run over by so much
MAX_ITEMS, MAX_PRINTED = 7, 24
FULL_STOPS = "。\uff01\uff1f"  # of Chinese text, which needs no blank after them
BEGINS = re.compile(r" [A-Z$*`\"“(\d⺀-￯]")  # a sentence
ABBREVIATIONS = re.compile(r"(?:\b(?:e\.g|i\.e|et al|cf|vs|Fig|Eq|Sec|No|approx)|\b[A-Z])\.$")


@dataclass
class Slide:
    """One slide: a heading, what stands below it, and what is said.

    Attributes:
        level: of its heading in the chapter; 1 and 2 begin a column of slides.
        used: pixels of its height; `pictures` those of pictures, which may shrink.
        running: the heading of the slide that goes on where this one is full.
    """

    heading: str
    level: int
    cells: list[NotebookNode] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: float = 0.0
    pictures: float = 0.0
    running: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing but headings stands on it."""
        return all(cell.cell_type == "markdown" and cell.source.startswith("#") for cell in self.cells)


def blocks(markdown: str) -> list[str]:
    """The parts of a Markdown text between blank lines; fenced code and displayed formulas stay whole."""
    joined: list[str] = []
    for part in re.split(r"\n\s*\n", markdown.strip()):
        open_fence = joined and len(re.findall(r"^(?:```|\$\$)", joined[-1], re.MULTILINE)) % 2
        if open_fence and not re.match(r"\$\$.+\$\$$", joined[-1], re.DOTALL):
            joined[-1] += f"\n\n{part}"
        else:
            joined.append(part)
    return joined


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


def sentences(text: str) -> list[str]:
    """A paragraph's sentences; stops within formulas, code, brackets and abbreviations end none."""
    flat = " ".join(text.split())
    found, start, depth = [], 0, 0
    quoted = {match.start(): match.end() for match in re.finditer(r"\$[^$]*\$|`[^`]*`", flat)}
    place = 0
    while place < len(flat):
        if place in quoted:
            place = quoted[place]
            continue
        ch = flat[place]
        depth = max(depth + (ch in "([") - (ch in ")]"), 0)
        place += 1
        ends = ch in ".!?" + FULL_STOPS
        while ends and place < len(flat) and flat[place] in '*_"”':
            place += 1
        if not ends or depth or ABBREVIATIONS.search(flat[start:place]):
            continue
        if ch in FULL_STOPS or place == len(flat) or BEGINS.match(flat, place):
            found.append(flat[start:place].strip())
            start = place
    if flat[start:].strip():
        found.append(flat[start:].strip())
    return found


def gist(paragraph: str) -> str:
    """How a paragraph begins: whole sentences up to a size, the last one too if it leads on with a colon."""
    parts = sentences(paragraph)
    shown, taken = parts[:1], len(parts[0])
    for part in parts[1:]:
        if taken + len(part) > PROSE_LETTERS:
            break
        shown.append(part)
        taken += len(part)
    if len(shown) < len(parts) and parts[-1].endswith((":", "\uff1a")):
        shown.append(parts[-1])
    return " ".join(shown)


def pieces(block: str) -> list[str]:
    """A block that fits a slide, or its parts: tables with their head repeated, lists between items."""
    lines = block.splitlines()
    if kind(block) == "table" and height(block) > ROOM:
        head, rows = lines[:2], lines[2:]
        number = int(height(block) // ROOM) + 1
        size = -(-len(rows) // number)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return ["\n".join([*head, *part]) for part in parts]
    if kind(block) == "list":
        items = re.split(r"\n(?=(?:[-*+]|\d+\.) )", block)
        parts, used = [[]], 0.0
        for item in items:
            if parts[-1] and (len(parts[-1]) >= MAX_ITEMS or used + height(item) > ROOM):
                parts.append([])
                used = 0.0
            parts[-1].append(item)
            used += height(item)
        return ["\n".join(part) for part in parts]
    return [block]


def height(block: str) -> float:
    """About how many pixels a block of Markdown takes on a slide."""
    if kind(block) == "table":
        rows = block.splitlines()[2:]
        columns = max(block.splitlines()[0].count("|") - 1, 1)
        wide = [max(_width(cell) for cell in row.strip("|").split("|")) for row in rows]
        per_line = max(110 / columns * 1.35, 16)
        return HEAD / 2 + sum(ROW + 22 * int(width / per_line) for width in wide) + GAP
    if kind(block) == "formula":
        return FORMULA + 34.0 * block.count(r"\\") + GAP
    if kind(block) == "code":
        return CODE_LINE * 1.2 * block.count("\n") + GAP
    lines = sum(1 + _width(line) // LINE_LETTERS for line in re.split(r"\n(?=[-*+] |\d+\. )|<br>", block))
    return LINE * lines + GAP


def _width(text: str) -> int:
    """In Latin letters; a formula is about half as wide as its source, a link is as wide as its words."""
    plain = re.sub(r"\]\([^)]*\)", "", text)
    plain = re.sub(r"\$([^$]*)\$", lambda m: "x" * (len(re.sub(r"\\[a-z]+", "x", m[1])) * 2 // 3), plain)
    return sum(2 if ord(ch) >= 0x2E80 else 1 for ch in plain)


def output_height(output: NotebookNode) -> float:
    """About how many pixels an output takes, code not counted."""
    if output.output_type == "stream":
        line = CODE_LINE if is_wide(output) else 1.2 * CODE_LINE
        broken = sum(len(line) // 122 for line in output.text.splitlines())
        return line * (output.text.count("\n") + broken + 0.5) + GAP
    data = output.get("data", {})
    if "image/png" in data:
        return picture_size(output)[1] + GAP
    if "text/markdown" in data:
        return height("".join(data["text/markdown"]))
    if "text/html" in data:
        page = "".join(data["text/html"])
        return max(ROW * page.count("<tr"), 0.32 * len(re.sub(r"<[^>]*>", "", page)) + 40.0) + GAP
    return CODE_LINE * (str(data.get("text/plain", "")).count("\n") + 1) + GAP


def is_wide(output: NotebookNode) -> bool:
    return output.output_type == "stream" and max(map(_width, output.text.splitlines()), default=0) > WIDE


def picture_size(output: NotebookNode) -> tuple[float, float]:
    """Pixels that a picture takes: as wide as the slide, if it is not too high then."""
    size = output.metadata.get("image/png", {})
    wide, tall = size.get("width", 860), size.get("height", 400)
    scale = min(PICTURE_WIDTH / wide, PICTURE_HEIGHT / tall)
    return wide * scale, tall * scale


def shortened(output: NotebookNode) -> NotebookNode:
    """A copy, of printed text without the lines that nobody would read from the last row."""
    output = nbformat.from_dict(copy.deepcopy(output))
    if output.output_type != "stream":
        return output
    lines = output.text.rstrip("\n").splitlines()
    if len(lines) > MAX_PRINTED:
        lines = [*lines[: MAX_PRINTED - 1], "…"]
    output.text = "\n".join(lines) + "\n"
    return output


class Deck:
    """The slides so far; what is added goes below the last heading, or on a new slide where that is full."""

    def __init__(self):
        self.slides: list[Slide] = []

    def head(self, heading: str, level: int) -> None:
        if self.slides and self.slides[-1].empty and self.slides[-1].level < level:
            last = self.slides[-1]  # a part's title and its first section share a slide
            last.cells.append(new_markdown_cell(f"#### {heading}"))
            last.used += HEAD / 2
            last.running = heading
            return
        self.slides.append(Slide(heading, level, running=heading))

    def add(self, cell: NotebookNode, tall: float, pictures: float = 0.0) -> None:
        """Puts a cell `tall` pixels high, `pictures` of them pictures, onto the last slide or a new one."""
        last = self.slides[-1]
        least = last.used + tall - SHRINK * (last.pictures + pictures)
        room = ROOM + (OVERRUN if tall <= SHORT else 0.0)  # rather a little smaller than a line by itself
        if not last.empty and least > room:
            last = Slide(last.running, 3, running=last.running)
            self.slides.append(last)
        last.cells.append(cell)
        last.used += tall
        last.pictures += pictures

    def say(self, words: str) -> None:
        self.slides[-1].notes.append(words)


def cut(book: NotebookNode) -> list[Slide]:
    """The slides of a chapter."""
    deck = Deck()
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for block in blocks(cell.source):
                _add_block(deck, block)
        elif cell.cell_type == "code":
            _add_code(deck, cell)
    for slide in deck.slides:
        _size_pictures(slide)
    return deck.slides


def _size_pictures(slide: Slide) -> None:
    """Gives pictures their size on the slide, smaller where text stands beside them."""
    over = max(slide.used - ROOM, 0.0)
    share = max(1 - over / slide.pictures, 1 - SHRINK) if slide.pictures else 1.0
    for cell in slide.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                wide, tall = picture_size(output)
                size = {"width": round(wide * share), "height": round(tall * share)}
                output.metadata["image/png"] = {**output.metadata.get("image/png", {}), **size}


def _add_block(deck: Deck, block: str) -> None:
    if kind(block) == "heading":
        line, _, rest = block.partition("\n")
        marks, words = line.split(" ", 1)
        deck.head(words.strip(), len(marks))
        if rest.strip():
            _add_block(deck, rest.strip())
        return
    if kind(block) == "prose":
        shown = gist(block)
        deck.add(new_markdown_cell(shown), height(shown))
        if len(shown) < len(" ".join(block.split())):
            deck.say(block)
        return
    for part in pieces(block):
        deck.add(new_markdown_cell(part), height(part))


def _add_code(deck: Deck, cell: NotebookNode) -> None:
    """The code, folded, with the first of its outputs; the others one by one, as there is room."""
    if not cell.outputs:
        shown = new_code_cell(cell.source, execution_count=cell.execution_count)
        deck.add(shown, CODE_LINE * (cell.source.count("\n") + 2) + GAP)
        return
    for index, output in enumerate(map(shortened, cell.outputs)):
        shown = new_code_cell(cell.source, outputs=[output], execution_count=cell.execution_count)
        tags = ["folded"] if index == 0 else ["output-alone"]
        shown.metadata["tags"] = [*tags, "wide"] if is_wide(output) else tags
        tall = output_height(output) + (FOLDED if index == 0 else 0.0)
        pictures = picture_size(output)[1] if "image/png" in output.get("data", {}) else 0.0
        deck.add(shown, tall, pictures)


def slideshow(slides: list[Slide]) -> NotebookNode:
    """A notebook whose cells tell nbconvert where a slide begins."""
    cells = []
    for slide in slides:
        marks = "#" if slide.level == 1 else "##"
        title = new_markdown_cell(f"{marks} {slide.heading}")
        title.metadata["slideshow"] = {"slide_type": "slide" if slide.level <= 2 else "subslide"}
        cells.append(title)
        for cell in slide.cells:
            cell.metadata["slideshow"] = {"slide_type": "-"}
            cells.append(cell)
        if slide.notes:
            notes = new_markdown_cell("\n\n".join(slide.notes))
            notes.metadata["slideshow"] = {"slide_type": "notes"}
            cells.append(notes)
    for index, cell in enumerate(cells):
        cell.id = f"slide-{index}"
    return new_notebook(cells=cells)


def page(book: NotebookNode, name: str) -> str:
    """The slides as one HTML page, which finds reveal.js and MathJax in the folders beside it."""
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        template_name="course_slides",
        extra_template_basedirs=[str(TEMPLATES)],
        reveal_url_prefix="reveal",
        reveal_number="c/t",
        reveal_transition="none",
        reveal_width=str(WIDTH),
        reveal_height=str(HEIGHT),
        mathjax_url=MATHJAX_URL,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    title = book.cells[0].source.lstrip("# ")
    text, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": name}, "page_title": title})
    return lead_to_pages(named_pictures(text, book))


def main() -> int:
    options = parse(__doc__)
    target = BUILD / "slides" / options.edition
    try:
        wanted = chosen(options.names, options.edition)
        target.mkdir(parents=True, exist_ok=True)
        provide((REVEAL, MATHJAX), target)
    except (ValueError, OSError, AssetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, path in wanted.items():
        slides = cut(nbformat.read(path, as_version=4))
        file = target / f"{name}.html"
        file.write_text(page(slideshow(slides), name), encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(slides)} slides", flush=True)
    print("Open one in a browser; S opens the speaker's notes, Esc the overview, ?print-pdf prints them all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
