"""pyproject.toml is the one list: the lock, the conda environment and the installed package follow it."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmcourse import add_ons
from tests.test_tree import tree_files
from tools import lock

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The Triton that a torch release requires on Linux, from the metadata of its CUDA build.
TRITON_OF_TORCH = {"2.9.0": "3.5.0", "2.13.0": "3.7.1"}


def locked() -> dict[str, str]:
    """Name and version of every pin, under a marker or not."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("; ")[0] for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[\w.!]+", line)] == []
    return dict(line.split("==") for line in pins)


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_the_lock_satisfies_pyproject(extra):
    pins = locked()
    for line in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        if lock.GPU_ONLY.match(requirement.name):
            continue
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}, locked {version}: run `make lock`"


def test_the_lock_is_closed_under_dependencies():
    # What an installed distribution needs here is in the lock, or belongs to a GPU.
    pins, unlocked = locked(), set()
    for name in pins:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of the lock's own platform
        needed = [r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate({"extra": ""})]
        unlocked |= {canonicalize_name(r.name) for r in needed} - set(pins)
    assert {name for name in unlocked if not lock.GPU_ONLY.match(name)} == set()


def test_the_lock_is_for_any_machine():
    pins = locked()
    assert pins["torch"] == lock.TORCH.removeprefix("torch==")
    assert [name for name in pins if lock.GPU_ONLY.match(name)] == []
    assert list(pins) == sorted(pins)


def test_the_lock_leaves_out_gpu_packages_and_local_versions():
    versions = {"torch": "2.13.0+cpu", "nvidia-cudnn-cu13": "9", "cuda-toolkit": "13", "numpy": "2.3.5"}
    assert lock.lock_text(versions, {}) == f"{lock.LOCK_HEADER}numpy==2.3.5\ntorch==2.13.0\n"


def test_the_lock_is_what_its_own_versions_give():
    # So a line that was taken over by hand has the form, the place and the marker that `make lock` gives it.
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert text == lock.lock_text(locked(), lock.markers(PROJECT))
    assert 'triton==3.7.1; platform_system == "Linux"' in text.splitlines()


def test_the_conda_environment_is_the_generated_one():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert text == lock.environment_text(PROJECT), "run `make lock`"
    assert "platform_system" not in text  # conda knows no markers: what has one comes by pip
    names = [needs.name for needs in map(Requirement, PROJECT["dependencies"]) if not needs.marker]
    assert [name for name in names if not re.search(rf'"{name}[=<>]', text)] == []


def test_triton_is_the_one_that_torch_names():
    (readers,), (tests,) = (
        [needs for needs in map(Requirement, lines) if needs.name == "triton"]
        for lines in (PROJECT["dependencies"], EXTRAS["test"])
    )
    expected = TRITON_OF_TORCH[locked()["torch"]]
    assert str(tests.specifier) == f"=={expected}" and locked()["triton"] == expected
    for needs in (readers, tests):
        assert needs.marker.evaluate({"platform_system": "Linux"})
        assert not needs.marker.evaluate({"platform_system": "Darwin"})
    # Any release of torch that a reader may have names one that is allowed beside it, its lowest included.
    (torch,) = [needs for needs in map(Requirement, PROJECT["dependencies"]) if needs.name == "torch"]
    assert min(TRITON_OF_TORCH, key=Version) == f"{torch.specifier}".removeprefix(">=") + ".0"
    assert [version for version in TRITON_OF_TORCH.values() if version not in readers.specifier] == []


def test_an_installed_torch_and_triton_agree_with_the_table():
    torch = importlib.metadata.version("torch").split("+")[0]
    expected = TRITON_OF_TORCH.get(torch)
    if expected is None:
        pytest.skip(f"torch {torch} is not the locked release, so the table has no Triton for it")
    declared = [r for r in map(Requirement, importlib.metadata.requires("torch")) if r.name == "triton"]
    for requirement in declared:  # a CPU build names none
        assert str(requirement.specifier) == f"=={expected}"
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    assert installed.get("triton", expected) == expected


def test_python_is_the_same_everywhere():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert table["tool"]["ruff"]["target-version"] == f"py{minimum.replace('.', '')}"
    version_check = f"sys.version_info < ({minimum.replace('.', ', ')})"
    assert version_check in (ROOT / "Makefile").read_text(encoding="utf-8")


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain} | {
        node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }


def unnamed_imports(names: set[str], lines: list[str]) -> set[str]:
    """Of imported names, those that no requirement brings: they would come along by luck."""
    named = {canonicalize_name(Requirement(line).name) for line in lines}
    brought_by = importlib.metadata.packages_distributions() | {"triton": ["triton"]}
    outside = names - {"llmcourse", *sys.stdlib_module_names}
    return {name for name in outside if not {canonicalize_name(d) for d in brought_by.get(name, ())} & named}


def test_every_import_is_of_a_named_package():
    used = set().union(*(imported(path) for path in (ROOT / "llmcourse").rglob("*.py")))
    assert unnamed_imports(used, PROJECT["dependencies"]) == set()
    assert unnamed_imports({"os", "torch", "pytest", "regex"}, ["torch>=2"]) == {"pytest", "regex"}


def test_a_wheel_holds_everything_of_the_package(tmp_path):
    files = [p.relative_to(ROOT) for p in tree_files(ROOT)]
    package = [path for path in files if path.parts[0] == "llmcourse"]
    for path in [*package, Path("pyproject.toml"), Path("LICENSE")]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    for name in (add_ons.CONFIG, add_ons.WEIGHTS):  # of a model that may have none so far
        planted = add_ons.EMBEDDED.relative_to(ROOT) / "kind_model" / name
        (tmp_path / planted).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / planted).touch()
        package.append(planted)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    wheel = tmp_path / output.splitlines()[-1]
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {path.as_posix() for path in package} - held == set()
