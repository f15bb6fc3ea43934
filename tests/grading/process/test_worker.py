"""What the student's code finds in its process, and how a call of its function is watched."""

from __future__ import annotations

import os

import pytest
import torch

from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.sandbox.policy import available_tier


@pytest.fixture(scope="module")
def nursery():
    with Nursery(available_tier()[0], Allowance()) as nursery:
        yield nursery


def call(nursery: Nursery, code: str, **arguments):
    """What the function `f` of some code comes to."""
    with nursery.worker([code]) as worker:
        report = worker.load(10.0)
        assert report.errors == () and report.failure is None
        return worker.call("f", arguments, {}, 10.0)


CHANGES = {
    "adds": ("x.add_(1)", True),
    "writes a NaN over a NaN": ("x[0] = float('nan')", False),
    "writes another NaN": ("x.view(torch.int32)[0] += 1", True),
    "turns a zero's sign": ("x[1] = -0.0", True),
    "resizes": ("x.resize_(1)", True),
    "changes the type": ("x.data = x.double()", True),
    "changes and restores": ("x.add_(1); x.sub_(1)", False),
    "takes gradients": ("x.requires_grad_()", False),
    "keeps a gradient": ("x.requires_grad_().sum().backward()", True),
    "only reads": ("y = x + 1; y.add_(1)", False),
    "raises afterwards": ("x.add_(1); 1 / 0", True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_arguments_changed_in_place_are_named(nursery, name):
    code, changed = CHANGES[name]
    x = torch.tensor([float("nan"), 0.0])
    answer = call(nursery, f"import torch\ndef f(x, other): {code}", x=x, other=torch.ones(2))
    assert answer.mutated == (("x",) if changed else ())
    assert x.isnan().tolist() == [True, False]  # ours is another


@pytest.mark.parametrize(
    "code", ["x.append(1)", "x[0]['a'].pop()", "x[0]['b'] = 1", "x.append(object())", "x.append(x)"]
)
def test_changed_lists_are_seen_however_deep(nursery, code):
    assert call(nursery, f"def f(x): {code}", x=[{"a": [1]}]).mutated == ("x",)
    assert call(nursery, "def f(x): x = [*x, 1]", x=[{"a": [1]}]).mutated == ()


@pytest.mark.parametrize(
    ("code", "shared"),
    [
        ("x", ("x",)),
        ("[other.T, x[1:]]", ("x", "other")),
        ("x.clone()", ()),
        ("x + 0", ()),
        ("None", ()),
        ("x.nope", ()),
    ],
)
def test_arguments_whose_memory_is_returned_are_named(nursery, code, shared):
    answer = call(nursery, f"def f(x, other): return {code}", x=torch.ones(3), other=torch.ones(2, 2))
    assert answer.aliased == shared


def test_each_call_has_copies_of_its_own(nursery):
    code = """
seen = []
def f(x):
    seen.append(x.zero_())
    return len({y.data_ptr() for y in seen})
"""
    with nursery.worker([code]) as worker:
        worker.load(10.0)
        x = torch.ones(3)
        assert [worker.call("f", {"x": x}, {}, 10.0).value for _ in range(3)] == [1, 2, 3]
        assert x.tolist() == [1, 1, 1]


def test_gradients_and_views_are_forgotten(nursery):
    answer = call(nursery, "def f(x): return x.requires_grad_().exp()[:, ::2]", x=torch.zeros(2, 4))
    assert answer.value.tolist() == [[1, 1], [1, 1]] and not answer.value.requires_grad


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x.softmax(-1)", "_softmax"),
        ("torch.nn.functional.log_softmax(x, -1)", "_log_softmax"),
        ("torch.topk(x, 1)", "topk"),
        ("x.sort().values.cumsum(-1)", "cumsum"),
    ],
)
def test_operations_are_named(nursery, code, name):
    answer = call(nursery, f"import torch\nbefore = torch.ones(1)\ndef f(x): {code}", x=torch.ones(1, 3))
    assert answer.error is None and name in answer.operations and "ones" not in answer.operations


def test_what_a_call_did_is_known_though_it_failed(nursery):
    answer = call(nursery, "def f(x):\n    x.exp_()\n    return x.nope", x=torch.ones(3))
    assert answer.error.kind == "raised" and "(line 3: return x.nope)" in answer.error.message
    assert answer.operations == ("exp_",) and answer.mutated == ("x",)


def test_the_line_is_the_students_not_the_librarys(nursery):
    code = "import torch\ndef g(x):\n    return torch.cat([x,\n        1])\ndef f(x):\n    return g(x)"
    message = call(nursery, code, x=torch.ones(3)).error.message
    assert message.startswith("TypeError: ") and "line 3: return torch.cat([x," in message


def test_the_graders_modules_are_not_to_be_had(nursery):
    code = """
import sys
def f():
    found = []
    for name in ("process.worker", "process.wire", "exercises.decoding", "judge"):
        try:
            __import__("llmcourse.grading." + name)
        except ImportError as error:
            found.append(str(error))
    try:
        from llmcourse.grading.process import wire
    except ImportError as error:
        found.append(str(error))
    try:
        import llmcourse.decoding.beam
    except ImportError as error:
        found.append(str(error))
    from llmcourse.grading.selfcheck import check, require
    from llmcourse.grading import selfcheck
    import llmcourse.attention
    loaded = sorted(name for name in sys.modules if "grading" in name or name == "__main__")
    return found, check("01.top_p", f), require("01.top_p", f, seed=1), loaded, __name__
"""
    found, checked, required, loaded, name = call(nursery, code).value
    assert found == [
        "llmcourse.grading.process is not there while an answer is graded",
        "llmcourse.grading.process is not there while an answer is graded",
        "llmcourse.grading.exercises is not there while an answer is graded",
        "llmcourse.grading.judge is not there while an answer is graded",
        "llmcourse.grading.process is not there while an answer is graded",
        "llmcourse.decoding is what this lab builds; answers cannot use it",
    ]
    assert checked is None and required is None and name == "__main__"
    assert loaded == ["__main__", "llmcourse.grading", "llmcourse.grading.selfcheck"]


def test_the_process_knows_nothing_of_its_user(nursery):
    code = """
import os, sys, tempfile
def f():
    files = [fd for fd in range(64) if is_open(fd)]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    facts = sys.flags.hash_randomization, sys.stdin.read()
    return dict(os.environ), os.getcwd(), os.listdir(), sys.path, files, facts
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
"""
    environment, folder, names, path, files, facts = call(nursery, code).value
    assert set(environment) <= {
        *("HOME", "TMPDIR", "PATH", "LC_ALL", "PWD", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE"),
        *(name for name in environment if name.startswith(("KMP_", "TORCH", "OMPI_"))),
    }
    assert environment["HOME"] == environment["TMPDIR"] == folder and names == []
    assert "" not in path and os.getcwd() not in path
    assert files == [0, 1, 2, 3] and facts == (0, "")


def test_functions_of_any_callable_kind_are_called(nursery):
    code = "import functools\nclass F:\n    def __call__(self, x): return x + 1\nf = functools.partial(F())"
    assert call(nursery, code, x=1).value == 2
    assert call(nursery, "f = lambda x: x", x=(1, [None])).value == (1, [None])
