"""A self-check refuses what the grader refuses, also where a cell above has imported it."""

import linecache

import pytest

from llmcourse.grading.in_notebook.source import source_of
from llmcourse.grading.selfcheck import SelfCheck

RIGHT = """
def patience_exit(logits, patience):
    favourites = logits.argmax(-1)
    count = torch.zeros_like(favourites[0])
    layers = torch.full_like(count, len(favourites))
    for n in range(1, len(favourites)):
        count = torch.where(favourites[n] == favourites[n - 1], count + 1, 0)
        leaves = (count >= patience) & (layers == len(favourites))
        layers = torch.where(leaves, n + 1, layers)
    {uses}
    return layers, favourites.gather(0, layers[None] - 1)[0]
"""


def written(*cells, name="patience_exit"):
    """The function of cells that run one after another in one notebook, each with a source of its own."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        place = f"<notebook {hash(cells)} {number}>"
        linecache.cache[place] = (len(cell), None, cell.splitlines(keepends=True), place)
        exec(compile(cell, place, "exec"), names)
    return names[name]


def checked(above, uses):
    answer = written(f"import torch\n{above}", RIGHT.format(uses=uses))
    return SelfCheck(show=lambda report: None)("04.patience_exit", answer)


@pytest.mark.parametrize(
    ("above", "uses", "told"),
    [
        ("from llmcourse.early_exit.rules import PatienceRule", "PatienceRule", "early_exit"),
        ("from llmcourse.early_exit.rules import PatienceRule as P", "P", "early_exit"),
        ("from llmcourse.early_exit import rules", "rules.PatienceRule", "early_exit"),
        ("from llmcourse.early_exit.rules import PatienceRule\nrule = PatienceRule(2)", "rule", "early_exit"),
        ("from llmcourse.speculative import verify as v", "(lambda: v)()", "speculative"),
        ("from llmcourse.early_exit.rules import *", "PatienceRule", "early_exit"),
        ("from llmcourse.early_exit import rules\ndef helper(): return rules", "helper()", "early_exit"),
        ("import scipy.special", "scipy.special.expit", "scipy"),
    ],
)
def test_what_a_cell_above_imports_is_not_own_work(above, uses, told):
    verdict = checked(above, uses)
    assert verdict.reason == f"own work: uses {told}, which this exercise is about"


@pytest.mark.parametrize(
    ("above", "uses"),
    [
        ("from llmcourse.early_exit.rules import PatienceRule", "layers"),  # and it is not used
        ("from llmcourse.grading.selfcheck import check", "torch"),
        ("from llmcourse.model import Decoder", "Decoder"),  # no part that is built here
        ("def helper(x): return x", "layers = helper(layers)"),
        ("import math", "math.pi"),
    ],
)
def test_what_is_not_used_or_not_the_answer_is_let_through(above, uses):
    assert checked(above, uses).passed


def test_helpers_are_read_once_though_they_call_each_other():
    answer = written(
        "def one(): return two()\ndef two(): return one()\ndef f(): return one() + two()", name="f"
    )
    assert source_of(answer).count("def ") == 3


def test_what_has_no_source_is_empty():
    names = {}
    exec("def f(): return 1", names)
    assert source_of(names["f"]) == source_of(object()) == source_of(len) == ""
