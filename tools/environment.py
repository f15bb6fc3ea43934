"""Makes `.venv`, or finds it ready: the set-up that every `make` target starts with.

Where there is no make, as on Windows, it is run by itself: `python tools/environment.py`.

Exact versions come from requirements.lock, used as pip's constraints; what to install comes from
pyproject.toml. A stamp inside `.venv` remembers what it was made from, so that a second run costs
a fraction of a second. A `.venv` whose set-up was cut short, or whose Python is gone, is made anew.
Before anything is downloaded, the network, the build of PyTorch and the disk's room are looked at.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (said before what an older one lacks; this file parses on 3.6)
    sys.exit(
        "error: Python 3.11 or later is needed; {} is Python {}.{}.{}.\n"
        "Install one (Debian, Ubuntu: sudo apt-get install python3.11 python3.11-venv; macOS: brew install "
        "python@3.12; Windows: python.org; anywhere: conda create -n course python=3.12), then: {}".format(
            sys.executable,
            *sys.version_info[:3],
            r"py -3.12 tools\environment.py"
            if sys.platform == "win32"
            else "python3.12 tools/environment.py",
        )
    )

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

if not __package__:  # run as a file, which finds only what lies beside it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.again import in_a_copy, set_up_again
from tools.preflight import SetupError, Unreachable, check_room, full_disk, pytorch_build, wanted

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 11)
OLDEST_PIP = (22, 3)  # what Python 3.11 came with
# Runs inside the environment: its version, its pip's, and whether each named distribution is there.
PROBE = """
import importlib.metadata, json, sys
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
missing = [name for name in sys.argv[1:] if not version(name)]
print(json.dumps({"python": list(sys.version_info[:2]), "pip": version("pip"), "missing": missing}))
"""


def python_of(venv: Path) -> Path:
    """Where the `venv` module of this system puts an environment's Python."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def required_names(root: Path, extras: set[str]) -> list[str]:
    """The distributions that pyproject.toml names for these extras, without versions."""
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
    """An empty environment with pip.

    Raises:
        SetupError: this Python has not what it takes.
    """
    if importlib.util.find_spec("venv") is None:
        raise SetupError(_no_venv())
    venv.mkdir()
    (venv / "incomplete").touch()
    bundled = importlib.util.find_spec("ensurepip") is not None
    run([sys.executable, "-m", "venv", *([] if bundled else ["--without-pip"]), str(venv)])
    give_pip(venv)


def give_pip(venv: Path) -> None:
    """A pip that can install from pyproject.toml and reads its options from there; nothing if there is one.

    Where Python came without ensurepip, as Debian's does, its own pip helps out, however old: every pip knows
    --target.

    Raises:
        SetupError: it has neither.
    """
    state = probe(venv, [])
    if state is not None and state["pip"] and _numbers(state["pip"]) >= OLDEST_PIP:
        return
    if importlib.util.find_spec("ensurepip") is not None:
        run([str(python_of(venv)), "-m", "ensurepip", "--upgrade", "--default-pip"])
    elif importlib.util.find_spec("pip") is not None:
        (site,) = venv.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(site)]
        run([*pip, f"pip>={'.'.join(map(str, OLDEST_PIP))}"])
    else:
        raise SetupError(_no_venv())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _no_venv() -> str:
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    return (
        f"{sys.executable} comes without venv or pip, so .venv cannot be made; install them (Debian, "
        f"Ubuntu: sudo apt-get install {package}), or take another Python: {set_up_again(python='3.12')}"
    )


def install(venv: Path, root: Path, extras: set[str]) -> None:
    """llmcourse, editable, and what it needs, at the versions of the lock."""
    (venv / "incomplete").touch()
    pip = [str(python_of(venv)), "-m", "pip", "install", "--disable-pip-version-check"]
    quiet = [] if sys.stdout.isatty() else ["--quiet"]  # somebody who waits sees it move
    run([*pip, *quiet, "--constraint", "requirements.lock", "--editable", wanted(extras)], cwd=root)
    stamp = {"key": key_of(root), "extras": sorted(extras)}
    (venv / "ready.json").write_text(json.dumps(stamp), encoding="utf-8")
    (venv / "incomplete").unlink()


def run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, check=True, cwd=cwd, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        full = full_disk(cwd or Path.cwd())
        remedy = f"the disk of {full} is full: make room, or set TMPDIR" if full else "mend what it says"
        raise SetupError(
            f"{' '.join(command[1:4])} failed (above is why); {remedy}, and run the same command again."
        ) from error


@contextlib.contextmanager
def one_at_a_time(path: Path):
    """Holds a file lock, so that two terminals do not set up one folder at once."""
    try:
        handle = path.open("w")
    except PermissionError as error:
        raise SetupError(
            f"{path} cannot be written, since it is another user's{_own(path.parent)}"
        ) from error
    with handle:
        if not try_lock(handle):
            print("Waiting for another set-up of this folder to end …", flush=True)
            while not try_lock(handle):
                time.sleep(0.2)
        yield


def _own(folder: Path) -> str:
    """How a folder is made one's own, for the end of a sentence."""
    if os.name == "nt":
        return f"; work in a copy of your own: {in_a_copy(folder, set_up_again())}"
    return f' (was make run with sudo?); make it yours: sudo chown -R "$(id -un)" {shlex.quote(str(folder))}'


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


def ensure(root: Path, extras: set[str], chosen: bool = False, any_disk: bool = False) -> None:
    """Leaves `root/.venv` ready for these extras.

    Args:
        chosen: the reader named this Python, so an environment of another version is replaced.
        any_disk: the room on the disk is not looked at.

    Raises:
        SetupError: the environment cannot be made.
    """
    venv = root / ".venv"
    if not os.access(root, os.W_OK):
        return use_as_it_is(venv, root, extras)
    with one_at_a_time(root / ".venv.lock"):
        reason = why_rebuild(venv, chosen) if venv.exists() else "there is none yet"
        if reason is None and is_ready(venv, root, extras):
            return
        if reason:
            print(f"Making .venv ({reason}), once; this takes a few minutes …", flush=True)
            make_anew(venv, root, extras, any_disk)
        else:
            print("Bringing .venv up to date …", flush=True)
            update(venv, root, extras)


def use_as_it_is(venv: Path, root: Path, extras: set[str]) -> None:
    """Of a folder that cannot be written: its environment, if that is ready.

    Raises:
        SetupError: it is not.
    """
    copy = in_a_copy(root, set_up_again(extras), extras)
    if not is_ready(venv, root, extras):
        raise SetupError(
            f"{root} cannot be written, and its .venv is not ready; work in a copy of your own: {copy}"
        )
    print(
        f"note: {root} cannot be written, so what you change or run in it is not kept; to keep it: {copy}",
        flush=True,
    )


def make_anew(venv: Path, root: Path, extras: set[str], any_disk: bool) -> None:
    """The environment from nothing; one that was there is given up only when its packages can be had."""
    old = venv.with_name(".venv.old")
    shutil.rmtree(old, ignore_errors=True)
    if venv.exists():
        venv.rename(old)
    try:
        create(venv)
        build = pytorch_build(python_of(venv), root, extras)
        if not any_disk:
            given_up_bytes = sum(path.lstat().st_size for path in old.rglob("*"))
            check_room(python_of(venv), root, build, extras, given_up_bytes)
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        if old.exists():
            old.rename(venv)
        raise
    shutil.rmtree(old, ignore_errors=True)
    install(venv, root, extras)


def update(venv: Path, root: Path, extras: set[str]) -> None:
    """What changed, installed; a reader without a network goes on with what is there.

    Raises:
        Unreachable: something is not there, or tests are asked for, which need the very versions.
    """
    give_pip(venv)
    try:
        pytorch_build(python_of(venv), root, extras)
    except Unreachable:
        if extras or probe(venv, required_names(root, extras)[1:])["missing"]:
            raise
        print(
            "warning: no network, and the list of packages or this folder's place has changed; going on with "
            "the packages that are here. The next start with a network brings them up to date.",
            flush=True,
        )
        pip = [str(python_of(venv)), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        run([*pip, "--no-index", "--no-deps", "--no-build-isolation", "--editable", "."], cwd=root)
    else:
        install(venv, root, extras)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml")
    parser.add_argument("--chosen", action="store_true", help="this Python was asked for by name")
    parser.add_argument("--any-disk", action="store_true", help="do not look at the room on the disk")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a Windows console may lack a sign; better a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        ensure(ROOT, set(options.extra), options.chosen, options.any_disk)
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
