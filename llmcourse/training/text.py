"""Text files to documents, and the split that keeps validation documents out of training.

Three kinds of source: running text, whose paragraphs are gathered into passages; blocks, each a
document of its own (a poem); and Python source, one file a document.
"""

from __future__ import annotations

import hashlib
import lzma
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PASSAGE_CHARS = 32_000
MAX_SOURCE_CHARS = 200_000
KINDS = ("text", "blocks", "python")


@dataclass(frozen=True)
class Source:
    """Where one domain's text comes from.

    Args:
        name: of the domain, as it will stand in the model card.
        kind: `text`, `blocks` or `python`.
        path: a file (`.xz` is read compressed) or a folder; for `python` also `installed`,
            which means the standard library and the packages of the running interpreter.
    """

    name: str
    kind: str
    path: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not (self.kind == "python" and self.path == "installed") and not Path(self.path).exists():
            raise FileNotFoundError(f"no file or folder {self.path!r} for the domain {self.name!r}")

    def documents(self) -> list[str]:
        """All documents, each once, in an order that does not depend on the file system."""
        if self.kind == "python":
            found = read_python(self.path)
        else:
            blocks = read_blocks(Path(self.path))
            found = blocks if self.kind == "blocks" else gather_passages(blocks)
        documents = list(dict.fromkeys(found))
        if not documents:
            raise ValueError(f"the domain {self.name!r} has no text in {self.path!r}")
        return documents


def read_blocks(path: Path) -> Iterator[str]:
    """The blocks of text between blank lines, of a file or of all files in a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        opener = lzma.open if file.suffix == ".xz" else open
        with opener(file, "rt", encoding="utf-8") as handle:
            yield from (block.strip("\n") for block in handle.read().split("\n\n") if block.strip())


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


def read_python(path: str) -> Iterator[str]:
    """Python files that a person wrote: generated tables and very long lines are left out."""
    if path == "installed":
        paths = sysconfig.get_paths()
        roots = [Path(paths["stdlib"]), Path(paths["purelib"])]
    else:
        roots = [Path(path)]
    files = sorted({file for root in roots for file in root.rglob("*.py")})
    for file in files:
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
