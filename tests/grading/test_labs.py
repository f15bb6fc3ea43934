"""Labs are what their solutions give, without the solutions; solutions say what the catalogue says."""

import ast
import json
import re

import nbformat
import pytest

from llmcourse.grading import labs
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.lab_view import NOTHING_YET
from llmcourse.grading.labs import LabError, cut, leaks, release, without_solutions
from tools import labs as build
from tools import notebooks
from tools.notebooks import BuildError

NAMES = sorted(catalogue.labs())
MAX_LINES, MAX_SOLUTION_LINES = 15, 25

SOLUTION = '''\
# Exercise 01.top_k
def top_k_filter(logits, k):
    """Keeps the k largest."""
    ### BEGIN SOLUTION
    last_kept = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < last_kept, -torch.inf)
    ### END SOLUTION'''
CHECK = """\
check("01.top_k", top_k_filter)
### BEGIN HIDDEN TESTS
require("01.top_k", top_k_filter, seed=4711)
### END HIDDEN TESTS"""


def cell(source, cell_type="code", **meta):
    extra = {"outputs": [], "execution_count": None} if cell_type == "code" else {}
    return {"cell_type": cell_type, "source": source, "metadata": meta, **extra}


def book():
    """A small solution notebook, as JSON has it."""
    cells = [
        cell("## 01.top_k · Top-k", "markdown", nbgrader=build.nbgrader("01-top_k-statement", locked=True)),
        cell(SOLUTION, nbgrader=build.nbgrader("01-top_k", solution=True)),
        cell(CHECK, nbgrader=build.nbgrader("01-top_k-check", grade=True, locked=True, points=8)),
        cell("top_k_filter(pot, 3)", tags=["demo", labs.OUTPUT_TAG]),
    ]
    for index, found in enumerate(cells):
        found["id"] = f"c{index}"
    cells[2] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "ok"}], "execution_count": 3}
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


# What is in the tree


def test_every_lab_of_the_catalogue_has_its_three_files():
    assert [source.stem for source in build.sources()] == NAMES
    for folder in (build.SOLUTIONS, build.LABS):
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_solutions_and_labs_are_made_from_their_text_and_the_catalogue(name):
    assert build.outdated(build.SOLUTIONS / "source" / f"{name}.py") == []


@pytest.mark.parametrize("name", NAMES)
def test_labs_give_nothing_away(name):
    solution, lab = (labs.read(folder / f"{name}.ipynb") for folder in (build.SOLUTIONS, build.LABS))
    assert leaks(solution, lab) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere_from_the_students_own_copy_too(name):
    """Which lies alone in a folder beside labs/."""
    cells = labs.read(build.LABS / f"{name}.ipynb")["cells"]
    texts = [labs.text_of(found) for found in cells if found["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)\s]+\.ipynb)\)", text)]
    assert links
    for link in links:
        assert link.startswith("../") and (build.LABS / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_a_lab_is_a_stub_and_a_check_is_a_check(name):
    # What may be in a lab, where the test above is about what may not.
    exercises = {exercise.name: exercise for exercise in catalogue.labs()[name]}
    checked = []
    for found in labs.read(build.LABS / f"{name}.ipynb")["cells"]:
        text = labs.text_of(found)
        if labs.duty(found) == "solution":
            exercise = exercises[labs.exercise_of(found)]
            if exercise.starter:
                assert text == f"# Exercise {exercise.name}\n{exercise.starter.strip()}"
                continue
            (function,) = (node for node in ast.parse(text).body if not isinstance(node, ast.Import))
            docstring, stub = function.body
            assert ast.get_docstring(function) == docstring.value.value.strip()
            assert ast.unparse(stub) == f"raise NotImplementedError('{exercise.name} is not written yet')"
        elif labs.duty(found) == "check":
            checked.append(text)
    assert checked == [f'check("{e.name}", {e.function})' for e in exercises.values()]


@pytest.mark.parametrize("name", NAMES)
def test_statements_and_points_are_those_of_the_catalogue(name):
    for folder in (build.SOLUTIONS, build.LABS):
        cells = labs.read(folder / f"{name}.ipynb")["cells"]
        by_id = {c["metadata"]["nbgrader"]["grade_id"]: c for c in cells if "nbgrader" in c["metadata"]}
        for exercise in catalogue.labs()[name]:
            key = exercise.name.replace(".", "-")
            text = labs.text_of(by_id[f"{key}-statement"])
            assert exercise.title in text and exercise.asks.strip() in text
            assert f"{exercise.points} points" in text and f"{exercise.minutes} minutes" in text
            assert text.count("★") == exercise.level
            assert by_id[f"{key}-check"]["metadata"]["nbgrader"]["points"] == exercise.points
    assert sum(exercise.points for exercise in catalogue.labs()[name]) == 100


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_saved_from_one_clean_run_in_which_all_is_right(name):
    solution = labs.read(build.SOLUTIONS / f"{name}.ipynb")
    code = [found for found in solution["cells"] if found["cell_type"] == "code"]
    assert [found["execution_count"] for found in code] == list(range(1, len(code) + 1))
    for found in code:
        text, shown = labs.text_of(found), json.dumps(found["outputs"], ensure_ascii=False)
        assert code_lines(text) <= (MAX_SOLUTION_LINES if labs.duty(found) == "solution" else MAX_LINES)
        assert not {"error", "stderr"} & {o.get("name", o["output_type"]) for o in found["outputs"]}
        assert NOTHING_YET not in shown
        if labs.duty(found) == "check":
            assert " passed: " in shown and "failed" not in shown
        if "with once_written(" in text or labs.OUTPUT_TAG in found["metadata"].get("tags", []):
            assert found["outputs"], found["id"]


def code_lines(source: str) -> int:
    """Lines of a cell; those of handed-out code that stands above its repair are not counted."""
    given = source.split("\n### BEGIN SOLUTION\n")[0] if "\n### BEGIN SOLUTION\n" in source else ""
    return len(source.splitlines()) - len(given.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_lab_runs_from_top_to_bottom(name, tmp_path):
    lab = nbformat.read(build.LABS / f"{name}.ipynb", as_version=4)
    notebooks.run(lab, tmp_path)  # raises where a cell does
    given = {exercise.name for exercise in catalogue.labs()[name] if exercise.starter}
    for found in (found for found in lab.cells if found.cell_type == "code"):
        shown = json.dumps(found.outputs, ensure_ascii=False)
        if "with once_written(" in found.source:
            assert NOTHING_YET in shown
        if labs.duty(found) == "check":
            assert len(found.outputs) == 1, "the box alone"
            exercise = build.CHECK.match(found.source)["name"]
            assert ("failed at" if exercise in given else "is not written yet: ") in shown
    assert "0 of 100" in shown  # the last cell


# What the generator does


def test_a_lab_shows_the_stub_and_hides_the_rest():
    lab = without_solutions(book())
    texts = [labs.text_of(found) for found in lab["cells"]]
    assert texts[1] == SOLUTION.split("    ###")[0] + (
        '    raise NotImplementedError("01.top_k is not written yet")'
    )
    assert texts[2] == 'check("01.top_k", top_k_filter)'
    assert [found.get("outputs", []) for found in lab["cells"]] == [[]] * 4
    assert lab["cells"][2]["execution_count"] is None
    assert [c["id"] for c in lab["cells"]] == [c["id"] for c in book()["cells"]]
    assert leaks(book(), lab) == []


def test_a_lab_is_locked_as_nbgrader_locks():
    metas = [found["metadata"] for found in without_solutions(book())["cells"]]
    assert [meta.get("deletable") for meta in metas] == [False, False, False, None]
    assert [meta.get("editable") for meta in metas] == [False, None, False, None]
    assert metas[3] == {"tags": ["demo"]}  # no output is left to be compared


def test_code_that_is_handed_out_with_a_fault_stays():
    given = "# Exercise 01.find_the_bug\ndef f(x):\n    return x - 1"
    mended = "def f(x):\n    return x"
    source = f"{given}\n\n### BEGIN SOLUTION\n{mended}\n### END SOLUTION"
    assert cut(source) == (given, mended.splitlines())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("### BEGIN SOLUTION", "### BEGIN SOLUTIONS"),
        ("### BEGIN SOLUTION", "### BEGIN SOLUTOIN"),
        ("### BEGIN SOLUTION", "## BEGIN SOLUTION"),
        ("### BEGIN SOLUTION", "# BEGIN SOLUTION"),
        ("### BEGIN SOLUTION", "### Begin solution"),
        ("### BEGIN SOLUTION", "###BEGIN SOLUTION"),
        ("### BEGIN SOLUTION", "### BEGIN SOLUTION "),
        ("### BEGIN SOLUTION", "### BEGIN HIDDEN TESTS"),
        ("### BEGIN SOLUTION", "### END SOLUTION"),
        ("    ### BEGIN SOLUTION\n", ""),
        ("    ### END SOLUTION", "    # END"),
        ("    ### END SOLUTION", ""),
        ("    ### END SOLUTION", "    ### BEGIN SOLUTION"),
        ("# Exercise 01.top_k\n", ""),
        ("### BEGIN HIDDEN TESTS", "### BEGIN HIDDEN TEST"),
        ("### BEGIN HIDDEN TESTS", "### HIDDEN TESTS"),
        ("### BEGIN HIDDEN TESTS", "# hiden tests"),
        ("### BEGIN HIDDEN TESTS", "### BEGIN SOLUTION"),
        ("### END HIDDEN TESTS", "### END HIDDEN TEST"),
        ("### END HIDDEN TESTS", ""),
        ("top_k_filter(pot, 3)", "### BEGIN HIDDEN TESTS\ntop_k_filter(pot, 3)\n### END HIDDEN TESTS"),
        ("top_k_filter(pot, 3)", "### BEGIN SOLUTION\ntop_k_filter(pot, 3)\n### END SOLUTION"),
    ],
)
def test_a_marker_that_is_misspelt_or_alone_or_elsewhere_is_refused(old, new):
    solution = book()
    changed = next(c for c in solution["cells"] if old in c["source"])
    changed["source"] = changed["source"].replace(old, new)
    with pytest.raises(LabError, match=r"cell c\d: "):
        without_solutions(solution)


B, E = "### BEGIN SOLUTION", "### END SOLUTION"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"{B}\nx\n{B}\ny\n{E}", "stands where SOLUTION is open"),
        (f"{B}\nx\n### END HIDDEN TESTS\n{E}", "stands where SOLUTION is open"),
        (f"{E}\nx", "stands where no region is open"),
        (f"{B}\nx", "has no ### END SOLUTION"),
        (f"### BEGIN SOLUTOIN\nx\n### END SOLUTOIN\n{B}\ny\n{E}", "resembles one"),
        (f"### BEGIN HIDDEN TEST\nx\n### END HIDDEN TEST\n{B}\ny\n{E}", "resembles one"),
        (f"# hidden:\nx\n{B}\ny\n{E}", "resembles one"),
        (f"{B}\nx\n## end\n{E}", "resembles one"),
    ],
)
def test_why_markers_are_refused_is_said(source, said):
    with pytest.raises(LabError, match=said):
        cut(source)


@pytest.mark.parametrize("index", [1, 2])
def test_a_cell_that_hides_nothing_is_refused(index):
    solution = book()
    lines = solution["cells"][index]["source"].splitlines()
    solution["cells"][index]["source"] = "\n".join(line for line in lines if "###" not in line)
    with pytest.raises(LabError, match=rf"cell c{index}: has no ### BEGIN .* handed out"):
        without_solutions(solution)


@pytest.mark.parametrize(
    ("index", "key", "value"),
    [
        (0, "source", "For example `last_kept = logits.topk(k).values[:, -1:]`."),
        (0, "metadata", {"note": "last_kept=logits.topk(k).values[:,-1:]  # spaced otherwise"}),
        (1, "source", SOLUTION.replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")),
        (1, "source", "    ### BEGIN SOLUTION"),
        (2, "source", CHECK),
        (2, "source", ["check()\n", 'require("01.top_k", top_k_filter, seed=4711)']),
        (3, "outputs", [{"text": ["return logits.masked_fill(logits < last_kept, -torch.inf)"]}]),
    ],
)
def test_a_hidden_line_is_found_wherever_it_stands(index, key, value):
    lab = without_solutions(book())
    lab["cells"][index][key] = value
    assert len(leaks(book(), lab)) >= 1


def test_a_lab_that_would_give_something_away_is_not_written(tmp_path):
    solution = book()
    solution["cells"][0]["source"] += "\n\n    last_kept = logits.topk(k).values[:, -1:]\n"
    path, lab = tmp_path / "solution.ipynb", tmp_path / "lab.ipynb"
    path.write_text(json.dumps(solution), encoding="utf-8")
    lab.write_text("old", encoding="utf-8")
    with pytest.raises(LabError, match="gives away: last_kept"):
        release(path, lab)
    assert lab.read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def released(tmp_path):
    solution, lab = tmp_path / "solutions" / "01_a.ipynb", tmp_path / "labs" / "01_a.ipynb"
    solution.parent.mkdir()
    solution.write_text(json.dumps(book()), encoding="utf-8")
    release(solution, lab)
    return solution, lab


def test_a_release_repeats_to_the_byte(released):
    solution, lab = released
    first = lab.read_bytes()
    assert labs.stale(solution, lab) == []
    assert release(solution, lab).read_bytes() == first
    nbformat.validate(nbformat.reads(first.decode(), as_version=4))


CHANGES = (
    lambda book: book["cells"][1].update(source=["edited"]),
    lambda book: book["cells"][2]["metadata"]["nbgrader"].update(points=9),
    lambda book: book["cells"][2].update(outputs=[{"output_type": "stream"}]),
    lambda book: book["cells"][0].update(id="other"),
    lambda book: book["cells"].pop(),
    lambda book: book["metadata"].update(kernelspec={}),
)


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_lab_is_stale(released, change):
    solution, lab = released
    edited = labs.read(lab)
    change(edited)
    lab.write_text(json.dumps(edited), encoding="utf-8")
    assert labs.stale(solution, lab) != []
    lab.unlink()
    assert labs.stale(solution, lab) == ["01_a.ipynb is not made; run `make labs`"]


def test_a_lab_is_stale_when_its_solution_has_changed(released):
    solution, lab = released
    edited = labs.read(solution)
    edited["cells"][1]["source"] = SOLUTION.replace("the k largest", "k")
    solution.write_text(json.dumps(edited), encoding="utf-8")
    assert labs.stale(solution, lab) != []


# What the build does

(NAME, EXERCISES) = next(iter(catalogue.labs().items()))
TEXT = (build.SOLUTIONS / "source" / f"{NAME}.py").read_text(encoding="utf-8")


def test_ids_and_metadata_follow_from_what_a_cell_is():
    made = build.book_of(TEXT, EXERCISES)
    assert made == build.book_of(TEXT, EXERCISES)
    for found in made.cells:
        meta = found.metadata.get("nbgrader")
        if meta:
            assert found.id == meta["grade_id"] and meta["schema_version"] == 3
        else:
            assert found.id == found.metadata["name"], "name the cell, so that its id stays"
    ids = [found.id for found in made.cells]
    assert len(set(ids)) == len(ids)
    demos = {found.id for found in made.cells if "demo" in found.metadata.get("tags", [])}
    assert demos == {i for i in ids if i.endswith(("-demo", "-models", "-points"))}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{{ statement 01.top_p }}", "", "01-top_p-statement is expected"),
        ("{{ statement 01.top_p }}", "{{ statement 01.top_q }}", "stands for nothing"),
        ("{{ points }}", "{{ pionts }}", "stands for nothing"),
        ("# Exercise 01.top_p\n", "", "01-top_p is expected where 01-top_p-check is"),
        ("def top_p_filter(logits, p)", "def top_p_filter(logits, q)", "the catalogue has"),
        ("def top_p_filter(", "def nucleus(", "the catalogue has"),
        ('check("01.top_p", top_p_filter)', 'check("01.top_p", top_k_filter)', "must call check"),
        ('require("01.top_p", top_p_filter,', 'require("01.top_k", top_p_filter,', "must call check"),
        ('check("01.top_p", top_p_filter)', 'check("01.top_q", top_p_filter)', "no such exercise"),
    ],
)
def test_a_text_that_departs_from_the_catalogue_is_not_built(old, new, said):
    assert old in TEXT
    with pytest.raises(BuildError, match=said):
        build.book_of(TEXT.replace(old, new), EXERCISES)


def test_an_edited_solution_notebook_is_noticed(tmp_path, monkeypatch):
    source = tmp_path / "source" / f"{NAME}.py"
    source.parent.mkdir()
    source.write_text(TEXT, encoding="utf-8")
    assert build.outdated(source) == [f"{NAME}.ipynb is not built; run `make labs`"]
    monkeypatch.setattr(notebooks, "run", lambda made, folder: None)
    monkeypatch.setattr(build, "LABS", tmp_path / "labs")
    release(build.build(source), tmp_path / "labs" / f"{NAME}.ipynb")
    assert build.outdated(source) == []
    source.write_text(TEXT.replace('"""', '"""Edited. ', 1), encoding="utf-8")
    assert len(build.outdated(source)) == 1


def test_statements_hold_what_the_catalogue_says():
    exercise = EXERCISES[0]
    text = build.statement(exercise)
    assert text.startswith(f"## {exercise.name} · {exercise.title}\n")
    source = f"# %% [markdown]\n# {{{{ statement {exercise.name} }}}}"
    (found,) = notebooks.convert(build.expand(source, EXERCISES)).cells
    assert found.source == text


def test_the_command_releases_what_is_in_the_tree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "LABS", tmp_path)
    monkeypatch.setattr("sys.argv", ["labs", "--release", NAME])
    assert build.main() == 0 and "written" in capsys.readouterr().out
    here = (build.ROOT / "labs" / f"{NAME}.ipynb").read_bytes()
    assert (tmp_path / f"{NAME}.ipynb").read_bytes() == here


def test_the_command_names_a_lab_that_is_none(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["labs", "99_nothing"])
    assert build.main() == 2 and f"there are: {NAME}" in capsys.readouterr().err
