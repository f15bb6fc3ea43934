"""Builds notebooks/NAME.ipynb from the text in notebooks/source/NAME.py, one way, and runs it.

The text is jupytext's py:percent: easy to read, review and lint. Nobody edits the notebook by hand;
a test compares the two. Tags go into the cell's first line: `# %% tags=["nbval-check-output"]`.

    python -m tools.notebooks [NAME …]     all chapters, or those named
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tools.pictures import smaller

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TIMEOUT_S = 600
QUIET = {"TQDM_DISABLE": "1"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/svg+xml", "image/jpeg", "text/html")


class BuildError(Exception):
    """A notebook that cannot be built; the message names the cell."""


def sources(folder: Path = NOTEBOOKS) -> list[Path]:
    return sorted((folder / "source").glob("[0-9]*.py"))


def target_of(source: Path) -> Path:
    return source.parent.parent / f"{source.stem}.ipynb"


def convert(text: str) -> NotebookNode:
    """The notebook of a py:percent text, not yet run; the same text gives the same bytes.

    A cell's id comes from its `name` in the text's cell metadata, else from its content: an edit
    leaves the other cells' ids alone.
    """
    book = jupytext.reads(text, fmt="py:percent")
    book.metadata = nbformat.from_dict(METADATA)
    book.nbformat, book.nbformat_minor = 4, 5
    seen = Counter()
    for cell in book.cells:
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's note to itself
        name = cell.metadata.get("name")
        key = name or hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[key] += 1
        cell.id = key if seen[key] == 1 else f"{key}-{seen[key]}"
    return book


def run(book: NotebookNode, folder: Path) -> None:
    """Executes the cells in a fresh kernel that works in `folder`; outputs are stored in the cells.

    No bars are shown: what is saved is what stays.

    Raises:
        BuildError: a cell raised or took too long.
    """
    client = NotebookClient(
        book,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--Application.log_level=ERROR"],
    )
    # Its own handler now and then loses the reply of a cell that opens widgets, and hangs.
    client.on_comm_open_jupyter_widget = lambda message: None
    try:
        client.execute(env=os.environ | QUIET)
    except (CellExecutionError, TimeoutError) as error:
        raise BuildError(str(error)) from error


def tidy(book: NotebookNode) -> None:
    """Leaves of the outputs what a saved page can show, and of the metadata what is no accident.

    Widgets are dead without a kernel; the picture that stands beside them stays, made smaller.

    Raises:
        BuildError: a cell showed a widget and nothing else, so the page would be empty there.
    """
    book.metadata = nbformat.from_dict(METADATA)  # the kernel has written its versions there
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        bundles = [output.get("data", {}) for output in cell.outputs]
        widgets = [bundle for bundle in bundles if bundle.pop(WIDGET_VIEW, None) is not None]
        if widgets and not any(kind in bundle for bundle in bundles for kind in PICTURES):
            raise BuildError(f"a widget leaves no static picture in the cell\n{cell.source}")
        for bundle in widgets:
            if not any(kind in bundle for kind in PICTURES):
                bundle.clear()  # only its text form was left
        for bundle in bundles:
            if "image/png" in bundle:
                bundle["image/png"] = smaller(bundle["image/png"])
        cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def build(source: Path) -> Path:
    """Converts, runs and writes one chapter; the old notebook stays if anything fails."""
    book = convert(source.read_text(encoding="utf-8"))
    target = target_of(source)
    run(book, target.parent)
    tidy(book)
    nbformat.validate(book)
    target.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
    return target


def differences(source: Path) -> list[str]:
    """How a notebook's cells differ from its text, empty when they are the same."""
    target = target_of(source)
    if not target.exists():
        return [f"{target.name} is not built; run `make notebooks`"]
    wanted = convert(source.read_text(encoding="utf-8"))
    found = nbformat.read(target, as_version=4)
    if len(found.cells) != len(wanted.cells):
        return [f"{target.name} has {len(found.cells)} cells, its text {len(wanted.cells)}"]
    pairs = enumerate(zip(found.cells, wanted.cells, strict=True))
    return [
        f"{target.name}, cell {index} ({key}): run `make notebooks`"
        for index, (old, new) in pairs
        for key in ("id", "cell_type", "source", "metadata")
        if old[key] != new[key]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters, such as 01_decoding; default all")
    names = parser.parse_args().names
    known = {source.stem: source for source in sources()}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"error: no chapter {unknown[0]!r}; there are: {', '.join(known) or 'none'}", file=sys.stderr)
        return 2
    for name in names or known:
        try:
            print(f"{name} …", end=" ", flush=True)
            print(f"written, {build(known[name]).stat().st_size / 1024:.0f} KiB", flush=True)
        except BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
