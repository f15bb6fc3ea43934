"""Complete a line of Python: the rest must make it the statement that its author wrote.

Compared are syntax trees, so spaces and quotes may differ. Whether a line parses is seen without the
author's; whether it is the right one is not. The text is the running Python's own standard library: most of
it was in the embedded models' training, in one version or another. (Files of packages that were held out of
it are completed as well: a few passes over so much code teach its ways, not its lines.)
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmcourse.decoding.errors import require_integer
from llmcourse.tokenizer import Tokenizer

# Not what a person wrote line by line, or the same in file after file, as codecs are.
SKIPPED = "test", "tests", "encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages"
MIN_CHARS, MAX_CHARS = 16, 72  # of a line that is asked for, without its indentation
CONTEXT_LINES = 40


@dataclass(frozen=True)
class CodeLine:
    """A line without its last few tokens, after the lines before it; see `question.Question`.

    Attributes:
        start: of the line, which the prompt ends with.
        line: all of it.
    """

    document: str
    prompt: tuple[int, ...]
    start: str
    line: str

    def correct(self, text: str) -> bool:
        tree = statement(self.start + text)
        return tree is not None and tree == statement(self.line)

    def observed(self, text: str) -> tuple[float, ...]:
        """Whether the completed line is one statement."""
        return (float(statement(self.start + text) is not None),)


def statement(line: str) -> str | None:
    """The syntax tree of one line of Python, as text; None if it is none.

    A line that opens a block is given one.
    """
    tree = _tree(line)
    return None if tree is None else ast.dump(tree)


def _tree(line: str) -> ast.Module | None:
    line = line.strip()
    for source in (line, f"{line} pass"):
        try:
            with warnings.catch_warnings():  # Python remarks on odd escapes; a model writes many
                warnings.simplefilter("ignore")
                return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null byte
            continue
    return None


def standard_library() -> dict[str, str]:
    """The running Python's own source files by name, without tests, codecs and packages of others.

    Raises:
        FileNotFoundError: this Python came without its source.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if not set(name.parts) & set(SKIPPED):
            text = path.read_text(encoding="utf-8", errors="replace").expandtabs(4)
            if text.isascii():
                files[name.as_posix()] = text
    if not files:
        raise FileNotFoundError(f"no Python source in {folder}; pass other files to code_lines")
    return files


def code_lines(
    files: Mapping[str, str],
    tokenizer: Tokenizer,
    *,
    per_file: int = 4,
    missing: int = 2,
    context: int = 96,
    seed: int = 0,
) -> list[CodeLine]:
    """Questions about files of Python, the same ones for the same file whatever other files there are.

    Args:
        files: their text by name.
        per_file: at most so many lines of a file, drawn at random, at least 1.
        missing: tokens that the line is short of, at least 1: the more, the harder.
        context: tokens before the line, at least 1.

    Raises:
        ValueError: a number that is no integer or too small.
    """
    require_integer(1, "per_file", per_file, "ask for one line of each file or more")
    require_integer(1, "missing", missing, "leave at least one token to complete")
    require_integer(1, "context", context, "show at least one token before the line")
    begin = tokenizer.encode_prompt("")
    found = []
    for name, text in files.items():
        lines = text.splitlines(keepends=True)
        places = [index for index, line in enumerate(lines) if index and _is_asked_for(line)]
        generator = random.Random(f"{seed} {name}")
        for index in sorted(generator.sample(places, min(per_file, len(places)))):
            line = lines[index].rstrip("\n")
            tokens = tokenizer.encode(line)
            if len(tokens) <= missing:
                continue
            shown, start = tokens[:-missing], tokenizer.decode(tokens[:-missing])
            before = tokenizer.encode("".join(lines[max(0, index - CONTEXT_LINES) : index]))[-context:]
            found.append(CodeLine(name, (*begin, *before, *shown), start, line))
    return found


def _is_asked_for(line: str) -> bool:
    """Indented code of one line that is more than a name or a constant."""
    code = line.strip()
    if not line[0].isspace() or not MIN_CHARS <= len(code) <= MAX_CHARS or code.startswith("#"):
        return False
    tree = _tree(code)
    if tree is None:
        return False
    node = tree.body[0]
    trivial = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call | ast.Await | ast.Yield)
    return not trivial and not isinstance(node, ast.Import | ast.ImportFrom)
