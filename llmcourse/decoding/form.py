"""Whether a text keeps the form of its domain: code that parses, verse whose lines match.

Both can be checked by a program, so that strategies are compared without asking for taste.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings


def parsed_share(code: str) -> float:
    """The share of a text's lines, from its top, that form a valid Python program; in [0, 1].

    The unfinished last line is left out. A text without a finished line counts as 0.
    """
    lines = textwrap.dedent(code).split("\n")[:-1]
    for end in range(len(lines), 0, -1):
        if _parses("\n".join(lines[:end])):
            return end / len(lines)
    return 0.0


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes are no matter here
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def regular_share(poem: str) -> float:
    """The share of a poem's finished verses that are as long as its first one; in [0, 1].

    Regulated verse has five or seven characters between punctuation marks throughout. Titles in
    《》 with what follows on their line are left out; so is the unfinished last verse.
    """
    body = "\n".join(line for line in poem.split("\n") if not line.startswith("《"))
    sizes = [len(verse.strip()) for verse in re.split(r"[，。？！；、\n]", body)[:-1] if verse.strip()]
    return sum(size == sizes[0] for size in sizes) / len(sizes) if sizes else 0.0
