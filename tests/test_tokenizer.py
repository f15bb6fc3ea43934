"""Text to ids and back, whole and token by token, on the embedded tokenizer and on a tiny one."""

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from llmcourse.pretrained import CHECKPOINTS
from llmcourse.tokenizer import Tokenizer
from tests.tiny_tokenizer import SPECIAL_TOKENS, tiny_tokenizer_json

EXAMPLES = settings(max_examples=300, deadline=None)
PLAIN = "Once upon a time,\n\tthere was  a\u3000“little” girl 🙂; 床前明月光，疑是地上霜。\r\ndef f(x): 1\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return Tokenizer(folder)


@pytest.fixture(scope="module", params=["tiny", "base"])
def tokenizer(request):
    return (
        request.getfixturevalue("tiny") if request.param == "tiny" else Tokenizer(CHECKPOINTS / request.param)
    )


@pytest.fixture(scope="module")
def byte_ids(tiny):
    """The ids of the tokens that are one byte each, by byte."""
    return {byte: tiny.token_id(spell(byte)) for byte in range(256)}


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [stream.push(token) for token in ids], stream.flush()


# Surrogates are no text: UTF-8 has no bytes for them.
# A special token's name, which hypothesis finds in this package's source, is no text to a tokenizer.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: "<|" not in text)


class TestRoundTrip:
    @EXAMPLES
    @given(text=texts)
    @example(text=PLAIN)
    @example(text="")
    @example(text=" leading and trailing \n")
    @example(text="\ufffd\x00\u200d\ufeff")
    @example(text="e\u0301 é ﬁ Å")  # not to be normalised
    def test_text(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text

    def test_special_tokens(self, tokenizer):
        text = "".join(SPECIAL_TOKENS)
        ids = tokenizer.encode(text)
        assert ids == [0, 1, 2, 3] == [tokenizer.token_id(token) for token in SPECIAL_TOKENS]
        assert tokenizer.decode(ids) == ""
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_nothing_is_added(self, tokenizer):
        assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
        assert 0 not in tokenizer.encode(PLAIN)

    def test_every_id_decodes(self, tokenizer):
        for token in range(tokenizer.vocab_size):
            assert tokenizer.decode([token], skip_special_tokens=False) and tokenizer.label(token)

    def test_unknown_token_has_no_id(self, tokenizer):
        assert tokenizer.token_id("<|no such token|>") is None


class TestStream:
    @EXAMPLES
    @given(data=st.data())
    def test_pieces_make_what_decode_makes(self, tokenizer, data):
        """For any ids: broken UTF-8 and special tokens between the bytes of a character included."""
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
        pieces, end = streamed(tokenizer, ids)
        assert "".join(pieces) + end == tokenizer.decode(ids)

    @EXAMPLES
    @given(data=st.data())
    def test_any_bytes(self, tiny, byte_ids, data):
        """Bytes that are likely to begin, continue or break a character."""
        byte = st.sampled_from([*b"aZ \n", *range(0x80, 0xC2), *range(0xE0, 0xF6), 0xFE, 0xFF])
        text = data.draw(st.lists(byte, max_size=20))
        pieces, end = streamed(tiny, [byte_ids[b] for b in text])
        assert "".join(pieces) + end == bytes(text).decode("utf-8", errors="replace")

    @EXAMPLES
    @given(text=texts)
    @example(text=PLAIN)
    def test_text_needs_no_flush(self, tokenizer, text):
        pieces, end = streamed(tokenizer, tokenizer.encode(text.replace("\ufffd", "")))
        assert "".join(pieces) == text.replace("\ufffd", "") and end == ""

    def test_a_character_comes_when_it_is_whole(self, tiny, byte_ids):
        ids = [byte_ids[byte] for byte in "a詩b".encode()]
        assert streamed(tiny, ids) == (["a", "", "", "詩", "b"], "")

    def test_an_unfinished_character_comes_with_flush(self, tiny, byte_ids):
        ids = [byte_ids[byte] for byte in "a詩".encode()[:-1]]
        assert streamed(tiny, ids) == (["a", "", ""], "\ufffd")

    def test_broken_bytes_do_not_stall_the_stream(self, tiny, byte_ids):
        ids = [byte_ids[byte] for byte in [*b"\xe8" * 7, *"詩".encode()]]
        pieces = ["", "", "", "", *["\ufffd" * n for n in (4, 1, 1, 1)], "", "詩"]
        assert streamed(tiny, ids) == (pieces, "")

    def test_special_tokens_are_silent(self, tiny):
        a, b = tiny.encode("a")[0], tiny.encode("b")[0]
        assert streamed(tiny, [0, a, 3, 3, b, 1]) == (["", "a", "", "", "b", ""], "")

    def test_flush_starts_afresh(self, tiny, byte_ids):
        stream = tiny.stream()
        stream.push(byte_ids[0xE8])
        assert stream.flush() == "\ufffd" and stream.flush() == ""
        assert stream.push(byte_ids[ord("a")]) == "a"

    def test_id_out_of_range_leaves_the_stream_alone(self, tiny, byte_ids):
        stream = tiny.stream()
        stream.push(byte_ids[ord("a")])
        with pytest.raises(ValueError, match=r"must be in \[0, 300\), got 300"):
            stream.push(300)
        assert stream.push(byte_ids[ord("b")]) == "b" and stream.flush() == ""


class TestLabel:
    def test_bytes_of_a_longer_character(self, tiny, byte_ids):
        assert tiny.label(byte_ids[0xE4]) == "<E4>"
        assert tiny.label(byte_ids[0xBD]) == "<BD>"

    @pytest.mark.parametrize(
        "text, label",
        [
            ("a", "a"),
            (" ", "␣"),
            ("\n", "⏎"),
            ("\t", "⇥"),
            ("\x00", "<U+0000>"),
            ("<|endoftext|>", "<|endoftext|>"),
        ],
    )
    def test_one_token(self, tokenizer, text, label):
        (token,) = tokenizer.encode(text)
        assert tokenizer.label(token) == label

    def test_a_word_with_its_space(self, tokenizer):
        token = tokenizer.encode("so a")[-1]
        assert tokenizer.label(token) == "␣a"

    def test_chinese(self, tiny):
        (token,) = tiny.encode("明")
        assert tiny.label(token) == "明"

    def test_part_of_a_character_after_a_whole_one(self, tmp_path):
        vocab = {ch: index for index, ch in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        mixed = " 明".encode() + b"\xe4\xb8"
        spelled = "".join(map(spell, mixed))
        file = save(tmp_path, models.BPE(vocab | {spelled: 256}, []), decoders.ByteLevel())
        assert Tokenizer(file).label(256) == "␣明<E4><B8>"

    def test_ids_without_a_token(self, tmp_path):
        file = tmp_path / "tokenizer.json"
        file.write_text(tiny_tokenizer_json(), encoding="utf-8")
        padded = Tokenizer(file, vocab_size=320)
        assert padded.vocab_size == 320
        assert padded.label(319) == "<319>" and padded.decode([319]) == "" and padded.stream().push(319) == ""


class TestSentencePiece:
    """Llama 2 spells spaces as ▁, drops the first one of a text, and falls back to bytes `<0xE4>`."""

    @pytest.fixture
    def tokenizer(self, tmp_path):
        pieces = ["▁a", "▁the", "b", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        model = models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True)
        return Tokenizer(save(tmp_path, model, decoders.Sequence(steps)))

    def test_label_keeps_the_space(self, tokenizer):
        assert [tokenizer.label(token) for token in (0, 1, 2, 3)] == ["␣a", "␣the", "b", "␣"]

    def test_label_of_a_byte(self, tokenizer):
        assert tokenizer.label(tokenizer.token_id("<0xE4>")) == "<E4>"

    def test_stream_keeps_the_spaces(self, tokenizer):
        bytes_of_ming = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "明".encode()]
        ids = [1, 0, 2, *bytes_of_ming, 1, 3, 0]
        pieces, end = streamed(tokenizer, ids)
        assert "".join(pieces) + end == tokenizer.decode(ids) == "the ab明 the  a"
        assert pieces[:3] == ["the", " a", "b"]


class TestBadInput:
    @pytest.mark.parametrize("token", [-1, 300, 10**9])
    def test_id_out_of_range(self, tiny, token):
        with pytest.raises(ValueError, match=rf"token_ids\[2\] must be in \[0, 300\), got {token}$"):
            tiny.decode([5, 6, token, 7])
        with pytest.raises(ValueError, match=rf"must be in \[0, 300\), got {token}$"):
            tiny.label(token)

    def test_missing_file(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no tokenizer\.json at .*; transformers writes one with"
        ):
            Tokenizer(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\x00" * 9])
    def test_damaged_file(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"tokenizer\.json is damaged or no tokenizer\.json \(.*fetch it"
        ):
            Tokenizer(tmp_path)

    def test_truncated_file(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json()[:-100], encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged or no"):
            Tokenizer(tmp_path / "tokenizer.json")

    def test_model_with_fewer_tokens(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
        with pytest.raises(ValueError, match="has 300 tokens, the model only 256; are they of one"):
            Tokenizer(tmp_path, vocab_size=256)


def save(folder, model, decoder):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def spell(byte):
    """How byte-level BPE writes a byte, by Latin-1: printable ones as they are, the others from Ā on."""
    hidden = [b for b in range(256) if b <= 0x20 or 0x7F <= b <= 0xA0 or b == 0xAD]
    return chr(256 + hidden.index(byte)) if byte in hidden else chr(byte)
