"""The namespace around the fork server: what can be seen from inside, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcourse.grading.sandbox import bubblewrap
from llmcourse.grading.sandbox.bubblewrap import SHARED_BYTES, wrap
from llmcourse.grading.sandbox.policy import HIDDEN, PACKAGE
from tests.grading.sandbox.people import ROOT

pytestmark = pytest.mark.skipif(bool(bubblewrap.trouble()), reason="bubblewrap does not run here")
PATHS = "import os, sys; print(*[int(os.path.exists(path)) for path in sys.argv[1:]])"


@pytest.fixture
def folder() -> Iterator[str]:
    path = os.path.realpath(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def run(code: str, folder: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Python code in the namespace."""
    command = wrap([sys.executable, "-I", "-S", "-c", code, *arguments], folder)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **options)


def said(code: str, folder: str, *arguments: str, **options: object) -> str:
    done = run(code, folder, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_home_grader_and_neighbours_are_not_there(folder):
    outside = tempfile.mkdtemp()
    secret = Path(outside, "secret")
    secret.touch()
    hidden = [next(HIDDEN[1].glob("*.py")), PACKAGE.parent / "pyproject.toml", "/etc/passwd", secret]
    shown = [PACKAGE / "model.py", sys.executable, folder, os.path.realpath(os.__file__), "/dev/null"]
    paths = [str(path) for path in (*hidden, *shown)]
    assert all(map(os.path.exists, paths))
    assert said(PATHS, folder, *paths) == "0 0 0 0 1 1 1 1 1"
    home = os.path.expanduser("~")
    inside = said(
        "import os, sys; print(os.path.isdir(sys.argv[1]) and os.listdir(sys.argv[1]))", folder, home
    )
    python = set(Path(sys.base_prefix).parts) | set(Path(sys.prefix).parts) | set(PACKAGE.parts)
    assert inside == "False" or set(eval(inside)) <= python | {Path(folder).name}
    shutil.rmtree(outside)


def test_the_exercises_are_covered(folder):
    exercises = PACKAGE / "grading" / "exercises"
    listed = "import os, sys; print(sorted(os.listdir(sys.argv[1])))"
    assert os.listdir(exercises) and said(listed, folder, str(exercises)) == "[]"


def test_folders_above_are_open_to_a_user_without_capabilities(folder):
    """Else a worker would have to keep one, to read everything."""
    code = "import os, sys; print({oct(os.stat(p).st_mode & 1) for p in sys.argv[1:]})"
    parents = {str(p) for start in (sys.base_prefix, sys.prefix, PACKAGE) for p in Path(start).parents}
    assert said(code, folder, *parents) == "{'0o1'}"


def test_only_scratch_is_written(folder):
    code = (
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try: open(path + '/file', 'w').close(); print(1, end=' ')\n"
        "    except OSError as error: print(error.strerror, end=' ')"
    )
    places = ("/", "/etc", "/usr", str(PACKAGE), str(PACKAGE / "decoding"), sys.prefix + "/lib", folder)
    assert said(code, folder, *places) == "Read-only file system " * 6 + "1"
    assert os.path.exists(folder + "/file")


def test_shared_folders_are_small(folder):
    code = (
        "import os, sys\n"
        "file = os.open(sys.argv[1] + '/file', os.O_CREAT | os.O_WRONLY)\n"
        f"try: os.posix_fallocate(file, 0, {SHARED_BYTES + 1}); print(1)\n"
        "except OSError as error: print(error.strerror)"
    )
    assert [said(code, folder, shared) for shared in ("/tmp", "/dev/shm")] == ["No space left on device"] * 2
    assert said(code, folder, folder) == "1"


def test_no_network_and_no_other_processes(folder):
    code = (
        "import os, socket\n"
        "print(*[name for _, name in socket.if_nameindex()])\n"
        "print(len([p for p in os.listdir('/proc') if p.isdigit()]), socket.gethostname())"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert said(code, folder) == "lo\n2 sandbox"
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert "refused" in run(connect, folder).stderr
        subprocess.run([sys.executable, "-c", connect], check=True)


def test_a_descriptor_is_passed_on(folder):
    ours, theirs = socket.socketpair()
    code = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).send(b'hello')"
    run(code, folder, str(theirs.fileno()), pass_fds=[theirs.fileno()])
    theirs.close()
    with ours:
        assert ours.recv(99) == b"hello" and ours.recv(99) == b""


def test_it_ends_with_whoever_started_it(folder):
    reader, writer = os.pipe()
    command = wrap(
        [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)"], folder
    )
    between = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen({command!r}, stdout={writer}, pass_fds=[{writer}]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", between], pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 1) == b"\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    assert os.read(reader, 1) == b"" and time.monotonic() - started < 5  # nobody holds the other end
    os.close(reader)


def test_roots_capabilities_are_few(folder):
    code = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff')][0])"
    found = int(said(code, folder), 16)
    assert found.bit_count() == (len(bubblewrap.CAPABILITIES) if ROOT else 0)
    assert not found >> 21 & 1 and not found >> 12 & 1  # CAP_SYS_ADMIN, CAP_NET_ADMIN


def test_a_command_that_fails_says_so(folder):
    assert run("raise SystemExit(7)", folder).returncode == 7


def test_without_bubblewrap_nothing_is_wrapped(monkeypatch):
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="install"):
        wrap(["true"], "/tmp")
