"""Splits: no document and no prompt is on two sides, whatever else is asked."""

from __future__ import annotations

import pytest

from llmcourse import pretrained
from llmcourse.speculative.tasks import code_lines, quatrains, split, split_of, standard_library
from llmcourse.speculative.tasks.code_lines import CodeLine
from llmcourse.speculative.tasks.question import SPLITS
from llmcourse.tokenizer import Tokenizer


def question(document: str, *prompt: int) -> CodeLine:
    return CodeLine(document, prompt, "x = f(", "x = f()")


def test_a_third_of_the_documents_on_each_side():
    sides = [split_of(f"file {number}") for number in range(3000)]
    for side in SPLITS:
        assert 900 < sides.count(side) < 1100  # the standard deviation is 26
    assert sides == [split_of(f"file {number}") for number in range(3000)]


def test_no_document_and_no_prompt_leaks():
    """With questions that share documents and prompts, in an order that would mix them."""
    asked = [question(f"file {n % 40}", n % 70) for n in range(400)]
    sides = split(asked)
    documents = [{q.document for q in sides[side]} for side in SPLITS]
    prompts = [[q.prompt for q in sides[side]] for side in SPLITS]
    assert all(documents) and sum(map(len, documents)) == len(set().union(*documents))
    assert len([p for side in prompts for p in side]) == len(set().union(*prompts)) == 70


def test_real_questions_do_not_leak():
    tokenizer = Tokenizer(pretrained.find_checkpoint("draft"))
    files = dict(list(standard_library().items())[:20])
    copied = {f"copy of {name}": text for name, text in files.items()}
    sides = split(code_lines(files | copied, tokenizer, per_file=2))
    first, second, third = ({q.prompt for q in sides[side]} for side in SPLITS)
    assert not (first & second or first & third or second & third)
    poem = "《夜》某\n床前明月光，疑是地上霜。\n举头望明月，"
    others = [poem.replace("床", c) for c in "山水江河湖海天地春秋"]
    same_title = quatrains(others, tokenizer)
    assert len(same_title) == 10 and len({split_of(q.document) for q in same_title}) == 1


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match=r"questions for .* must be at least 1, got 0; ask about more doc"):
        split([question("one file", n) for n in range(9)])
