"""JupyterLab as `make lab` starts it, on a copy of the course's notebooks."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.lab import next_free

ROOT = Path(__file__).resolve().parent.parent.parent
ADDRESS = re.compile(r"http://127\.0\.0\.1:(?P<port>\d+)/\S*token=(\w+)")
SECONDS = 240  # a busy machine starts it in some 30
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
FIRST_PORT = 8900 + 20 * WORKER  # so that two workers do not find the same one free


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        course: the copy of the course that it shows.
        opened: what the reader's browser would be sent to, its token included.
        runtime: the folder where kernels leave their connection files.
    """

    course: Path
    opened: str
    runtime: Path

    def address(self, notebook: str) -> str:
        """Of a notebook, by its path in the course; the page's layout starts afresh."""
        return re.sub(r"/lab/tree/[^?]*\?", f"/lab/tree/{notebook}?reset&", self.opened)


def copy_course(to: Path, notebooks: list[Path]) -> Path:
    """What `tools/lab.py` needs of a checkout, so that the checkout stays as it is."""
    for path in (ROOT / "tools/lab.py", *sorted((ROOT / "labs").glob("*.ipynb")), *notebooks):
        copy = to / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return to


@contextmanager
def serve(course: Path, settings: Path, lab: str = ""):
    """Runs `tools/lab.py` of a course with the variables that `make lab` hands on.

    Only the reader's own settings are others: they are empty but for one, which lets the page's own state be
    read. The package is that of this checkout, wherever the environment has it from.

    Args:
        settings: an empty folder.
        lab: as in `make lab LAB=…`.

    Raises:
        RuntimeError: it ended, or did not start in time; its log is in the message.
    """
    config = settings / "config"
    config.mkdir(parents=True)
    (config / "jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}')
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    own = {name: str(settings / folder) for name, folder in folders.items()}
    asked = {"PORT": str(next_free(FIRST_PORT)), "NO_BROWSER": "1", "LAB": lab, "PYTHONPATH": str(ROOT)}
    command, log = [sys.executable, str(course / "tools/lab.py")], settings / "log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, env=os.environ | own | asked, cwd=course, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        yield Server(course, _wait(process, log), settings / "runtime")
    finally:
        process.terminate()  # and the server ends its kernels
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, log: Path) -> str:
    """The address that the server prints, as soon as somebody answers there."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        found = ADDRESS.search(log.read_text(encoding="utf-8", errors="replace"))
        if found and _listens(int(found["port"])):
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab must answer within {SECONDS} s, got:\n{log.read_text()[-2000:]}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
