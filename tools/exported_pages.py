"""What slides and handouts have in common: which chapters, where links lead, what pictures are called."""

import argparse
import html
import re
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
MATHJAX_URL = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
UNNAMED = 'alt="No description has been provided for this image"'


def chapters(edition: str = "") -> dict[str, Path]:
    """The saved chapters by name, the front page left out.

    Raises:
        ValueError: there is no such edition.
    """
    folder = ROOT / "notebooks" / edition
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if path.stem[:2] != "00"}
    if not found:
        raise ValueError(
            f"EDITION must be a folder of notebooks/ with chapters, got {edition!r}; leave it out"
        )
    return found


def chosen(names: list[str], edition: str = "") -> dict[str, Path]:
    """The chapters that are named, or all.

    Raises:
        ValueError: there is no such chapter or edition.
    """
    known = chapters(edition)
    for name in names:
        if name not in known:
            raise ValueError(f"no chapter {name!r}; there are: {', '.join(known)}")
    return {name: known[name] for name in names or known}


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters, such as 01_decoding; default all")
    parser.add_argument("--edition", default="", help="a folder of notebooks/, such as zh")
    return parser.parse_args()


def lead_to_pages(text: str) -> str:
    """Links to other chapters lead to their pages; those into the course's folders become words."""
    text = re.sub(r'href="(\d\d_\w+)\.ipynb(?:#[^"]*)?"', r'href="\1.html"', text)
    return re.sub(r'<a href="\.\./[^"]*"[^>]*>(.*?)</a>', r"\1", text, flags=re.DOTALL)


def named_pictures(text: str, book: NotebookNode) -> str:
    """Gives each picture the text alternative that the notebook keeps beside it."""
    outputs = (output for cell in book.cells for output in cell.get("outputs", ()))
    shown = (output for output in outputs if "image/png" in output.get("data", {}))
    names = iter([output.metadata.get("image/png", {}).get("alt", "") or _told(output) for output in shown])
    return re.sub(UNNAMED, lambda _: f'alt="{html.escape(next(names, ""))}"', text)


def _told(output: NotebookNode) -> str:
    return "".join(output.data.get("text/plain", ""))
