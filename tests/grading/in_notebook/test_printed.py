"""What a function prints is kept in part, counted whole, and goes nowhere else."""

import sys

import pytest

from llmcourse.grading.in_notebook import printed as module
from llmcourse.grading.in_notebook.printed import KEPT, SHOWN_LINES, SHOWN_WIDTH, Printed, printed, tapped


def written(*texts):
    page = Printed()
    for text in texts:
        assert page.write(text) == len(text)
    return str(page)


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ((), ""),
        (("",), ""),
        (("one",), "one"),
        (("one", "\n"), "one"),
        (("one\ntwo", " and", " a half\n"), "one\ntwo and a half"),
        (("\n", "below a blank"), "\nbelow a blank"),
        (("1\n2\n3\n4\n5\n",), "1\n2\n3\n4\n5"),
        (("1\n2\n3\n4\n5\n6",), "1\n2\n3\n4\n5\n… and 1 more line"),
        (tuple(f"{n}\n" for n in range(3000)), "0\n1\n2\n3\n4\n… and 2,995 more lines"),
        (("\x1b[31mred\u202e\n",), "red"),
        (("x" * 10**6 + "\n", "y"), "x" * (SHOWN_WIDTH - 1) + "…\n… and 1 more line"),
    ],
)
def test_the_first_lines_are_shown_and_the_others_counted(texts, shown):
    assert written(*texts) == shown
    assert len(written(*texts)) <= KEPT + 100


def test_little_is_kept_of_much():
    page = Printed()
    for _ in range(1000):
        page.write("x" * 1000 + "\n")
    assert sum(sys.getsizeof(value) for value in vars(page).values()) < 4 * KEPT
    assert str(page).count("\n") <= SHOWN_LINES


def test_both_streams_go_to_the_page(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), printed() as page:
        print("out")
        print("err", file=sys.stderr, flush=True)
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
    assert str(page) == "out\nerr"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        (["a\nb", "c\n"], "a\nbc\n"),
        (["x\n" * 29, "y\n"], "x\n" * 29 + "y\n"),
        (["x\n" * 29, "y\nz\n", "z\n"], "x\n" * 29 + "y\n… and 2 more lines\n"),
        (["x" * 9_000, "y" * 3_000], "x" * 9_000 + "y" * 1_000 + "… and 2,000 more characters\n"),
    ],
)
def test_a_demonstration_is_seen_at_once_up_to_a_bound(capsys, texts, seen):
    with pytest.raises(KeyboardInterrupt), tapped():
        print(texts[0], end="")
        assert capsys.readouterr().out == seen[: len(texts[0])]
        print(*texts[1:], sep="", end="")
        raise KeyboardInterrupt
    assert capsys.readouterr().out == seen[len(texts[0]) :]


class Publisher:
    """The part of a notebook's publisher that is used."""

    def __init__(self):
        self.hooks = []

    def register_hook(self, hook):
        self.hooks.append(hook)

    def unregister_hook(self, hook):
        self.hooks.remove(hook)


def test_what_is_displayed_in_a_notebook_goes_to_the_page(monkeypatch):
    shell = type("Shell", (), {"display_pub": Publisher()})
    monkeypatch.setattr(module, "get_ipython", lambda: shell)
    with printed() as page:
        print("a")
        (hook,) = shell.display_pub.hooks
        assert hook({"content": {"data": {"text/plain": "tensor(1.)", "text/html": "<b>"}}}) is None
        assert hook({"content": {}}) is None
    assert str(page) == "a\ntensor(1.)" and shell.display_pub.hooks == []
