"""The English phrases of figures and widgets, read from the source: literals of two words or more."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CSS = re.compile(r"[a-z-]+:[^ ]+;|^[\d.]+(?:px|%)|:is\(|sans-serif|url\(")
# Calls whose texts nobody sees in a figure: errors, patterns, names of files and of attributes.
UNSEEN = re.compile(
    r"^(?:check_\w*|require|positive\w*|compile|getattr|glob|removeprefix|sub|recorded|latest)$"
)
PLACE = "7"  # what stands in the place of a value


def _literal(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value
    return "".join(part.value if isinstance(part, ast.Constant) else PLACE for part in node.values)


def _unseen(tree: ast.Module) -> set[int]:
    """Nodes of docstrings, errors, annotations and the like."""
    found = set()
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            parts += [body[0]] if isinstance(body[0], ast.Expr) else []
        if isinstance(node, ast.Raise):
            parts.append(node)
        if isinstance(node, ast.JoinedStr):
            found |= {id(part) for part in node.values if isinstance(part, ast.Constant)}
            parts += [part.format_spec for part in node.values if getattr(part, "format_spec", None)]
        parts += [
            a for name in ("annotation", "returns") if isinstance(a := getattr(node, name, None), ast.AST)
        ]
        if isinstance(node, ast.Call) and UNSEEN.match(ast.unparse(node.func).split(".")[-1]):
            parts.append(node)
        found |= {id(inner) for part in parts for inner in ast.walk(part)}
    return found


def phrases(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every phrase, taken apart at tags and line ends, a digit in place of each value."""
    tree = ast.parse(source)
    unseen = _unseen(tree)
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) in unseen or not (literal or isinstance(node, ast.JoinedStr)):
            continue
        bare = re.sub(r"<[^>]*>", "\n", _literal(node))
        if CSS.search(bare):
            continue
        for line in map(str.strip, bare.split("\n")):
            if re.search(r"[A-Za-z]{2}[^A-Za-z]* [^A-Za-z]*[A-Za-z]{2}", line):
                yield node.lineno, line


def phrases_of(folder: Path) -> Iterator[tuple[str, str]]:
    """`file:line` and text of every phrase of a folder's modules."""
    for path in sorted(folder.rglob("*.py")):
        if path.stem not in ("language", "subset_font", "page_code", "__init__"):
            for line, text in phrases(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(folder)}:{line}", text
