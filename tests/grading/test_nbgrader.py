"""nbgrader, where somebody uses it, makes, grades and explains labs from the same solution notebooks."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[test]'")
pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install -e '.[test]'")

from llmcourse.grading import labs  # noqa: E402
from llmcourse.grading.exercises import catalogue  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
NAME = "01_decoding"
EXERCISES = catalogue.labs()[NAME]
HALF = {exercise.name for exercise in EXERCISES[::2]}
CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "course"
c.ExecutePreprocessor.timeout = 120
"""


def nbgrader(course: Path, *arguments: str) -> None:
    """Runs one nbgrader command in a course folder, away from anybody's settings."""
    places = {name: str(course / "home") for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, **places, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def hand_in(course: Path, student: str, exercises: set[str], demos: bool = True) -> None:
    """A submission: the released notebook, with the solutions of some exercises written into it.

    Args:
        demos: False for a student who has deleted the demonstrations.
    """
    book = nbformat.read(course / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    answers = {labs.exercise_of(cell): cell.source for cell in solution().cells if cell.cell_type == "code"}
    for cell in book.cells:
        if labs.duty(cell) == "solution" and labs.exercise_of(cell) in exercises:
            cell.source = answers[labs.exercise_of(cell)]
    if not demos:
        book.cells = [cell for cell in book.cells if "demo" not in cell.metadata.get("tags", [])]
    target = course / "submitted" / student / NAME / f"{NAME}.ipynb"
    target.parent.mkdir(parents=True)
    nbformat.write(book, target)


def solution():
    return nbformat.read(ROOT / "solutions" / f"{NAME}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course whose lab was released, handed in twice, graded and commented, all by nbgrader."""
    course = tmp_path_factory.mktemp("course")
    (course / "source" / NAME).mkdir(parents=True)
    shutil.copyfile(ROOT / "solutions" / f"{NAME}.ipynb", course / "source" / NAME / f"{NAME}.ipynb")
    (course / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    nbgrader(course, "generate_assignment", NAME)
    hand_in(course, "all", {exercise.name for exercise in EXERCISES})
    hand_in(course, "half", HALF, demos=False)
    nbgrader(course, "autograde", NAME)
    nbgrader(course, "generate_feedback", NAME)
    return course


@pytest.fixture(scope="module")
def points(course):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        return {
            student: {
                grade.name.removesuffix("-check").replace("-", ".", 1): (grade.score, grade.max_score)
                for notebook in gradebook.find_submission(NAME, student).notebooks
                for grade in notebook.grades
            }
            for student in ("all", "half")
        }


def test_the_metadata_is_valid():
    from nbgrader.nbgraderformat import MetadataValidator

    for folder in ("solutions", "labs"):
        MetadataValidator().validate_nb(nbformat.read(ROOT / folder / f"{NAME}.ipynb", as_version=4))
    twice = copy.deepcopy(solution())
    twice.cells.append(next(cell for cell in twice.cells if labs.duty(cell) == "check"))
    with pytest.raises(Exception, match="Duplicate grade id"):
        MetadataValidator().validate_nb(twice)


def test_nbgrader_hides_what_we_hide(course):
    released = labs.read(course / "release" / NAME / f"{NAME}.ipynb")
    assert labs.leaks(labs.read(ROOT / "solutions" / f"{NAME}.ipynb"), released) == []
    ours = labs.read(ROOT / "labs" / f"{NAME}.ipynb")
    assert [cell["id"] for cell in released["cells"]] == [cell["id"] for cell in ours["cells"]]
    pairs = zip(released["cells"], ours["cells"], strict=True)
    differing = {labs.duty(old) for old, new in pairs if labs.text_of(old).strip() != labs.text_of(new)}
    assert differing == {"solution"}  # where nbgrader puts a stub of its own


def test_the_reference_gets_every_point(points):
    assert points["all"] == {e.name: (e.points, e.points) for e in EXERCISES}
    assert sum(score for score, _ in points["all"].values()) == 100


def test_half_of_the_reference_gets_exactly_its_half(points):
    assert points["half"] == {e.name: (e.points if e.name in HALF else 0, e.points) for e in EXERCISES}


def test_feedback_is_written_for_everybody(course):
    for student in ("all", "half"):
        page = (course / "feedback" / student / NAME / f"{NAME}.html").read_text(encoding="utf-8")
        assert "<html" in page and EXERCISES[0].title in page
