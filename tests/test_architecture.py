"""Which way the package points: each part imports only from parts above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmcourse"

# From top to bottom; parts on one line never import each other.
LAYERS = (
    ("arguments",),
    ("progress",),
    ("timing",),
    ("hardware",),
    ("costs",),
    ("roofline",),
    ("attention",),
    ("kernels",),
    ("kv_cache",),
    ("model",),
    ("tokenizer",),
    ("prompts",),
    ("pretrained",),
    ("add_ons",),
    ("decoding",),
    ("speculative", "serving", "quantization"),
    ("early_exit", "blockwise"),
    ("training",),
    ("distillation",),
    ("pipeline",),
    ("figures",),
    ("grading",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# Views and judges of the rest; only the command line stands on them.
LEAVES = {"figures": {"doctor", "cli"}, "grading": {"doctor", "cli"}, "doctor": {"cli"}, "cli": {"__main__"}}
MAX_LINES = 400
FORBIDDEN_NAMES = ("utils", "util", "common", "helpers", "misc")


# The same within grading: what runs a student's code stands above all that knows an answer.
GRADING_LAYERS = (
    ("printable", "answer", "results", "sandbox"),
    ("process", "intake", "records", "compare"),
    ("names_used",),
    ("cells", "rules", "slips"),
    ("exercise",),
    ("question",),
    ("exercises", "sitting", "in_notebook"),
    ("selfcheck", "labs", "judge", "batch"),
    ("lab_view", "assembly"),
    ("commands",),
)


def imported_parts(tree: ast.Module, package: tuple[str, ...], whole: str = "llmcourse") -> set[str]:
    """The parts of llmcourse that a module imports, at its top or inside functions.

    Args:
        package: where the module lies, `("llmcourse", "decoding")`, to resolve relative imports.
        whole: the package whose parts are meant.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            names |= {str(node.args[0].value)} if called in ("import_module", "__import__") else set()
    return {name.removeprefix(f"{whole}.").split(".")[0] for name in names if name.startswith(f"{whole}.")}


def violations(package: Path) -> list[str]:
    """Every import in a package folder that points the wrong way, as `who imports whom: why`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).with_suffix("").parts
        if inside == ("__init__",):
            part = "__init__"
        else:
            part = inside[0]
            if part not in RANK:
                found.append(f"{part}: give it a place in LAYERS")
                continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for other in imported_parts(tree, ("llmcourse", *inside[:-1])) - {part}:
            if why := _objection(part, other):
                found.append(f"{'/'.join(inside)} imports {other}: {why}")
    return found


def _objection(part: str, other: str) -> str | None:
    if part == "__init__":
        return "the package itself imports nothing"
    if other not in RANK:
        return "it has no place in LAYERS"
    if RANK[other] >= RANK[part]:
        return "it is not above"
    if part not in LEAVES.get(other, {part}):
        return f"only {', '.join(sorted(LEAVES[other]))} may"
    return None


def test_imports_point_one_way():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("attention.py", "from llmcourse.model import Decoder"),
        ("attention.py", "import llmcourse.model"),
        ("attention.py", "from llmcourse import model"),
        ("attention.py", "from . import model"),
        ("attention.py", "def late():\n    from .model import Decoder"),
        ("attention.py", "import importlib\nimportlib.import_module('llmcourse.model')"),
        ("attention.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import llmcourse.model"),
        ("decoding/loop.py", "from ..training import recipes"),
        ("decoding/deep/er.py", "from ...training import recipes"),
        ("speculative/verify.py", "import llmcourse.serving.engine"),
        ("grading/judge.py", "from llmcourse.figures import style"),
        ("model.py", "from llmcourse import quantization"),
        ("novelty.py", ""),
        ("cli.py", "import llmcourse.novelty"),
        ("__init__.py", "from llmcourse.model import Decoder"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source, encoding="utf-8")
    assert len(violations(tmp_path)) == 1


def test_imports_from_above_and_from_oneself_are_allowed(tmp_path):
    (tmp_path / "decoding").mkdir()
    allowed = ("from llmcourse.model import Decoder", "from . import beam", "import llmcourse.decoding.beam")
    (tmp_path / "decoding" / "loop.py").write_text("\n".join(allowed), encoding="utf-8")
    assert violations(tmp_path) == []


def grading_violations(folder: Path) -> list[str]:
    """Every import in a folder of grading's modules that points the wrong way, as `who imports whom`."""
    ranks = {part: rank for rank, parts in enumerate(GRADING_LAYERS) for part in parts}
    found = []
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for other in imported_parts(tree, ("llmcourse", "grading", *inside[:-1]), "llmcourse.grading"):
            if other != inside[0] and ranks[other] >= ranks.get(inside[0], 0):
                found.append(f"{'/'.join(inside)} imports {other}")
    return found


def test_imports_within_grading_point_one_way():
    assert grading_violations(PACKAGE / "grading") == []
    parts = {path.stem for path in (PACKAGE / "grading").iterdir() if not path.stem.startswith("__")}
    assert parts == {part for layer in GRADING_LAYERS for part in layer}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from llmcourse.grading import exercises"),
        ("process/worker.py", "from llmcourse.grading.exercises import catalogue"),
        ("process/replay.py", "from llmcourse.grading import judge"),
        ("process/fork_server.py", "def late():\n    from ..question import examine"),
        ("records/summary.py", "from llmcourse.grading.batch import run"),
        ("sandbox/enter.py", "import llmcourse.grading.process.worker"),
    ],
)
def test_a_planted_violation_within_grading_is_found(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(source, encoding="utf-8")
    assert len(grading_violations(tmp_path)) == 1


def test_packages_of_grading_import_nothing_themselves():
    """A worker imports one module of a package, and must not get the others with it."""
    inits = sorted((PACKAGE / "grading").rglob("__init__.py"))
    importing = [path for path in inits if imported_parts(ast.parse(path.read_text(encoding="utf-8")), ())]
    assert [path.parent.name for path in importing] == []


def works(tree: ast.Module) -> bool:
    """Whether an `__init__.py` does more than hold its docstring, imports and public names."""
    return not all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in tree.body
    )


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_init_files_do_no_work():
    inits = [path for path in modules() if path.name == "__init__.py"]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in inits}
    assert [str(path) for path, tree in trees.items() if works(tree) or not ast.get_docstring(tree)] == []
    assert works(ast.parse("import torch\ntorch.set_num_threads(1)"))


def test_every_folder_of_modules_is_a_package():
    assert {path.parent for path in modules() if not (path.parent / "__init__.py").exists()} == set()


def test_modules_hold_one_idea():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}
    assert [path for path in modules() if path.stem in FORBIDDEN_NAMES] == []


def test_nothing_is_imported_by_star():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules()}
    starred = [p for p, tree in trees.items() for node in ast.walk(tree) if "*" in _imported_names(node)]
    assert starred == []


def _imported_names(node: ast.AST) -> set[str]:
    return {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()


def test_triton_is_imported_in_kernels_only():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules()}
    elsewhere = {p: tree for p, tree in trees.items() if p.relative_to(PACKAGE).parts[0] != "kernels"}
    importers = [p for p, tree in elsewhere.items() for node in ast.walk(tree) if _imports_triton(node)]
    assert importers == []


def _imports_triton(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == "triton"
    return isinstance(node, ast.Import) and any(a.name.split(".")[0] == "triton" for a in node.names)


@pytest.mark.alone
def test_importing_the_package_is_quick_and_light():
    code = (
        "import sys, time; start = time.perf_counter(); import llmcourse; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, heavy = output.split()
    assert float(seconds) < 1 and heavy == "False"
