"""Slides of each chapter: `make slides` writes build/slides/NAME.html for reveal.js, with speaker notes.

A chapter's notebook is cut up by rule, and nbconvert's slides exporter writes it out:

- a heading begins a slide, and so does what no longer fits; sections go to the right, their parts down; what
  takes several slides is spread so that none is left nearly empty;
- of prose a slide shows how a paragraph begins, more where there is room, and what it asks, the notes all of
  it; tables, lists, formulas and quotations stay whole, or are cut between rows and items where too long;
- of a code cell it shows what came out, and the code folded, or open where there is room;
- what comes out below a *Predict* is shown by the next press of the key, or on the next slide;
- widgets appear as the pictures that they left.

    python -m tools.slides [NAME …] [--edition zh]     all chapters, or those named
"""

import copy
import re
import sys
from dataclasses import dataclass, field
from itertools import accumulate

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.exported_pages import MATHJAX_URL, ROOT, TEMPLATES, chosen, lead_to_pages, named_pictures, parse
from tools.page_assets import BUILD, MATHJAX, REVEAL, AssetError, provide
from tools.slide_sizes import (
    FOLDED,
    HEIGHT,
    ROOM,
    WIDTH,
    code_height,
    height,
    is_picture,
    is_wide,
    kind,
    output_height,
    picture_size,
    slack,
)

PROSE_LETTERS, MORE_LETTERS = 300, 640  # of a paragraph that are shown, and where there is room
FILLED = 0.8  # of a slide's height, up to which more is shown
EMPTY, SPLIT, LED_ON, SHRUNK = 0.9, 0.08, 0.5, 0.25  # slides that an empty one, a cut, a small picture costs
MAX_ITEMS, MAX_PRINTED, MAX_OPEN = 7, 24, 16
FULL_STOPS = "。\uff01\uff1f"  # of Chinese text, which needs no blank after them
COLONS = (":", "\uff1a")
BEGINS = re.compile(r" [A-Z$*`\"“(\d⺀-￯]")  # a sentence
ABBREVIATIONS = re.compile(r"(?:\b(?:e\.g|i\.e|et al|cf|vs|Fig|Eq|Sec|No|approx)|\b[A-Z])\.$")
ASKS = re.compile(r"\*Predict\*|Commit yourself|\*预测\*|自己定一个数")


@dataclass
class Item:
    """What stays together on a slide: a block of Markdown, or a code cell with one of its outputs.

    Attributes:
        tall: pixels of height, with a picture as large as it may be.
        slack: pixels by which its picture may shrink.
        block: the whole paragraph of which the cell may show the beginning.
    """

    cell: NotebookNode
    tall: float
    slack: float = 0.0
    block: str = ""

    @property
    def heading(self) -> str:
        """Its words where it is a heading, else none."""
        block = self.cell.source
        return block.lstrip("# ") if self.cell.cell_type == "markdown" and kind(block) == "heading" else ""

    @property
    def asks(self) -> bool:
        """Whether a prediction is asked for, so that what comes out below is the answer."""
        return self.cell.cell_type == "markdown" and bool(ASKS.search(self.block or self.cell.source))

    @property
    def answers(self) -> bool:
        return self.cell.cell_type == "code" and bool(self.cell.outputs)

    @property
    def said(self) -> str:
        """The paragraph, where not all of it is shown."""
        return self.block if len(self.cell.source) < len(" ".join(self.block.split())) else ""


@dataclass
class Slide:
    """One slide, or a section that is still to be spread over several.

    Attributes:
        level: of its heading in the chapter; 1 and 2 begin a column of slides.
    """

    heading: str
    level: int
    items: list[Item] = field(default_factory=list)

    @property
    def cells(self) -> list[NotebookNode]:
        return [item.cell for item in self.items]

    @property
    def notes(self) -> list[str]:
        return [item.said for item in self.items if item.said]

    @property
    def used(self) -> float:
        """Pixels of its height, with pictures as large as they may be."""
        return sum(item.tall for item in self.items)

    @property
    def slack(self) -> float:
        return sum(item.slack for item in self.items)

    @property
    def empty(self) -> bool:
        """Whether nothing but headings stands on it."""
        return all(item.heading for item in self.items)


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


def gist(paragraph: str, letters: int = PROSE_LETTERS) -> str:
    """How a paragraph begins: whole sentences up to a size; and its last one if it leads on with a colon, and
    what it asks the reader to predict, with an ellipsis for what is left out before."""
    parts = sentences(paragraph)
    asked = next((place for place, part in enumerate(parts) if ASKS.search(part)), len(parts))
    shown = [0, *_while_short(parts, 1, letters - len(parts[0]))]
    if asked < len(parts):
        shown += [asked, *_while_short(parts, asked + 1, letters - len(parts[asked]))]
    if parts[-1].endswith(COLONS):
        shown.append(len(parts) - 1)
    shown = sorted(set(shown))
    gaps = ["" if place == 0 else " " if place - 1 in shown else " … " for place in shown]
    return "".join(gap + parts[place] for gap, place in zip(gaps, shown, strict=True))


def _while_short(parts: list[str], start: int, letters: int) -> list[int]:
    sizes = accumulate(map(len, parts[start:]))
    return [place for place, size in enumerate(sizes, start) if size <= letters]


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


def cut(book: NotebookNode) -> list[Slide]:
    """The slides of a chapter."""
    sections: list[Slide] = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for block in blocks(cell.source):
                _add_block(sections, block)
        elif cell.cell_type == "code":
            sections[-1].items += _items_of_code(cell)
    slides = [slide for section in sections for slide in spread(section)]
    for slide in slides:
        _fill(slide)
        _size_pictures(slide)
    return slides


def _add_block(sections: list[Slide], block: str) -> None:
    if kind(block) == "heading":
        line, _, rest = block.partition("\n")
        marks, words = line.split(" ", 1)
        shares = sections and (len(marks) > 2 or (sections[-1].empty and sections[-1].level < len(marks)))
        if shares:  # a part's title with its first section, a small section with the one before
            inner = new_markdown_cell(f"#### {words.strip()}")
            sections[-1].items.append(Item(inner, height(inner.source)))
        else:
            sections.append(Slide(words.strip(), len(marks)))
        if rest.strip():
            _add_block(sections, rest.strip())
    elif kind(block) == "prose":
        shown = gist(block)
        sections[-1].items.append(Item(new_markdown_cell(shown), height(shown), block=block))
    else:
        sections[-1].items += [Item(new_markdown_cell(part), height(part)) for part in pieces(block)]


def _items_of_code(cell: NotebookNode) -> list[Item]:
    """The code, folded, with the first of its outputs; then the others."""
    if not cell.outputs:
        shown = new_code_cell(cell.source, execution_count=cell.execution_count)
        return [Item(shown, code_height(cell.source))]
    items = []
    for index, output in enumerate(map(shortened, cell.outputs)):
        shown = new_code_cell(cell.source, outputs=[output], execution_count=cell.execution_count)
        tags = ["folded"] if index == 0 else ["output-alone"]
        shown.metadata["tags"] = [*tags, "wide"] if is_wide(output) else tags
        items.append(Item(shown, output_height(output) + (FOLDED if index == 0 else 0.0), slack(output)))
    return items


def spread(section: Slide) -> list[Slide]:
    """A section's slides: of all ways to cut it, the one with few slides, none of them nearly empty.

    Small headings within it are those of a slide where they come first, and stand on it where they do not.
    """
    items = section.items
    best: list[tuple[float, list[int]]] = [
        (0.0, [])
    ]  # by how many items are placed: cost, and where slides end
    for end in range(1, len(items) + 1):
        ways = [(best[start][0] + _cost(items, start, end), best[start][1] + [end]) for start in range(end)]
        best.append(min(ways))
    slides, running, start = [], section.heading, 0
    for end in best[-1][1] or [0]:
        own = items[start:end]
        if start and own[0].heading:
            running, own = own[0].heading, own[1:]
        slides.append(Slide(running, 3 if start else section.level, own))
        running = next((item.heading for item in reversed(own) if item.heading), running)
        start = end
    return slides


def _cost(items: list[Item], start: int, end: int) -> float:
    """Of a slide that holds these items, in slides."""
    own = items[start:end]
    used, give = sum(item.tall for item in own), sum(item.slack for item in own)
    if (own[-1].heading and end < len(items)) or (len(own) > 1 and used - give > ROOM):
        return float("inf")
    cost = 1 + EMPTY * max(1 - used / ROOM, 0.0) ** 2
    if give:
        cost += SHRUNK * min(max(used - ROOM, 0.0) / give, 1.0)
    if end < len(items):
        leads_on = own[-1].block.endswith(COLONS)
        begins = own[-1].cell.cell_type == "markdown" and items[end].cell.cell_type == "code"
        cost += LED_ON * leads_on + SPLIT * begins - SPLIT * bool(items[end].heading)
    return cost


def _fill(slide: Slide) -> None:
    """Shows more of its paragraphs, then code, where much of the slide would be empty."""
    for item in slide.items:
        if not item.said:
            continue
        more = gist(item.block, MORE_LETTERS)
        if slide.used + height(more) - item.tall <= FILLED * ROOM:
            item.cell.source, item.tall = more, height(more)
    for item in slide.items:
        lines, room = item.cell.source.count("\n") + 1, FILLED * ROOM - slide.used
        if "folded" in item.cell.metadata.get("tags", ()) and lines <= MAX_OPEN:
            tall = code_height(item.cell.source)
            if tall <= room:
                item.cell.metadata["tags"].append("open")
                item.tall += tall


def _size_pictures(slide: Slide) -> None:
    """Gives pictures their size on the slide, smaller where text stands beside them."""
    over = max(slide.used - ROOM, 0.0)
    share = max(1 - over / slide.slack, 0.0) if slide.slack else 0.0
    for item in slide.items:
        for output in filter(is_picture, item.cell.get("outputs", ())):
            wide, tall = picture_size(output)
            scale = 1 - (1 - share) * item.slack / tall
            size = {"width": round(wide * scale), "height": round(tall * scale)}
            output.metadata["image/png"] = {**output.metadata.get("image/png", {}), **size}


def slideshow(slides: list[Slide]) -> NotebookNode:
    """A notebook whose cells tell nbconvert where a slide begins, and what waits for a key."""
    cells = []
    for slide in slides:
        marks = "#" if slide.level == 1 else "##"
        title = new_markdown_cell(f"{marks} {slide.heading}")
        cells.append(_typed(title, "slide" if slide.level <= 2 else "subslide"))
        if slide.notes:
            cells.append(_typed(new_markdown_cell("\n\n".join(slide.notes)), "notes"))
        asked = False
        for item in slide.items:
            cells.append(_typed(item.cell, "fragment" if asked and item.answers else "-"))
            asked = item.asks or (asked and not item.answers)
    for index, cell in enumerate(cells):
        cell.id = f"slide-{index}"
    return new_notebook(cells=cells)


def _typed(cell: NotebookNode, name: str) -> NotebookNode:
    cell.metadata["slideshow"] = {"slide_type": name}
    return cell


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
