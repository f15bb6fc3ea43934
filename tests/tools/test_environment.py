"""The set-up of `.venv`: when it is kept, mended or made anew. Nothing is downloaded here."""

import os
import shutil
import sys
from pathlib import Path

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
