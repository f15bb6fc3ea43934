"""The set-up as it is started by people and by make: by any Python, from anywhere, with errors in words."""

import ast
import errno
import os
import subprocess
import sys

import pytest

from tools import environment

ROOT = environment.ROOT


@pytest.mark.parametrize("version", [(3, 10, 13), (2, 99, 0)])
def test_nothing_but_the_version_check_runs_in_an_old_python(version):
    """The check stands before all imports but sys, and the file parses on Python 3.6."""
    source = (ROOT / "tools" / "environment.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    docstring, imported, check, *_ = tree.body
    assert isinstance(docstring, ast.Expr) and ast.unparse(imported) == "import sys"
    assert ast.unparse(check.test) == f"sys.version_info < {environment.MINIMUM_PYTHON}"
    code = (
        f"import sys, runpy; sys.version_info = {(*version, 'final', 0)}; "
        f"runpy.run_path({str(ROOT / 'tools' / 'environment.py')!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: Python 3.11 or later is needed; ")
    assert f"{sys.executable} is Python {'.'.join(map(str, version))}." in ended.stderr
    assert "apt-get install python3.11" in ended.stderr and "python3.12 tools/environment.py" in ended.stderr
    assert len(ended.stderr.splitlines()) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_main_says_in_words_what_the_system_refuses(monkeypatch, capsys, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number), "requirements.lock")

    monkeypatch.setattr(environment, "ensure", refuse)
    monkeypatch.setattr(sys, "argv", ["environment.py"])
    assert environment.main() == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: [Errno {number}] {os.strerror(number)}: 'requirements.lock'"
    assert "copy the course" in second and "GB are free" in second


def test_it_runs_as_a_file_from_anywhere(tmp_path):
    """As the Makefile and people do, beside a package of the same name."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").touch()
    command = [sys.executable, str(ROOT / "tools" / "environment.py"), "--help"]
    places = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=places, capture_output=True, text=True)
    assert ended.returncode == 0 and "--any-disk" in ended.stdout
