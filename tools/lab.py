"""Starts JupyterLab: `make lab` on the front page, `make lab LAB=01_decoding` on the student's own lab.

PORT and NO_BROWSER=1 are honoured. Where there is no make, as on Windows, it is run by the environment's own
Python, and PORT, NO_BROWSER and LAB are read from the environment's variables.
"""

import errno
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

if not __package__:  # run as a file, which finds only what lies beside it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.again import again, in_a_copy

ROOT = Path(__file__).resolve().parent.parent
FRONT_PAGE = "notebooks/00_start_here.ipynb"
LABS, OWN_LABS = "labs", "my_labs"  # as they are handed out, and as a student fills them in
# JupyterLab asks on its first start whether to fetch news; a course that works offline need not.
OVERRIDES = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}

# "Bad ports" of the Fetch standard (WHATWG, 2.9), from 1 on, which Chrome, Firefox and Safari do not open.
_PORTS = (
    "1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 113 115 "
    "117 119 123 135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 548 554 556 "
    "563 587 601 636 989 990 993 995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566 6665 6666 "
    "6667 6668 6669 6679 6697 10080"
)
UNSAFE_PORTS = frozenset(map(int, _PORTS.split()))


def parse_port(text: str) -> int:
    """A port number.

    Raises:
        ValueError: it is none, browsers refuse it, it is in use, or it is kept for the system.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(f"PORT must be a number in [1, 65535], got {text!r}; try: {again('PORT', 8888)}")
    port = int(text)
    if port in UNSAFE_PORTS:
        raise ValueError(
            f"port {port} belongs to another service, and browsers refuse to open pages there; "
            f"try: {again('PORT', next_free(port))}"
        )
    if error := refusal(port):
        obstacle = "is kept for the system" if error.errno == errno.EACCES else f"is busy{holder(port)}"
        raise ValueError(f"port {port} {obstacle}; try: {again('PORT', next_free(port))}")
    return port


def refusal(port: int) -> OSError | None:
    """Why the server cannot take a port, None where it can."""
    with socket.socket() as probe:
        if os.name != "nt":  # as the server itself does; on Windows it would let two listen on one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def holder(port: int) -> str:
    """What answers on a busy port, in words: a Jupyter server says so itself, and one of this reader's also
    which folder it shows."""
    from jupyter_server.serverapp import list_running_servers

    for server in list_running_servers():
        if server["port"] == port:
            return f" with a JupyterLab on {server['root_dir']}, which is open at {address_of(server)}"
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port}/api", timeout=2) as answer:
            return " with a Jupyter server" if "version" in json.load(answer) else " with another program"
    except (OSError, ValueError):
        return " with another program"


def address_of(server: dict) -> str:
    return f"{server['url']}lab?token={server['token']}" if server["token"] else f"{server['url']}lab"


def next_free(port: int) -> int:
    """The first free port above this one, or any free one."""
    candidates = range(max(port + 1, 1024), min(max(port, 1024) + 100, 65536))
    above = (p for p in candidates if p not in UNSAFE_PORTS and refusal(p) is None)
    return next(above, 0) or _any_free()


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_lab(name: str, course: Path) -> str:
    """The student's own copy of a lab, made where there is none and never written over.

    Args:
        name: of the lab, `01_decoding`.
        course: the folder that holds the labs and the copies.

    Returns:
        the copy's path within the course's folder.

    Raises:
        ValueError: there is no such lab.
        OSError: the copy cannot be written; no part of it is left.
    """
    known = sorted(path.stem for path in (course / LABS).glob("*.ipynb"))
    if name not in known:
        remedy = f"try: {again('LAB', known[0])}" if known else f"bring {LABS}/ back: git restore {LABS}"
        raise ValueError(f"LAB must be one of {', '.join(known) or 'none'}, got {name!r}; {remedy}")
    own = course / OWN_LABS / f"{name}.ipynb"
    if not os.path.lexists(own):
        if not os.access(course, os.W_OK):
            copy = in_a_copy(course, again("LAB", name))
            raise PermissionError(
                f"{own.parent} cannot be made: the course's folder is read-only; try: {copy}"
            )
        own.parent.mkdir(exist_ok=True)
        draft = own.with_name(f".{own.name}.{os.getpid()}")
        try:
            draft.write_bytes((course / LABS / own.name).read_bytes())
            draft.rename(own)
        finally:
            draft.unlink(missing_ok=True)
    return own.relative_to(course).as_posix()


def command(port: int, browser: bool, notebook: str) -> list[str]:
    """The server's command line, to be run in the course's folder.

    Args:
        notebook: the one to open, by its path in that folder.
    """
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.root_dir=.",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.open_browser={browser}",
        f"--LabApp.default_url=/lab/tree/{notebook}",
        *(["--allow-root"] if as_root else []),
    ]


def write_overrides(prefix: Path) -> None:
    """Answers JupyterLab's first question, unless somebody has settings of their own there, or an environment
    that cannot be written: then the question is asked."""
    path = prefix / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    if not path.exists() and os.access(prefix, os.W_OK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(OVERRIDES), encoding="utf-8")


def main() -> int:
    try:
        lab = os.environ.get("LAB", "")
        notebook = own_lab(lab, ROOT) if lab else FRONT_PAGE  # first: a wrong name is wrong on every port
        port = parse_port(os.environ.get("PORT") or "8888")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    browser = os.environ.get("NO_BROWSER", "") in ("", "0")
    write_overrides(Path(sys.prefix))
    # The environment's own kernel comes first, whatever kernels the reader has installed elsewhere.
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"}
    os.chdir(ROOT)
    arguments = command(port, browser, notebook)
    sys.stdout.flush()
    if os.name == "nt":  # there no program takes another's place: the prompt would come back at once
        return subprocess.call(arguments, env=environment)
    os.execve(arguments[0], arguments, environment)


if __name__ == "__main__":
    sys.exit(main())
