"""A course to be distilled in seconds: little text of two domains, and members of the family of one layer.

And what chapter 6 shows of the rows that such a run records, as if they were a GPU's.
"""

from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import record

from llmcourse.figures import recorded
from llmcourse.training.recipes import FAMILY, shape

SMALL = {"steps": 2, "warmup": 1, "batch_size": 4, "sequence_length": 16}
CHAPTER = Path(__file__).resolve().parents[2] / "notebooks" / "source" / "06_distillation.py"
GPU = "NVIDIA H200"
WINDOWS = ["--windows=2", "--window=16", "--device=cpu"]


def tiny_family():
    """Two students of the family's vocabulary."""
    members = {"draft": shape(16, 1, 24, 2, 1), "small": shape(24, 1, 32, 2, 1)}
    recipes = {name: replace(FAMILY[name], model=config, **SMALL) for name, config in members.items()}
    return mock.patch.dict(FAMILY, recipes)


def texts(folder: Path) -> list[str]:
    """The options that name them."""
    words = [f"word{n} and then {n * 7 % 11} more of {n * 13 % 17}" for n in range(2000)]
    (folder / "prose.txt").write_text("\n\n".join(" ".join(words[n : n + 25]) for n in range(0, 2000, 25)))
    (folder / "poems.txt").write_text("\n\n".join(words[:600]))
    named = [f"--blocks=prose={folder / 'prose.txt'}", f"--blocks=poetry={folder / 'poems.txt'}"]
    return [*named, "--held-out=0.3"]


def as_recorded_on_a_gpu(monkeypatch, results: Path) -> None:
    """Rows go to a folder of results, by the name of a GPU, whatever measured them."""
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(record.hardware, "this_machine", lambda _: SimpleNamespace(name=GPU))
    monkeypatch.setattr(record.hardware, "fingerprint", lambda _: {"device": GPU})


def shown(results: Path, line: str, *, whole: bool = True, **given) -> tuple[list[str], str]:
    """What a cell of chapter 6 makes of recorded rows: its pictures, in words, and what it prints.

    Args:
        line: how a line of the cell begins.
        whole: run all of the cell, or from there.
        given: what the cell takes from those before it.
    """
    cells = CHAPTER.read_text(encoding="utf-8").split("\n# %%")
    (cell,) = (cell for cell in cells if f"\n{line}" in cell)
    cell = cell.partition("\n")[2] if whole else cell[cell.index(line) :]
    names = ("raw_rows", "recorded", "all_of")
    reads = {name: partial(getattr(recorded, name), folder=results) for name in names}
    pictures, said = [], StringIO()
    with redirect_stdout(said):
        reader = SimpleNamespace(told=recorded.told, **reads)
        exec(cell, {"recorded": reader, "display": pictures.append, **given})
    for picture in pictures:
        picture.png(1.0)
    return [picture.alt for picture in pictures], said.getvalue()
