"""The texts of the table of early exit: what is pre-trained on, and the tasks made of the same files.

Sides are split by document: running text by book, poems by their openings, files of Python by their paths.
What is held out is also looked for in all other files of Python: packages carry copies of the standard
library.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.tasks import (
    HeldOut,
    Task,
    author_task,
    book_name,
    books,
    by_side,
    docstring_task,
    following_task,
    opening,
    side_of,
)
from llmcourse.speculative.tasks import standard_library
from llmcourse.training.text import PATTERNS, Source, files_in, read_blocks, shorten

TASKS = ("docstring", "following", "author")
NAMES = {"text": book_name, "blocks": opening}  # what decides on a document's side


class Texts:
    """What the command line names; Python files, which only pre-training needs, are read for that.

    Raises:
        ValueError: a source without text; two of a kind that makes a task.
    """

    def __init__(self, sources: Sequence[Source]):
        kinds = [source.kind for source in sources]
        for kind in ("text", "blocks"):
            remedy = "put them into one folder"
            require(
                kinds.count(kind) <= 1, f"sources of kind {kind}", "one at most", kinds.count(kind), remedy
            )
        self.library = standard_library()
        self.documents: dict[str, list[str]] = {}
        self._python = [source for source in sources if source.kind == "python"]
        for source in sources:
            if source.kind != "python":
                self.documents[source.kind] = documents_of(source)

    def tasks(self, seed: int, names: Sequence[str] = TASKS) -> list[Task]:
        """Those of them that there is text for."""
        makers = {"docstring": lambda: docstring_task(self.library, seed=seed)}
        if "text" in self.documents:
            makers["following"] = lambda: following_task(self.documents["text"], seed=seed)
        if "blocks" in self.documents:
            makers["author"] = lambda: author_task(self.documents["blocks"], seed=seed)
        return [make() for name, make in makers.items() if name in names]

    def training_side(self, seed: int) -> dict[str, list[str]]:
        """What may be pre-trained on, by kind.

        Args:
            seed: of the tasks.
        """
        python = [*self.library.items(), *(file for source in self._python for file in named(source))]
        found = {"python": training_python(python, HeldOut.of(docstring_task(self.library, seed=seed)))}
        for kind, documents in self.documents.items():
            own = by_side(documents, NAMES[kind])["train"]
            found[kind] = shorten(own) if kind == "text" else own
        return found


def documents_of(source: Source) -> list[str]:
    """The books of running text, each once; the documents of another kind.

    Raises:
        ValueError: there are none.
    """
    if source.kind != "text":
        return source.documents()
    files = files_in(source.roots, PATTERNS["text"])
    found = list(dict.fromkeys(book for file in files for book in books(read_blocks([file]))))
    require(bool(found), f"text of the domain {source.name!r}", "one book or more", len(found), "give text")
    return found


def named(source: Source) -> list[tuple[str, str]]:
    """The documents of a Python source with their paths below its root, every path that leads to one."""
    documents, found = set(source.documents()), []
    for root in source.roots:
        for file in files_in([root], PATTERNS["python"]):
            text = file.read_text(encoding="utf-8", errors="replace").expandtabs(4)
            if text in documents:
                found.append((file.name if file == root else file.relative_to(root).as_posix(), text))
    return found


def training_python(files: Sequence[tuple[str, str]], held_out: HeldOut) -> list[str]:
    """The texts, each once, whose paths are all on the training side, and that hold nothing held out."""
    elsewhere = {text for name, text in files if side_of(name) != "train"}
    documents = [text for text in dict.fromkeys(text for _, text in files) if text not in elsewhere]
    return [text for text in tqdm(documents, desc="copies", unit="file") if not held_out.is_in(text)]
