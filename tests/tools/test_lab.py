"""Starting JupyterLab: the port, the browser, the folder."""

import contextlib
import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import lab

ROOT = Path(lab.ROOT)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Where this reader's Jupyter servers leave word of themselves."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir()
    return tmp_path / "runtime"


@contextlib.contextmanager
def answering(body: str):
    """A program on a port that answers every GET so."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "holder"),
    [('{"version": "2.21.1"}', "a Jupyter server"), ("[]", "another program"), ("<html>", "another program")],
)
def test_a_busy_port_is_named_with_what_has_it(runtime, body, holder):
    with (
        answering(body) as port,
        pytest.raises(ValueError, match=rf"^port {port} is busy with {holder}; try: make lab PORT=\d+$"),
    ):
        lab.parse_port(str(port))


def test_a_lab_of_the_reader_is_named_with_its_folder_and_address(runtime, busy_port):
    known = {"pid": os.getpid(), "port": busy_port, "url": f"http://localhost:{busy_port}/", "token": "abc"}
    known |= {"root_dir": "a folder", "base_url": "/", "hostname": "localhost", "secure": False}
    (runtime / "jpserver-1.json").write_text(json.dumps(known), encoding="utf-8")
    at = f"http://localhost:{busy_port}/lab?token=abc"
    with pytest.raises(ValueError) as error:
        lab.parse_port(str(busy_port))
    assert f"port {busy_port} is busy with a JupyterLab on a folder, which is open at {at}; " in str(
        error.value
    )


def test_a_port_that_is_kept_for_the_system_is_not_called_busy(monkeypatch):
    denied = {80: OSError(errno.EACCES, "Permission denied")}
    monkeypatch.setattr(lab, "refusal", denied.get)
    with pytest.raises(ValueError, match=r"^port 80 is kept for the system; try: make lab PORT=1024$"):
        lab.parse_port("80")


def test_a_busy_port_is_refused_with_a_free_one(busy_port, monkeypatch):
    monkeypatch.setattr(lab, "holder", lambda port: "")
    with pytest.raises(ValueError, match=rf"port {busy_port} is busy; try: make lab PORT=\d+") as error:
        lab.parse_port(str(busy_port))
    proposed = int(str(error.value).split("=")[-1])
    assert proposed != busy_port and lab.parse_port(str(proposed)) == proposed


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "80.5", " "])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ValueError, match=r"PORT must be a number in \[1, 65535\], got"):
        lab.parse_port(text)


@pytest.mark.parametrize("port", [22, 6000, 10080])
def test_a_port_that_browsers_refuse_is_refused_with_one_that_they_open(monkeypatch, port):
    monkeypatch.setattr(lab, "refusal", lambda port: None)
    with pytest.raises(ValueError, match=rf"^port {port} belongs to another service, and browsers") as error:
        lab.parse_port(str(port))
    proposed = int(str(error.value).split("=")[-1])
    assert lab.parse_port(str(proposed)) == proposed
    assert lab.next_free(6664) == 6670, "six in a row are refused"


def test_a_wrong_lab_is_told_before_a_busy_port(started, busy_port, capsys):
    assert started(LAB="nonsense", PORT=str(busy_port))[0] == 2
    assert capsys.readouterr().err.startswith("error: LAB must be one of 01_decoding,")


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
    named = {name: getattr(os, name) for name in ("environ", "path", "getpid", "chdir", "access", "W_OK")}
    for module in (lab, sys.modules["tools.again"]):
        monkeypatch.setattr(module, "os", SimpleNamespace(name="nt", **named))
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


def test_windows_is_told_what_it_can_type(windows, runtime, course, busy_port):
    with pytest.raises(ValueError, match=rf"port {busy_port} is busy") as error:
        lab.parse_port(str(busy_port))
    assert r".venv\Scripts\python tools\lab.py" in str(error.value) and "make" not in str(error.value)
    with pytest.raises(ValueError, match=r'try: \$env:LAB = "01_decoding"; \.venv'):
        lab.own_lab("1", course)


@pytest.fixture
def read_only(course, monkeypatch):
    """The course as it is to one who may not write there; root may everywhere, so the answer is made up."""
    allowed = os.access
    monkeypatch.setattr(lab.os, "access", lambda path, mode: path != course and allowed(path, mode))
    return course


def test_a_lab_in_a_folder_that_cannot_be_written_is_refused_with_a_way_to_copy_it(
    started, read_only, capsys
):
    code, lines = started(LAB="01_decoding")
    assert (code, lines) == (2, []) and not (read_only / "my_labs").exists()
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {read_only / 'my_labs'} cannot be made: the course's folder is read-only"
    )
    assert "cp -R " in error and error.endswith("cd ~/llmcourse && make lab LAB=01_decoding\n")


def test_a_lab_that_is_there_opens_where_nothing_can_be_written(started, course, request):
    (course / "my_labs").mkdir()
    (course / "my_labs" / "01_decoding.ipynb").write_text("mine", encoding="utf-8")
    request.getfixturevalue("read_only")
    _, (line,) = started(LAB="01_decoding")
    assert "--LabApp.default_url=/lab/tree/my_labs/01_decoding.ipynb" in line


def test_settings_that_cannot_be_written_do_not_stop_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(lab.os, "access", lambda path, mode: path != tmp_path)
    lab.write_overrides(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_browser_the_address_is_printed_and_the_server_runs(tmp_path):
    """The real start, in a folder with a space and Chinese characters, under a path without any browser."""
    folder = tmp_path / "学 生"
    folder.mkdir()
    port = lab.next_free(21000)
    places = {"HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "LANG": "C"}
    environment = {"PATH": str(folder), "PORT": str(port), **places, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / "lab.py")]
    log, deadline, said = folder / "log", time.monotonic() + 60, ""
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        while server.poll() is None and time.monotonic() < deadline and "copy and paste" not in said:
            time.sleep(0.2)
            said = log.read_text(encoding="utf-8")
        assert server.poll() is None and "No web browser found" in said, said
        assert f"http://127.0.0.1:{port}/lab/tree/notebooks/" in said
    finally:
        server.kill()
        server.wait()


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
    assert "apt-get install python3.11 python3.11-venv" in ended.stderr and "brew install" in ended.stderr
    assert f"make {target} PYTHON=python3.12" in ended.stderr


@pytest.mark.parametrize(
    ("says", "named"),
    [("exit 127", "not one that runs here"), ("echo Python 2.7.18 >&2; exit 1", "Python 2.7.18")],
)
def test_a_python_that_does_not_run_or_is_ancient_is_named(tmp_path, says, named):
    strange = tmp_path / "python"
    strange.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
    strange.chmod(0o755)
    command = ["make", "-s", "lab", f"PYTHON={strange}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert f"error: Python 3.11 or later is needed; {strange} is {named}." in ended.stderr


TOOLS = {
    "dirname": "exec /usr/bin/dirname",
    "timeout": 'shift; exec "$@"',
    "sh": "exec /bin/sh",
    "make": "echo make",
}
UPDATED, CHROMIUM = "apt-get update\n", "apt-get install --yes chromium\n"
INSTALLS = UPDATED + "apt-get install --yes bubblewrap\n" + CHROMIUM


@pytest.mark.parametrize(
    ("found", "installs"),
    [
        ({"id": "echo 0", "apt-get": ":"}, INSTALLS),
        ({"id": "echo 0", "apt-get": "exit 100"}, INSTALLS),
        ({"id": "echo 0"}, ""),
        ({"id": "echo 1000", "apt-get": ":"}, ""),
        ({"id": "echo 0", "apt-get": ":", "bwrap": ":"}, UPDATED + CHROMIUM),
        ({"id": "echo 0", "apt-get": ":", "bwrap": ":", "chromium": ":"}, ""),
    ],
    ids=["root", "offline", "no apt", "ordinary user", "one there already", "both"],
)
def test_ci_runs_make_test_whether_programs_can_be_installed_or_not(tmp_path, found, installs):
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
