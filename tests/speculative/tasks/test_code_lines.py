"""Lines of Python: what is asked for, what is right, and that a file's questions are its own."""

from __future__ import annotations

import warnings

import pytest

from llmcourse import pretrained
from llmcourse.speculative.tasks import code_lines, standard_library
from llmcourse.speculative.tasks.code_lines import CodeLine, statement
from llmcourse.tokenizer import Tokenizer

SOURCE = '''
import os
LIMIT_OF_THE_WHOLE = 10

def area(width, height):
    """The area of a rectangle."""
    # a remark that is long enough to be asked for
    import collections.abc
    some_name_that_is_long
    if width < 0 or height < 0:
        raise ValueError("negative sizes")
    return width * height * LIMIT_OF_THE_WHOLE
    x = (1 +
         2)
'''


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(pretrained.find_checkpoint("draft"))


def test_what_is_asked_for(tokenizer):
    """Indented statements of one line; no remarks, docstrings, imports or bare names."""
    asked = code_lines({"a.py": SOURCE}, tokenizer, per_file=9)
    assert [question.line.strip() for question in asked] == [
        "if width < 0 or height < 0:",
        'raise ValueError("negative sizes")',
        "return width * height * LIMIT_OF_THE_WHOLE",
    ]
    for question in asked:
        before = SOURCE.split(question.line)[0]
        assert tokenizer.decode(question.prompt) == before + question.start
        assert question.line.startswith(question.start)
        assert question.correct(question.line.removeprefix(question.start))
        tokens = tokenizer.encode(question.line)
        assert list(question.prompt[-(len(tokens) - 2) :]) == tokens[:-2]


def test_the_prompt_is_as_long_as_told_and_begins_as_documents_do(tokenizer):
    for question in code_lines({"a.py": SOURCE}, tokenizer, per_file=9, context=5, missing=1):
        line = tokenizer.encode(question.line)
        assert len(question.prompt) == 1 + 5 + len(line) - 1
        assert question.prompt[0] == tokenizer.token_id("<|endoftext|>")


def test_a_files_questions_do_not_depend_on_other_files(tokenizer):
    one, other = SOURCE, SOURCE.replace("area", "extent")
    both = code_lines({"a.py": one, "b.py": other}, tokenizer, per_file=2)
    assert both == [
        *code_lines({"a.py": one}, tokenizer, per_file=2),
        *code_lines({"b.py": other}, tokenizer, per_file=2),
    ]
    assert both != code_lines({"a.py": one, "b.py": other}, tokenizer, per_file=2, seed=1)


@pytest.mark.parametrize(
    ("text", "correct", "parses"),
    [
        ("b['x'])", True, True),
        ('b["x"]  )  # a remark', True, True),
        ("b['y'])", False, True),
        ("b", False, False),
        ("b['x']))", False, False),
        ("", False, False),
        ("b['x'])\0", False, False),
        ("b['x']); c", False, True),
    ],
)
def test_answers(text, correct, parses):
    question = CodeLine("a.py", (0,), "  return f(a, ", "  return f(a, b['x'])")
    assert question.correct(text) == correct
    assert question.observed(text) == (float(parses),)


def test_statements_that_open_a_block_and_odd_ones():
    assert statement("while True:") == statement("while  True :") is not None
    assert statement("else:") is None and statement("(" * 10_000) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statement(r"x = '\d'") is not None and statement("1 is 1") is not None


def test_the_standard_library_is_there_without_tests_and_packages():
    files = standard_library()
    assert len(files) > 100 and {"ast.py", "json/decoder.py"} <= set(files)
    assert all(text.isascii() and "\t" not in text for text in files.values())
    assert not any({"test", "site-packages", "encodings"} & set(name.split("/")) for name in files)


@pytest.mark.parametrize("name", ["per_file", "missing", "context"])
def test_numbers_too_small_are_refused(name, tokenizer):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        code_lines({}, tokenizer, **{name: 0})
