"""Makes `.venv`, or finds it ready: the set-up that every `make` target starts with.

Where there is no make, as on Windows, it is run by itself: `python tools/environment.py`.

Exact versions come from requirements.lock, used as pip's constraints; what to install comes from
pyproject.toml. A stamp inside `.venv` remembers what it was made from, so that a second run costs
a fraction of a second. A `.venv` whose set-up was cut short, or whose Python is gone, is made anew.
"""

from __future__ import annotations  # so that a Python which is too old comes as far as saying so

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_DISK_BYTES = 4 * 1024**3
MINIMUM_PYTHON = (3, 11)
LENDING_PIP = (22, 3)  # the first that installs into another environment, by --python

# Runs inside the environment: its version, and whether each named distribution is there.
PROBE = """
import importlib.metadata, json, sys
def has(name):
    try: return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError: return False
print(json.dumps({"python": list(sys.version_info[:2]), "missing": [n for n in sys.argv[1:] if not has(n)]}))
"""


class SetupError(Exception):
    """A set-up that cannot go on; the message says what to do."""


def python_of(venv: Path) -> Path:
    """Where the `venv` module of this system puts an environment's Python."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def required_names(root: Path, extras: set[str]) -> list[str]:
    """The distributions that pyproject.toml names for these extras, without versions."""
    import tomllib  # not before Python 3.11, which is told of first

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += [line for line in project["optional-dependencies"][extra] if ";" not in line]
    return [project["name"], *(re.match(r"[\w.-]+", line).group() for line in lines)]


def key_of(root: Path) -> str:
    """What `.venv` depends on: both lists, and the folder that it points into."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("pyproject.toml", "requirements.lock"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def probe(venv: Path, names: list[str]) -> dict | None:
    """What the environment says of itself, None when its Python does not run."""
    try:
        command = [str(python_of(venv)), "-c", PROBE, *names]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def is_ready(venv: Path, root: Path, extras: set[str]) -> bool:
    """Whether the stamp fits and everything named is still installed."""
    try:
        stamp = json.loads((venv / "ready.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if stamp.get("key") != key_of(root) or not extras <= set(stamp.get("extras", ())):
        return False
    state = probe(venv, required_names(root, extras))
    return state is not None and not state["missing"]


def why_rebuild(venv: Path, chosen: bool) -> str | None:
    """The reason why an existing `.venv` cannot be kept, None when it can."""
    if (venv / "incomplete").exists():
        return "its set-up was cut short"
    state = probe(venv, [])
    if state is None:
        return "its Python does not run"
    if tuple(state["python"]) < MINIMUM_PYTHON or (chosen and tuple(state["python"]) != sys.version_info[:2]):
        return "it is of Python {}.{}".format(*state["python"])
    return None


def create(venv: Path) -> None:
    """An empty environment with pip; where Python came without ensurepip, its own pip helps out.

    Raises:
        SetupError: it has no pip that can.
    """
    if importlib.util.find_spec("ensurepip") is None and own_pip() < LENDING_PIP:
        raise SetupError(
            f"{sys.executable} must bring ensurepip, or pip 22.3 or later, and has neither; on Debian and "
            f"Ubuntu: sudo apt install python3-venv; elsewhere: {sys.executable} -m pip install --upgrade pip"
        )
    venv.mkdir()
    (venv / "incomplete").touch()
    bundled = importlib.util.find_spec("ensurepip") is not None
    run([sys.executable, "-m", "venv", *([] if bundled else ["--without-pip"]), str(venv)])
    if not bundled:
        run([sys.executable, "-m", "pip", "--python", str(python_of(venv)), "install", "--quiet", "pip"])


def own_pip() -> tuple[int, ...]:
    """The version of this Python's own pip, `(0,)` where there is none."""
    import importlib.metadata

    try:
        return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    except importlib.metadata.PackageNotFoundError:
        return (0,)


def install(venv: Path, root: Path, extras: set[str]) -> None:
    """llmcourse, editable, and what it needs, at the versions of the lock."""
    wanted = f".[{','.join(sorted(extras))}]" if extras else "."
    (venv / "incomplete").touch()
    pip = [str(python_of(venv)), "-m", "pip", "install", "--disable-pip-version-check"]
    quiet = [] if sys.stdout.isatty() else ["--quiet"]  # somebody who waits sees it move
    run([*pip, *quiet, "--constraint", "requirements.lock", "--editable", wanted], cwd=root)
    stamp = {"key": key_of(root), "extras": sorted(extras)}
    (venv / "ready.json").write_text(json.dumps(stamp), encoding="utf-8")
    (venv / "incomplete").unlink()


def run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, check=True, cwd=cwd, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"{' '.join(command[1:4])} failed (above is why); the first set-up needs the network "
            "and about 3 GB of disk. Mend that and run the same command again."
        ) from error


@contextlib.contextmanager
def one_at_a_time(path: Path):
    """Holds a file lock, so that two terminals do not set up one folder at once."""
    with path.open("w") as handle:
        if not try_lock(handle):
            print("Waiting for another set-up of this folder to end …", flush=True)
            while not try_lock(handle):
                time.sleep(0.2)
        yield


def try_lock(handle) -> bool:
    """Takes the lock of an open file, until the file is closed, by what this system has; False if held."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def ensure(root: Path, extras: set[str], chosen: bool = False) -> None:
    """Leaves `root/.venv` ready for these extras.

    Args:
        chosen: the reader named this Python, so an environment of another version is replaced.

    Raises:
        SetupError: the environment cannot be made.
    """
    venv = root / ".venv"
    with one_at_a_time(root / ".venv.lock"):
        reason = why_rebuild(venv, chosen) if venv.exists() else "there is none yet"
        if reason is None and is_ready(venv, root, extras):
            return
        if reason:
            print(f"Making .venv ({reason}), once; this takes a few minutes …", flush=True)
            if shutil.disk_usage(root).free < MINIMUM_DISK_BYTES:
                print("warning: less than 4 GB of disk are free; the set-up may not fit.", flush=True)
            shutil.rmtree(venv, ignore_errors=True)
            create(venv)
        else:
            print("Bringing .venv up to date …", flush=True)
        install(venv, root, extras)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml")
    parser.add_argument("--chosen", action="store_true", help="this Python was asked for by name")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a Windows console may lack a sign; better a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.version_info[:2] < MINIMUM_PYTHON:
        version = ".".join(map(str, sys.version_info[:3]))
        print(
            f"error: Python 3.11 or later is needed; {sys.executable} is Python {version}.", file=sys.stderr
        )
        return 1
    try:
        ensure(ROOT, set(options.extra), options.chosen)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error}\nThe set-up writes .venv into the course's folder: copy the course to where you "
            "may write and some GB are free, and run the same command there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped; run the same command again to start over.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
