"""The command: its errors, its exit codes, interrupts, and several processes."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch

from llmcourse.training import __main__ as command
from llmcourse.training import pretrain
from llmcourse.training.__main__ import main
from llmcourse.training.tokens import batch
from tests.training.tiny import ROOT, program, tiny_recipe

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def uninterrupted(text_options, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    assert program([*text_options, "--out", str(out)]) == 0
    return out


def weights(out):
    return torch.load(out / ".training" / "tiny.pt", weights_only=True)["model"]


def distance(first, second) -> float:
    """The largest difference between weights of two runs."""
    first, second = weights(first), weights(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


class TestErrors:
    @pytest.fixture
    def fails(self, tiny_family, text_options, tmp_path, capsys):
        """Ends with exit code 2 and one line that holds the message, before anything is written."""

        def run(message, *options, text=text_options):
            out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
            try:
                code = main([*text, *options, *out])
            except SystemExit as stop:
                code = stop.code
            errors = capsys.readouterr().err
            assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
            assert message in errors, errors
            assert not (tmp_path / "out").exists()

        return run

    @pytest.mark.parametrize(
        ("message", "options"),
        [
            ("no file or folder 'nowhere.txt' for the domain 'prose'", ["--text", "prose=nowhere.txt"]),
            ("argument --text: expected NAME=PATH, got 'prose.txt'", ["--text", "prose.txt"]),
            ("expected NAME=PATH, got '=prose.txt'", ["--text", "=prose.txt"]),
            ("expected NAME=PATH, got 'prose='", ["--python", "prose="]),
            ("each domain needs a name of its own, got poems, code, code", ["--python", f"code={ROOT}"]),
            ("name must be of letters, digits, - and _, got 'a/b'", ["--blocks", f"a/b={ROOT}"]),
            ("mix must name domains that are given (poems, code), got 'verse'", ["--mix", "verse=1"]),
            ("mix must name each domain once, got code, code", ["--mix", "code=1", "--mix", "code=2"]),
            ("the share of code must be above 0 and finite, got 0.0", ["--mix", "code=0"]),
            ("the share of code must be above 0 and finite, got -1.0", ["--mix", "code=-1"]),
            ("the share of code must be above 0 and finite, got inf", ["--mix", "code=inf"]),
            ("argument --mix: expected NAME=NUMBER, got 'code=much'", ["--mix", "code=much"]),
            ("argument --mix: expected NAME=NUMBER, got 'code'", ["--mix", "code"]),
            ("steps must be at least 1, got 0", ["--steps", "0"]),
            ("argument --steps: invalid int value: 'many'", ["--steps", "many"]),
            ("argument --minutes: must be above 0, got -1; leave it out for no limit", ["--minutes", "-1"]),
            ("argument --minutes: must be above 0, got nan", ["--minutes", "nan"]),
            ("argument --minutes: invalid minutes value: 'long'", ["--minutes", "long"]),
            ("held_out must be in (0, 1), got 1.0", ["--held-out", "1"]),
            ("argument --models: invalid choice: 'large'", ["--models", "large"]),
            ("device must be one that PyTorch knows, got 'abacus'", ["--device", "abacus"]),
            ("device must be one that this machine has, got 'cuda:99'", ["--device", "cuda:99"]),
            ("unrecognized arguments: --fast", ["--fast"]),
        ],
    )
    def test_one_line_and_exit_code_2(self, fails, message, options):
        fails(message, *options)

    def test_no_text(self, fails):
        fails("no text given; use --text, --blocks or --python NAME=PATH", text=[])

    def test_out_is_a_file(self, fails, tmp_path):
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        fails("out must be a folder that can be written", "--out", str(tmp_path / "file"))
        fails("out must be a folder that can be written", "--out", str(tmp_path / "file" / "below"))
        assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

    def test_a_message_of_several_lines_becomes_one(self, fails, monkeypatch):
        def train_family(*args):
            raise ValueError("first\n  second")

        monkeypatch.setattr(command, "train_family", train_family)
        fails("error: first second")

    def test_out_is_missing(self, text_options, capsys):
        with pytest.raises(SystemExit) as stop:
            main(text_options)
        errors = capsys.readouterr().err
        assert stop.value.code == 2 and "required: --out" in errors and errors.count("\n") == 1

    def test_other_sources_in_a_used_folder(self, uninterrupted, text_options, capsys):
        assert program([*text_options, "--held-out", "0.3", "--out", str(uninterrupted)]) == 2
        assert capsys.readouterr().err.endswith(
            "was made from other sources (held_out was 0.2); give the same ones, remove it, or use "
            "another output folder\n"
        )

    def test_other_steps_in_a_used_folder(self, uninterrupted, text_options, capsys):
        assert program([*text_options, "--steps", "9", "--out", str(uninterrupted)]) == 2
        assert "was made with another recipe (steps was 6, is 9)" in capsys.readouterr().err


def test_the_options_reach_the_recipe(text_options, tmp_path):
    options = ["--steps", "2", "--mix", "poems=1", "--mix", "code=3", "--minutes", "5"]
    assert program([*text_options, *options, "--out", str(tmp_path)]) == 0
    card = (tmp_path / "tiny" / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 4 × 32 tokens" in card and "| 75% |" in card and " s on one " in card


def test_the_options_reach_the_run(text_options, tmp_path):
    with mock.patch.object(command, "train_family", return_value=True) as run:
        options = [*text_options, "--minutes", "2.5", "--device", "cpu", "--out", str(tmp_path)]
        assert program(options) == 0
    corpus, recipes, out, device, limit_s, _ = run.call_args.args
    assert [(s.name, s.kind) for s in corpus.sources] == [("poems", "blocks"), ("code", "python")]
    assert (corpus.held_out, out, device, limit_s) == (0.2, tmp_path, torch.device("cpu"), 150.0)
    assert recipes == [tiny_recipe()], "as it is where nothing else is asked for"


def test_help_names_every_option():
    arguments = [sys.executable, "-m", "llmcourse.training", "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m llmcourse.training")
    for name in (
        "text",
        "blocks",
        "python",
        "mix",
        "models",
        "out",
        "held-out",
        "steps",
        "minutes",
        "device",
    ):
        assert f"--{name}" in done.stdout


def test_out_of_time(text_options, tmp_path, uninterrupted, capsys):
    arguments = [*text_options, "--out", str(tmp_path)]
    assert program([*arguments, "--minutes", "1e-9"]) == 3
    assert capsys.readouterr().err.endswith("the time is up; start again with the same arguments to go on\n")
    assert program(arguments) == 0
    assert distance(tmp_path, uninterrupted) == 0


def test_interrupted_program_goes_on_bit_for_bit(text_options, tmp_path, uninterrupted):
    arguments = [sys.executable, "-m", "tests.training.tiny"]
    options = [*text_options, "--out", str(tmp_path)]
    stopped = subprocess.run(
        [*arguments, "--interrupt-at", "2", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.endswith("interrupted; start again with the same arguments to go on\n")
    assert torch.load(tmp_path / ".training" / "tiny.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "tiny").exists()
    assert program(options) == 0
    assert distance(tmp_path, uninterrupted) == 0
    files = [(out / "tiny" / "model.safetensors").read_bytes() for out in (tmp_path, uninterrupted)]
    assert files[0] == files[1]


def test_two_processes_give_the_weights_of_one(text_options, tmp_path, uninterrupted, monkeypatch):
    """Up to the rounding of sums, which Muon's bf16 iterations enlarge."""
    two, half = tmp_path / "two", tmp_path / "half"
    arguments = [*TORCHRUN, "-m", "tests.training.tiny", *text_options, "--out", str(two)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert distance(two, uninterrupted) < 1e-3
    assert done.stdout.count("reading poems") == 1, "one process prepares"
    assert " s on 2 " in (two / "tiny" / "README.md").read_text(encoding="utf-8")
    # What the tolerance must tell apart: a process that trains on its own half.
    monkeypatch.setattr(
        pretrain, "batch", lambda *args, **where: batch(*args, **where | dict(rank=0, world=2))
    )
    assert program([*text_options, "--out", str(half)]) == 0
    assert distance(half, uninterrupted) > 1e-2


def test_two_processes_stop_at_the_same_step(text_options, tmp_path, uninterrupted):
    """Only one of them is interrupted; what it leaves is whole, and one process can go on with it."""
    arguments = [*TORCHRUN, "-m", "tests.training.tiny", "--interrupt-one-at", "2", *text_options]
    done = subprocess.run(
        [*arguments, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert done.returncode != 0
    assert torch.load(tmp_path / ".training" / "tiny.pt", weights_only=True)["step"] == 3
    assert program([*text_options, "--out", str(tmp_path)]) == 0
    assert distance(tmp_path, uninterrupted) < 1e-3
