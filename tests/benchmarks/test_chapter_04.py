"""The script that trains and times what chapter 4 shows as recorded calls programs as they are."""

import importlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "chapter_04.sh"
INSTEAD = """#!{python}
import json, signal, sys
with open("{calls}", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    sys.exit("ignores Ctrl-C")
if "{failing}" in sys.argv:
    sys.exit(3)
"""


def heed_ctrl_c():
    """Whatever the shell of these tests has: what is to be ignored stays so in programs that are started."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def started(tmp_path):
    """Runs the script with a program in Python's place that only notes how it was called."""
    texts, calls, instead = tmp_path / "the texts", tmp_path / "calls.jsonl", tmp_path / "python"
    texts.mkdir()
    (texts / "prose.txt.xz").touch()
    (texts / "poetry.txt").touch()

    def start(*parts, folder=texts, failing=""):
        instead.write_text(INSTEAD.format(python=sys.executable, calls=calls, failing=failing))
        instead.chmod(0o755)
        run = ["sh", str(SCRIPT), str(folder), str(tmp_path / "the out"), *parts]
        ended = subprocess.run(
            run,
            env={"PYTHON": str(instead), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            preexec_fn=heed_ctrl_c,
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return ended, [json.loads(line) for line in lines]

    return start


def test_every_call_is_one_that_its_program_takes(started):
    ended, calls = started()
    assert (ended.returncode, ended.stderr) == (0, b""), "and none of them ignores Ctrl-C"
    assert len(calls) == 13
    for program, *arguments in calls:
        if program == "-m":
            package = importlib.util.find_spec(arguments[0]).submodule_search_locations
            module = importlib.import_module(arguments[0] + (".__main__" if package else ""))
            module.parser().parse_args(arguments[1:])
        else:
            source = Path(program).read_text()
            asked = {word for word in arguments if word.startswith("--")}
            named = set(re.findall(r'"(--[\w-]+)"', source))
            if "--text" in asked:
                assert "add_text_options" in source or "classifier.__main__ import parser" in source
                asked -= {"--text", "--blocks", "--python"}
            assert asked <= named | {"--out"}, program


def test_parts_run_by_themselves_and_what_is_there_is_not_trained_again(started, tmp_path):
    (tmp_path / "the out/medusa/target").mkdir(parents=True)
    (tmp_path / "the out/medusa/target/config.json").touch()
    ended, calls = started("medusa")
    assert ended.returncode == 0
    assert [Path(call[-1]).name if call[0] == "-m" else Path(call[0]).name for call in calls] == [
        "code=installed",
        "medusa.py",
    ]


def test_the_table_is_not_recorded_of_tasks_that_failed(started):
    ended, calls = started("classifier", failing="author")
    assert ended.returncode not in (0, 2) and not any("exit_table" in call[0] for call in calls)
    assert sum("--tasks" in call for call in calls) == 3


@pytest.mark.parametrize(
    ("parts", "says"), [(("medusa", "medusae"), "no part medusae"), ((), "neither prose.txt nor")]
)
def test_what_is_not_there_is_named_before_anything_runs(started, tmp_path, parts, says):
    folder = {} if parts else {"folder": tmp_path}
    ended, calls = started(*parts, **folder)
    assert ended.returncode == 2 and says in ended.stderr.decode()
    assert calls == []
