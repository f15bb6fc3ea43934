"""An answer's objects are followed wherever they hide, and none of them stops that."""

import functools
import sys
from textwrap import dedent
from types import ModuleType

import pytest
import torch
from scipy.special import expit

from llmcourse.grading.process import origins
from llmcourse.grading.process.origins import Origins

PACKAGE = ModuleType("package")
PACKAGE.part = ModuleType("package.part")
exec("def secret(): pass\nclass Secret:\n    def method(self): pass\n", vars(PACKAGE.part))
SECRET, KIND = PACKAGE.part.secret, PACKAGE.part.Secret
GIVEN = {"package": PACKAGE, "secret": SECRET, "Secret": KIND, "functools": functools, "torch": torch}


def names(code, answer="f"):
    found = {"__name__": "home", **GIVEN}
    exec(dedent(code), found)
    return Origins(found[answer]).names


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return secret",
        "def f(): return [lambda: secret]",
        "def f(): return g()\ndef g(): return h()\ndef h(): return secret",
        "def f(x=secret): pass",
        "def f(*, x=secret): pass",
        "def f(x: secret): pass",
        "g = functools.partial(max, key=secret)\ndef f(): return g",
        "g = [{'a': (secret,)}]\ndef f(): return g",
        "@functools.cache\ndef f(): return secret",
        "g = functools.cache(secret)\ndef f(): return g",
        "@torch.no_grad()\ndef f(): return secret",
        "@torch.no_grad()\ndef g(): return secret\ndef f(): return g()",
        "def around(g): return lambda: g()\n@around\ndef f(): return secret",
        "def make(g):\n    def f(): return g\n    return f\nf = make(secret)",
        "class G:\n    def go(self): return secret\ndef f(): return G().go()",
        "class G:\n    def go(self): return secret\ng = G()\ndef f(): return g.go()",
        "class G:\n    def __call__(self): return secret\nf = G()",
        "class G:\n    @staticmethod\n    def go(): return secret\nf = G.go",
        "class G:\n    @classmethod\n    def go(cls): return secret\nf = G.go",
        "class G:\n    @property\n    def go(self): return secret\ndef f(): return G().go",
        "class G: pass\ng = G()\ng.it = secret\ndef f(): return g.it",
        "class G:\n    it = secret\ndef f(): return G",
        "def f(): pass\nf.it = secret",
        "def f(): return package.part.secret",
        "import sys as s\ndef f(): return [package.part.secret for _ in s.argv]",
    ],
)
def test_a_function_is_found_wherever_it_hides(code):
    assert "package.part.secret" in names("def secret_is_not_called_so(): pass\n" + code)
    assert "package.part.secret" not in names(code.replace("secret", "len"))


def test_the_package_of_these_tests_says_where_it_is_from():
    assert SECRET.__globals__["__name__"] == KIND.__module__ == "package.part"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(): return Secret", "package.part.Secret"),
        ("class G(Secret): pass\ndef f(): return G", "package.part.Secret"),
        ("g = Secret()\ndef f(): return g", "package.part.Secret"),
        ("g = Secret().method\ndef f(): return g", "package.part.method"),
        ("g = package.part\ndef f(): return g", "package.part"),
        ("from numpy import exp as g\ndef f(): return g", "numpy.exp"),
        ("from torch import softmax as g\ndef f(): return g", "torch"),
        ("g = torch.ones(1)\ndef f(): return g", "torch.Tensor"),
    ],
)
def test_other_things_are_named_with_their_modules(code, found):
    assert any(name.startswith(found) for name in names(code))


def test_what_is_not_reached_is_not_named():
    code = (
        "g = secret\ndef h(): return secret\ndef f(x):\n    secret = x\n    return secret, x.part, x.h, x.g"
    )
    assert names(code) == {"home"}
    assert names("def f(x): return math.exp(x)\nimport math") == {"home", "math", "math.exp"}


def test_an_answer_of_another_module_names_that():
    assert names("f = secret") == names("f = functools.partial(secret)") == {"package.part"}
    assert names("f = None") == names("f = len") == set()


def test_globals_that_only_the_text_speaks_of_are_followed_too():
    found = {"__name__": "home", **GIVEN}
    exec("def f(): pass", found)
    assert Origins(found["f"], lambda function: ["secret", "nowhere"]).names == {
        "home",
        "package.part.secret",
    }


def test_nothing_that_a_student_makes_ends_it():
    code = """
    class Meta(type):
        def __getattribute__(cls, name):
            raise ValueError(name)
    class Evil(metaclass=Meta):
        __dict__ = property(lambda self: 1 / 0)
        def __getattr__(self, name): raise KeyError(name)
        def __eq__(self, other): return True
        __hash__ = None
    evil, loop, deep = Evil(), [], []
    loop.append(loop)
    for _ in range(10_000): deep = [deep]
    wide = list(range(100_000))
    def g(): return g
    g.__wrapped__ = g
    def f(): return evil, Evil, Meta, loop, deep, wide, g, secret
    f.__module__ = 7
    """
    assert "package.part.secret" in names(code)


def test_no_more_objects_and_names_than_so_many(monkeypatch):
    many = "gs = [type(f'G{n}', (), {'__module__': f'm{n}'}) for n in range(50)]\ndef f(): return gs"
    assert len(names(many)) == 51
    monkeypatch.setattr(origins, "MOST_NAMES", 10)
    assert len(names(many)) == 10
    monkeypatch.setattr(origins, "MOST_OBJECTS", 5)
    assert len(names(many)) < 5


def test_a_module_that_is_none_is_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "odd", None)
    assert not hasattr(expit, "__module__")  # so that all modules are gone through
    found = names("from scipy.special import expit as g\ndef f(): return g")
    assert any(name.startswith("scipy.") and name.endswith(".expit") for name in found)
