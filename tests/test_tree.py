"""The whole tree: how large it may be, what must not be in it, and what saved notebooks look like."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MIB = 2**20
TREE_BUDGET, FILE_BUDGET = 52 * MIB, 15 * MIB
WEIGHTS_BUDGET = 40 * MIB
FAMILY_BUDGET = 32 * MIB  # the rest is for heads, exits and the encoder of later chapters
UNTRACKED = {"__pycache__", "build", "dist"}  # and hidden folders, but for .ci
MAX_CODE_LINES = 15
FRONT_PAGE = "00_start_here"
CHAPTER_CELLS, FRONT_PAGE_CELLS = (25, 45), (15, 25)  # at least, at most
CHECK_TAG = "nbval-check-output"

# Put together from pieces, so that this file does not name what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.~*/-])/(?:" + "home|root|work|Users" + r")/[\w.]|\b[A-Z]:\\+Users\b")
REGISTRY = re.compile(
    "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "(?:download|whl).pytorch" + r"\.org"])
)
PIP_SOURCE = re.compile("--(?:extra-)?index" + "-url|--find" + "-links")


def tree_files(root: Path) -> list[Path]:
    """What is committed or would be; without git, everything that is not known to be made here."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split(
            "\0"
        )
        inside = (root / ".git").exists()
    except (OSError, subprocess.CalledProcessError):
        inside = False
    if inside:
        return sorted(path for name in names if name and (path := root / name).is_file())
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in UNTRACKED and not f.endswith(".egg-info")]
        folders[:] = [f for f in folders if not f.startswith(".") or f == ".ci"]
        found += [Path(folder, name) for name in files]
    return sorted(found)


def sizes(files: list[Path]) -> dict[Path, int]:
    return {path.relative_to(ROOT): path.stat().st_size for path in files}


def over_budget(sizes: dict[Path, int]) -> list[str]:
    """Which of the budgets are broken, in words."""
    weights = {path: size for path, size in sizes.items() if path.suffix == ".safetensors"}
    family = {path: size for path, size in weights.items() if path.parent.name in ("draft", "small", "base")}
    sums = (
        ("the tree", sum(sizes.values()), TREE_BUDGET),
        ("all weights", sum(weights.values()), WEIGHTS_BUDGET),
        ("the family's weights", sum(family.values()), FAMILY_BUDGET),
        *((str(path), size, FILE_BUDGET) for path, size in sizes.items()),
    )
    return [
        f"{name}: {size / MIB:.1f} of {limit / MIB:.0f} MiB" for name, size, limit in sums if size > limit
    ]


def text_of(path: Path) -> str:
    """A file's text, empty where it is none."""
    data = path.read_bytes()
    try:
        return "" if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return ""


def offences(pattern: re.Pattern, files: list[Path]) -> list[str]:
    found = (
        (path, number, line) for path in files for number, line in enumerate(text_of(path).splitlines(), 1)
    )
    return [f"{p.relative_to(ROOT)}:{n}: {m.group()}" for p, n, line in found if (m := pattern.search(line))]


def test_the_tree_stays_small():
    assert over_budget(sizes(tree_files(ROOT))) == []


def test_broken_budgets_are_noticed():
    base = Path("llmcourse/checkpoints/base")
    assert len(over_budget({Path("film.mp4"): FILE_BUDGET + 1})) == 1
    assert len(over_budget({base / f"{i}.safetensors": 11 * MIB for i in range(3)})) == 1
    assert len(over_budget({base.parent / f"heads/{i}.safetensors": 14 * MIB for i in range(3)})) == 1
    assert len(over_budget({Path(f"{i}.bin"): 14 * MIB for i in range(4)})) == 1


def test_the_family_is_in_the_tree():
    found = {path.parent.name for path in sizes(tree_files(ROOT)) if path.suffix == ".safetensors"}
    assert {"draft", "small", "base"} <= found


def test_a_tree_without_git_is_walked(tmp_path):
    for name in ("llmcourse/model.py", ".ci/run", ".venv/bin/python", "x/__pycache__/a.pyc", ".ruff_cache/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tree_files(tmp_path) == [tmp_path / ".ci/run", tmp_path / "llmcourse/model.py"]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY, PIP_SOURCE], ids=["path", "registry", "source"])
def test_no_text_depends_on_one_machine(pattern):
    assert offences(pattern, tree_files(ROOT)) == []


def test_what_depends_on_one_machine_is_noticed():
    for path in ("home/ann/x", "root/.cache", "work/course/y", "Users/ann"):
        assert MACHINE_PATH.search(f"saved to /{path}")
        assert not MACHINE_PATH.search(f"https://example.org/{path}")
    assert MACHINE_PATH.search("C:" + "\\Users\\ann") and MACHINE_PATH.search("C:" + "\\\\Users")
    assert not MACHINE_PATH.search("up/home/x")
    assert REGISTRY.search("https://pypi" + ".org/simple") and PIP_SOURCE.search("--extra-index" + "-url x")


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def slips(book: dict, num_cells: tuple[int, int] = CHAPTER_CELLS) -> list[str]:
    """How a saved notebook departs from one clean run and from the form of a chapter.

    Args:
        num_cells: at least, at most.
    """
    cells = book["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1 … n")
    fewest, most = num_cells
    if not fewest <= len(cells) <= most:
        found.append(f"{len(cells)} cells, not {fewest} to {most}")
    for number, cell in enumerate(code, 1):
        lines = "".join(cell["source"]).splitlines()
        kinds = {output["output_type"] for output in cell["outputs"]}
        shown = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        tags = cell["metadata"].get("tags", [])
        if len(lines) > MAX_CODE_LINES:
            found.append(f"code cell {number} has {len(lines)} lines")
        if "error" in kinds:
            found.append(f"code cell {number} shows an error")
        if any(output.get("name") == "stderr" for output in cell["outputs"]):
            found.append(f"code cell {number} shows warnings or logs")
        if CHECK_TAG in tags and not kinds:
            found.append(f"code cell {number} is to be checked and has no output")
        if {"nbval-skip", "skip-execution"} & set(tags):
            found.append(f"code cell {number} is skipped")
        if any("widget-view" in kind for kind in shown):
            found.append(f"code cell {number} shows a widget that no saved page can draw")
    return found


def test_the_front_page_and_the_first_chapter_are_there():
    assert [path.stem for path in notebooks()][:2] == [FRONT_PAGE, "01_decoding"]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebooks_are_saved_from_one_clean_run(path):
    num_cells = FRONT_PAGE_CELLS if path.stem == FRONT_PAGE else CHAPTER_CELLS
    assert slips(json.loads(path.read_text(encoding="utf-8")), num_cells) == []


def clean_book() -> dict:
    output = {"output_type": "display_data", "data": {"text/plain": "1"}}
    cells = [
        {
            "cell_type": "code",
            "execution_count": count,
            "source": ["x"],
            "metadata": {"tags": [CHECK_TAG]},
            "outputs": [output],
        }
        for count in range(1, 31)
    ]
    return json.loads(json.dumps({"cells": cells}))


@pytest.mark.parametrize(
    "change",
    [
        {"execution_count": 7},
        {"execution_count": None},
        {"source": ["x\n"] * 16},
        {"outputs": [{"output_type": "error"}]},
        {"outputs": [{"output_type": "stream", "name": "stderr"}]},
        {"outputs": []},
        {"metadata": {"tags": ["nbval-skip"]}},
        {
            "outputs": [
                {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}}
            ]
        },
    ],
)
def test_each_slip_is_noticed(change):
    book = clean_book()
    assert slips(book) == []
    book["cells"][4] |= change
    assert len(slips(book)) == 1


@pytest.mark.parametrize("count", [24, 46])
def test_too_few_or_too_many_cells_are_noticed(count):
    book = clean_book()
    book["cells"] = [book["cells"][0] | {"execution_count": n} for n in range(1, count + 1)]
    assert len(slips(book)) == 1
