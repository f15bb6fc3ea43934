"""Runs a saved chapter on this machine, and compares its texts with the saved ones.

    python benchmarks/run_notebook.py 01_decoding

appends how many code cells ran to benchmarks/results/<device>.jsonl. The saved notebook stays as it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from record import record

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks  # noqa: E402

CHECKED = "nbval-check-output"


def texts(cell: nbformat.NotebookNode) -> str:
    """What a code cell printed."""
    return "".join(output.get("text", "") for output in cell.outputs)


def main(name: str) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    saved, book = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    started = time.perf_counter()
    notebooks.run(book, path.parent)  # raises at the first cell that fails
    seconds = time.perf_counter() - started
    pairs = [(old, new) for old, new in zip(saved.cells, book.cells, strict=True) if new.cell_type == "code"]
    checked = [pair for pair in pairs if CHECKED in pair[0].metadata.get("tags", [])]
    differing = [old.id for old, new in checked if texts(old) != texts(new)]
    record(
        f"notebook_{name}",
        len(pairs),
        "cells without an error",
        limit=len(pairs),
        limit_name="code cells",
        seconds=round(seconds, 1),
        checked_cells=len(checked),
        differing_cells=differing,
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/run_notebook.py 01_decoding")
    main(sys.argv[1])
