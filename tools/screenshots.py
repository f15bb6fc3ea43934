"""Pictures for the README, into docs/: `python -m tools.screenshots`, or some by name.

Views are photographed in the JupyterLab that `make lab` starts, controls and all, which takes Playwright and
Chromium; plots are drawn by the functions that draw them in the chapters, from what is recorded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageOps
from PIL.PngImagePlugin import PngInfo

from tools.browser import find_browser
from tools.lab import next_free

if TYPE_CHECKING:
    from llmcourse.figures.style import Picture

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MOST_BYTES = 60_000
COLOURS = 32  # a view has few; more of them would only smooth the edges of its letters
WIDTH, SCALE = 1120, 1.25  # of the page, in its own pixels, and how many of ours each of them gets
MARGIN = 8  # of white, in our pixels
SECONDS_TO_START, SECONDS_TO_DRAW = 180, 180
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\S*token=\w+")
IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
NOTEBOOK = "labs/views.ipynb"  # of the folder that is served
RUN = """index => {  // and does not wait: where the page asks a question, the command never ends
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = index;
    notebook.scrollToItem(index, "start");
    jupyterapp.commands.execute("notebook:run-cell");
}"""

VIEWS = {  # the cell that shows each
    "sampling_explorer": """
from llmcourse.decoding import SamplingParams
from llmcourse.figures.widgets import SamplingExplorer
SamplingExplorer(params=SamplingParams(temperature=0.8, top_p=0.5))""",
    "roofline_explorer": """
from llmcourse import hardware
from llmcourse.figures.widgets import RooflineExplorer
RooflineExplorer(hardware.DATASHEETS, machine="A100 80GB", model="Llama-3-8B")""",
    "trace_player": """
from llmcourse.figures.widgets import TracePlayer
view = TracePlayer(target="base", drafter="draft", prompt="Once upon a time there was")
view.phase.value = 18  # two drafts stand, the third falls
view""",
}

WITHOUT_TEXT = {"roofline_explorer"}  # some eight lines
HEIGHT = """(view, withoutText) => {  // without the line of the page that lies along the bottom
    const end = withoutText ? view.querySelector("img.widget-image") : view;
    return end.getBoundingClientRect().bottom - view.getBoundingClientRect().top - 3;
}"""


def recorded_attention() -> Picture:
    """FlashAttention beside its limit and its peer, as chapter 3 draws what is recorded."""
    from llmcourse.figures import kernel_bars, recorded

    names = kernel_bars.FLASH_FORWARD
    return kernel_bars.plot_kernels(recorded.all_of(names), "FlashAttention, forward, bf16", names)


PLOTS: dict[str, Callable[[], Picture]] = {"recorded_attention": recorded_attention}


def packed(png: bytes, words: str = "") -> bytes:
    """A picture in a palette of few colours, with no more white around it than a margin.

    Args:
        words: what a plot says, kept in the file, so that one which is out of date can be found.
    """
    found = Image.open(io.BytesIO(png)).convert("RGB")
    box = ImageChops.difference(found, Image.new("RGB", found.size, "white")).getbbox()
    if box is not None:
        found = ImageOps.expand(found.crop(box), MARGIN, "white")
    out = io.BytesIO()
    few = found.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    kept = PngInfo()
    if words:
        kept.add_itxt("Description", words)
    few.save(out, "PNG", optimize=True, pnginfo=kept)
    return out.getvalue()


def drawn(name: str) -> bytes:
    """A plot as a file."""
    picture = PLOTS[name]()
    return packed(picture.png(SCALE), picture.alt)


def notebook(sources: list[str]) -> dict:
    """A notebook of these code cells."""
    empty = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [empty | {"id": f"view-{i}", "source": text.strip()} for i, text in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@contextmanager
def served(sources: list[str]) -> Iterator[str]:
    """The address of a notebook of these cells, in JupyterLab started by tools/lab.py on a folder of its own.

    Raises:
        RuntimeError: it does not start; its log is in the message.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inside in ("tools", "labs", "config"):
            (folder / inside).mkdir()
        (folder / "tools/lab.py").write_bytes((ROOT / "tools/lab.py").read_bytes())
        (folder / NOTEBOOK).write_text(json.dumps(notebook(sources)), encoding="utf-8")
        (folder / "config/jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}')
        own = {
            "PORT": str(next_free(8950)),
            "NO_BROWSER": "1",
            "LAB": Path(NOTEBOOK).stem,
            "PYTHONPATH": str(ROOT),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        }
        log = folder / "log"
        with log.open("w") as sink:
            server = subprocess.Popen(
                [sys.executable, "tools/lab.py"], cwd=folder, env=os.environ | own, stdout=sink, stderr=sink
            )
        try:
            until = time.monotonic() + SECONDS_TO_START
            while not (found := ADDRESS.search(log.read_text(encoding="utf-8", errors="replace"))):
                if time.monotonic() > until or server.poll() is not None:
                    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield found[0].replace("?", "?reset&")
        finally:
            server.terminate()
            server.wait(30)


def photograph(views: dict[str, str]) -> dict[str, bytes]:
    """Each view as the page shows it once its picture is there: PNG files by name.

    Raises:
        RuntimeError: no browser is found.
    """
    from playwright.sync_api import sync_playwright

    path, reason = find_browser()
    if not path:
        raise RuntimeError(f"{reason}; install Chromium, or name one: CHROME=/path/to/chrome")
    with served(list(views.values())) as address, sync_playwright() as play:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=path, args=options)
        page = browser.new_page(viewport={"width": WIDTH, "height": 1400}, device_scale_factor=SCALE)
        page.goto(address)
        page.wait_for_selector(IDLE, timeout=1000 * SECONDS_TO_START)
        page.evaluate("jupyterapp.shell.collapseLeft()")
        shots = {name: shot(page, i, name in WITHOUT_TEXT) for i, name in enumerate(views)}
        browser.close()
    return shots


def shot(page, index: int, without_text: bool) -> bytes:
    """Runs a cell and takes the view below it, or that without the text under its picture."""
    view = page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .llmcourse-view")
    until = time.monotonic() + SECONDS_TO_DRAW
    while not view.locator("img.widget-image").count():
        if time.monotonic() > until:
            raise TimeoutError(f"cell {index} must show its view within {SECONDS_TO_DRAW} s")
        if page.locator(".jp-Dialog .jp-mod-accept").count():  # which kernel? the one that is proposed
            page.locator(".jp-Dialog .jp-mod-accept").click()
        elif page.locator(IDLE).count():  # an idle page sometimes takes the command and does nothing
            page.evaluate(RUN, index)
        page.wait_for_timeout(3000)
    page.wait_for_selector(IDLE, timeout=1000 * SECONDS_TO_DRAW)
    page.wait_for_timeout(1500)  # fonts and controls
    if page.locator(".jp-Dialog").count():
        raise RuntimeError(
            "the page asks something in front of the view: " + page.locator(".jp-Dialog").inner_text()
        )
    found, out = Image.open(io.BytesIO(view.screenshot())), io.BytesIO()
    height = int(SCALE * view.evaluate(HEIGHT, without_text))
    found.crop((0, 0, found.width, height)).save(out, "PNG")
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*VIEWS, *PLOTS])}; all if none is given")
    wanted = parser.parse_args().names or [*VIEWS, *PLOTS]
    views = {name: VIEWS[name] for name in wanted if name in VIEWS}
    files = {name: packed(png) for name, png in (photograph(views) if views else {}).items()}
    files |= {name: drawn(name) for name in wanted if name in PLOTS}
    for name, data in files.items():
        (DOCS / f"{name}.png").write_bytes(data)
        print(f"docs/{name}.png: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
