"""A student's id comes out of the names that systems and people give; one that could do harm is refused."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.grading.intake.identity import MAX_ID, sameness, student_id, student_of, without_lab
from llmcourse.grading.printable import acts
from tests.grading.handed_in import LAB_NAME


@pytest.mark.parametrize(
    "name",
    [
        *(
            "alice",
            "A123-456",
            "Ann Lee_1234567",
            "O'Brien, Seán",
            "o’neil",
            "李明",
            "محمد علي",
            "علی\u200cرضا",
        ),
        *(
            "Ольга Иванова",
            "ann@example.org",
            "विद्या",
            "J. R. (Bob) Smith",
            "20231234",
            "김철수",
            "أ",
            "x" * MAX_ID,
        ),
    ],
)
def test_names_in_any_language_are_ids(name):
    assert student_id(name) == unicodedata.normalize("NFC", name)


def test_ids_are_composed_and_trimmed():
    assert student_id("  Jose\u0301 ") == "José"
    assert student_id("e\u0301" * MAX_ID) == "é" * MAX_ID


HOSTILE = [
    *("", " ", "x" * (MAX_ID + 1), "../../x", "a/b", "a\\b", "a..b", "..", ".", ".hidden", "-rf", "--out=x"),
    *(
        "=1+1",
        "+1",
        "@SUM(A1)",
        "\tx",
        "a\nb",
        "a\0b",
        "a\x1b[31m",
        "a\u202eb",
        "\u2066x",
        "a\u200eb",
        "a\u2028b",
    ),
    *(
        "'; DROP TABLE grades; --",
        "Robert'); DROP",
        "<script>",
        "a&b",
        "a:b",
        "a*b",
        'a"b',
        "a|b",
        "a%b",
        "$HOME",
    ),
    *(
        "`id`",
        "a;b",
        "a\ud800",
        "\ue000",
        "\u0301x",
        "a\ufeff",
        "a\u00ad",
        "~root",
        "a{b}",
        "a=b",
        "#x",
        "a\u3000b",
    ),
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_could_do_harm_is_no_id(name):
    with pytest.raises(ValueError, match="student id") as caught:
        student_id(name)
    assert not any(map(acts, str(caught.value))) and len(str(caught.value)) < 300


@given(st.text(max_size=120))
@settings(max_examples=300, deadline=None)
def test_an_id_is_safe_and_stays_itself(text):
    try:
        student = student_id(text)
    except ValueError:
        return
    assert 0 < len(student) <= MAX_ID and student_id(student) == student
    assert student[0].isalnum() and not any(map(acts, student))
    assert not set(student) & set('/\\\0<>&"=;:|*?`$%') and ".." not in student


def test_sameness_is_what_people_and_disks_take_for_one():
    assert sameness("Alice") == sameness("alice") == sameness("ALICE") == sameness("ａｌｉｃｅ")
    assert sameness("José") == sameness("Jose\u0301") != sameness("Jose")


@pytest.mark.parametrize(
    ("stem", "left"),
    [
        ("alice", "alice"),
        ("alice_01_decoding", "alice"),
        ("alice-01_Decoding", "alice"),
        ("01_decoding_alice", "alice"),
        ("01_decoding (alice)", "(alice)"),
        ("alice_01_decoding (1)", "alice"),
        ("alice_01_decoding-Copy1", "alice"),
        ("alice - Copy", "alice"),
        ("李明_01_decoding - 副本", "李明"),
        ("01_decoding", ""),
        ("01_decoding (2)", ""),
        ("01_decoding-Copy12", ""),
        ("alice01_decoding", "alice01_decoding"),
        ("01_decodings", "01_decodings"),
    ],
)
def test_the_lab_is_no_part_of_a_name(stem, left):
    assert without_lab(stem, LAB_NAME) == left


@pytest.mark.parametrize(
    ("path", "wrapped", "student"),
    [
        ("alice.ipynb", 0, "alice"),
        ("alice.ipynb.txt", 0, "alice"),
        ("alice.zip", 0, "alice"),
        ("alice_01_decoding.ipynb", 0, "alice"),
        ("01_decoding.ipynb", 0, "Downloads"),
        ("alice/01_decoding.ipynb", 0, "alice"),
        ("alice/homework.ipynb", 0, "alice"),
        ("alice/src/deep/homework.ipynb", 0, "alice"),
        ("submitted/alice/01_decoding/01_decoding.ipynb", 0, "alice"),
        ("submitted/alice/01_decoding/other.ipynb", 0, "alice"),
        ("alice/01_decoding/01_decoding.ipynb", 0, "alice"),
        ("batch/alice.ipynb", 1, "alice"),
        ("batch/alice/x.ipynb", 1, "alice"),
        ("01_decoding/alice.ipynb", 1, "alice"),
        ("Ann Lee_1234567_assignsubmission_file_/x.ipynb", 0, "Ann Lee_1234567"),
        ("batch/Ann Lee_1234567_assignsubmission_file/deep/x.ipynb", 1, "Ann Lee_1234567"),
        ("Ann Lee_1234567_assignsubmission_file_x.ipynb", 0, "Ann Lee_1234567"),
        ("李 明_12_assignsubmission_file_/01_decoding.ipynb", 0, "李 明_12"),
    ],
)
def test_whose_a_file_is(path, wrapped, student):
    parts = tuple(path.split("/"))
    assert student_of(parts, LAB_NAME, ("/", "data", "Downloads", LAB_NAME), wrapped) == student


def test_nobody_is_invented():
    with pytest.raises(ValueError, match="name it STUDENT_01_decoding"):
        student_of(("01_decoding.ipynb",), LAB_NAME, ("/", LAB_NAME))


def test_who_grades_the_own_copy_is_called_you():
    outer = ("/", "home", "ann", "course", "my_labs")
    assert student_of((f"{LAB_NAME}.ipynb",), LAB_NAME, outer) == "you"
    assert student_of(("ann", "my_labs", f"{LAB_NAME}.ipynb"), LAB_NAME, ("/", "submitted")) == "ann"
