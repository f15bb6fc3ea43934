"""The tokenizer that training makes: its vocabulary, its borders, and text that is too little."""

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcourse.training.tokenizer import (
    SPECIAL_TOKENS,
    load_tokenizer,
    sample_documents,
    train_tokenizer,
)

TEXT = [
    "Once upon a time there was a king; the king's daughter said: “No!” 1234 5678 times.",
    "def area(width, height):\n        return width * height\n\n        return width\n",
    "《靜夜思》李白\n床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, 340)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def pieces(tokenizer, text: str) -> list[str]:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return [text[start:end] for start, end in encoded.offsets]


def test_special_tokens_come_first_and_the_size_is_exact(tokenizer):
    assert [tokenizer.id_to_token(index) for index in range(4)] == list(SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == 340
    assert ids(tokenizer, "".join(SPECIAL_TOKENS)) == [0, 1, 2, 3]


def test_a_prompt_begins_as_a_document_does(tokenizer):
    """With special tokens, as transformers encodes; training asks for none."""
    plain = [ids(tokenizer, text) for text in ("the king", "明月", "")]
    assert all(0 not in encoded for encoded in plain)
    assert tokenizer.encode("the king").ids == [0, *plain[0]]
    assert tokenizer.encode("the king", "明月").ids == [0, *plain[0], *plain[1]]
    assert tokenizer.encode("").ids == [0]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(" leading, é (not e\u0301), \t\r\n trailing \n")
@example("\x00🙂\ufeff")
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=False) == text


def test_frequent_text_is_merged(tokenizer):
    assert len(ids(tokenizer, "明月")) < len("明月".encode())
    assert pieces(tokenizer, " king width") == [" king", " width"]


def test_merges_stay_within_their_borders(tokenizer):
    assert pieces(tokenizer, "1234") == ["1", "2", "3", "4"]
    assert pieces(tokenizer, "\n        return") == ["\n       ", " return"], "an indented line start"
    words = [token for token in tokenizer.get_vocab() if "Ġ" in token[1:] and token.strip("ĠĊ")]
    assert words == [], "no token spans two words"


def test_the_same_text_gives_the_same_tokenizer(tokenizer, tmp_path):
    assert train_tokenizer(iter(TEXT), 340).to_str() == tokenizer.to_str()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == tokenizer.to_str()


def test_too_little_text():
    with pytest.raises(ValueError, match=r"the text yields only \d+ of 340 tokens; give more text"):
        train_tokenizer(["one line"], 340)


@pytest.mark.parametrize("vocab_size", [0, 260])
def test_vocabulary_without_room_for_merges(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size must be above 260 .*, got {vocab_size}"):
        train_tokenizer(TEXT, vocab_size)
    assert isinstance(train_tokenizer(TEXT, 261), tokenizers.Tokenizer)


DOCUMENTS = [f"{number:010d}" for number in range(50)]


class TestSample:
    def test_ends_when_enough_is_taken(self):
        taken = list(sample_documents(DOCUMENTS, 95))
        assert len(taken) == 10 and len(set(taken)) == 10 and set(taken) < set(DOCUMENTS)
        assert list(sample_documents(DOCUMENTS, 0)) == []

    def test_takes_all_when_there_is_less(self):
        taken = list(sample_documents(DOCUMENTS, 10**6))
        assert sorted(taken) == DOCUMENTS and taken != DOCUMENTS, "in another order"

    def test_the_seed_decides(self):
        first, again, other = (list(sample_documents(DOCUMENTS, 95, seed)) for seed in (0, 0, 1))
        assert first == again != other
