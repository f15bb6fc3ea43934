"""Handouts of each chapter: `make handouts` writes build/handouts/NAME.html, and NAME.pdf where a browser is.

The page holds all of the chapter, with a table of contents; the PDF is the same page printed by Chromium or
Chrome, with page numbers. CHROME names the browser where it is not found by itself.

    python -m tools.handouts [NAME …] [--edition zh]     all chapters, or those named
"""

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.browser import find_browser
from tools.exported_pages import MATHJAX_URL, ROOT, TEMPLATES, chosen, lead_to_pages, named_pictures, parse
from tools.page_assets import BUILD, MATHJAX, AssetError, provide

NO_BROWSER = (
    "No PDF: neither Chromium nor Chrome is found. The pages are there as HTML, and any browser prints them; "
    "or install one (Debian: apt-get install chromium), or name it: make handouts CHROME=/path/to/chrome"
)
SHORT = 12  # lines
PRINT_LIMIT_S, SETTLE_MS = 300, 60_000
ANCHOR = re.compile(r'<a class="anchor-link".*?</a>', re.DOTALL)
HEADING = re.compile(r'<h([1-3])[^>]* id="([^"]+)"[^>]*>(.*?)</h\1>', re.DOTALL)


class PrintError(Exception):
    """A page that the browser did not print; the message says what it said."""


def page(book: NotebookNode, name: str) -> str:
    """The chapter as one HTML page, which finds MathJax in the folder beside it."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="course_handout",
        extra_template_basedirs=[str(TEMPLATES)],
        mathjax_url=MATHJAX_URL,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    title = book.cells[0].source.splitlines()[0].lstrip("# ")
    text, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": name}, "page_title": title})
    return with_contents(kept_whole(lead_to_pages(named_pictures(text, book))))


def kept_whole(text: str) -> str:
    """The page with a mark on code and prints that are short, which then stand on one sheet of paper."""

    def marked(match: re.Match[str]) -> str:
        return f'<pre class="short">{match[1]}' if match[1].count("\n") <= SHORT else match[0]

    return re.sub(r"<pre>(.*?</pre>)", marked, text, flags=re.DOTALL)


def with_contents(text: str) -> str:
    """The page with a table of contents below its title; headings of the third order are left out."""
    entries = [(int(level), anchor, words) for level, anchor, words in HEADING.findall(text) if level != "3"]
    lines = []
    for level, anchor, words in entries[1:]:
        plain = ANCHOR.sub("", words).strip()
        kind = "part" if level == 1 else "section"
        lines.append(f'<li class="{kind}"><a href="#{anchor}">{plain}</a></li>')
    contents = f'<nav class="contents"><ul>{"".join(lines)}</ul></nav>'
    first, rest = text.split("</h1>", 1)
    return f"{first}</h1>{contents}{rest}"


def for_print(text: str) -> str:
    """The page without links that lead nowhere from a PDF: those within it and to the web stay."""
    return re.sub(r'<a href="(?!#|https?:)[^"]*"[^>]*>(.*?)</a>', r"\1", text, flags=re.DOTALL)


def print_page(browser: str, text: str, folder: Path, pdf: Path) -> None:
    """Prints a page that belongs into `folder`, where its MathJax lies; there is the whole PDF or none.

    Raises:
        PrintError: the browser fails, or takes too long.
    """
    copy = folder / f".{pdf.stem}.print.html"
    draft = pdf.with_name(f".{pdf.name}")
    copy.write_text(for_print(text), encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            _run([*command(browser, profile), f"--print-to-pdf={draft}", copy.resolve().as_uri()])
        if not draft.exists() or not draft.read_bytes().startswith(b"%PDF"):
            raise PrintError(
                f"{browser} wrote no PDF of {pdf.stem}; print its HTML page from a window instead"
            )
        draft.replace(pdf)
    finally:
        copy.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)


def command(browser: str, profile: str) -> list[str]:
    """The browser's command line but for the page: waits for formulas, prints no header of its own."""
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [
        browser,
        "--headless",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        *(["--no-sandbox"] if as_root else []),
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={SETTLE_MS}",
        "--no-pdf-header-footer",
        "--generate-pdf-document-outline",
    ]


def _run(line: list[str]) -> None:
    try:
        ended = subprocess.run(
            line, capture_output=True, text=True, timeout=PRINT_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrintError(f"{line[0]} did not print: {error}; print the HTML page from a window") from error
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        raise PrintError(f"{line[0]} failed: {said[-1] if said else f'exit code {ended.returncode}'}")


def main() -> int:
    options = parse(__doc__)
    target = BUILD / "handouts" / options.edition
    try:
        wanted, (browser, _) = chosen(options.names, options.edition), find_browser()
        target.mkdir(parents=True, exist_ok=True)
        provide((MATHJAX,), target)
        for name, path in wanted.items():
            text = page(nbformat.read(path, as_version=4), name)
            file = target / f"{name}.html"
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(ROOT), end="", flush=True)
            if browser:
                print(", printing …", end="", flush=True)
                print_page(browser, text, target, file.with_suffix(".pdf"))
                print(f" {file.with_suffix('.pdf').name}", end="")
            print(flush=True)
    except (ValueError, OSError, AssetError, PrintError) as error:
        print(f"\nerror: {html.unescape(str(error))}", file=sys.stderr)
        return 2
    if not browser:
        print(NO_BROWSER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
