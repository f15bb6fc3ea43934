"""Files to documents, and the split: what counts as a document, and on which side it stands."""

import lzma
import math
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcourse.training.text import (
    MAX_SOURCE_CHARS,
    PASSAGE_CHARS,
    Source,
    gather_passages,
    shorten,
    split,
)

DOCUMENTS = [f"document {number}" for number in range(2000)]
LINE = "value = other(value)  # a line of Python\n"


def python_documents(folder) -> list[str]:
    return Source("code", "python", str(folder)).documents()


class TestSplit:
    def test_every_document_is_on_one_side(self):
        train, held_out = split(DOCUMENTS, 0.1)
        assert not set(train) & set(held_out)
        assert sorted(train + held_out) == sorted(DOCUMENTS)
        assert train == [d for d in DOCUMENTS if d in set(train)], "in order"

    def test_the_share_is_kept(self):
        for share in (0.01, 0.1, 0.5):
            _, held_out = split(DOCUMENTS, share)
            deviation = math.sqrt(len(DOCUMENTS) * share * (1 - share))
            assert abs(len(held_out) - share * len(DOCUMENTS)) < 4 * deviation

    def test_neither_order_nor_other_documents_matter(self):
        shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
        assert set(split(shuffled, 0.1)[1]) == set(split(DOCUMENTS, 0.1)[1])
        more = set(split([*DOCUMENTS, *(f"another {n}" for n in range(500))], 0.1)[1])
        assert more & set(DOCUMENTS) == set(split(DOCUMENTS, 0.1)[1])

    def test_the_same_on_every_machine(self):
        """A hash that changed would move documents from validation to training."""
        first = [f"document {number}" for number in (40, 44, 59, 70, 81, 100)]
        assert split(DOCUMENTS, 0.1)[1][:6] == first

    def test_an_empty_side_is_refused(self):
        held_out = split(DOCUMENTS, 0.1)[1]
        with pytest.raises(ValueError, match=f"0 training and {len(held_out)} validation"):
            split(held_out, 0.1)
        with pytest.raises(ValueError, match="1 training and 0 validation"):
            split([split(DOCUMENTS, 0.1)[0][0]], 0.1)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
    def test_share_out_of_range(self, share):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\)"):
            split(DOCUMENTS, share)


@given(st.lists(st.text(min_size=1, max_size=30), max_size=30), st.integers(1, 60))
def test_passages_keep_everything_and_are_as_short_as_allowed(paragraphs, size):
    passages = list(gather_passages(paragraphs, size))
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    gathered = iter(paragraphs)
    for number, passage in enumerate(passages):
        held = [next(gathered)]
        while "\n\n".join(held) != passage:
            assert sum(map(len, held)) < size, "it could have ended here"
            held.append(next(gathered))
        assert sum(map(len, held)) >= size or number == len(passages) - 1


def test_short_passages_hold_the_same_paragraphs_in_another_order():
    paragraphs = [f"{number} " + "x" * 98 for number in range(400)]
    passages = list(gather_passages(paragraphs, 5_000))
    short = shorten(passages, 1_000)
    assert sorted(p for passage in short for p in passage.split("\n\n")) == sorted(paragraphs)
    assert {len(passage.split("\n\n")) for passage in short} == {10}, "cut as soon as long enough"
    assert short != list(gather_passages(paragraphs, 1_000)), "neighbours are told apart"
    assert short == shorten(passages, 1_000), "and every start of a run sees the same order"


class TestBlocks:
    def test_documents_between_blank_lines(self, tmp_path):
        file = tmp_path / "poems.txt"
        file.write_bytes("《一》甲\n白日\n\n\n\n《二》乙\r\n  黃河\r\n\r\n \n\n《一》甲\n白日\n".encode())
        documents = Source("poetry", "blocks", str(file)).documents()
        assert documents == ["《一》甲\n白日", "《二》乙\n  黃河"], "each once, line ends made one"

    def test_xz(self, tmp_path):
        text = "\n\n".join(f"明月 {n}" for n in range(30))
        (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
        with lzma.open(tmp_path / "packed.txt.xz", "wt", encoding="utf-8") as handle:
            handle.write(text)
        plain, packed = (
            Source("p", "blocks", str(tmp_path / name)).documents() for name in ("plain.txt", "packed.txt.xz")
        )
        assert plain == packed and len(plain) == 30

    def test_a_folder_is_read_in_the_order_of_names(self, tmp_path):
        for name in ("b.txt", "a.txt", "sub/c.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name, encoding="utf-8")
        assert Source("p", "blocks", str(tmp_path)).documents() == ["a.txt", "b.txt", "sub/c.txt"]

    def test_running_text_is_gathered(self, tmp_path):
        paragraphs = [f"{number} " + "x" * 998 for number in range(70)]
        (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
        documents = Source("prose", "text", str(tmp_path / "book.txt")).documents()
        assert len(documents) == 3 and "\n\n".join(documents) == "\n\n".join(paragraphs)
        assert all(len(d) >= PASSAGE_CHARS for d in documents[:2])

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("latin.txt", "é".encode("latin-1")),
            ("no.xz", b"not compressed at all"),
            ("cut.xz", lzma.compress(os.urandom(500))[:-200]),
        ],
    )
    def test_what_is_no_text_is_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} must be text in UTF-8"):
            Source("p", "blocks", str(tmp_path)).documents()


class TestPython:
    def test_what_a_person_wrote_is_kept(self, tmp_path):
        (tmp_path / "a.py").write_text(LINE * 10, encoding="utf-8")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.py").write_text(LINE * 11, encoding="utf-8")
        assert python_documents(tmp_path) == [LINE * 10, LINE * 11]
        assert python_documents(tmp_path / "a.py") == [LINE * 10], "one file will do"

    def test_tabs_become_spaces(self, tmp_path):
        (tmp_path / "a.py").write_text("if x:\n\ty = 1\n" * 20, encoding="utf-8")
        assert python_documents(tmp_path) == ["if x:\n    y = 1\n" * 20]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("short.py", (LINE * 10)[:199].encode()),
            ("long.py", (LINE * (MAX_SOURCE_CHARS // len(LINE) + 1)).encode()),
            ("wide.py", (LINE * 10 + "x" * 201).encode()),
            ("accents.py", (LINE * 10 + "# é").encode()),
            ("latin.py", (LINE * 10 + "# é").encode("latin-1")),
            ("notes.txt", (LINE * 12).encode()),
        ],
    )
    def test_the_rest_is_left_out(self, tmp_path, name, content):
        (tmp_path / "kept.py").write_text(LINE * 10, encoding="utf-8")
        (tmp_path / name).write_bytes(content)
        assert python_documents(tmp_path) == [LINE * 10]

    def test_the_bounds_themselves_are_kept(self, tmp_path):
        shortest = (LINE * 10)[:199] + "\n"
        widest = LINE * 10 + "x" * 200
        (tmp_path / "a.py").write_text(shortest, encoding="utf-8")
        (tmp_path / "b.py").write_text(widest, encoding="utf-8")
        assert python_documents(tmp_path) == [shortest, widest]

    def test_installed_is_the_standard_library_and_the_packages(self):
        found = {file.name for root in Source("code", "python", "installed").roots for file in root.iterdir()}
        assert {"argparse.py", "tqdm"} <= found


class TestSource:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (("p", "poems", "."), "kind must be one of text, blocks, python, got 'poems'"),
            (("a/b", "text", "."), "name must be of letters, digits, - and _, got 'a/b'"),
            (("a|b", "text", "."), "got 'a|b'"),
            (("p", "text", "nowhere.txt"), "no file or folder 'nowhere.txt' for the domain 'p'"),
            (("p", "text", "installed"), "no file or folder 'installed'"),
        ],
    )
    def test_refused(self, source, message):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            Source(*source)
        assert message in str(caught.value)

    def test_names_need_not_be_english(self, tmp_path):
        assert Source("唐詩", "text", str(tmp_path)).name == "唐詩"

    @pytest.mark.parametrize("kind", ["text", "blocks", "python"])
    def test_no_text(self, tmp_path, kind):
        (tmp_path / "empty.py").write_text("\n \n", encoding="utf-8")
        with pytest.raises(ValueError, match="the domain 'p' has no text in"):
            Source("p", kind, str(tmp_path)).documents()


class TestFingerprint:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "one").mkdir()
        for name in ("a.py", "b.py"):
            (tmp_path / "one" / name).write_text(LINE + name, encoding="utf-8")
        return tmp_path / "one"

    def test_depends_on_the_bytes_alone(self, folder):
        before = Source("p", "text", str(folder)).fingerprint()
        moved = folder.rename(folder.with_name("two"))
        os.utime(moved / "a.py", (0, 0))
        assert Source("p", "text", str(moved)).fingerprint() == before

    def test_notices_every_change(self, folder):
        def fingerprint(name="p", kind="python"):
            return tuple(Source(name, kind, str(folder)).fingerprint().items())

        seen = {fingerprint(), fingerprint(name="q"), fingerprint(kind="text"), fingerprint(kind="blocks")}
        (folder / "notes.txt").write_text("no Python", encoding="utf-8")
        seen.add(fingerprint())
        assert len(seen) == 4, "what is not read does not count"
        for change in (
            lambda: (folder / "b.py").write_text(LINE + "b.pY", encoding="utf-8"),
            lambda: (folder / "c.py").write_text("", encoding="utf-8"),
            lambda: (folder / "a.py").write_text(LINE + "a.pyv", encoding="utf-8"),
            lambda: (folder / "a.py").unlink(),
        ):
            change()
            assert fingerprint() not in seen
            seen.add(fingerprint())

    def test_of_installed_the_folders_alone_count(self, folder, monkeypatch):
        monkeypatch.setattr(Source, "roots", [folder])
        before = Source("code", "python", "installed").fingerprint()
        (folder / "new_package.py").write_text(LINE, encoding="utf-8")
        assert Source("code", "python", "installed").fingerprint() == before
        monkeypatch.setattr(Source, "roots", [folder.parent])
        assert Source("code", "python", "installed").fingerprint() != before
