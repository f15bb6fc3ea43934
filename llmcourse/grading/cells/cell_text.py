"""What a cell's text is about, found in time linear in its length.

The judge reads strangers' text here, so nothing is parsed: Python's parser takes memory by the
hundredfold and recurses, and one syntax error would hide the rest of a cell. Strings and comments
are taken out, and what is left is looked at line by line.
"""

from __future__ import annotations

import re

# Possessive, and with the closing quote left optional, so that no start is tried twice.
STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*+(?:""")?+'
    r"|'''(?:[^'\\]++|\\.|'(?!''))*+(?:''')?+"
    r'|"(?:[^"\\\n]++|\\.)*+"?+'
    r"|'(?:[^'\\\n]++|\\.)*+'?+"
    r"|(?P<comment>#[^\n]*+)",
    re.DOTALL,
)
FUNCTION = re.compile(r"^(?:async[ \t]++)?def[ \t]++(\w++)", re.MULTILINE)
CHECKS = re.compile(r"\s*+(?:(?:check|require)[ \t]*+\([^()]*+\)[\s;]*+)++")
EXERCISE = re.compile(r"#++\s*+exercise\s*+:?\s*+(\w++)\s*+\.\s*+(\w++)(?!\.\w)", re.IGNORECASE)


def without_strings(source: str) -> str:
    """Python text with its comments taken out and its strings emptied."""
    return STRING_OR_COMMENT.sub(lambda match: "" if match["comment"] else "''", source)


def functions_in(source: str) -> tuple[str, ...]:
    """Names of the functions defined at the top level, whatever errors stand around them."""
    return tuple(FUNCTION.findall(without_strings(source)))


def only_checks(source: str) -> bool:
    """Whether there is nothing but calls of `check` or `require` with names, numbers and strings."""
    return CHECKS.fullmatch(without_strings(source)) is not None


def exercise_named(source: str) -> str | None:
    """The exercise that the first line names, as `# Exercise 01.top_p`: small letters, no spaces."""
    first = source.lstrip().split("\n", 1)[0]
    match = EXERCISE.match(first)
    return f"{match[1]}.{match[2]}".lower() if match else None


def plain(source: str) -> str:
    """`source` without the blanks that editors add and remove: equal for cells with equal text."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())
