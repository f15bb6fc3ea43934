"""Starting JupyterLab: the port, the browser, the folder."""

import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import lab

ROOT = Path(lab.ROOT)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_busy_port_is_refused_with_a_free_one(busy_port):
    with pytest.raises(ValueError, match=rf"port {busy_port} is busy; try: make lab PORT=\d+") as error:
        lab.parse_port(str(busy_port))
    proposed = int(str(error.value).split("=")[-1])
    assert proposed != busy_port and lab.parse_port(str(proposed)) == proposed


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "80.5", " "])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ValueError, match=r"PORT must be a number in \[1, 65535\], got"):
        lab.parse_port(text)


def test_the_server_opens_the_front_page():
    arguments = lab.command(8899, browser=False, notebook=lab.FRONT_PAGE)
    assert "--ServerApp.port=8899" in arguments and "--ServerApp.port_retries=0" in arguments
    assert "--ServerApp.open_browser=False" in arguments
    assert f"--LabApp.default_url=/lab/tree/{lab.FRONT_PAGE}" in arguments
    assert "--ServerApp.open_browser=True" in lab.command(8899, True, lab.FRONT_PAGE)
    assert (ROOT / lab.FRONT_PAGE).is_file()


@pytest.fixture
def started(monkeypatch):
    """Starts the command as `make lab` does, with these settings; returns the server's command line."""
    lines = []
    monkeypatch.setattr(lab.os, "execve", lambda path, arguments, environment: lines.append(arguments))
    monkeypatch.setattr(lab, "write_overrides", lambda prefix: None)
    monkeypatch.chdir(ROOT)

    def start(**settings):
        for name, value in {"PORT": str(lab.next_free(20000)), **settings}.items():
            monkeypatch.setenv(name, value)
        return lab.main(), lines

    return start


@pytest.mark.parametrize(("value", "browser"), [("", True), ("0", True), ("1", False), ("yes", False)])
def test_no_browser_is_honoured(started, value, browser):
    _, (line,) = started(NO_BROWSER=value)
    assert f"--ServerApp.open_browser={browser}" in line


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one lab; `main` takes it for its own."""
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs" / "01_decoding.ipynb").write_text("as handed out", encoding="utf-8")
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    return tmp_path


def test_a_lab_is_copied_once_and_opened_where_the_student_writes(started, course):
    own = course / "my_labs" / "01_decoding.ipynb"
    for answer in ("as handed out", "a whole day's work"):
        port = str(lab.next_free(20000))
        _, lines = started(LAB="01_decoding", NO_BROWSER="1", PORT=port)
        assert "--LabApp.default_url=/lab/tree/my_labs/01_decoding.ipynb" in lines[-1]
        assert f"--ServerApp.port={port}" in lines[-1] and "--ServerApp.open_browser=False" in lines[-1]
        assert [path.name for path in own.parent.iterdir()] == [own.name]
        assert own.read_text(encoding="utf-8") == answer
        own.write_text("a whole day's work", encoding="utf-8")


def test_the_copy_is_the_lab_that_is_handed_out(tmp_path):
    (tmp_path / "labs").symlink_to(ROOT / "labs")
    own = tmp_path / lab.own_lab("01_decoding", tmp_path)
    assert own.read_bytes() == (ROOT / "labs" / "01_decoding.ipynb").read_bytes()


def test_without_a_lab_the_front_page_is_opened(started, course):
    _, (line,) = started(LAB="")
    assert f"--LabApp.default_url=/lab/tree/{lab.FRONT_PAGE}" in line
    assert not (course / "my_labs").exists()


@pytest.mark.parametrize("name", ["1", "decoding", "../labs/01_decoding", "01_decoding.ipynb"])
def test_a_lab_that_is_not_there_is_refused_with_those_that_are(started, course, capsys, name):
    code, lines = started(LAB=name)
    assert (code, lines) == (2, [])
    assert capsys.readouterr().err == (
        f"error: LAB must be one of 01_decoding, got {name!r}; try: make lab LAB=01_decoding\n"
    )
    assert not (course / "my_labs").exists()


def test_a_copy_that_fails_leaves_nothing_that_looks_like_one(started, course, capsys, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, lines = started(LAB="01_decoding")
    assert (code, lines) == (2, []) and "No space left" in capsys.readouterr().err
    assert list((course / "my_labs").iterdir()) == []


@pytest.fixture
def windows(monkeypatch):
    """A system that calls itself Windows; what it starts is noted."""
    calls = []
    named = {name: getattr(os, name) for name in ("environ", "path", "getpid", "chdir")}
    monkeypatch.setattr(lab, "os", SimpleNamespace(name="nt", **named))
    monkeypatch.setattr(lab, "write_overrides", lambda prefix: None)
    monkeypatch.setattr(lab.subprocess, "call", lambda command, env: calls.append((command, env)) or 3)
    monkeypatch.chdir(ROOT)
    return calls


def test_windows_waits_for_the_server_and_hands_on_its_code(windows, course, monkeypatch):
    for name, value in {"PORT": str(lab.next_free(20000)), "LAB": "01_decoding", "NO_BROWSER": "1"}.items():
        monkeypatch.setenv(name, value)
    assert lab.main() == 3
    ((command, environment),) = windows
    assert "--LabApp.default_url=/lab/tree/my_labs/01_decoding.ipynb" in command
    assert "--allow-root" not in command and environment["JUPYTER_PREFER_ENV_PATH"] == "1"


def test_windows_is_told_what_it_can_type(windows, course, busy_port):
    with pytest.raises(ValueError, match=rf"port {busy_port} is busy") as error:
        lab.parse_port(str(busy_port))
    assert r".venv\Scripts\python tools\lab.py" in str(error.value) and "make" not in str(error.value)
    with pytest.raises(ValueError, match=r'try: \$env:LAB = "01_decoding"; \.venv'):
        lab.own_lab("1", course)


def test_settings_are_written_once_and_never_over_others(tmp_path):
    lab.write_overrides(tmp_path)
    (path,) = tmp_path.rglob("overrides.json")
    assert json.loads(path.read_text(encoding="utf-8")) == lab.OVERRIDES
    path.write_text("{}", encoding="utf-8")
    lab.write_overrides(tmp_path)
    assert path.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("target", ["lab", "test"])
def test_an_old_python_is_refused_in_words(tmp_path, target):
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    command = ["make", "-s", target, f"PYTHON={old}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert f"error: Python 3.11 or later is needed; {old} is Python 3.9.1." in ended.stderr
    assert f"make {target} PYTHON=python3.12" in ended.stderr


TOOLS = {
    "dirname": "exec /usr/bin/dirname",
    "timeout": 'shift; exec "$@"',
    "sh": "exec /bin/sh",
    "make": "echo make",
}
INSTALLS = "apt-get update\napt-get install --yes bubblewrap\n"


@pytest.mark.parametrize(
    ("found", "installs"),
    [
        ({"id": "echo 0", "apt-get": ":"}, INSTALLS),
        ({"id": "echo 0", "apt-get": "exit 100"}, "apt-get update\n"),
        ({"id": "echo 0"}, ""),
        ({"id": "echo 1000", "apt-get": ":"}, ""),
        ({"id": "echo 0", "apt-get": ":", "bwrap": ":"}, ""),
    ],
    ids=["root", "offline", "no apt", "ordinary user", "there already"],
)
def test_ci_runs_make_test_whether_bubblewrap_can_be_installed_or_not(tmp_path, found, installs):
    log = tmp_path / "log"
    for name, does in (TOOLS | found).items():
        noted = f'echo apt-get "$@" >>"{log}"\n' if name == "apt-get" else ""
        arguments = "" if name in ("id", "timeout") else ' "$@"'
        (tmp_path / name).write_text(f"#!/bin/sh\n{noted}{does}{arguments}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    log.write_text("", encoding="utf-8")
    ended = subprocess.run(
        [ROOT / ".ci" / "run"], env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "make test\n", "")
    assert log.read_text(encoding="utf-8") == installs
