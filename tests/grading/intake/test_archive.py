"""Archives are listed and read in memory; each of their tricks is named, and none works."""

import io
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.grading.intake import archive
from llmcourse.grading.intake.archive import COLLECTION, SUBMISSION, Limits, entries
from llmcourse.grading.intake.files import MIB, Unreadable
from llmcourse.grading.printable import acts
from tests.grading.handed_in import entry, zipped


def listed(data: bytes, limits=COLLECTION) -> list:
    return entries(lambda: io.BytesIO(data), limits)


def refusal(data: bytes, limits=COLLECTION) -> str:
    with pytest.raises(Unreadable) as caught:
        listed(data, limits)
    return str(caught.value)


def problems(data: bytes) -> list:
    found = listed(data)
    for item in found:
        if item.problem:
            with pytest.raises(Unreadable):
                item.read()
    return [item.problem for item in found]


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new)


def directory_field(data: bytes, offset: int, value: bytes, number: int = 0) -> bytes:
    """`data` with a field of an entry changed in the archive's directory alone."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\1\2", at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_listed_sorted_and_read(compression):
    data = zipped({"b/": "", "b/x.ipynb": "B" * 3000, "a.ipynb": "A", "./李明//é.ipynb": "C"}, compression)
    found = listed(data)
    assert [item.parts for item in found] == [("a.ipynb",), ("b", "x.ipynb"), ("李明", "é.ipynb")]
    assert [item.read() for item in found] == [b"A", b"B" * 3000, b"C"]
    assert [item.problem for item in found] == [None] * 3
    assert listed(b"a program in front" + data) == found


def test_utf8_names_that_do_not_say_so_are_understood():
    data = zipped({"cafe.ipynb": ""})
    assert listed(patched(data, b"cafe.ipynb", "é明.ipyx".encode()))[0].parts == ("é明.ipyx",)
    code_page_437 = patched(data, b"cafe.ipynb", b"\x82\x82fe.ipynb")
    assert listed(code_page_437)[0].parts == ("ééfe.ipynb",)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.ipynb", "a/../../x.ipynb", "..\\x.ipynb", "a/..", "/etc/x.ipynb", "//x.ipynb", "C:/x.ipynb"),
        *("c:x.ipynb", "a\\x.ipynb", "\\\\host\\x.ipynb", "a\x1bb.ipynb", "a\nb.ipynb", "a\u202eb.ipynb"),
        *("x" * 1001, "/", "."),
    ],
    ids=ascii,
)
def test_names_that_lead_elsewhere_are_not_trusted(name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    found = listed(zipped({info: "data", "fine.ipynb": ""}))
    (bad,) = [item for item in found if item.problem]
    assert bad.parts == () and bad.shown and bad.shown.isprintable()
    assert [item.parts for item in found if not item.problem] == [("fine.ipynb",)]


def test_a_name_with_a_zero_byte_is_not_cut_there():
    (found,) = listed(patched(zipped({"a.ipynbQ.py": ""}), b"a.ipynbQ.py", b"a.ipynb\0.py"))
    assert found.problem == "has a control character in its name"


@pytest.mark.parametrize("mode", [0o120777, 0o060644, 0o020644, 0o010644, 0o140644], ids=oct)
def test_links_and_devices_are_not_read(mode):
    (found,) = problems(zipped({entry("x.ipynb", mode): "/etc/passwd"}))
    assert "link or device" in found


@pytest.mark.parametrize(
    "names", [("A.ipynb", "a.ipynb"), ("é.ipynb", "e\u0301.ipynb"), ("a/b", "A/./b"), ("ß", "SS")]
)
def test_names_that_a_disk_takes_for_one_are_both_refused(names):
    found = problems(zipped({entry(name): "x" for name in names} | {"other": "x"}))
    assert sum(bool(problem) for problem in found) == 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused():
    assert all(problems(zipped({entry("x"): "1", entry("x"): "2"})))


def test_a_bomb_is_seen_by_its_ratio():
    (found,) = problems(zipped({"x.ipynb": b"\0" * 3 * MIB}))
    assert "zip bomb" in found
    assert problems(zipped({"x.ipynb": b"\0" * MIB})) == [None]
    assert problems(zipped({"x.ipynb": b"\0" * 3 * MIB}, zipfile.ZIP_STORED)) == [None]


def test_totals_are_bounded():
    data = zipped({f"{i}": "x" * 10 for i in range(10)})
    assert len(listed(data, Limits(10, 100, 1000))) == 10
    assert "more than 9 files" in refusal(data, Limits(9, 100, 1000))
    assert "unpacks to too much" in refusal(data, Limits(10, 99, 1000))
    assert "more than 10 files" in refusal(data, Limits(10, 100, 400))


def test_a_large_directory_is_not_read(monkeypatch):
    data = zipped({"x" * 900 + str(i): "" for i in range(2_000)})
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *_: pytest.fail("was read"))
    assert "more than 2,000 files" in refusal(data, SUBMISSION)


def test_an_entry_is_bounded(monkeypatch):
    (found,) = listed(zipped({"x.ipynb": "x" * 2000}))
    monkeypatch.setattr(archive, "MAX_BYTES", 1999)
    with pytest.raises(Unreadable, match="MiB large"):
        found.read()


@pytest.mark.parametrize("size", [1, 999, 1001, 10**6, 2**31])
def test_an_entry_that_lies_about_its_size_is_damaged(size):
    data = directory_field(zipped({"x.ipynb": "x" * 1000}), 24, struct.pack("<L", size))
    (found,) = [listed(data)[0]]
    with pytest.raises(Unreadable):
        found.read()


def test_entries_that_share_their_bytes_are_a_bomb():
    data = zipped({"a.ipynb": "x" * 1000, "b.ipynb": "y" * 1000}, zipfile.ZIP_STORED)
    assert "share their bytes" in refusal(directory_field(data, 42, struct.pack("<L", 0), number=1))
    assert "share their bytes" in refusal(directory_field(data, 20, struct.pack("<L", 1500)))


def test_encrypted_entries_are_refused():
    (found,) = problems(directory_field(zipped({"x.ipynb": "x"}), 8, struct.pack("<H", 1)))
    assert "encrypted" in found


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions_are_refused(compression):
    (found,) = problems(zipped({"x.ipynb": "x"}, compression))
    assert "not read" in found


def test_zip64_is_refused():
    data = zipped({"x.ipynb": "x"})
    end = data.index(b"PK\5\6")
    fake = data[:end] + b"PK\6\7" + bytes(16) + data[end:]
    assert "zip64" in refusal(fake)


def test_an_end_hidden_in_the_end_is_not_believed():
    # zipfile takes the last 22 bytes for the end where they fit, though a signature stands in them.
    data = zipped({"x.ipynb": "x"})
    tricked = data[:-10] + b"PK\5\6" + data[-6:]
    assert refusal(tricked)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\5\6", b"no archive at all", b"PK\5\6" + b"\xff" * 18])
def test_no_archive_is_damaged(data):
    refusal(data)


def test_a_flipped_bit_is_damage():
    data = zipped({"x.ipynb": "x" * 100}, zipfile.ZIP_STORED)
    (found,) = listed(patched(data, b"xxxxxxxxxxxxxxxxxx", b"xxxxxxxxxyxxxxxxxx"))
    with pytest.raises(Unreadable, match="damaged"):
        found.read()


def test_an_archive_that_changes_is_noticed():
    states = [zipped({"x.ipynb": "x"}), zipped({"y.ipynb": "y"}), zipped({})]
    (found,) = entries(lambda: io.BytesIO(states[0]))
    assert found.read() == b"x"
    for _ in range(2):
        states.pop(0)
        with pytest.raises(Unreadable, match="changed"):
            found.read()


WHOLE = zipped({"a/x.ipynb": "x" * 100, "b.ipynb": "y" * 50, "d/": ""})


@given(st.binary(max_size=30), st.integers(0, len(WHOLE)), st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_listed_and_read_or_unreadable(garbage, at, dropped):
    try:
        for item in listed(WHOLE[:at] + garbage + WHOLE[at + dropped :]):
            assert not any(map(acts, item.shown)), "a blank that is no ASCII may stand in a name"
            item.read()
    except Unreadable as unreadable:
        assert str(unreadable).isprintable()


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for item in listed(zipped({entry("../x.ipynb"): "x", "y.ipynb": "y"})):
        if not item.problem:
            item.read()
    assert list(Path(tmp_path).iterdir()) == []
