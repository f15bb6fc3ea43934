"""Attacks by what a notebook is: cells that are edited, repeated, stripped, or full of markup."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.grading.attacks.attack import TRIES, Attack, Book, Scene, by_code, by_edit, cell_of, text_of

SCRIPTS = (
    "<script>document.title='attack-ran'</script>",
    '<img src=x onerror="attack()">',
    "<a href='javascript:attack()'>x</a>",
    "<svg onload=attack()><script>attack()</script></svg>",
    "</style></title></bdi><script>attack()</script>",
    "]]><!-- <plaintext>",
)
FORMULAS = ('=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "\t=1+1", "x;=1+1")
# Colours, a cursor that goes up, a window's title, a bell; directions that turn round; no width.
ACTING = "\x1b[31m\x1b[2J\x1b]0;attack\x07\x9b2A \u202egnp.exe\u202c \u2066\u200b\ufeff \u2028 \x00\x08"


def new_cell(source: str, grade_id: str = "", **nbgrader: object) -> dict:
    metadata = {"nbgrader": {"schema_version": 3, "grade_id": grade_id, **nbgrader}} if grade_id else {}
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": 1}


def _edited_checks(book: Book) -> None:
    for cell in book["cells"]:
        nbgrader = cell["metadata"].get("nbgrader", {})
        if nbgrader.get("grade_id", "").endswith("-check"):
            cell["source"] = "print('PASSED')\nassert True"
            nbgrader |= {"points": 1000}
        if nbgrader.get("grade_id") == "01-setup":
            cell["source"] = "import sys\nimport torch\ntorch.softmax = None\nsys.exit()"
    cell_of(book, "01.top_k")["source"] = (
        "# Exercise 01.top_k\ndef top_k_filter(logits, k): return logits.clone()"
    )


def _deleted_checks(book: Book) -> None:
    book["cells"] = [c for c in book["cells"] if not c["metadata"].get("nbgrader", {}).get("locked")]


def _unlocked(book: Book) -> None:
    for cell in book["cells"]:
        cell["metadata"].get("nbgrader", {}).update(locked=False, solution=True, grade=False)


def _twice(first_is_right: bool) -> object:
    wrong = "# Exercise 01.top_k\ndef top_k_filter(logits, k):\n    return logits.clone()\n"

    def edit(book: Book) -> None:
        place = book["cells"].index(cell_of(book, "01.top_k"))
        own = book["cells"][place]
        pair = [text_of(own), wrong] if first_is_right else [wrong, text_of(own)]
        book["cells"][place : place + 1] = [{**own, "source": source} for source in pair]

    return edit


def _stripped(book: Book) -> None:
    for cell in book["cells"]:
        cell["metadata"] = {}
        cell.pop("id", None)
    book["metadata"] = {}


def _stripped_and_unnamed(book: Book) -> None:
    _stripped(book)
    for cell in book["cells"]:
        lines = text_of(cell).splitlines()
        if lines and lines[0].startswith("# Exercise"):
            cell["source"] = "\n".join(lines[1:])


def _renamed(book: Book) -> None:
    _stripped_and_unnamed(book)
    for cell in book["cells"]:
        cell["source"] = text_of(cell).replace("top_k_filter", "my_filter")


def _swapped_ids(book: Book) -> None:
    one, other = cell_of(book, "01.top_k"), cell_of(book, "01.top_p")
    one["metadata"], other["metadata"] = other["metadata"], one["metadata"]


def _outputs(book: Book) -> None:
    """Everything that an output can hold, in every cell."""
    payload = " ".join(SCRIPTS)
    outputs = [
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {
                "text/html": payload,
                "image/svg+xml": payload,
                "application/javascript": "attack()",
                "text/markdown": payload,
                "text/latex": payload,
                "application/vnd.jupyter.widget-view+json": {"model_id": "x", "version_major": 2},
            },
        },
        {"output_type": "stream", "name": "stdout", "text": payload + ACTING},
        {"output_type": "error", "ename": payload, "evalue": payload, "traceback": [payload, ACTING]},
    ]
    book["metadata"]["widgets"] = {
        "application/vnd.jupyter.widget-state+json": {
            "state": {"x": {"model_name": "HTMLModel", "state": {"value": payload}}}
        }
    }
    book["metadata"]["title"] = payload
    for cell in book["cells"]:
        cell["attachments"] = {"x.svg": {"image/svg+xml": payload}}
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs
    book["cells"].append({"cell_type": "markdown", "source": payload, "metadata": {}})


def raising(text: str) -> str:
    """The source of an answer that leaves `text` as its reason, and among what its cell raised."""
    encoded = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
    return f"""
import base64
TEXT = base64.b64decode("{encoded}").decode("utf-8", "surrogatepass")
Odd = type(TEXT.replace(chr(0), ""), (Exception,), {{}})

def top_k_filter(logits, k):
    raise Odd(TEXT)

raise Odd(TEXT)
"""


PAYLOAD = """
import os, pickle

class Payload:
    def __reduce__(self):
        return (eval, ("open('<<canaries>>/pickled', 'w').write('ran')",))
"""


def _payloads(canary: Path) -> dict[str, bytes]:
    """Files that run code when they are loaded as what their names say."""
    code = f"open({str(canary)!r}, 'w').write('ran')"
    pickled = b"c__builtin__\nexec\n(V" + code.encode() + b"\ntR."
    numpy = b"\x93NUMPY\x01\x00" + b"\x46\x00"
    numpy += b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(0x45) + b"\n" + pickled
    return {"model.pt": pickled, "data.pkl": pickled, "weights.npy": numpy, "01_decoding.pkl": pickled}


def _with_pickles(scene: Scene) -> None:
    """Beside an honest notebook, and asked for by one of its answers."""
    book = scene.book()
    loads = f"""# Exercise 01.top_k
{TRIES}
import pickle
import numpy as np

def top_k_filter(logits, k):
    names = ("model.pt", "data.pkl", "weights.npy", "01_decoding.pkl")
    for name in (*names, *(f"{scene.places.submissions}/{scene.student}/{{name}}" for name in names)):
        attempt(name, lambda: torch.load(name, weights_only=False))
        attempt(name, lambda: np.load(name, allow_pickle=True))
        attempt(name, lambda: pickle.load(open(name, "rb")))
    canary = "{scene.places.canaries}/pickled"
    attempt("own pickle", lambda: pickle.loads(
        b"cos\\nopen\\n(V" + canary.encode() + b"\\nI" + str(os.O_CREAT | os.O_WRONLY).encode() + b"\\ntR."))
    tell()
"""
    cell_of(book, "01.top_k")["source"] = loads
    scene.write(book, f"{scene.student}/01_decoding.ipynb")
    for name, data in _payloads(scene.places.canaries / "loaded").items():
        (scene.places.submissions / scene.student / name).write_bytes(data)


SHADOWED = (
    *(
        "torch.py",
        "sitecustomize.py",
        "usercustomize.py",
        "conftest.py",
        "numpy.py",
        "json.py",
        "llmcourse.py",
    ),
    *(
        "setup.py",
        "_virtualenv.pth",
        "evil.pth",
        "pyproject.toml",
        "torch/__init__.py",
        "llmcourse/__init__.py",
    ),
    *("__init__.py", ".pythonrc.py", "01_decoding.py", ".ipython/profile_default/startup/x.py"),
)


def _with_modules(scene: Scene) -> None:
    canary = scene.places.canaries / "imported"
    code = f"import os; open({str(canary)!r}, 'a').write(__name__)\n"
    for name in SHADOWED:
        path = scene.places.submissions / scene.student / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    scene.write(scene.book(), f"{scene.student}/01_decoding.ipynb")


RETURNS_PICKLED = f"""{PAYLOAD}
def top_k_filter(logits, k):
    return Payload()
"""

ATTACKS = [
    by_edit(
        "30-edited-checks",
        (30,),
        _edited_checks,
        zero={"01.top_k": r"row 0, token \d+"},
        flags=(r"01-top_k-check.* was edited", r"01-setup .*was edited"),
    ),
    by_edit("30-deleted-checks", (30,), _deleted_checks, flags=(r"01-setup is not there",)),
    by_edit("30-unlocked", (30,), _unlocked),
    by_edit(
        "31-right-then-wrong", (31,), _twice(True), flags=(r"01.top_k: repeated in cell \d+; the first",)
    ),
    by_edit(
        "31-wrong-then-right",
        (31,),
        _twice(False),
        zero={"01.top_k": r"row 0, token \d+"},
        flags=(r"01.top_k: repeated in cell \d+; the first",),
    ),
    by_edit("32-stripped", (32,), _stripped),
    by_edit("32-stripped-unnamed", (32,), _stripped_and_unnamed),
    by_edit("32-swapped", (32,), _swapped_ids),
    by_edit("32-renamed", (32,), _renamed, zero={"01.top_k": "cannot find exercise 01.top_k"}),
    Attack(
        "36-pickles",
        _with_pickles,
        (36,),
        zero={"01.top_k": r"held \d+ tries"},
        flags=(r"came with .*\.pt.*: not used",),
    ),
    by_code(
        "36-returns-pickled",
        (36,),
        {"01.top_k": RETURNS_PICKLED},
        zero={"01.top_k": "malformed reply: returned a Payload"},
    ),
    Attack("37-modules", _with_modules, (37,), flags=(r"came with .*\.py.*: not used",)),
    by_edit("38-outputs", (38,), _outputs),
    *[
        by_code(
            f"38-script-{i}", (38,), {"01.top_k": raising(script)}, alone=True, zero={"01.top_k": "raised"}
        )
        for i, script in enumerate(SCRIPTS)
    ],
    *[
        by_code(
            f"39-formula-{i}", (39,), {"01.top_k": raising(text)}, alone=True, zero={"01.top_k": "raised"}
        )
        for i, text in enumerate(FORMULAS)
    ],
    by_code("39-acting", (39,), {"01.top_k": raising(ACTING)}, zero={"01.top_k": "raised"}),
]
