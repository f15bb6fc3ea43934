"""What to type to start once more: `make` with its settings, or the same where there is no make."""

import os
import shlex
import shutil
from collections.abc import Set
from pathlib import Path

NO_EXTRAS: Set[str] = frozenset()


def has_make() -> bool:
    return os.name != "nt" and shutil.which("make") is not None


def launcher(version: str = "3") -> str:
    """What starts a Python of this version."""
    return f"py -{version}" if os.name == "nt" else f"python{version}"


def with_variables(line: str, **variables: object) -> str:
    """A line that is run with these variables, in this system's shell."""
    if os.name == "nt":
        return "".join(f'$env:{name} = "{value}"; ' for name, value in variables.items()) + line
    return "".join(f"{name}={value} " for name, value in variables.items()) + line


def again(name: str, value: object) -> str:
    """The start of JupyterLab with a setting."""
    if has_make():
        return f"make lab {name}={value}"
    start = r".venv\Scripts\python tools\lab.py" if os.name == "nt" else ".venv/bin/python tools/lab.py"
    return with_variables(start, **{name: value})


def set_up_again(extras: Set[str] = NO_EXTRAS, python: str = "", any_disk: bool = False) -> str:
    """The set-up, by what starts with it.

    Args:
        extras: of pyproject.toml.
        python: the version of the Python to make `.venv` of, `3.12`; the one that is found, if empty.
        any_disk: without a look at the room on the disk.
    """
    if has_make():
        chosen = [f"PYTHON=python{python}"] if python else []
        return " ".join(["make", "test" if extras else "lab", *chosen, *(["ANY_DISK=1"] if any_disk else [])])
    start = [launcher(python or "3"), r"tools\environment.py" if os.name == "nt" else "tools/environment.py"]
    options = [*(["--chosen"] if python else []), *(["--any-disk"] if any_disk else [])]
    return " ".join([*start, *options, *(f"--extra {extra}" for extra in sorted(extras))])


def in_a_copy(course: Path, start: str, extras: Set[str] = NO_EXTRAS) -> str:
    """The same in a copy of the course in the reader's home, which without make is set up first."""
    steps = dict.fromkeys([start] if has_make() else [set_up_again(extras), start])
    if os.name == "nt":
        return "; ".join([f'Copy-Item -Recurse "{course}" ~\\llmcourse', "cd ~\\llmcourse", *steps])
    return " && ".join([f"cp -R {shlex.quote(str(course))} ~/llmcourse", "cd ~/llmcourse", *steps])
