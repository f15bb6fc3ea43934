"""Attacks by what a file is: broken, too large, a link, an archive with a trap, or badly named."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.grading.attacks.attack import Attack, Book, Scene, new_name
from tests.grading.handed_in import entry, zipped

SOLUTION = Path(__file__).resolve().parents[3] / "solutions" / "01_decoding.ipynb"
INNER = "01_decoding.ipynb"


def _bytes(data: Callable[[Book], bytes]) -> Callable[[Scene], None]:
    return lambda scene: scene.write(data(scene.book()))


def _with(change: Callable[[Book], object]) -> Callable[[Scene], None]:
    def place(scene: Scene) -> None:
        book = scene.book()
        change(book)
        scene.write(book)

    return place


def _gigabyte(scene: Scene) -> None:
    with open(scene.write(b"{"), "r+b") as file:
        file.truncate(10**9)


def _pipe(scene: Scene) -> None:
    os.mkfifo(scene.places.submissions / f"{scene.student}.ipynb")


def _folder(scene: Scene) -> None:
    scene.write(b"x", f"{scene.student}.ipynb/notes.txt")


def _symlink(target: str) -> Callable[[Scene], None]:
    def place(scene: Scene) -> None:
        path = scene.places.submissions / f"{scene.student}.ipynb"
        path.symlink_to(scene.places.filled_in(target))

    return place


def _linked_folder(scene: Scene) -> None:
    (scene.places.submissions / scene.student).symlink_to(SOLUTION.parent)


def _hard_link(scene: Scene) -> None:
    original = scene.places.canaries / "original.ipynb"
    original.write_text(json.dumps(scene.book()))
    os.link(original, scene.places.submissions / f"{scene.student}.ipynb")


def _twice(change: Callable[[Book], object]) -> Callable[[Scene], None]:
    """One student's notebook in two places, changed in one of them."""

    def place(scene: Scene) -> None:
        scene.write(scene.book())
        other = scene.book()
        change(other)
        scene.write(other, f"{scene.student}/{INNER}")

    return place


def _zip(files: Callable[[bytes], dict | bytes]) -> Callable[[Scene], None]:
    """A zip in place of a notebook; `files` gets the honest one's bytes."""

    def place(scene: Scene) -> None:
        made = files(json.dumps(scene.book()).encode())
        made = made if isinstance(made, bytes) else zipped(made)
        scene.write(made, f"{scene.student}.zip")

    return place


def _tampered(change: Callable[[list[zipfile.ZipInfo]], object], names: tuple[str, ...] = (INNER, "x.txt")):
    """An archive whose directory says something else than what it holds."""

    def files(honest: bytes) -> bytes:
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, honest)
            change(archive.filelist)
        return memory.getvalue()

    return files


def _shared_bytes(infos: list[zipfile.ZipInfo]) -> None:
    infos[1].header_offset = infos[0].header_offset


def _smaller(infos: list[zipfile.ZipInfo]) -> None:
    infos[0].file_size = 10


def _encrypted(infos: list[zipfile.ZipInfo]) -> None:
    infos[0].flag_bits |= 1


def _rejected(name: str, place: Callable[[Scene], None], reason: str) -> Attack:
    return Attack(name, place, (int(name[:2]),), status="rejected", reason=reason)


def _named(number: int, name: str | bytes) -> Attack:
    """An honest notebook under a name that is no student's."""
    text = os.fsdecode(name)

    def place(scene: Scene) -> None:
        scene.write(scene.book(), f"{text}.ipynb")

    return Attack(
        f"40-name-{number}",
        place,
        (40, 39),
        status="rejected",
        reason="a student id must|begin with a letter|nothing says whose",
        found_by=new_name(text),
    )


NAMES: tuple[str | bytes, ...] = (
    "..%2f..%2fx",
    "'; DROP TABLE submissions;--",
    "=cmd|calc!A0",
    "+1-2",
    "-rf",
    "--out=x",
    "@SUM(1)",
    "a..b",
    "a;b$(reboot)`id`",
    "\x1b[31mred",
    "evil\u202egnp",
    "line\nbreak",
    b"not-utf-8-\xff\xfe",
    "<img src=x onerror=alert(1)>",
    "x" * 200,
    "\u200b",
)
DEEP = b'{"nbformat": 4, "cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DIGITS = b'{"nbformat": 4, "cells": [], "x": ' + b"9" * 1_000_000 + b"}"
MANY = b'{"nbformat": 4, "cells": [' + b"{}," * 2_000_000 + b"{}]}"

ATTACKS = [
    _rejected("33-broken", _bytes(lambda book: json.dumps(book).encode()[:-100]), "is not JSON"),
    _rejected("33-empty", _bytes(lambda book: b""), "is empty"),
    _rejected("33-blank", _bytes(lambda book: b" \n\t"), "is empty"),
    _rejected("33-gigabyte", _gigabyte, r"is 953\.7 MiB large"),
    _rejected(
        "33-format-3", _bytes(lambda book: b'{"nbformat": 3, "worksheets": [{"cells": []}]}'), "of format 3"
    ),
    _rejected("33-list", _bytes(lambda book: b"[1, 2]"), "JSON but no notebook"),
    _rejected("33-no-cells", _bytes(lambda book: b'{"nbformat": 4}'), "no list of cells"),
    _rejected("33-zeros", _bytes(lambda book: bytes(10_000)), "is (not|no) "),
    _rejected("33-binary", _bytes(lambda book: bytes(range(256)) * 100), "is not "),
    _rejected("33-deep", _bytes(lambda book: DEEP), "nested deeper"),
    _rejected("33-digits", _bytes(lambda book: DIGITS), "not JSON that a notebook would hold"),
    _rejected("33-many", _bytes(lambda book: MANY), "more than 1,000,000 values"),
    _rejected("33-html", _bytes(lambda book: b"<html><script>attack()</script>"), "is a web page"),
    _rejected("33-pipe", _pipe, "is no ordinary file"),
    replace(
        _rejected("33-folder", _folder, "no notebook"),
        found_by=lambda result: result["student"] == "33-folder.ipynb",
    ),
    _rejected(
        "33-odd-cells", _with(lambda book: book.update(cells=[None, 1, "x"])), "where cell 1 should be"
    ),
    _rejected(
        "33-odd-source", _with(lambda book: book["cells"][3].update(source={"x": 1})), "source is no text"
    ),
    _rejected(
        "33-many-cells", _with(lambda book: book.update(cells=book["cells"] * 100)), "cells; at most 2,000"
    ),
    Attack("33-utf-16", _bytes(lambda book: json.dumps(book).encode("utf-16")), (33,)),
    Attack("33-byte-order-mark", _bytes(lambda book: b"\xef\xbb\xbf" + json.dumps(book).encode()), (33,)),
    _rejected("34-symlink-to-solution", _symlink(str(SOLUTION)), "is a symbolic link"),
    _rejected("34-symlink-to-gradebook", _symlink("<<out>>/gradebook.sqlite"), "is a symbolic link"),
    _rejected("34-symlink-to-nothing", _symlink("/nowhere"), "is a symbolic link"),
    _rejected("34-symlink-to-device", _symlink("/dev/zero"), "is a symbolic link"),
    _rejected("34-symlink-to-process", _symlink("/proc/self/environ"), "is a symbolic link"),
    _rejected("34-linked-folder", _linked_folder, "is a symbolic link"),
    _rejected("34-hard-link", _hard_link, "is a hard link"),
    Attack("35-honest", _zip(lambda honest: {INNER: honest, "notes.txt": "x"}), (35,)),
    _rejected(
        "35-slip", _zip(lambda h: {entry("../../attack-left.ipynb"): h, entry(INNER): h}), "climbs out"
    ),
    _rejected(
        "35-inner-slip", _zip(lambda h: {entry("a/../../../x.py"): b"x", entry(INNER): h}), "climbs out"
    ),
    _rejected("35-absolute", _zip(lambda h: {entry("/tmp/attack-left.ipynb"): h}), "absolute path"),
    _rejected("35-backslash", _zip(lambda h: {entry("..\\..\\attack-left"): b"x", INNER: h}), "backslash"),
    _rejected("35-drive", _zip(lambda h: {entry("C:attack-left"): b"x", INNER: h}), "absolute path"),
    _rejected("35-bomb", _zip(lambda h: {INNER: h, "zeros.bin": bytes(1 << 26)}), "zip bomb"),
    _rejected("35-shared-bytes", _zip(_tampered(_shared_bytes)), "share their bytes"),
    _rejected("35-lies", _zip(_tampered(_smaller)), "damaged|lies about its size"),
    _rejected("35-encrypted", _zip(_tampered(_encrypted)), "is encrypted"),
    _rejected(
        "35-case", _zip(lambda h: {INNER: h, INNER.upper().replace("IPYNB", "ipynb"): h}), "but for its case"
    ),
    _rejected("35-link", _zip(lambda h: {entry(INNER, 0o120777): str(SOLUTION)}), "is a link"),
    _rejected("35-nested", _zip(lambda h: {"inner.zip": zipped({INNER: h})}), "without a notebook"),
    _rejected(
        "35-many",
        _zip(lambda h: {f"{n}.txt": b"" for n in range(3000)} | {INNER: h}),
        "more than 2,000 files",
    ),
    _rejected("35-no-zip", _zip(lambda h: h), "damaged, or no zip"),
    _rejected("35-broken-inside", _zip(lambda h: {INNER: h[:-50]}), "is not JSON"),
    *[_named(number, name) for number, name in enumerate(NAMES)],
    Attack("44-twice", _twice(lambda book: None), (44,), flags=("handed in 2 times, byte for byte",)),
    _rejected(
        "44-two-files", _twice(lambda book: book["cells"].pop()), "2 different files have the student id"
    ),
]
