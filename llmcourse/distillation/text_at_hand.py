"""Text with nothing to download: what a Python installation holds of its own code and of its reference."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from pydoc_data import topics

from llmcourse.training.family import Corpus, write_whole
from llmcourse.training.text import Source

HELD_OUT = 0.1  # so little text is there that one document of a hundred would be none


def corpus_at_hand(work: Path) -> Corpus:
    """The modules of the standard library, and the language reference that `help()` shows; two domains.

    They are copied to `work`, so that a run which goes on finds the same text whatever Python runs it.
    """
    folder = work / "text"
    code, reference = folder / "code", folder / "reference.txt"
    if not reference.is_file():
        code.mkdir(parents=True, exist_ok=True)
        for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            shutil.copyfile(module, code / module.name)
        documents = (text.strip().replace("\n\n", "\n") for _, text in sorted(topics.topics.items()))
        write_whole(reference, "\n\n".join(documents))  # a topic is a document
    return Corpus(
        [Source("reference", "blocks", str(reference)), Source("code", "python", str(code))], HELD_OUT
    )
