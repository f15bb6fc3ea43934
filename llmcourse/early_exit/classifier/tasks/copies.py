"""Files that hold what a task asks about: packages carry copies of the standard library's functions.

A held-out function can be anywhere, under another file's name and without its docstring, so files are parsed
and compared function by function. Parsing is slow: a file is looked into only if it has all words of a text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from llmcourse.early_exit.classifier.tasks.docstrings import MAX_CHARS, MIN_CHARS, parsed
from llmcourse.early_exit.classifier.tasks.task import Task

WORD = re.compile(r"[A-Za-z_]\w*")
STRING = re.compile(r"""'(?:\\.|[^'\\])*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)""", re.DOTALL)


class HeldOut:
    """Docstrings and functions that must not be trained on.

    Args:
        docstrings: at least `MIN_CHARS` long.
        code: functions without their docstrings, as `docstrings.functions` writes them.
    """

    def __init__(self, docstrings: Iterable[str], code: Iterable[str]):
        self.docstrings, self.code = frozenset(docstrings), frozenset(code)
        first_lines = (text.split("\n", 1)[0] for text in self.docstrings)
        # Strings are written with other quotes and escapes in a file, and the last word may be cut.
        without_strings = (STRING.sub(" ", text) for text in self.code)
        needed = {frozenset(WORD.findall(text)) for text in first_lines}
        needed |= {frozenset(WORD.findall(text)[:-1]) for text in without_strings}
        self._words: dict[str, list[frozenset[str]]] = {}  # by the longest, which few files have
        for words in needed:
            self._words.setdefault(max(words, key=len, default=""), []).append(words)

    @classmethod
    def of(cls, task: Task) -> HeldOut:
        """What the validation and the test side of a docstring task ask about."""
        examples = [*task.validation, *task.test]
        return cls((e.texts[0] for e in examples), (e.texts[1] for e in examples))

    def is_in(self, source: str) -> bool:
        """Whether a file of Python has one of them."""
        words = frozenset(["", *WORD.findall(source)])
        longest = self._words.keys() & words
        if not any(needed <= words for word in longest for needed in self._words[word]):
            return False
        return any(self._is_node(node) for node in ast.walk(parsed(source)))

    def _is_node(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= MIN_CHARS and docstring[:MAX_CHARS] in self.docstrings:
            return True
        body = node.body if docstring is None else node.body[1:]
        bare = type(node)(**{**dict(ast.iter_fields(node)), "body": body}, lineno=0, col_offset=0)
        return bool(body) and ast.unparse(bare)[:MAX_CHARS] in self.code
