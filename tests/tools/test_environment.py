"""The set-up of `.venv`: when it is kept, mended or made anew. Nothing is downloaded here."""

import errno
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import environment
from tools.environment import ensure
from tools.preflight import SetupError, Unreachable

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
    monkeypatch.setattr(environment, "pytorch_build", lambda *arguments: "without CUDA")
    monkeypatch.setattr(environment, "check_room", lambda *arguments: None)
    calls.clear()
    state.update(python=list(sys.version_info[:2]), pip="23.0.1", missing=[])
    return root


calls: list[list[str]] = []
state: dict = {}


def pretend(command: list[str]) -> None:
    if command[1:3] == ["-m", "venv"]:
        python = environment.python_of(Path(command[-1]))
        python.parent.mkdir(parents=True)
        python.touch()
        (python.parent.parent / "lib" / "python3.11" / "site-packages").mkdir(parents=True)


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


def no_module(monkeypatch, *names: str) -> None:
    there = environment.importlib.util.find_spec
    monkeypatch.setattr(
        environment.importlib.util, "find_spec", lambda name: None if name in names else there(name)
    )


def test_a_python_without_ensurepip_lends_its_own_pip(root, monkeypatch):
    """However old: every pip knows --target."""
    no_module(monkeypatch, "ensurepip")
    state["pip"] = None
    ensure(root, set())
    assert "--without-pip" in calls[0]
    assert calls[1][:4] == [sys.executable, "-m", "pip", "install"] and calls[1][-1] == "pip>=22.3"
    assert calls[1][calls[1].index("--target") + 1].startswith(str(root / ".venv" / "lib"))


@pytest.mark.parametrize("absent", [("ensurepip", "pip"), ("venv",)])
def test_a_python_without_what_it_takes_is_refused_with_the_package_that_has_it(root, monkeypatch, absent):
    no_module(monkeypatch, *absent)
    state["pip"] = None
    with pytest.raises(SetupError, match=r"comes without venv or pip.*apt-get install python3\.\d+-venv"):
        ensure(root, set())
    assert not (root / ".venv").exists()


@pytest.mark.parametrize("version", [None, "9.0.1", "21.2.4"])
def test_an_old_pip_is_made_newer_before_it_is_used(root, version):
    ensure(root, set())
    (root / ".venv" / "ready.json").unlink()  # a hand-made environment has no stamp
    calls.clear()
    state["pip"] = version
    ensure(root, set())
    assert calls[0][1:] == ["-m", "ensurepip", "--upgrade", "--default-pip"] and "install" in calls[1]
    state["pip"] = "22.3.1"
    calls.clear()
    (root / ".venv" / "ready.json").unlink()
    ensure(root, set())
    assert len(calls) == 1 and "install" in calls[0]


@pytest.fixture
def unreachable(root, monkeypatch):
    """The project whose packages cannot be had any more."""

    def no_answer(*arguments):
        raise Unreachable("no network")

    def cut() -> Path:
        monkeypatch.setattr(environment, "pytorch_build", no_answer)
        calls.clear()
        return root

    return cut


def test_without_a_network_a_first_set_up_leaves_nothing_behind(unreachable):
    root = unreachable()
    with pytest.raises(SetupError, match="no network"):
        ensure(root, set())
    assert installs() == [] and not (root / ".venv").exists() and not (root / ".venv.old").exists()


def test_without_a_network_a_working_environment_is_not_given_up(root, unreachable):
    ensure(root, set())
    state["python"] = [3, 99]  # so that naming a Python asks for another environment
    unreachable()
    with pytest.raises(SetupError, match="no network"):
        ensure(root, set(), chosen=True)
    assert environment.is_ready(root / ".venv", root, set()) and not (root / ".venv.old").exists()


def test_without_a_network_what_is_ready_is_used_and_what_changed_can_wait(root, unreachable, capsys):
    ensure(root, {"test"})
    unreachable()
    ensure(root, {"test"})
    assert calls == []
    (root / "requirements.lock").write_text("setuptools==81\n", encoding="utf-8")
    ensure(root, set())
    assert "going on with the packages that are here" in capsys.readouterr().out
    assert installs() == ["."] and {"--no-index", "--no-deps", "--no-build-isolation"} <= set(calls[-1])
    assert environment.why_rebuild(root / ".venv", chosen=False) is None  # nothing was cut short
    assert not environment.is_ready(root / ".venv", root, set())  # the next start tries again
    with pytest.raises(Unreachable):  # tests hold for the versions of the list
        ensure(root, {"test"})
    state["missing"] = ["setuptools"]
    with pytest.raises(Unreachable):
        ensure(root, set())


def test_a_small_disk_is_refused_before_the_download_unless_told_otherwise(root, monkeypatch):
    def small(python, root, build, extras, given_up_bytes):
        raise SetupError(f"no room for PyTorch {build}")

    monkeypatch.setattr(environment, "check_room", small)
    with pytest.raises(SetupError, match="no room for PyTorch without CUDA"):
        ensure(root, set())
    assert installs() == [] and not (root / ".venv").exists()
    ensure(root, set(), any_disk=True)
    assert installs() == ["."]


def test_an_environment_that_is_replaced_counts_as_room(root, monkeypatch):
    rooms = []
    ensure(root, set())
    (root / ".venv" / "lib" / "large").write_bytes(bytes(10_000))
    (root / ".venv" / "incomplete").touch()
    monkeypatch.setattr(environment, "check_room", lambda *arguments: rooms.append(arguments[-1]))
    ensure(root, set())
    assert len(rooms) == 1 and rooms[0] >= 10_000


@pytest.fixture
def read_only(root, monkeypatch):
    """The project as it is to one who may not write there; root may everywhere, so the answer is made up."""
    allowed = os.access
    monkeypatch.setattr(
        environment.os, "access", lambda path, mode: path != root and allowed(path, mode), raising=True
    )
    return root


def test_a_folder_that_cannot_be_written_is_refused_with_a_way_to_copy_it(read_only):
    with pytest.raises(SetupError) as caught:
        ensure(read_only, set())
    message = str(caught.value)
    assert message.startswith(f"{read_only} cannot be written, and its .venv is not ready")
    assert message.endswith(f"cp -R '{read_only}' ~/llmcourse && cd ~/llmcourse && make lab")
    assert calls == [] and not (read_only / ".venv.lock").exists()


def test_a_folder_that_cannot_be_written_is_used_as_it_is_if_it_is_ready(root, request, capsys):
    ensure(root, set())
    (root / ".venv.lock").unlink()
    request.getfixturevalue("read_only")
    calls.clear()
    ensure(root, set())
    assert calls == [] and not (root / ".venv.lock").exists()
    assert f"note: {root} cannot be written" in capsys.readouterr().out


def denied(path, mode):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_lock_of_another_user_is_refused_with_a_way_to_own_it(root, monkeypatch):
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SetupError, match=r"another user's.*sudo chown -R .* '.*a folder'"):
        ensure(root, set())


def test_the_real_probe_tells_what_is_there(tmp_path):
    venv = tmp_path / "a venv"
    (venv / "bin").mkdir(parents=True)
    assert environment.probe(venv, []) is None
    os.symlink(sys.executable, venv / "bin" / "python")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    found = environment.probe(venv, ["no-such-distribution"])
    assert found == {
        "python": list(sys.version_info[:2]),
        "pip": found["pip"],
        "missing": ["no-such-distribution"],
    }


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

    system = SimpleNamespace(name="nt", access=os.access, W_OK=os.W_OK)
    monkeypatch.setattr(environment, "os", system)
    monkeypatch.setattr(sys.modules["tools.again"], "os", system)
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


def test_windows_is_told_what_it_can_type(root, windows, monkeypatch):
    no_module(monkeypatch, "venv")
    with pytest.raises(SetupError, match=r"take another Python: py -3\.12 tools\\environment\.py --chosen$"):
        ensure(root, set())
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        SetupError, match=r'copy of your own: Copy-Item -Recurse ".*a folder" ~\\llmcourse; cd'
    ):
        ensure(root, set())


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
