"""What a set-up looks at before it downloads gigabytes: the network, PyTorch's build, the disks."""

import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.again import launcher, set_up_again, with_variables

# By the build of PyTorch: what `.venv` holds in the end, and what is downloaded for it, in bytes, measured
# at the versions of the lock.
SIZES = {"without CUDA": (2.7e9, 0.6e9), "with CUDA": (6.2e9, 3.0e9)}
FULL_DISK_BYTES = 2**26  # a disk with less free after a failed installation was too small for it
NO_ANSWER = re.compile(r"connection broken by '(.*)': /|Could not fetch URL \S+: (.*) - skipping")


class SetupError(Exception):
    """A set-up that cannot go on; the message says what to do."""


class Unreachable(SetupError):
    """No answer from where the packages come from."""


def wanted(extras: set[str]) -> str:
    """This folder's package, as pip is asked for it."""
    return f".[{','.join(sorted(extras))}]" if extras else "."


def pytorch_build(python: Path, root: Path, extras: set[str]) -> str:
    """Which of `SIZES` pip will take: asks for the list of versions alone, and downloads none.

    A build of a version is preferred to the plain one, which on Linux names CUDA's libraries.

    Args:
        python: of the environment, with pip.
        extras: of pyproject.toml, for what to type.

    Raises:
        Unreachable: no list came.
        SetupError: the locked version is not in it.
    """
    asked = _ask_pip(python, root, "index", "versions", "torch", "--retries", "1")
    if asked.returncode:
        answer = NO_ANSWER.search(asked.stderr)
        if answer:
            raise Unreachable(_offline(answer.group(1) or answer.group(2), extras))
        if "No matching distribution" not in asked.stderr:
            reason = asked.stderr.strip().splitlines()[-1:]
            raise SetupError(f"pip cannot list packages: {''.join(reason)}; mend that (see: pip config list)")
    locked = re.search(r"(?m)^torch==(\S+)", (root / "requirements.lock").read_text(encoding="utf-8"))
    found = re.findall(r"[\w.+]+", asked.stdout.partition("Available versions:")[2].partition("\n")[0])
    builds = [version for version in found if locked and version.split("+")[0] == locked.group(1)]
    if locked and not builds:
        here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        raise SetupError(
            f"there is no PyTorch {locked.group(1)} for {here} where pip looks (see: pip config list); take "
            f"a Python that PyTorch is made for, of 64 bits: {set_up_again(extras, python='3.12')}"
        )
    if any("+cpu" in build for build in builds):
        return "without CUDA"
    cuda = platform.system() == "Linux" or any("+cu" in build for build in builds)
    return "with CUDA" if cuda else "without CUDA"


def _ask_pip(python: Path, root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(python), "-m", "pip", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _offline(answer: str, extras: set[str]) -> str:
    """What is missing without a network, and the two ways on."""
    reason = re.split(r"\] |: ", answer)[-1].strip("'\")>., ")
    proxy = "the proxy does not answer: " if "ProxyError" in answer else ""
    return (
        f"no network: the packages of .venv cannot be downloaded ({proxy}{reason}). They are needed once, "
        "and when their list has changed; all else works offline.\n"
        "Go on when online (proxy: HTTPS_PROXY=…, mirror: PIP_INDEX_URL=…), or carry them over. On a machine "
        "like this one that is online, in a copy of this folder:\n"
        f"  {launcher()} -m pip download --dest wheels --constraint requirements.lock "
        f"'{wanted(extras)}' 'setuptools>=77'\n"
        "Bring its folder wheels into this one, and type:\n"
        f"  {with_variables(set_up_again(extras), PIP_NO_INDEX=1, PIP_FIND_LINKS='wheels')}"
    )


def check_room(python: Path, root: Path, build: str, extras: set[str], given_up_bytes: int = 0) -> None:
    """Whether each disk has the room for what pip will put there: `.venv`, temporary files, its cache.

    Args:
        given_up_bytes: of an older `.venv`, which is removed first.

    Raises:
        SetupError: one has not; the message says what is needed, what is free, and what to do.
    """
    installed, downloaded = SIZES[build]
    installed = max(0, installed - given_up_bytes)
    places = [(root, installed, ".venv"), (Path(tempfile.gettempdir()), downloaded, "pip's temporary files")]
    cache = _ask_pip(python, root, "cache", "dir")
    if cache.returncode == 0 and cache.stdout.strip():  # there is none under PIP_NO_CACHE_DIR
        places.append((Path(cache.stdout.strip()), downloaded, "pip's cache"))
    disks: dict[int, list] = {}
    for folder, size, what in places:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        disks.setdefault(disk_of(there), []).append((there, size, what))
    for parts in disks.values():
        free, needed = shutil.disk_usage(parts[0][0]).free, sum(size for _, size, _ in parts)
        if free < needed:
            raise SetupError(_no_room(parts, free, needed, build, extras))


def _no_room(parts: list, free: float, needed: float, build: str, extras: set[str]) -> str:
    sizes = ", ".join(f"{size / 1e9:.1f} GB for {what}" for _, size, what in parts)
    ways = ["make room"]
    if parts[0][2] == ".venv":
        ways.append("move this folder to a larger disk")
    if any(what != ".venv" for _, _, what in parts):
        ways.append("put pip's files elsewhere (TMPDIR=…, PIP_NO_CACHE_DIR=1)")
    if build == "with CUDA":
        ways.append(
            f"take PyTorch without CUDA, {sum(SIZES['without CUDA']) / 1e9:.1f} GB (PIP_EXTRA_INDEX_URL=…, "
            "the index of CPU builds that PyTorch's page on installing names)"
        )
    return (
        f"the set-up needs about {needed / 1e9:.1f} GB on the disk of {parts[0][0]} ({sizes}; PyTorch "
        f"{build}), and {free / 1e9:.1f} GB are free. Nothing has been downloaded.\n"
        f"Either {', or '.join(ways)}; then run the same command again.\n"
        f"To try all the same: {set_up_again(extras, any_disk=True)}"
    )


def disk_of(folder: Path) -> int:
    return folder.stat().st_dev


def full_disk(folder: Path) -> Path | None:
    """Which disk ran full during an installation into this folder, None if none did."""
    places = (folder, Path(tempfile.gettempdir()))
    return next((place for place in places if shutil.disk_usage(place).free < FULL_DISK_BYTES), None)
