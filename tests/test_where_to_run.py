"""What docs/where_to_run.md tells people to type, typed, as far as one machine can stand in for another."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import environment

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "where_to_run.md").read_text(encoding="utf-8")
SECONDS = 120

# Of the packages that Colab said in June 2026 it has (googlecolab/backend-info, pip-freeze.gpu.txt): what the
# course names, and what Colab's own kernel and page stand on.
COLAB = {
    "fonttools": "4.63.0",
    "huggingface-hub": "1.17.0",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "jupyterlab-widgets": "3.0.16",
    "jupytext": "1.19.3",
    "matplotlib": "3.10.0",
    "notebook": "6.5.7",
    "numpy": "2.0.2",
    "packaging": "26.2",
    "pillow": "11.3.0",
    "safetensors": "0.7.0",
    "starlette": "0.52.1",
    "tokenizers": "0.22.2",
    "torch": "2.11.0+cu128",
    "tornado": "6.5.1",
    "tqdm": "4.67.3",
    "traitlets": "5.7.1",
    "transformers": "5.9.0",
    "triton": "3.6.0",
    "uvicorn": "0.48.0",
    "widgetsnbextension": "3.6.10",
}
MAY_CHANGE = {"ipywidgets", "jupyterlab-widgets", "widgetsnbextension"}
NOT_FOR_CHAPTERS = {"ipython", "jupyterlab"}  # what shows them, which is Colab's own


def section(title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)[1]


def typed(title: str) -> list[str]:
    """The lines of a section's blocks."""
    blocks = re.findall(r"^```\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


SECTIONS = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
LINES = [line for title in SECTIONS for line in typed(title)]


def clean(home: Path, **more: str) -> dict[str, str]:
    """The variables of a new user: an empty home and a way to the programs; pip as it is set up here."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    settings = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "CUDA_VISIBLE_DEVICES": "",
        "LC_ALL": "C.UTF-8",
    }
    return kept | settings | more


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    settings = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": SECONDS}
    return subprocess.run(command, **settings | options)


@pytest.fixture(scope="session")
def package_index(tmp_path_factory):
    """Skips where pip reaches no index."""
    folder = tmp_path_factory.mktemp("index")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--retries=0",
        "--dest",
        folder,
    ]
    ended = run([*map(str, command), "wadler-lindig"], env=clean(folder))  # as the tests themselves ask
    if ended.returncode:
        pytest.skip(f"pip reaches no package index here: {(ended.stderr.strip().splitlines() or ['?'])[-1]}")


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """What an installation reads of the course, in a folder with a space and Chinese characters."""
    folder = tmp_path_factory.mktemp("new") / "my course 课程"
    (folder / "llmcourse").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock", "LICENSE", "llmcourse/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("tools", "labs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder.parent / "home 家").mkdir()
    return folder


@pytest.mark.parametrize("line", LINES)
def test_what_is_named_is_there(line):
    """Files of the course, by either slash, and targets and settings of make."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = re.sub(r'[";]', " ", line.replace("\\", "/")).split()
    for word in words:
        if re.match(r"(tools|notebooks|labs)\b|requirements", word):
            assert (ROOT / word).exists(), word
        if re.match(r"python3?(\.\d+)?$", word.split("/")[-1]) and "/" in word:
            assert word in (".venv/bin/python", ".venv/Scripts/python")
        if setting := re.match(r"(?:\$env:)?([A-Z_]{3,})=?", word):
            assert setting[1] == "ADDRESS" or setting[1] in makefile, word
    if "make " in line and "install" not in line:
        assert re.search(rf"^{words[words.index('make') + 1]}:", makefile, re.MULTILINE)
    for lab in re.findall(r"\d\d_\w+", line):
        assert (ROOT / "labs" / f"{lab}.ipynb").is_file()


def test_every_place_has_lines_and_says_what_is_tested():
    *places, last = SECTIONS
    assert [place for place in places if not typed(place)] == []
    for place in ("Windows", "WSL", "macOS", "Colab", "Kaggle", "without make", "by pip alone"):
        assert re.search(rf"^\| {place} \|", section(last), re.MULTILINE), place


def test_links_within_and_to_it_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in SECTIONS}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\(#([\w-]+)\)", TEXT) + re.findall(r"\(docs/where_to_run\.md#([\w-]+)\)", readme)
    assert len(named) >= 2 and set(named) <= anchors


def test_without_make_both_lines_do_their_work(course, package_index):
    """In a new environment; what the course needs is left out, which would take minutes."""
    home = course.parent / "home 家"
    first, second, *_ = map(shlex.split, typed("Without make"))
    assert first[0] == "python3" and second[0] == ".venv/bin/python"
    made = run([sys.executable, *first[1:], "--any-disk"], cwd=course, env=clean(home, PIP_NO_DEPS="1"))
    assert made.returncode == 0, made.stderr
    assert "Making .venv (there is none yet)" in made.stdout
    where = run(
        [second[0], "-c", "import llmcourse; print(llmcourse.__file__)"],
        cwd=home.parent / course,
        env=clean(home),
    )
    assert Path(where.stdout.strip()) == course / "llmcourse" / "__init__.py"
    settings = shlex.split(typed("Without make")[2])[:3]
    ours = clean(home, **dict(setting.split("=") for setting in settings))
    started = run(second, cwd=course, env=ours | {"PORT": str(free_port())})
    assert "No module named jupyterlab" in started.stderr  # which was left out: so far it came
    assert (course / "my_labs" / "01_decoding.ipynb").is_file()


def free_port() -> int:
    from tools.lab import next_free

    return next_free(21000)


def test_pip_alone_takes_its_line(course):
    line = next(line for line in typed("By pip alone") if " pip " in line)
    python, *arguments = shlex.split(line)
    assert python == ".venv/bin/python" and arguments[:3] == ["-m", "pip", "install"]
    assert set(dry_run([], arguments[3:], course, "--no-deps", "--no-build-isolation")) == {"llmcourse"}


def dry_run(of: list[str], arguments: list[str], folder: Path, *more: str) -> dict[str, str]:
    """What pip would install: versions by name.

    Args:
        of: pip's option for the environment that is meant, none for this one.
    """
    options = ["--dry-run", "--quiet", "--report", "-", *more]
    command = [sys.executable, "-m", "pip", *of, "install", *options, *arguments]
    ended = run(command, cwd=folder, env=clean(folder.parent))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)["install"]
    return {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in found}


def pretend(site: Path, name: str, version: str) -> None:
    """Leaves what pip takes for an installed package."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").touch()


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """pip's option for an environment that has the packages of Colab, by name only."""
    folder = tmp_path_factory.mktemp("colab") / "venv"
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, version in COLAB.items():
        pretend(site, name, version)
    return ["--python", str(environment.python_of(folder))]


def pip_lines(title: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in typed(title) if line.startswith("%pip install")]


def test_colab_and_kaggle_are_told_the_same():
    assert pip_lines("Colab") == pip_lines("Kaggle") and len(pip_lines("Colab")) == 2


def test_colab_keeps_its_own_and_lacks_nothing_afterwards(tmp_path, colab, package_index):
    course, packages = pip_lines("Colab")
    assert "--no-deps" in course and course[-2:] == ["--editable", "."]
    added = dry_run(colab, packages, tmp_path)
    assert {name for name in added if name in COLAB} <= MAY_CHANGE
    assert lacking(COLAB | added) == NOT_FOR_CHAPTERS


def test_what_colab_lacks_is_noticed():
    """Without --no-deps the course would take Colab's IPython away; a PyTorch for CPUs is new enough, too."""
    assert lacking(COLAB) == {"ipython", "jupyterlab", "jaxtyping", "ipywidgets"}
    assert "torch" not in lacking(COLAB | {"torch": "2.9.0+cpu"})
    assert {"torch", "numpy"} <= lacking(COLAB | {"torch": "2.8.0+cu126", "numpy": "2.4.0"})


def lacking(installed: dict[str, str]) -> set[str]:
    """What pyproject.toml asks for that is not there, or in another version than it takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {canonicalize_name(one.name): one for one in map(Requirement, project["dependencies"])}
    return {
        name
        for name, one in wanted.items()
        if name not in installed or not one.specifier.contains(installed[name])
    }


# A system without Triton, and without what only POSIX has, imports all that chapters and labs do.
ELSEWHERE = """
import importlib, importlib.metadata, pkgutil, platform, sys
GONE = {"triton", "fcntl", "resource", "pwd", "grp", "termios"}
LINUX = ("llmcourse.grading.sandbox", "llmcourse.grading.process")  # grading itself

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
import llmcourse
count = 0
for found in pkgutil.walk_packages(llmcourse.__path__, "llmcourse."):
    if found.name.startswith(LINUX) or found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
        count += 1
    except ModuleNotFoundError as error:  # kernels themselves, which nobody imports there
        if not (found.name.startswith("llmcourse.kernels.") and error.name.split(".")[0] == "triton"):
            raise
print(count, "modules")

version = importlib.metadata.version
def without(name):
    if name in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
from llmcourse.cli import main
for system in ("Windows", "Darwin"):
    platform.system = lambda: system
    main(["doctor"])
sys.exit(main(["generate", "Once upon", "--model", "draft", "--max-new-tokens", "3", "--seed", "0"]))
"""


def test_chapters_do_without_what_other_systems_lack(tmp_path):
    ended = run([sys.executable, "-c", ELSEWHERE], env=clean(tmp_path, PYTHONPATH=str(ROOT)), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for system in ("Windows", "Darwin"):
        assert f"none: not made for {system}; references run instead" in ended.stdout
    assert int(re.search(r"(\d+) modules", ended.stdout)[1]) > 200 and "Once upon" in ended.stdout
