"""Vocabularies that differ are refused, by their sizes and by what differs."""

from __future__ import annotations

import json

import pytest

from llmcourse.speculative.vocabulary import check_sizes, check_tokens
from llmcourse.tokenizer import Tokenizer
from tests.tiny_tokenizer import tiny_tokenizer_json


def written(folder, change=None) -> Tokenizer:
    content = json.loads(tiny_tokenizer_json())
    if change:
        change(content["model"]["vocab"])
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer(folder)


@pytest.mark.parametrize(("size", "what"), [(31, "got 31, 1 more"), (28, "got 28, 2 fewer")])
def test_sizes(size, what):
    check_sizes(30, 30)
    with pytest.raises(
        ValueError, match=f"drafter must be over the 30 tokens of the target, {what}; draft and"
    ):
        check_sizes(30, size)


def test_tokens_that_are_spelt_alike_pass(tmp_path):
    check_tokens(written(tmp_path / "a"), written(tmp_path / "b"))


def test_the_first_token_that_differs_is_named(tmp_path):
    def swap(vocabulary):
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    ours = written(tmp_path / "a")
    first = min(ours.token_id("A"), ours.token_id("B"))
    with pytest.raises(
        ValueError, match=rf"got 'B' for token {first}, which is 'A' for .* and 2 that differ"
    ):
        check_tokens(ours, written(tmp_path / "b", swap))
