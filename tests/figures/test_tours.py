"""Tables of minutes and weeks; and the front page, whose tours lead to what is there."""

import json
import re
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from llmcourse.figures import tours
from llmcourse.figures.course_map import NOTEBOOKS, Chapter

CHAPTERS = (Chapter(1, "01_a", "A", 60, ()), Chapter(2, "02_b", "B", 75, ()))
LABS = {"01_a": [SimpleNamespace(minutes=90), SimpleNamespace(minutes=10)]}
PAGE = json.loads((NOTEBOOKS / "00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
TEXT = "\n\n".join("".join(cell["source"]) for cell in PAGE if cell["cell_type"] == "markdown")
LINKS = re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXT)


def test_minutes_are_those_of_chapters_and_exercises():
    table = tours.minutes_table(CHAPTERS, LABS, {"01_a": 100})
    assert table.rows[0] == (
        "1",
        "[A](01_a.ipynb)",
        "1 h 00",
        "[lab 1](../labs/01_a.ipynb)",
        "2",
        "100",
        "1 h 40",
    )
    assert table.rows[1][3:] == ("–",) * 4
    assert table.rows[2][2] == "**2 h 15**" and table.rows[2][-1] == "**1 h 40**"
    lines = table._repr_markdown_().splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {8}
    assert "B" in repr(table)


def test_a_lab_is_handed_in_the_week_after():
    table = tours.six_weeks(CHAPTERS, {"01_a": 100})
    assert [(row[0], *row[2:]) for row in table.rows] == [
        ("1", "lab 1", "–", "2 h 40"),
        ("2", "lab 2", "lab 1", "1 h 15"),
    ]


def headings(stem):
    cells = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {heading.strip().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("link", LINKS)
def test_links_of_the_front_page_lead_to_a_section(link):
    name, _, anchor = unquote(link).partition("#")
    assert (NOTEBOOKS / name).is_file()
    assert not anchor or anchor in headings(name.removesuffix(".ipynb"))


def test_the_lecture_takes_90_minutes():
    rows = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert sum(map(int, rows)) == 90 and len(LINKS) > 15


def test_widgets_that_are_to_be_played_stand_where_the_tour_says():
    for row in re.findall(r"^\| \d+ \|.*$", TEXT, re.MULTILINE):
        for widget in re.findall(r"`(\w+(?:Explorer|Player|Timeline|Calculator|Viewer))`", row):
            found = False
            for link in re.findall(r"\]\(([^)#]+)#([^)\s]+)\)", row):
                cells = json.loads((NOTEBOOKS / link[0]).read_text(encoding="utf-8"))["cells"]
                section = False
                for cell in cells:
                    source = "".join(cell["source"])
                    if cell["cell_type"] == "markdown":
                        for heading in re.findall(r"^## (.*)$", source, re.MULTILINE):
                            section = heading.strip().replace(" ", "-") == unquote(link[1])
                    elif section and f"widgets.{widget}(" in source:
                        found = True
            assert found, f"{widget} is not where {row} says"


def test_no_minutes_of_chapters_are_typed_by_hand():
    assert not re.search(r"\b(60|75|90|100) minutes of reading\b", TEXT)
    assert "{" not in TEXT
