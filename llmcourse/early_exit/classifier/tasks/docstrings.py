"""Does this docstring belong to this function? From Python source, which every Python brings along.

The function is shown without its docstring, as `ast.unparse` writes it; a wrong one is from another file.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping

from llmcourse.early_exit.classifier.tasks.pairs import Pair, pair_task
from llmcourse.early_exit.classifier.tasks.task import Task

MIN_CHARS = 24  # of a docstring: shorter ones say nothing
MAX_CHARS = 1200  # of either text: longer ones are cut anyway


def functions(source: str) -> list[tuple[str, str]]:
    """Docstring and code of every function that has both; none of what does not parse."""
    try:
        with warnings.catch_warnings():  # Python remarks on odd escapes
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= MIN_CHARS and len(node.body) > 1:
                node.body = node.body[1:]
                found.append((docstring[:MAX_CHARS], ast.unparse(node)[:MAX_CHARS]))
    return found


def docstring_task(files: Mapping[str, str], *, rounds: int = 4, seed: int = 0) -> Task:
    """The task over files of Python, by their names.

    Args:
        files: such as `speculative.tasks.standard_library()`.

    Raises:
        ValueError: as `pair_task`.
    """
    pairs = [Pair(source, *pair) for source in files.values() for pair in functions(source)]
    return pair_task("docstring", pairs, rounds=rounds, seed=seed)
