"""Cells run as in a notebook, and a statement that fails costs only itself."""

from __future__ import annotations

import inspect
import sys
import types

import pytest

from llmcourse.grading.process import replay
from llmcourse.grading.process.replay import (
    CellError,
    describe,
    is_out_of_memory,
    kinds,
    new_main,
    run,
    shown,
    without_magics,
)


@pytest.fixture
def main(monkeypatch) -> types.ModuleType:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return new_main()


def test_cells_share_one_module_named_main(main):
    assert run(["a = 1", "def f():\n    return a + 1\nname = __name__"], main) == []
    assert main.f() == 2 and main.name == "__main__"
    assert sys.modules["__main__"] is main and main.f.__module__ == "__main__"


def test_a_statement_that_raises_does_not_stop_the_next(main):
    cells = ["x = 1\n1 / 0\ny = 2", "import sys\nsys.exit(3)\nz = 3", "raise KeyboardInterrupt\nw = 4"]
    assert run(cells, main) == [
        CellError(0, "ZeroDivisionError", "division by zero", 2),
        CellError(1, "SystemExit", "3", 2),
        CellError(2, "KeyboardInterrupt", "", 1),
    ]
    assert (main.x, main.y, main.z, main.w) == (1, 2, 3, 4)


def test_a_cell_that_is_no_python_is_noted_with_its_line(main):
    errors = run(["a = 1\nif a\n    b = 2", "c = 3"], main)
    assert [(error.cell_index, error.type, error.line) for error in errors] == [(0, "SyntaxError", 2)]
    assert main.c == 3 and not hasattr(main, "a")


def test_each_cell_is_announced_before_it_runs(main):
    seen = []
    main.seen = seen
    run(["seen.append('a')", "seen.append('b')"], main, seen.append)
    assert seen == [0, "a", 1, "b"]


def test_the_future_reaches_later_statements_and_cells(main):
    cells = ["from __future__ import annotations\ndef f(x: Missing): pass", "def g(x: AlsoMissing): pass"]
    assert run(cells, main) == []
    assert run(["def h(x: Missing): pass"], new_main())[0].type == "NameError"


def test_tracebacks_and_inspect_find_the_source(main):
    run(["def f():\n    raise ValueError('oh')"], main)
    assert "raise ValueError('oh')" in inspect.getsource(main.f)
    with pytest.raises(ValueError) as caught:
        main.f()
    assert describe(caught.value) == ("ValueError", "oh", 2)


def test_an_error_deep_in_a_library_names_the_students_line(main):
    errors = run(["import json\n\n\njson.loads('{')"], main)
    assert errors[0].type == "JSONDecodeError" and errors[0].line == 4


def test_notes_are_limited(main):
    assert len(run(["1 / 0\n" * 1000], main)) == replay.MAX_NOTES


EVIL = """
class Evil(Exception):
    def __str__(self):
        raise SystemExit("never")
raise Evil
raise ValueError("a\\x1b[31mred\\u202eback\\nnext" + "x" * 10_000)
"""


def test_messages_are_one_line_whatever_the_exception_does(main):
    evil, long = run([EVIL], main)
    assert (evil.type, evil.message) == ("Evil", "its message cannot be shown")
    assert long.message.startswith("aredback next") and 400 < len(long.message) <= replay.MESSAGE
    assert long.message.isprintable()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1\n"),
        ("!pip install it's\nx = 1", "pass\nx = 1\n"),
        ("x?\n?y\nz = 1", "pass\npass\nz = 1\n"),
        ("files = !ls\nt = %timeit f()", "pass\npass\n"),
        ("for i in y:\n    %time f(i)\nx = 1", "for i in y:\n    pass\nx = 1\n"),
        ("\n%%time\nx = 1", "\npass\nx = 1\n"),
        ("%%bash\nrm -r /", ""),
        ("x = (7\n     % 4)", "x = (7\n     % 4)\n"),
        ('x = """\n%magic\n!ls\n"""', 'x = """\n%magic\n!ls\n"""\n'),
        ("%load_ext a\nx = (7\n% 4)\n!ls", "pass\nx = (7\n% 4)\npass\n"),
        ("x = = 1", "x = = 1\n"),
        ("", "\n"),
    ],
)
def test_lines_of_ipython_are_passed_over_and_python_is_not(cell, expected):
    assert without_magics(cell) == expected


def test_memory_that_ran_out_is_recognised():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError())


def test_an_exception_is_shown_whatever_its_methods_do():
    class Evil(RuntimeError):
        def __getattribute__(self, name):
            raise SystemExit

        def __str__(self):
            raise KeyboardInterrupt

    assert shown(Evil()) == ("an exception that cannot be shown", 0)
    assert not is_out_of_memory(Evil())
    assert shown(ValueError("why\nnot")) == ("ValueError: why not", 0) and shown(ValueError()) == (
        "ValueError",
        0,
    )


def test_a_class_of_ones_own_is_shown_with_the_nearest_of_pythons_own_above_it():
    class Orphan(ValueError):
        pass

    class Lost(Orphan, IndexError):
        pass

    class Mine(Exception):
        pass

    class Both(KeyError, ValueError):
        pass

    class Meta(type):
        __mro__ = ()

    borrowed = type("ValueError", (Exception,), {})
    assert shown(Orphan("why")) == ("Orphan (a kind of ValueError): why", 0)
    assert shown(Lost()) == ("Lost (a kind of IndexError and ValueError)", 0)
    assert shown(Both()) == ("Both (a kind of KeyError and ValueError)", 0)
    assert shown(Mine("why")) == ("Mine: why", 0) and shown(UnicodeError()) == ("UnicodeError", 0)
    assert shown(Meta("Odd", (ValueError,), {})("why")) == ("Odd (a kind of ValueError): why", 0)
    assert shown(borrowed("why")) == ("ValueError (not Python's own): why", 0)


def test_an_exception_is_of_the_kinds_that_except_takes_it_for():
    class Meta(type):
        __mro__ = __bases__ = (ValueError,)
        __name__ = "ValueError"

        def __instancecheck__(cls, instance):
            return True

        def __subclasscheck__(cls, other):
            return True

    class Both(KeyError, ValueError):
        pass

    class Poses(IndexError):
        __class__ = ValueError

    for error, found in (
        (Both(), ("KeyError", "LookupError", "ValueError")),
        (UnicodeError(), ("UnicodeError", "ValueError")),
        (Poses(), ("IndexError", "LookupError")),
        (Meta("ValueError", (Exception,), {})(), ()),
        (type("ValueError", (Exception,), {})(), ()),
        (SystemExit(), ()),
    ):
        assert kinds(error) == found
        try:
            raise error
        except ValueError:
            assert "ValueError" in found
        except BaseException:
            assert "ValueError" not in found
