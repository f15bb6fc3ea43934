"""The set-up of `.venv`: when it is kept, mended or made anew. Nothing is downloaded here."""

import ast
import errno
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import environment
from tools.environment import SetupError, ensure

PROJECT = """\
[project]
name = "pip"
dependencies = ["setuptools>=1"]
[project.optional-dependencies]
test = ["pip>=20", "no-such-thing; platform_system == 'Nowhere'"]
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project in a folder with a space in its name, where making and installing only take notes."""
    root = tmp_path / "a folder"
    root.mkdir()
    (root / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (root / "requirements.lock").write_text("setuptools==80\n", encoding="utf-8")
    monkeypatch.setattr(
        environment, "run", lambda command, cwd=None: calls.append(command) or pretend(command)
    )
    monkeypatch.setattr(environment, "probe", probe)
    calls.clear()
    state.update(python=list(sys.version_info[:2]), missing=[])
    return root


calls: list[list[str]] = []
state: dict = {}


def pretend(command: list[str]) -> None:
    if command[1:3] == ["-m", "venv"]:
        python = environment.python_of(Path(command[-1]))
        python.parent.mkdir(parents=True)
        python.touch()


def probe(venv, names):
    return dict(state) if environment.python_of(venv).exists() else None


def installs() -> list[str]:
    return [command[-1] for command in calls if "install" in command]


def test_the_second_run_does_nothing(root):
    ensure(root, {"test"})
    assert installs() == [".[test]"] and "requirements.lock" in calls[-1]
    calls.clear()
    ensure(root, {"test"})
    ensure(root, set())
    assert calls == []


def test_an_extra_is_added_to_what_is_there(root):
    ensure(root, set())
    ensure(root, {"test"})
    assert installs() == [".", ".[test]"]
    assert sum(command[1:3] == ["-m", "venv"] for command in calls) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock"])
def test_a_changed_list_is_installed(root, name):
    ensure(root, set())
    with (root / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    calls.clear()
    ensure(root, set())
    assert installs() == ["."]


def test_a_moved_folder_is_installed_again(root):
    ensure(root, set())
    moved = root.rename(root.with_name("another folder"))
    calls.clear()
    ensure(moved, set())
    assert installs() == ["."]


def test_a_missing_package_is_installed_again(root):
    ensure(root, set())
    calls.clear()
    state["missing"] = ["setuptools"]
    ensure(root, set())
    assert installs() == ["."]


def test_a_set_up_that_was_cut_short_starts_over(root, capsys):
    ensure(root, set())
    (root / ".venv" / "incomplete").touch()
    (root / ".venv" / "rest").touch()
    ensure(root, set())
    assert "cut short" in capsys.readouterr().out
    assert not (root / ".venv" / "rest").exists() and not (root / ".venv" / "incomplete").exists()


def test_a_python_that_is_gone_starts_over(root, capsys):
    ensure(root, set())
    environment.python_of(root / ".venv").unlink()
    ensure(root, set())
    assert "does not run" in capsys.readouterr().out
    assert environment.python_of(root / ".venv").exists()


def test_another_python_replaces_the_environment_only_if_asked_for(root):
    ensure(root, set())
    state["python"] = [3, 99]
    calls.clear()
    ensure(root, set())
    assert calls == []
    ensure(root, set(), chosen=True)
    assert calls[0][1:3] == ["-m", "venv"]
    state["python"] = [3, 9]  # too old, chosen or not
    calls.clear()
    ensure(root, set())
    assert calls[0][1:3] == ["-m", "venv"]


def test_a_failed_installation_is_not_taken_for_a_whole_one(root, monkeypatch):
    def fails(command, cwd=None):
        pretend(command)
        if "install" in command:
            raise SetupError("no network")

    monkeypatch.setattr(environment, "run", fails)
    with pytest.raises(SetupError, match="no network"):
        ensure(root, set())
    assert (root / ".venv" / "incomplete").exists()
    assert environment.why_rebuild(root / ".venv", chosen=False) == "its set-up was cut short"


def test_a_python_without_ensurepip_lends_its_own_pip(root, monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    ensure(root, set())
    assert "--without-pip" in calls[0]
    assert calls[1][1:4] == ["-m", "pip", "--python"]


def test_the_real_probe_tells_what_is_there(tmp_path):
    venv = tmp_path / "a venv"
    (venv / "bin").mkdir(parents=True)
    assert environment.probe(venv, []) is None
    os.symlink(sys.executable, venv / "bin" / "python")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    found = environment.probe(venv, ["no-such-distribution"])
    assert found == {"python": list(sys.version_info[:2]), "missing": ["no-such-distribution"]}


def test_a_failing_command_is_reported_with_a_remedy():
    with pytest.raises(SetupError, match="run the same command again"):
        environment.run([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize(("system", "path"), [("posix", "bin/python"), ("nt", "Scripts/python.exe")])
def test_an_environment_s_python_lies_where_venv_puts_it(monkeypatch, system, path):
    monkeypatch.setattr(environment, "os", SimpleNamespace(name=system))
    assert environment.python_of(Path("v")).as_posix() == f"v/{path}"


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_the_place_is_the_one_that_python_names(monkeypatch, system):
    monkeypatch.setattr(environment, "os", SimpleNamespace(name=system))
    scripts = sysconfig.get_path("scripts", f"{system}_venv", {"base": "v"})
    assert environment.python_of(Path("v")).parent == Path(scripts)


@pytest.fixture
def windows(monkeypatch):
    """A Windows whose locks are held as often as the list says; fcntl cannot be imported."""
    held, calls = [], []

    def locking(descriptor, mode, num_bytes):
        calls.append((mode, num_bytes))
        if held:
            raise PermissionError(held.pop(), "Permission denied")

    monkeypatch.setattr(environment, "os", SimpleNamespace(name="nt"))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    return held, calls


def test_windows_makes_its_environment_and_finds_it_again(root, windows):
    ensure(root, {"test"})
    assert (root / ".venv" / "Scripts" / "python.exe").exists() and installs() == [".[test]"]
    assert calls[-1][0].endswith("python.exe")
    calls.clear()
    ensure(root, set())
    assert calls == []


def test_windows_waits_for_another_set_up(tmp_path, windows, capsys):
    held, calls = windows
    held += [errno.EACCES, errno.EDEADLK]
    with environment.one_at_a_time(tmp_path / "lock"):
        assert calls == [(2, 1)] * 3
    assert "Waiting for another set-up" in capsys.readouterr().out


def test_a_lock_that_is_held_is_waited_for(tmp_path):
    lock = tmp_path / "lock"
    with environment.one_at_a_time(lock), lock.open("w") as other:
        assert not environment.try_lock(other)
    with lock.open("w") as other:
        assert environment.try_lock(other)


def test_a_python_with_neither_ensurepip_nor_a_new_pip_is_told_what_to_do(root, monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    for version in [(0,), (22, 2)]:
        monkeypatch.setattr(environment, "own_pip", lambda version=version: version)
        with pytest.raises(
            SetupError, match=r"must bring ensurepip, or pip 22\.3 .* apt install python3-venv"
        ):
            ensure(root, set())
        assert not (root / ".venv").exists() and calls == []


def test_the_version_of_its_own_pip_is_read(monkeypatch):
    import importlib.metadata

    found = importlib.metadata.version("pip")
    assert environment.own_pip() == tuple(int(part) for part in found.split(".")[:2])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "22.3rc1")
    assert environment.own_pip() == (22, 3)


STREAMS = ("stdout", "stderr", "executable")


@pytest.mark.parametrize("version", [(3, 10, 13), (2, 99, 0)])
def test_an_old_python_is_refused_without_make_too(monkeypatch, capsys, version):
    old = SimpleNamespace(version_info=version, **{name: getattr(sys, name) for name in STREAMS})
    monkeypatch.setattr(environment, "sys", old)
    monkeypatch.setattr(sys, "argv", ["environment.py"])
    assert environment.main() == 1
    said = capsys.readouterr().err
    assert f"Python 3.11 or later is needed; {sys.executable} is Python {'.'.join(map(str, version))}" in said


def test_nothing_at_the_top_needs_more_than_an_old_python_has():
    """The message must be reached: with Python 3.10's library, and without evaluating a newer annotation."""
    block = "import sys; sys.modules['tomllib'] = None; sys.argv = ['x', '--help']; import runpy; "
    run = f"runpy.run_path({str(Path(environment.__file__))!r}, run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", block + run], capture_output=True, text=True)
    assert ended.returncode == 0 and "--extra" in ended.stdout
    ast.parse(Path(environment.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_a_folder_that_cannot_be_written_is_told_in_words(monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EROFS, "Read-only file system", ".venv.lock")

    monkeypatch.setattr(environment, "ensure", refuse)
    monkeypatch.setattr(sys, "argv", ["environment.py"])
    assert environment.main() == 1
    assert "Read-only file system" in (said := capsys.readouterr().err) and "copy the course" in said
