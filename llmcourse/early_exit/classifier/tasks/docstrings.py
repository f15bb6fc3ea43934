"""Does this docstring belong to this function? From Python source, which every Python brings along.

The function is shown without its docstring, as `ast.unparse` writes it; a wrong one is from another file.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Mapping

from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.classifier.tasks.pairs import Pair, pair_task
from llmcourse.early_exit.classifier.tasks.task import Task

MIN_CHARS = 24  # of a docstring: shorter ones say nothing
MAX_CHARS = 1200  # of either text: longer ones are cut anyway


def parsed(source: str) -> ast.Module:
    """The tree of a file; an empty one of what does not parse."""
    try:
        with warnings.catch_warnings():  # Python remarks on odd escapes
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def functions(source: str) -> list[tuple[str, str]]:
    """Docstring and code of every function that has both; none of what does not parse."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= MIN_CHARS and len(node.body) > 1:
                node.body = node.body[1:]
                found.append((docstring[:MAX_CHARS], ast.unparse(node)[:MAX_CHARS]))
    return found


def some_functions(name: str, source: str, count: int) -> list[tuple[str, str]]:
    """At most `count` of a file, the same ones whatever other files there are."""
    found = functions(source)
    draw = random.Random(name)
    return [found[place] for place in sorted(draw.sample(range(len(found)), min(count, len(found))))]


def docstring_task(
    files: Mapping[str, str], *, per_document: int = 24, rounds: int = 4, seed: int = 0
) -> Task:
    """The task over files of Python; a file's name decides on its side, so it stays there in other versions.

    Args:
        files: their text by their paths in a folder, such as `speculative.tasks.standard_library()`.
        per_document: functions of one file at most, at least 1: turtle.py alone would be a quarter of a side.

    Raises:
        ValueError: a number that is no integer or too small; and as `pair_task`.
    """
    require_integer(1, "per_document", per_document, "take one function of each file or more")
    pairs = [
        Pair(name, *pair)
        for name, source in files.items()
        for pair in some_functions(name, source, per_document)
    ]
    return pair_task("docstring", pairs, rounds=rounds, seed=seed)
