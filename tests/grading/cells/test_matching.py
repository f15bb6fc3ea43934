"""Every answer is found where its student left it, and runs with what it needs; nothing else runs."""

import ast
import json
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.grading.cells.cell_text import exercise_named, functions_in, only_checks, plain
from llmcourse.grading.cells.lab_text import lab_text
from llmcourse.grading.cells.matching import answers
from llmcourse.grading.cells.notebook import read
from tests.grading.handed_in import LAB_NAME, book, cell

SETUP, SETUP_2 = "import torch", "torch.manual_seed(0)"
STUB_K = "# Exercise 01.top_k\ndef top_k_filter(x, k):\n    raise NotImplementedError"
STUB_P = "# Exercise 01.top_p\ndef top_p_filter(x, p):\n    raise NotImplementedError"
CHECK_K, CHECK_P = 'check("01.top_k", top_k_filter)', '# Now:\ncheck("01.top_p", top_p_filter)\n'
DEMO = "from llmcourse import decoding\nshow(top_k_filter)"
K = STUB_K.replace("raise NotImplementedError", "return k")
P = STUB_P.replace("raise NotImplementedError", "return p")


def lab_cells(top_k=STUB_K, top_p=STUB_P) -> dict:
    return {
        "title": cell("# Exercise 01.top_k", kind="markdown"),
        "setup": cell(SETUP, "01-setup", locked=True),
        "k": cell(top_k, "01-top_k"),
        "check k": cell(CHECK_K, "01-top_k-check", locked=True),
        "demo": cell(DEMO, demo=True),
        "setup 2": cell(SETUP_2, "01-setup-2", locked=True),
        "p": cell(top_p, "01-top_p"),
        "check p": cell(CHECK_P, "01-top_p-check", locked=True),
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    path = tmp_path_factory.mktemp("labs") / f"{LAB_NAME}.ipynb"
    path.write_bytes(book(*lab_cells().values(), cell("exit()", "01-show", locked=True, demo=True)))
    return lab_text(path)


def solved() -> dict:
    return lab_cells(K, P)


def match(cells, lab):
    return answers(read(book(*(cells.values() if isinstance(cells, dict) else cells))), lab)


def stripped(cells: dict, keep=()) -> dict:
    return {name: c if name in keep else c | {"metadata": {}} for name, c in cells.items()}


def replaced(cells: dict, name: str, *several) -> list:
    """`cells`, with others in place of one."""
    found = []
    for key, value in cells.items():
        found += several if key == name else [value]
    return found


TO_K, TO_P = (SETUP, K), (SETUP, K, SETUP_2, P)


def test_a_lab_is_read(lab):
    assert lab.name == LAB_NAME
    assert lab.exercises == (
        ("01.top_k", "01-top_k", "top_k_filter"),
        ("01.top_p", "01-top_p", "top_p_filter"),
    )
    assert list(lab.locked) == ["01-setup", "01-top_k-check", "01-setup-2", "01-top_p-check"]
    assert lab.stubs == {"01.top_k": STUB_K, "01.top_p": STUB_P}
    assert lab.demos == {DEMO, "exit()"}


def test_the_function_of_a_lab_is_the_one_that_is_checked(tmp_path):
    path = tmp_path / "x.ipynb"
    stub = "# Exercise 01.top_k\ndef helper(): pass\ndef top_k_filter(): pass\ndef last(): pass"
    path.write_bytes(book(cell(stub, "a"), cell(CHECK_K)))
    assert lab_text(path).exercises[0].function == "top_k_filter"
    path.write_bytes(book(cell(stub, "a")))
    assert lab_text(path).exercises[0].function == "last"


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (cell(SETUP, "a", locked=True),),
        (cell("# Exercise 01.x", "a"),),
        (cell(STUB_K, "a"), cell(STUB_P, "a")),
        (cell(STUB_K, "a"), cell(STUB_K, "b")),
    ],
)
def test_what_is_no_lab_is_refused(tmp_path, cells):
    path = tmp_path / "x.ipynb"
    path.write_bytes(book(*cells))
    with pytest.raises(ValueError, match="exercise"):
        lab_text(path)


def test_an_unknown_lab_is_answered_with_those_there_are(tmp_path):
    (tmp_path / "01_decoding.ipynb").write_bytes(book())
    with pytest.raises(ValueError, match=r"01_decoding.*got 09_x"):
        lab_text(tmp_path / "09_x.ipynb")


def test_a_solved_lab(lab):
    found = match(solved(), lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}
    assert (found.missing, found.untouched, found.flags) == ({}, (), ())


def test_the_lab_itself_is_untouched(lab):
    found = match(lab_cells(), lab)
    assert found.untouched == ("01.top_k", "01.top_p") and found.flags == ()
    assert match(lab_cells(STUB_K + "  \n\n", P), lab).untouched == ("01.top_k",)


@pytest.mark.parametrize(
    "first",
    ["# Exercise 01.top_k", "#exercise  01 . TOP_K", "\n## EXERCISE: 01.top_k. The k largest", "# Ex"],
)
def test_cells_without_metadata_are_matched_by_their_first_line_or_function(lab, first):
    k = K.replace("# Exercise 01.top_k", first)
    found = match(stripped(lab_cells(k, P)), lab)
    assert found.cells == {"01.top_k": (SETUP, k), "01.top_p": (SETUP, k, SETUP_2, P)}
    assert found.flags == ()


@pytest.mark.parametrize(
    "answer",
    [
        "x = (\ndef top_k_filter(x, k):\n    return k",
        "def top_k_filter(x, k):\n    return k\n\nfor\n",
        '# """\ndef top_k_filter(x, k):\n    return k',
        "%%time\n!it's\ndef top_k_filter(x, k):\n    return k",
        "async def top_k_filter(x, k):\n    return k",
    ],
)
def test_a_function_is_found_beside_errors(lab, answer):
    found = match(stripped(lab_cells(answer, P)), lab)
    assert found.cells["01.top_k"] == (SETUP, answer)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("# Exercise 01.top_k", "01.top_k"),
        ("\n  #exercise:01 . TOP_K (3 points)\n", "01.top_k"),
        ("### Exercise 01.top_k. Keep the largest", "01.top_k"),
        ("# Exercise 01.top_k.more", None),
        ("x = 1\n# Exercise 01.top_k", None),
        ("# Exercises 01.top_k", None),
        ("", None),
    ],
)
def test_a_first_line_names_an_exercise(source, name):
    assert exercise_named(source) == name


@pytest.mark.parametrize(
    "answer",
    [
        '"""\ndef top_k_filter(x, k):\n"""',
        "'\\\ndef top_k_filter():'",
        "# def top_k_filter():",
        "class A:\n    def top_k_filter(x, k): pass",
        "def top_k_filter_2(x): pass",
        "undef top_k_filter(x): pass",
    ],
)
def test_text_that_only_looks_like_the_function_is_not_it(lab, answer):
    found = match(stripped(lab_cells(answer, P)), lab)
    assert found.missing == {"01.top_k": "cannot find exercise 01.top_k"}
    assert list(found.cells) == ["01.top_p"]


def test_grade_id_goes_before_first_line_before_function(lab):
    by_id = cell("def top_k_filter(): by_id", "01-top_k")
    by_line = cell("# Exercise 01.top_k\ndef top_k_filter(): by_line")
    by_function = cell("def top_k_filter(): by_function")
    rest = {key: value for key, value in solved().items() if key != "k"}
    order = [by_function, cell("# Exercise 01.top_p\ndef top_k_filter(): by_id", "01-top_k"), *rest.values()]
    assert match(order, lab).cells["01.top_k"][-1].endswith("by_id")
    assert match([by_function, by_line, *rest.values()], lab).cells["01.top_k"][-1].endswith("by_line")
    assert match([by_function, *rest.values()], lab).cells["01.top_k"][-1].endswith("by_function")
    assert match([by_id, *rest.values()], lab).cells["01.top_k"][-1].endswith("by_id")


def test_helpers_in_added_cells_run(lab):
    above, below, later = cell("A = 1"), cell("def helper(): pass"), cell("LATER = 1")
    cells = replaced(solved(), "k", above, solved()["k"], below, cell("prose", kind="markdown"))
    cells.append(later)
    found = match(cells, lab)
    assert found.cells["01.top_k"] == (SETUP, "A = 1", K, "def helper(): pass")
    assert found.cells["01.top_p"] == (SETUP, "A = 1", K, "def helper(): pass", SETUP_2, P)
    assert found.flags == ()


@pytest.mark.parametrize("metadata", ["copied", "none"])
@pytest.mark.parametrize("marker", [True, False])
def test_a_cell_that_was_split_in_two_stays_one(lab, metadata, marker):
    first, second = "# Exercise 01.top_k\nA = 1", "def top_k_filter(x, k):\n    return A"
    if not marker:
        first, second = second, first.removeprefix("# Exercise 01.top_k\n")
    halves = cell(first, "01-top_k"), cell(second, "01-top_k" if metadata == "copied" else None)
    found = match(replaced(solved(), "k", *halves), lab)
    assert found.cells["01.top_k"] == (SETUP, first, second)
    assert found.flags == ()


def test_an_answer_ends_where_the_next_begins(lab):
    cells = {name: c for name, c in stripped(solved()).items() if name in ("setup", "k", "p")}
    for name in "kp":
        cells[name]["source"] = cells[name]["source"].split("\n", 1)[1]
    assert match(cells, lab).cells["01.top_k"] == (SETUP, cells["k"]["source"])


def test_cells_that_were_merged_answer_both(lab):
    merged = cell(K + "\n\n" + P, "01-top_k")
    cells = [c for name, c in solved().items() if name not in ("p", "k")]
    found = match([*cells[:2], merged, *cells[2:]], lab)
    assert not found.missing and all(merged["source"] in ran for ran in found.cells.values())


@pytest.mark.parametrize("into", ["setup", "check k"])
def test_an_answer_merged_with_a_locked_cell_is_found_and_the_locked_cell_restored(lab, into):
    theirs = solved()[into]["source"] + "\n" + K.split("\n", 1)[1]
    cells = solved() | {into: solved()[into] | {"source": theirs}}
    del cells["k"]
    found = match(cells, lab)
    assert found.cells["01.top_k"] == (SETUP, theirs)
    assert found.cells["01.top_p"] == (SETUP, theirs, SETUP_2, P)
    (flag,) = found.flags
    assert "was edited" in flag


def test_an_answer_below_an_untouched_cell_counts(lab):
    below = cell("def top_k_filter(x, k):\n    return 7")
    found = match(replaced(solved() | {"k": lab_cells()["k"]}, "check k", below), lab)
    assert found.cells["01.top_k"][-1] == below["source"] and found.untouched == ()
    assert "01.top_k: its cell is as handed out; cell 4 defines it and was taken" in found.flags
    found = match([*(solved() | {"k": lab_cells()["k"]}).values(), below], lab)
    assert found.cells["01.top_k"][-1] == below["source"] and found.untouched == ()


def test_an_answer_given_anew_right_below_counts_as_in_the_notebook(lab):
    better = cell("def top_k_filter(x, k):\n    return 7")
    found = match(replaced(solved(), "k", solved()["k"], better), lab)
    assert found.cells["01.top_k"] == (SETUP, K, better["source"])
    assert found.flags == ("01.top_k: cell 4, right below its own, defines it anew and counts",)


@pytest.mark.parametrize("grade_id", ["01-top_k", None])
def test_of_two_answers_the_first_is_kept_and_flagged(lab, grade_id):
    second = cell(K + " + 1", grade_id)
    found = match(replaced(solved(), "check k", solved()["check k"], second), lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}
    assert found.flags == ("01.top_k: repeated in cell 5; the first, cell 3, was kept",)


def test_of_a_stub_and_its_edited_copy_the_first_is_kept_and_the_flag_says_so(lab):
    found = match([*lab_cells(top_p=P).values(), cell(K, "01-top_k")], lab)
    assert found.untouched == ("01.top_k",) and found.cells["01.top_k"] == (SETUP, STUB_K)
    (flag,) = found.flags
    assert flag == "01.top_k: repeated in cell 9; the first, cell 3, was kept, though it is as handed out"


def test_no_cell_is_never_a_silent_zero(lab):
    cells = {name: c for name, c in solved().items() if name != "k"}
    assert match(cells, lab).missing == {"01.top_k": "cannot find exercise 01.top_k"}
    found = match([*cells.values(), cell(K, "01-top_k", kind="raw")], lab)
    assert found.missing == {"01.top_k": "cannot find exercise 01.top_k: cell 8 defines it but is a raw cell"}
    assert list(match((), lab).missing) == ["01.top_k", "01.top_p"]


def test_a_cell_that_lost_its_function_is_flagged(lab):
    found = match(solved() | {"k": cell("# Exercise 01.top_k\n1", "01-top_k")}, lab)
    assert found.flags == ("01.top_k: no cell defines top_k_filter",)
    assert found.cells["01.top_k"] == (SETUP, "# Exercise 01.top_k\n1")


@pytest.mark.parametrize("keep", [("k", "p"), (), tuple(lab_cells())])
def test_checks_and_demonstrations_do_not_run(lab, keep):
    added = [
        cell("check( '01.top_k', top_k_filter, seed=3 ); check('01.top_p', f)"),
        cell("loop()", demo=True),
    ]
    found = match([*added, *stripped(solved(), keep).values()], lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}


@pytest.mark.parametrize(
    "source", ["check('x', f())", "check('x', f)\nx = 1", "checked('x')", "check", "f(check(1))"]
)
def test_what_does_more_than_check_runs(lab, source):
    found = match([cell(source), *solved().values()], lab)
    assert source in found.cells["01.top_k"]


def test_an_answer_that_is_tagged_demo_is_an_answer(lab):
    found = match(solved() | {"k": solved()["k"] | {"metadata": {"tags": ["demo"]}}}, lab)
    assert found.cells["01.top_k"] == TO_K and found.flags == ()
    found = match([cell("def helper(): pass", demo=True), *solved().values()], lab)
    assert found.flags == ("cell 1 is tagged demo and defines functions: left out",)


def test_locked_cells_are_restored_when_edited(lab):
    cells = solved()
    for name in ("setup", "check k"):
        cells[name] = cells[name] | {"source": "cheat = 1"}
    found = match(cells, lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}
    assert [flag.split(":")[0] for flag in found.flags] == [
        "locked cell 01-setup (cell 2) was edited",
        "locked cell 01-top_k-check (cell 4) was edited",
    ]


def test_blanks_at_line_ends_are_no_edit(lab):
    assert match(solved() | {"setup": cell(SETUP + "  \n", "01-setup", locked=True)}, lab).flags == ()


@pytest.mark.parametrize("name", ["setup", "setup 2", "check k"])
def test_locked_cells_are_restored_when_deleted(lab, name):
    found = match({key: value for key, value in solved().items() if key != name}, lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}
    (flag,) = found.flags
    assert "is not there: the lab's own was used" in flag


def test_locked_cells_run_where_the_lab_has_them(lab):
    cells = list(solved().values())
    setup, setup_2 = cells[1], cells[5]
    moved = [c for c in cells if c not in (setup, setup_2)]
    found = match([*moved, setup_2, setup], lab)
    assert found.cells == {"01.top_k": TO_K, "01.top_p": TO_P}
    assert [flag.split(":")[0] for flag in found.flags] == [
        "locked cell 01-setup (cell 8) was moved",
        "locked cell 01-setup-2 (cell 7) was moved",
    ]
    assert match([setup_2, *[c for c in cells if c is not setup_2]], lab).cells["01.top_p"] == TO_P


def test_cells_above_the_setup_stay_above_it(lab):
    found = match([cell("import math"), *solved().values()], lab)
    assert found.cells["01.top_k"] == ("import math", SETUP, K) and found.flags == ()


def test_exercises_in_another_order_get_the_setup_first(lab):
    cells = solved()
    order = ["p", "k", "setup", "setup 2", "check k", "check p", "demo"]
    found = match([cells[name] for name in order], lab)
    for ran in found.cells.values():
        assert ran.index(SETUP) == 0
    assert found.cells["01.top_p"].index(SETUP_2) < found.cells["01.top_p"].index(P)


def test_a_repeated_locked_cell_runs_once(lab):
    found = match([*solved().values(), solved()["setup"] | {"source": "cheat = 1"}], lab)
    assert found.cells["01.top_p"] == TO_P
    assert found.flags == ("cell 9 repeats the locked cell 01-setup: left out",)


SOURCES = (
    K,
    P,
    STUB_K,
    SETUP,
    SETUP_2,
    CHECK_K,
    DEMO,
    "x = 1",
    "def helper(): pass",
    "def top_k_filter(): pass",
)
IDS = (None, None, "01-top_k", "01-top_p", "01-setup", "01-setup-2", "01-top_k-check", "other")
ANY_CELLS = st.lists(
    st.builds(
        lambda source, grade_id, demo, kind: cell(source, grade_id, demo=demo, kind=kind),
        st.sampled_from(SOURCES),
        st.sampled_from(IDS),
        st.booleans(),
        st.sampled_from(["code", "code", "code", "markdown"]),
    ),
    max_size=10,
)


@given(cells=ANY_CELLS)
@settings(max_examples=300, deadline=None)
def test_in_any_notebook_every_exercise_is_found_or_missing(lab, cells):
    found = match(cells, lab)
    assert sorted([*found.cells, *found.missing]) == [exercise.name for exercise in lab.exercises]
    for exercise in lab.exercises:
        answering = [c for c in cells if c["cell_type"] == "code" and not c["metadata"].get("tags")]
        if any(exercise.function in functions_in(c["source"]) for c in answering):
            assert exercise.name in found.cells
        ran = found.cells.get(exercise.name, (SETUP, SETUP_2))
        assert SETUP in ran and (SETUP_2 in ran or exercise.name == "01.top_k")


@given(st.text(alphabet="\"'\\\n#def f(x):", max_size=40))
@settings(max_examples=300, deadline=None)
def test_strings_are_left_out_as_the_language_has_them(text):
    found = functions_in(text)
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert list(found) == defined


@pytest.mark.parametrize(
    "unit",
    [
        "'",
        "\"'",
        "'\\\"",
        '"""\n',
        '"""\\',
        "def a(\n",
        "check(",
        "check();",
        "# exercise ",
        " ",
        "\n",
        "def ",
    ],
)
def test_hostile_text_takes_no_time(unit):
    text = unit * (2**19 // len(unit))
    start = time.process_time()
    for look in (functions_in, only_checks, exercise_named, plain):
        look(text)
    assert time.process_time() - start < 2


def test_a_notebook_survives_the_editors_round_trip(lab):
    data = json.loads(book(*solved().values()))
    for made in data["cells"]:
        made["source"] = made["source"].splitlines(keepends=True)
    assert answers(read(json.dumps(data, indent=1).encode()), lab) == match(solved(), lab)
