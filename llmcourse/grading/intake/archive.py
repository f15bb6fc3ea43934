"""Zip archives of strangers: listed, checked, and read into memory entry by entry; nothing is unpacked.

An archive's directory says what is inside, and may lie: names that climb out of the folder, links,
names that one disk takes for the same, entries that unpack to a thousand times their size or share
their bytes (Fifield 2019, A better zip bomb). Each such entry is listed with its problem.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from llmcourse.grading.intake.files import MAX_BYTES, MAX_SHOWN, MIB, Item, Unreadable, refuse
from llmcourse.grading.intake.identity import sameness
from llmcourse.grading.printable import acts, clean

MAX_RATIO = 200
SMALL_BYTES = MIB  # below it a ratio means nothing
MAX_NAME = 1_000
END = b"PK\5\6"
END_SIZE, COMMENT_SIZE, LOCATOR_SIZE = 22, 2**16, 20
LOCATOR_64 = b"PK\6\7"
ENCRYPTED = 0x2041  # bits 0, 6 and 13 of the flags
UTF8_NAMES = 0x800
LOCAL_HEADER = 30
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DRIVE = re.compile(r"[A-Za-z]:")
# What zipfile raises on bytes that are no archive, or one that contradicts itself.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
    IndexError,
)


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold, unpacked sizes by its own account."""

    entries: int
    total_bytes: int
    directory_bytes: int


# All students' files; and one student's.
COLLECTION = Limits(entries=60_000, total_bytes=16 * 1024 * MIB, directory_bytes=16 * MIB)
SUBMISSION = Limits(entries=2_000, total_bytes=200 * MIB, directory_bytes=MIB)


def entries(opener: Callable[[], io.BufferedIOBase], limits: Limits = COLLECTION) -> list[Item]:
    """The files in an archive, sorted; those that must not be read are listed with their problem.

    Args:
        opener: opens the archive's bytes; called again for each entry that is read.

    Raises:
        Unreadable: it is no archive, is damaged, holds too much, or entries share their bytes.
    """
    with _opened(opener, limits) as archive:
        infos = archive.infolist()
    _require_modest(infos, limits)
    _require_apart(infos)
    names = [_name(info) for info in infos]
    keys = ["/".join(map(sameness, _parts(name))) for name in names]
    counts = Counter(keys)
    listed = []
    for position, (info, name, key) in enumerate(zip(infos, names, keys, strict=True)):
        problem = _unsafe_name(name, info)
        item = Item(() if problem else _parts(name), partial(refuse, problem), problem, shown=_shown(name))
        if not problem:
            if info.is_dir():
                continue
            if counts[key] > 1:
                problem = "has a name that another entry of the archive has too, but for its case"
            problem = problem or _unsafe_content(info)
            read = partial(refuse, problem) if problem else partial(_read, opener, limits, position, name)
            item = replace(item, read=read, problem=problem)
        listed.append(item)
    return sorted(listed, key=lambda item: (item.parts, item.shown))


@contextmanager
def _opened(opener: Callable[[], io.BufferedIOBase], limits: Limits) -> Iterator[zipfile.ZipFile]:
    try:
        with opener() as file:
            _require_small_directory(file, limits)
            with zipfile.ZipFile(file) as archive:
                yield archive
    except Unreadable:
        raise
    except NotImplementedError:
        raise Unreadable("is a zip archive of a kind that is not read; make a plain zip") from None
    except DAMAGE:
        raise Unreadable("is damaged, or no zip archive") from None


def _require_small_directory(file: io.BufferedIOBase, limits: Limits) -> None:
    """Looks where zipfile will look for the directory, before zipfile reads all of it."""
    file.seek(0, io.SEEK_END)
    size = file.tell()
    start = max(0, size - END_SIZE - COMMENT_SIZE)
    file.seek(start)
    tail = file.read(END_SIZE + COMMENT_SIZE)
    at = tail.rfind(END)
    record = tail[at : at + END_SIZE]
    if at < 0 or len(record) < END_SIZE:
        raise zipfile.BadZipFile
    locator = start + at - LOCATOR_SIZE
    file.seek(max(0, locator))
    if locator >= 0 and file.read(4) == LOCATOR_64:
        raise Unreadable("is a zip64 archive, over 4 GiB or 65,535 files; unpack it and name the folder")
    (directory,) = struct.unpack_from("<L", record, 12)
    if directory > limits.directory_bytes:
        raise Unreadable(f"is an archive of more than {limits.entries:,} files")
    file.seek(0)


def _require_modest(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    if len(infos) > limits.entries:
        raise Unreadable(f"is an archive of more than {limits.entries:,} files")
    total = sum(info.file_size for info in infos)
    if total > limits.total_bytes:
        sizes = f"{total / MIB:,.0f} MiB, at most {limits.total_bytes / MIB:,.0f} are read"
        raise Unreadable(f"is an archive that unpacks to too much: {sizes}")


def _require_apart(infos: list[zipfile.ZipInfo]) -> None:
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Unreadable("is an archive whose entries share their bytes: a zip bomb, or damaged")
        end = info.header_offset + LOCAL_HEADER + info.compress_size


def _name(info: zipfile.ZipInfo) -> str:
    """An entry's name; some programs write UTF-8 and do not say so, which zipfile takes for cp437."""
    name = info.orig_filename
    if not info.flag_bits & UTF8_NAMES:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return unicodedata.normalize("NFC", name[: MAX_NAME + 1])


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _shown(name: str) -> str:
    return clean(name, MAX_SHOWN) or "an entry without a name"


def _unsafe_name(name: str, info: zipfile.ZipInfo) -> str | None:
    if not _parts(name) or len(name) > MAX_NAME:
        return "has no name, or one too long"
    if name.startswith("/") or DRIVE.match(name) or "\\" in name:
        return "has an absolute path or a backslash in its name; make a plain zip"
    if ".." in name.split("/"):
        return "has a name that climbs out of its folder"
    if any(map(acts, name)):
        return "has a control character in its name"
    return None


def _unsafe_content(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind and kind != stat.S_IFREG:
        return "is a link or device in an archive; put the file itself in"
    if info.flag_bits & ENCRYPTED:
        return "is encrypted; make a zip without a password"
    if info.compress_type not in METHODS:
        return "is compressed in a way that is not read; make a plain zip"
    if info.file_size > SMALL_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        return f"unpacks to more than {MAX_RATIO} times its size: a zip bomb"
    return None


def _read(opener: Callable[[], io.BufferedIOBase], limits: Limits, position: int, name: str) -> bytes:
    with _opened(opener, limits) as archive:
        infos = archive.infolist()
        if position >= len(infos) or _name(infos[position]) != name:
            raise Unreadable("lies in an archive that has changed; grade again once it is complete")
        info = infos[position]
        if info.file_size > MAX_BYTES:
            large = f"{info.file_size / MIB:.1f} MiB large; at most {MAX_BYTES / MIB:.0f} MiB are read"
            raise Unreadable(f"is {large}")
        with archive.open(info) as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) != info.file_size:
        raise Unreadable("is damaged: the archive lies about its size")
    return data
