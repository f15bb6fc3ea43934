"""Attacks on rules about the source: forbidden operations under other names, and source that is hard to read.

A forbidden operation is found by the names in the source and by the operations that run. Both are best
effort: `KNOWN_LIMITS` holds what is known to get points, so that nobody believes otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.grading.attacks.attack import Attack, Scene, by_code, cell_of
from tests.grading.attacks.forging import RIGHT
from tests.grading.attacks.notebooks import new_cell

SOFTMAX = """
def softmax_with_temperature(logits, temperature):
    if temperature == 0:
        first = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, first, 1.0)
    return FORBIDDEN
"""
FORBIDDEN = {
    "function": "torch.softmax(logits / temperature, -1)",
    "method": "(logits / temperature).softmax(-1)",
    "special": "torch.special.softmax(logits / temperature, -1)",
    "functional": "torch.nn.functional.softmax(logits / temperature, -1)",
    "module": "torch.nn.Softmax(-1)(logits / temperature)",
    "computed-name": "getattr(torch, 'soft' + 'max')(logits / temperature, -1)",
    "operator": "torch.ops.aten._softmax((logits / temperature), -1, False)",
    "inner": "getattr(torch._C._VariableFunctions, 'xamtfos'[::-1])(logits / temperature, -1)",
    "log": "(logits / temperature).log_softmax(-1).exp()",
    "logsumexp": "(logits / temperature - (logits / temperature).logsumexp(-1, keepdim=True)).exp()",
    "minus": "torch.nn.functional.softmin(-logits / temperature, -1)",
    "exec": "eval('torch.soft' 'max(l, -1)', {'torch': torch, 'l': logits / temperature})",
    "distribution": "torch.distributions.Categorical(logits=logits / temperature).probs",
    "scipy": "torch.tensor(__import__('scipy.special').special.softmax((logits / temperature).numpy(), -1))",
}
# Where the watch of operations does not look, under a name that is not in the source.
LIMITS = {
    "thread": """
import threading

def softmax_with_temperature(logits, temperature):
    if temperature == 0:
        first = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, first, 1.0)
    found = []
    borrowed = getattr(torch, "xamtfos"[::-1])
    thread = threading.Thread(target=lambda: found.append(borrowed(logits / temperature, -1)))
    thread.start()
    thread.join()
    return found[0]
""",
    "watch-off": """
from torch.utils import _python_dispatch as watch

def softmax_with_temperature(logits, temperature):
    if temperature == 0:
        first = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, first, 1.0)
    with watch._disable_current_modes():
        return getattr(torch, "xamtfos"[::-1])(logits / temperature, -1)
""",
}
UNWATCHED = LIMITS["watch-off"].replace('getattr(torch, "xamtfos"[::-1])', "torch.softmax")
PUT_TOGETHER = {name: code.replace('"xamtfos"[::-1]', '"soft" + "max"') for name, code in LIMITS.items()}
HELPER = UNWATCHED.replace("def softmax_with_temperature", "def helper")
DEEPER = "import sys\nsys.setrecursionlimit(10**6)"  # Python then parses what the judge's own cannot

# The worker says whether arguments were changed or returned, and the student's code shares its memory.
HIDES_A_CHANGE = """
import sys

def top_k_filter(logits, k):
    step = sys._getframe()
    while step:
        if "_frozen" in step.f_globals:
            step.f_globals["_frozen"] = lambda value: b"the same"
            step.f_globals["aliased"] = lambda value, arguments: ()
            step.f_locals.get("before", {}).clear()
        step = step.f_back
    bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill_(logits < bar, -torch.inf)
"""

# Reading these must cost the judge neither its time nor its life, also where the answer is right.
CHAIN = f"""{RIGHT}
def top_k_filter(logits, k):
    if k is None:
        x{".a" * 600}()
    return right(logits, k)
"""
ALIASES = ", ".join(f"os as n{number}" for number in range(2_000))
USES = ", ".join(f"n{number}" for number in range(2_000))
IMPORTS = f"""{RIGHT}
import {ALIASES}

def top_k_filter(logits, k):
    if k is None:
        return {USES}
    return right(logits, k)
"""
MAGICS = "%time\n" * 1_200 + RIGHT + "\ndef top_k_filter(logits, k):\n    return right(logits, k)\n"
NESTED = f"""{RIGHT}
def top_k_filter(logits, k):
    return right(logits, k)

x = {"-" * 50_000}1
"""


def _with_typo(scene: Scene) -> None:
    """A cell that is no Python must not hide what the others use."""
    book = scene.book()
    own = cell_of(book, "01.softmax")
    own["source"] = f"# Exercise 01.softmax\n{UNWATCHED}"
    book["cells"].insert(book["cells"].index(own), new_cell("for for for"))
    scene.write(book)


def _with_helper(*cells: str) -> Callable[[Scene], None]:
    """The operation stands in the last of these cells, made hard to read, and the answer calls it."""

    def place(scene: Scene) -> None:
        book = scene.book()
        own = cell_of(book, "01.softmax")
        own["source"] = "# Exercise 01.softmax\ndef softmax_with_temperature(logits, temperature):\n"
        own["source"] += "    return helper(logits, temperature)\n"
        place = book["cells"].index(own)
        book["cells"][place:place] = map(new_cell, cells)
        scene.write(book)

    return place


def _with_data(scene: Scene) -> None:
    """No attack: a long table, which no answer needs, costs nothing."""
    book = scene.book()
    book["cells"].insert(2, new_cell(f"table = {list(range(10_000))}"))
    scene.write(book)


ATTACKS = [
    *[
        by_code(
            f"26-{name}",
            (26,),
            {"01.softmax": SOFTMAX.replace("FORBIDDEN", code)},
            alone=True,
            zero={"01.softmax": r"own work: uses \w*(soft|logsumexp|scipy)"},
        )
        for name, code in FORBIDDEN.items()
    ],
    *[
        by_code(f"26-{name}", (26,), {"01.softmax": code}, alone=True, zero={"01.softmax": "uses softmax"})
        for name, code in PUT_TOGETHER.items()
    ],
    by_code(
        "26-padded",
        (26,),
        {"01.softmax": UNWATCHED + "#" * 50_000},
        zero={"01.softmax": "cell left out: 5[0-9],[0-9]{3} characters long, at most 50,000 are read"},
    ),
    Attack(
        "26-padded-helper",
        _with_helper(HELPER + "#" * 50_000),
        (26,),
        zero={"01.softmax": "NameError: name 'helper' is not defined"},
        flags=("cell left out: .* characters long",),
    ),
    Attack(
        "26-deep-helper",
        _with_helper(DEEPER, f"x = {'-' * 5_000}1\n{HELPER}"),
        (26,),
        zero={"01.softmax": "NameError: name 'helper' is not defined|uses softmax"},
    ),
    Attack("26-data", _with_data, (26,), flags=("cell left out: .* characters long",)),
    Attack("26-behind-a-typo", _with_typo, (26,), zero={"01.softmax": "own work: uses softmax"}),
    by_code("09-long-chain", (9, 26), {"01.top_k": CHAIN}, alone=True, passes=("01.top_k",)),
    by_code("09-many-imports", (9, 26), {"01.top_k": IMPORTS}, alone=True, passes=("01.top_k",), within_s=10),
    by_code(
        "09-many-magics",
        (9, 26),
        {"01.top_k": MAGICS},
        alone=True,
        zero={"01.top_k": "SyntaxError"},
        within_s=30,
    ),
    by_code("09-nested", (9, 26), {"01.top_k": NESTED}, alone=True, zero={"01.top_k": "not written"}),
]
KNOWN_LIMITS = [
    by_code(f"26-limit-{name}", (26,), {"01.softmax": code}, alone=True, passes=("01.softmax",))
    for name, code in LIMITS.items()
]
KNOWN_LIMITS += [
    by_code("27-limit", (27,), {"01.top_k": HIDES_A_CHANGE}, alone=True, passes=("01.top_k",)),
]
