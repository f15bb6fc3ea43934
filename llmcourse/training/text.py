"""Text files to documents, and the split that keeps validation documents out of training.

Three kinds of source: running text, whose paragraphs are gathered into passages; blocks, each a
document of its own (a poem); and Python source, one file a document.
"""

from __future__ import annotations

import hashlib
import lzma
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

PASSAGE_CHARS = 32_000  # what is held out together: long, so that few training texts border on it
TRAIN_CHARS = 8_000  # what is trained on together: short, so that many texts begin
MAX_SOURCE_CHARS = 200_000
PATTERNS = {"text": "*", "blocks": "*", "python": "*.py"}  # which files of a folder are read
KINDS = tuple(PATTERNS)


@dataclass(frozen=True)
class Source:
    """Where one domain's text comes from.

    Args:
        name: of the domain, as it will stand in the model card and in names of files.
        kind: `text`, `blocks` or `python`.
        path: a file (`.xz` is read compressed) or a folder; for `python` also `installed`,
            which means the standard library and the packages of the running interpreter.

    Raises:
        ValueError: another kind, or a name that no file could have.
        FileNotFoundError: there is nothing at `path`.
    """

    name: str
    kind: str
    path: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"a domain's name must be of letters, digits, - and _, got {self.name!r}")
        if not self.is_installed and not Path(self.path).exists():
            raise FileNotFoundError(f"no file or folder {self.path!r} for the domain {self.name!r}")

    @property
    def is_installed(self) -> bool:
        """Whether it is this machine's own Python source."""
        return self.kind == "python" and self.path == "installed"

    @property
    def roots(self) -> list[Path]:
        """The file or the folders that are read."""
        if self.is_installed:
            return [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
        return [Path(self.path)]

    def fingerprint(self) -> dict[str, str]:
        """What tells this source from another: name, kind, and a hash of the bytes of its files.

        Of `installed` the folders alone count: a package that is added between two starts of a
        run is no reason to refuse the second.
        """
        digest = hashlib.blake2b(digest_size=16)
        if self.is_installed:
            digest.update(repr(self.roots).encode())
        else:
            for file in files_in(self.roots, PATTERNS[self.kind]):
                content = file.read_bytes()
                digest.update(len(content).to_bytes(8, "big") + content)
        return {"name": self.name, "kind": self.kind, "content": digest.hexdigest()}

    def documents(self) -> list[str]:
        """All documents, each once, in an order that does not depend on the file system."""
        if self.kind == "python":
            found = read_python(self.roots)
        else:
            blocks = read_blocks(self.roots)
            found = blocks if self.kind == "blocks" else gather_passages(blocks)
        documents = list(dict.fromkeys(found))
        if not documents:
            raise ValueError(f"the domain {self.name!r} has no text in {self.path!r}")
        return documents


def files_in(roots: Iterable[Path], pattern: str) -> list[Path]:
    """The roots that are files, and the matching files of those that are folders, sorted."""
    found = {p for root in roots for p in ([root] if root.is_file() else root.rglob(pattern))}
    return sorted(path for path in found if path.is_file())


def read_blocks(roots: Iterable[Path]) -> Iterator[str]:
    """The blocks of text between blank lines, file by file.

    Raises:
        ValueError: a file that is no UTF-8, or a damaged `.xz`.
    """
    for file in files_in(roots, PATTERNS["blocks"]):
        opener = lzma.open if file.suffix == ".xz" else open
        try:
            with opener(file, "rt", encoding="utf-8") as handle:
                text = handle.read()
        except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{file} must be text in UTF-8, or such text as .xz ({error})") from error
        yield from (block.strip("\n") for block in text.split("\n\n") if block.strip())


def gather_passages(paragraphs: Iterable[str], size: int = PASSAGE_CHARS) -> Iterator[str]:
    """Consecutive paragraphs joined until a passage has at least `size` characters."""
    held, length = [], 0
    for paragraph in paragraphs:
        held.append(paragraph)
        length += len(paragraph)
        if length >= size:
            yield "\n\n".join(held)
            held, length = [], 0
    if held:
        yield "\n\n".join(held)


def shorten(passages: Iterable[str], size: int = TRAIN_CHARS, seed: int = 0) -> list[str]:
    """Passages cut between paragraphs into shorter ones, in random order.

    A model that sees few beginnings writes bad ones, and one that finds the last passage
    continued in the next learns to read across the border.
    """
    cut = [short for passage in passages for short in gather_passages(passage.split("\n\n"), size)]
    random.Random(seed).shuffle(cut)
    return cut


def read_python(roots: Iterable[Path]) -> Iterator[str]:
    """Python files that a person wrote: generated tables and very long lines are left out."""
    for file in tqdm(files_in(roots, PATTERNS["python"]), desc="read", unit="file"):
        try:
            source = file.read_text(encoding="utf-8").expandtabs(4)
        except (UnicodeDecodeError, OSError):
            continue
        lines = source.splitlines()
        written_by_hand = source.isascii() and max(map(len, lines), default=0) <= 200
        if 200 <= len(source) <= MAX_SOURCE_CHARS and written_by_hand:
            yield source


def is_held_out(document: str, share: float) -> bool:
    """Whether a document belongs to validation: a matter of its own text alone.

    A hash decides, so the split stays the same when documents are added or reordered.
    """
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def split(documents: Iterable[str], share: float = 0.01) -> tuple[list[str], list[str]]:
    """Training and validation documents.

    Args:
        share: of the documents that are held out, in (0, 1).

    Raises:
        ValueError: one side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}; 0.01 holds out one in a hundred")
    train, held_out = [], []
    for document in documents:
        (held_out if is_held_out(document, share) else train).append(document)
    if not train or not held_out:
        raise ValueError(
            f"the split leaves {len(train)} training and {len(held_out)} validation documents; "
            "give more text or another share"
        )
    return train, held_out
