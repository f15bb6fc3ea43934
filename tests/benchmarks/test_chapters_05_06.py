"""The scripts that make what chapters 5 and 6 show as recorded call programs as they are."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_chapter_04 import INSTEAD, heed_ctrl_c

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
CALLS = {
    "chapter_05": "linear_low_bit decode_low_bit linear_w8a8 gptq train_target train_target quantize_quality",
    "chapter_06": "distill_runs kd_loss distill_step distill_step distill_study distill_study distill_study "
    "distill_study distill_draft distill_quantized train_target distill_draft pipeline",
}


@pytest.fixture
def started(tmp_path):
    """Runs a script with a program in Python's place that only notes how it was called."""
    texts, calls, instead = tmp_path / "the texts", tmp_path / "calls.jsonl", tmp_path / "python"
    texts.mkdir()
    (texts / "prose.txt.xz").touch()
    (texts / "poetry.txt").touch()

    def start(chapter, *parts, folder=texts, failing="", **more):
        instead.write_text(INSTEAD.format(python=sys.executable, calls=calls, failing=failing))
        instead.chmod(0o755)
        run = ["sh", str(FOLDER / f"{chapter}.sh"), str(folder), str(tmp_path / "the out"), *parts]
        environment = {"PYTHON": str(instead), "PATH": "/usr/bin:/bin", **more}
        ended = subprocess.run(run, env=environment, capture_output=True, preexec_fn=heed_ctrl_c)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return ended, [json.loads(line) for line in lines]

    return start


def names(calls) -> list[str]:
    return [Path(call[0]).stem for call in calls]


@pytest.mark.parametrize("chapter", CALLS)
def test_every_call_is_one_that_its_program_takes(started, chapter):
    ended, calls = started(chapter)
    assert (ended.returncode, ended.stderr) == (0, b""), "and none of them ignores Ctrl-C"
    assert names(calls) == CALLS[chapter].split()
    for program, *arguments in calls:
        module = importlib.import_module(Path(program).stem)
        if hasattr(module, "parser"):
            module.parser().parse_args(arguments)
        else:
            asked = {word for word in arguments if word.startswith("--")}
            assert asked <= set(re.findall(r'"(--[\w-]+)"', Path(program).read_text())), program


def test_the_study_is_shared_out_after_it_was_planned(started):
    ended, calls = started("chapter_06", "study", WORKERS="3", STUDY_MINUTES="7")
    assert ended.returncode == 0 and len(calls) == 5
    first, *workers, last = calls
    assert first[-1] == "--plan-only" and last[-1] == "--table"
    assert {call[-1] for call in workers} == {"0/3", "1/3", "2/3"}
    assert all(call[call.index("--minutes") + 1] == "7" for call in (first, *workers))


def test_a_number_of_steps_takes_the_place_of_timing_them(started):
    _, calls = started("chapter_06", "study", STUDY_STEPS="3000")
    assert all(call[call.index("--steps") + 1] == "3000" for call in calls[:-1])
    _, calls = started("chapter_06", "draft", DRAFT_OPTIONS="--start stored --divergence jensen_shannon")
    assert calls[-1][5:9] == ["--start", "stored", "--divergence", "jensen_shannon"]
    _, calls = started("chapter_06", "pair", PAIR_OPTIONS="--parts train,accept")
    assert calls[-1][-10:-8] == ["--parts", "train,accept"]


def test_what_is_there_is_not_trained_again_and_is_taken(started, tmp_path):
    for name in ("pair/target", "pair/draft", "draft/draft"):
        (tmp_path / "the out" / name).mkdir(parents=True)
        (tmp_path / "the out" / name / "config.json").touch()
    _, calls = started("chapter_06", "pair", "pipeline")
    assert names(calls) == ["distill_draft", "pipeline"]
    out = tmp_path / "the out"
    taken = ["--drafter", f"{out}/draft/draft", "--pair", f"{out}/pair/target,{out}/pair/draft"]
    assert calls[1][1:] == taken


def test_a_study_that_fails_ends_the_script(started):
    ended, calls = started("chapter_06", "study", "draft", failing="0/2")
    assert ended.returncode not in (0, 2) and "distill_draft" not in names(calls)


@pytest.mark.parametrize("chapter", CALLS)
@pytest.mark.parametrize(("parts", "says"), [(("gptqs",), "no part gptqs"), ((), "neither prose.txt nor")])
def test_what_is_not_there_is_named_before_anything_runs(started, tmp_path, chapter, parts, says):
    folder = {} if parts else {"folder": tmp_path}
    ended, calls = started(chapter, *parts, **folder)
    assert ended.returncode == 2 and says in ended.stderr.decode()
    assert calls == []
