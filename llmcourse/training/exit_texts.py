"""The texts of the table of early exit: what is pre-trained on, and the tasks made of the same files."""

from __future__ import annotations

from collections.abc import Sequence

from llmcourse.decoding.errors import require
from llmcourse.early_exit.classifier.tasks import Task, author_task, by_side, docstring_task, following_task
from llmcourse.speculative.tasks import standard_library
from llmcourse.training.text import Source, shorten

TASKS = ("docstring", "following", "author")


class Texts:
    """What the command line names, read once.

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
        self.documents: dict[str, list[str]] = {"python": list(standard_library().values())}
        for source in sources:
            self.documents.setdefault(source.kind, []).extend(source.documents())

    def tasks(self, seed: int) -> list[Task]:
        """Those that there is text for."""
        made = [docstring_task(standard_library(), seed=seed)]
        if "text" in self.documents:
            made.append(following_task(self.documents["text"], seed=seed))
        if "blocks" in self.documents:
            made.append(author_task(self.documents["blocks"], seed=seed))
        return made

    def training_side(self, kind: str) -> list[str]:
        documents = by_side(self.documents[kind])["train"]
        return shorten(documents) if kind == "text" else documents
