"""What a set-up sees before it downloads: pip's answers are made up, or come from where nothing answers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import preflight
from tools.preflight import SIZES, SetupError, Unreachable, check_room, pytorch_build

PYTHON = Path(sys.executable)
RETRYING = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by {} : /simple/torch/\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "requirements.lock").write_text("numpy==2.3.5\ntorch==2.13.0\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def pip(monkeypatch):
    """What pip answers to the next questions."""
    answers = {}

    def ask(python, root, command, *arguments):
        answers["arguments"] = arguments
        return subprocess.CompletedProcess((), *answers[command])

    monkeypatch.setattr(preflight, "_ask_pip", ask)
    return answers


def versions(*found: str) -> tuple[int, str, str]:
    return 0, f"torch ({found[0]})\nAvailable versions: {', '.join(found)}\n  LATEST: {found[0]}\n", ""


@pytest.mark.parametrize(
    ("system", "found", "build"),
    [
        ("Linux", ("2.15.0", "2.13.0", "2.9.0"), "with CUDA"),
        ("Linux", ("2.15.0", "2.13.0+cpu", "2.13.0"), "without CUDA"),
        ("Linux", ("2.13.0+cu126",), "with CUDA"),
        ("Darwin", ("2.13.0",), "without CUDA"),
        ("Windows", ("2.13.0",), "without CUDA"),
        ("Windows", ("2.13.0+cu130", "2.13.0"), "with CUDA"),
    ],
)
def test_the_build_that_pip_will_take_is_foreseen(root, pip, monkeypatch, system, found, build):
    monkeypatch.setattr(preflight.platform, "system", lambda: system)
    pip["index"] = versions(*found)
    assert pytorch_build(PYTHON, root, set()) == build


def test_a_python_that_pytorch_is_not_made_for_is_refused(root, pip):
    pip["index"] = versions("2.2.2", "2.1.0", "2.13.0rc1")
    with pytest.raises(SetupError, match=r"there is no PyTorch 2\.13\.0 for Python 3\..*make lab PYTHON="):
        pytorch_build(PYTHON, root, set())
    pip["index"] = (1, "", "ERROR: No matching distribution found for torch\n")
    with pytest.raises(SetupError, match=r"there is no PyTorch.*make test PYTHON="):
        pytorch_build(PYTHON, root, {"test"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "'NewConnectionError('<pip._vendor.HTTPSConnection object at 0x7f>: Failed to establish a new "
            "connection: [Errno -3] Temporary failure in name resolution')'",
            "(Temporary failure in name resolution)",
        ),
        (
            "'ProxyError('Cannot connect to proxy.', NewConnectionError('<pip._vendor.HTTPSConnection object "
            "at 0x7f>: Failed to establish a new connection: [Errno 111] Connection refused'))'",
            "(the proxy does not answer: Connection refused)",
        ),
    ],
)
def test_without_a_network_it_says_so_in_a_line_and_how_to_carry_the_packages(root, pip, answer, reason):
    line = RETRYING.format(answer).replace("' : /", "': /")
    pip["index"] = (1, "", f"{line}ERROR: No matching distribution found for torch\n")
    with pytest.raises(Unreachable) as caught:
        pytorch_build(PYTHON, root, {"test"})
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"no network: the packages of .venv cannot be downloaded {reason}.")
    assert any("pip download" in line and "'.[test]'" in line for line in rest)
    assert rest[-1] == "  PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make test" and len(rest) <= 5


def test_a_real_pip_that_nothing_answers_is_understood(root, monkeypatch):
    """Port 9 of this machine: pip of this environment, whatever its version says then."""
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(Unreachable, match=r"cannot be downloaded \(.*refused"):
        pytorch_build(PYTHON, root, set())


def test_what_else_pip_says_is_passed_on(root, pip):
    pip["index"] = (2, "", "usage: pip\nno such option: --strange\n")
    with pytest.raises(SetupError, match="pip cannot list packages: no such option: --strange; mend that"):
        pytorch_build(PYTHON, root, set())


@pytest.fixture
def disks(monkeypatch, tmp_path, pip):
    """Folders of the course, of temporary files and of pip's cache, and how much is free where they lie."""
    places = SimpleNamespace(root=tmp_path / "course", tmp=tmp_path / "tmp", cache=tmp_path / "cache")
    folders = list(vars(places).values())
    for folder in folders:
        folder.mkdir()
    pip["cache"] = (0, f"{places.cache}/pip\n", "")
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: str(places.tmp))

    def set_free(*sizes_gb):
        """Of the disk of each folder in turn; one size: they lie on one disk."""
        disk_of = {folder: min(number, len(sizes_gb) - 1) for number, folder in enumerate(folders)}
        monkeypatch.setattr(preflight, "disk_of", disk_of.__getitem__)
        free = {folder: SimpleNamespace(free=sizes_gb[number] * 1e9) for folder, number in disk_of.items()}
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: free[Path(folder)])

    places.set_free = set_free
    return places


@pytest.mark.parametrize("build", SIZES)
def test_a_disk_with_2_gb_is_refused_with_what_is_needed_and_free(disks, build):
    disks.set_free(2.0)
    installed, downloaded = SIZES[build]
    with pytest.raises(SetupError) as caught:
        check_room(PYTHON, disks.root, build, set())
    message = str(caught.value)
    needed = f"about {(installed + 2 * downloaded) / 1e9:.1f} GB on the disk of {disks.root}"
    assert needed in message and f"PyTorch {build}" in message and "2.0 GB are free" in message
    assert "Nothing has been downloaded" in message and message.endswith("make lab ANY_DISK=1")
    assert ("take PyTorch without CUDA" in message) == (build == "with CUDA")
    disks.set_free((installed + 2 * downloaded) / 1e9)
    check_room(PYTHON, disks.root, build, set())


def test_an_older_environment_is_room_and_a_cache_that_is_off_needs_none(disks, pip):
    installed, downloaded = SIZES["without CUDA"]
    disks.set_free((installed + 2 * downloaded) / 1e9 - 1)
    check_room(PYTHON, disks.root, "without CUDA", set(), given_up_bytes=10**9)
    pip["cache"] = (1, "", "ERROR: pip cache commands can not function since cache is disabled.\n")
    disks.set_free((installed + downloaded) / 1e9)
    check_room(PYTHON, disks.root, "without CUDA", set())


def test_each_disk_is_looked_at(disks):
    disks.set_free(100.0, 0.1, 100.0)
    with pytest.raises(SetupError, match=r"(?s)disk of .*tmp \(.* for pip's temporary files; .*TMPDIR="):
        check_room(PYTHON, disks.root, "with CUDA", set())
    disks.set_free(100.0, 100.0, 100.0)
    check_room(PYTHON, disks.root, "with CUDA", set())


def test_a_disk_that_ran_full_is_named(disks):
    disks.set_free(100.0, 0.01, 100.0)
    assert preflight.full_disk(disks.root) == disks.tmp
    disks.set_free(100.0, 1.0, 100.0)
    assert preflight.full_disk(disks.root) is None
