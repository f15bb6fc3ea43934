"""What people are told to type, on systems with make and without."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import again as words
from tools.again import again, in_a_copy, set_up_again, with_variables

COURSE = Path("/a course")


@pytest.fixture
def on(monkeypatch):
    """A system of this name, with make or without."""

    def pretend(name: str, make: bool) -> None:
        monkeypatch.setattr(words, "os", SimpleNamespace(name=name))
        monkeypatch.setattr(words.shutil, "which", lambda program: "make" if make else None)

    return pretend


def test_with_make_it_is_make(on):
    on("posix", make=True)
    assert again("PORT", 8889) == "make lab PORT=8889"
    assert set_up_again() == "make lab" and set_up_again({"test"}) == "make test"
    assert set_up_again(python="3.12", any_disk=True) == "make lab PYTHON=python3.12 ANY_DISK=1"
    assert with_variables(set_up_again(), A=1, B="c") == "A=1 B=c make lab"
    assert in_a_copy(COURSE, again("LAB", "x")) == (
        "cp -R '/a course' ~/llmcourse && cd ~/llmcourse && make lab LAB=x"
    )


def test_without_make_it_is_what_make_would_run(on):
    on("posix", make=False)
    assert again("PORT", 8889) == "PORT=8889 .venv/bin/python tools/lab.py"
    assert set_up_again({"test"}, any_disk=True) == "python3 tools/environment.py --any-disk --extra test"
    assert set_up_again(python="3.12") == "python3.12 tools/environment.py --chosen"
    assert in_a_copy(COURSE, again("LAB", "x")) == (
        "cp -R '/a course' ~/llmcourse && cd ~/llmcourse && python3 tools/environment.py && "
        "LAB=x .venv/bin/python tools/lab.py"
    )


@pytest.mark.parametrize("make", [True, False])  # a make of Windows is not one that runs this Makefile
def test_windows_is_told_what_its_shell_takes(on, make):
    on("nt", make)
    assert again("PORT", 8889) == r'$env:PORT = "8889"; .venv\Scripts\python tools\lab.py'
    assert set_up_again() == r"py -3 tools\environment.py"
    assert set_up_again(python="3.12") == r"py -3.12 tools\environment.py --chosen"
    assert with_variables(set_up_again(), A=1) == r'$env:A = "1"; py -3 tools\environment.py'
    assert in_a_copy(COURSE, set_up_again({"test"}), {"test"}) == (
        r'Copy-Item -Recurse "/a course" ~\llmcourse; cd ~\llmcourse; py -3 tools\environment.py --extra test'
    )
