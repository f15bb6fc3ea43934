"""Rules: inputs stay as they were, the model is asked as often as needed, and the work is one's own."""

import pytest

from llmcourse.grading.answer import Answer
from llmcourse.grading.names_used import LIBRARIES, joined, names_used
from llmcourse.grading.rules import (
    Evidence,
    Forbid,
    InPlace,
    NewTensor,
    NoMutation,
    OneLaunch,
    Only,
    OracleCalls,
    PeakMemory,
)

SOFTMAX = Forbid(("softmax", "log_softmax"))


def evidence(source="", operations=(), mutated=(), aliased=(), calls=None, reference_calls=None):
    answer = Answer(1, None, operations, mutated, aliased, calls or {})
    return Evidence(answer, reference_calls or {}, names_used(source, "f"))


def counted(allows, **counts):
    return Evidence(Answer(1, counts=counts), allows=allows)


def test_memory_is_compared_with_what_the_case_allows():
    rule = PeakMemory()
    assert rule(counted({"peak_bytes": 4096}, peak_bytes=4096)) == ""
    assert rule(counted({}, peak_bytes=10**9)) == ""
    said = rule(counted({"peak_bytes": 4096}, peak_bytes=2_048_000))
    assert said == "tensors of 2,000 KiB were alive at once, at most 4.0 KiB are allowed"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"launches": 1, "loads": 6, "stores": 6}, ""),
        ({}, "no kernel of Triton's was launched, expected 1 launch"),
        ({"launches": 2, "loads": 6, "stores": 6}, "2 launches, expected 1 launch"),
        ({"launches": 1, "loads": 12, "stores": 6}, "the kernel loads 12 numbers, expected 6"),
        ({"launches": 1, "loads": 6}, "the kernel stores 0 numbers, expected 6"),
    ],
)
def test_a_kernel_is_launched_once_and_moves_each_number_once(counts, said):
    assert OneLaunch()(counted({"loads": 6, "stores": 6}, **counts)) == said


def test_a_kernel_may_be_allowed_to_load_less_but_not_more():
    rule, allowed = OneLaunch(loads_at_most=True), {"loads": 6, "stores": 6}
    assert rule(counted(allowed, launches=1, loads=5, stores=6)) == ""
    said = rule(counted(allowed, launches=1, loads=7, stores=6))
    assert said == "the kernel loads 7 numbers, expected at most 6"
    assert rule(counted(allowed, launches=1, loads=6, stores=5)) == "the kernel stores 5 numbers, expected 6"


def test_of_pytorch_only_some_operations_may_run():
    rule = Only(frozenset({"empty", "empty_like"}), "the kernel computes")
    assert rule(evidence(operations=("empty", "_empty_like"))) == ""
    assert rule(evidence(operations=("_softmax", "empty"))) == "PyTorch's softmax ran; the kernel computes"


def test_changed_arguments_are_named():
    assert NoMutation()(evidence()) == ""
    assert NoMutation()(evidence(mutated=("b", "a\n"))) == "a , b were changed in place; work on a copy"
    assert NoMutation()(evidence(mutated=("b",))) == "b was changed in place; work on a copy"


def test_arguments_that_were_returned_are_named():
    assert NewTensor()(evidence(mutated=("x",))) == ""
    said = NewTensor()(evidence(aliased=("b", "a\n")))
    assert said == "the result shares its memory with a , b; return a copy"


def test_buffers_that_were_copied_are_named_and_so_are_other_arguments_that_were_changed():
    rule = InPlace(("keys", "values"))
    both = ("keys", "values")
    assert rule(evidence(mutated=both, aliased=both)) == ""
    copied = "values was copied; write into it, and return it"
    assert rule(evidence(mutated=both, aliased=("keys",))) == copied
    assert rule(evidence(mutated=("keys",), aliased=both)) == copied
    assert rule(evidence()) == "keys, values were copied; write into them, and return them"
    changed = rule(evidence(mutated=(*both, "lengths"), aliased=both))
    assert changed == "lengths was changed in place; work on a copy"


@pytest.mark.parametrize(
    ("at_most", "calls", "said"),
    [
        (False, 3, ""),
        (False, 2, "model was called 2 times, expected 3"),
        (False, 1, "model was called once, expected 3"),
        (False, 4, "model was called 4 times, expected 3"),
        (True, 3, ""),
        (True, 2, ""),
        (True, 4, "model was called 4 times, expected at most 3"),
    ],
)
def test_the_model_is_asked_as_often_as_the_reference_asks(at_most, calls, said):
    rule = OracleCalls("model", at_most)
    assert rule(evidence(calls={"model": calls}, reference_calls={"model": 3})) == said


def test_a_model_that_nobody_asked():
    assert (
        OracleCalls("model")(evidence(reference_calls={"model": 1})) == "model was called 0 times, expected 1"
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return torch.softmax(x, -1)",
        "def f(x): return x.softmax(-1)",
        "import torch.nn.functional as F\ndef f(x): return F.log_softmax(x, -1)",
        "from torch.nn.functional import softmax as s\ndef f(x): return s(x, -1)",
        "from torch.nn.functional import *\ndef f(x): return softmax(x, -1)",
        "def f(x):\n    from torch import softmax as s\n    return s(x, -1)",
        "def f(x): return getattr(torch, 'softmax')(x, -1)",
        "def g(x): return x.softmax(-1)\ndef f(x): return g(x)",
        "s = torch.softmax\ndef f(x): return s(x, -1)",
        "class G:\n    def __call__(self, x): return x.softmax(-1)\ng = G()\ndef f(x): return g(x)",
        "f = lambda x: x.softmax(-1)",
        "!ls\n%time\ndef f(x):\n    return x.softmax(-1)\nf?",
        "def h(x): return x.softmax(-1)\nif True:\n    f = h",
        "import scipy.special\ndef f(x): return scipy.special.expit(x)",
        "from transformers import TopPLogitsWarper as T\ndef f(x): return T(0.5)(None, x)",
    ],
)
def test_what_is_forbidden_is_found_in_the_source(source):
    assert SOFTMAX(evidence(source)).startswith("uses ")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def f(x): return x.exp() / x.exp().sum()",
        "def softmax(x): return x.exp()\ndef f(x): return softmax(x)",  # one's own
        "def f(softmax): return softmax + 1",
        "def f(x):\n    softmax = x.exp()\n    return softmax",
        "def f(x): return x\nassert (f(y) == torch.softmax(y, -1)).all()",  # a test of one's own
        "def f(x): return x\nimport transformers",  # and nothing of it is used
        "def g(x): return x.softmax(-1)\ndef f(x): return x",
        "def f(x):\n    'not a softmax'\n    print('softmax')  # softmax\n    return x",
        "def f(x: return x.softmax(-1)",  # no Python: what runs is looked at, not what does not
    ],
)
def test_what_is_allowed_is_let_through(source):
    assert SOFTMAX(evidence(source)) == ""


def test_cells_are_read_as_one_source_and_what_cannot_be_read_is_named():
    deep, long, broken = "x = " + "-" * 45_000 + "1", "y = 1".ljust(50_001), "for for for"
    source, unread = joined(["%time\na = 1", deep, long, broken, "b = 2".ljust(50_000)])
    assert [line.strip() for line in source.splitlines() if line] == ["pass", "a = 1", "b = 2"]
    assert unread == {
        deep: "nested too deep to be read",
        long: "50,001 characters long, at most 50,000 are read",
    }


def test_only_so_much_of_a_notebook_is_read():
    cells = [f"x{number} = 1".ljust(50_000) for number in range(11)]
    source, unread = joined([*cells, "y = 1"])
    assert "x9 = 1" in source and "x10" not in source and "y" not in source
    assert list(unread) == [cells[10], "y = 1"]
    assert set(unread.values()) == {"at most 500,000 characters of a notebook are read"}


def test_what_is_forbidden_is_found_in_what_ran():
    assert SOFTMAX(evidence(operations=("exp", "_softmax"))) == "uses softmax, which this exercise is about"
    assert SOFTMAX(evidence(operations=("_log_softmax",))).startswith("uses log_softmax")
    assert SOFTMAX(evidence(operations=("exp", "sum", "softmax_backward"))) == ""
    assert Forbid()(evidence(operations=("softmax",))) == ""
    assert {Forbid()(evidence(f"import {name} as x\ndef f(): x.y")) != "" for name in LIBRARIES} == {True}


@pytest.mark.parametrize(
    "source",
    [
        "(" * 100_000,
        "-" * 100_000 + "1",
        "x" + ".y" * 90_000,
        "x y?\n" * 40_000,
        "\0",
        "def f(): x\n" * 300_000,
    ],
    ids=["brackets", "signs", "dots", "questions", "nul", "long"],
)
def test_a_source_made_to_hurt_is_left_alone(source):
    assert names_used(source, "f") == frozenset()
