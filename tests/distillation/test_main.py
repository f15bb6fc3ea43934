"""The command: one student by each objective, its errors, and being stopped and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from llmcourse.distillation.__main__ import main
from llmcourse.distillation.options import distillation_of, parser, recipe_of
from llmcourse.distillation.records import read_records
from llmcourse.distillation.text_at_hand import corpus_at_hand
from llmcourse.pretrained import load
from llmcourse.training.recipes import FAMILY
from llmcourse.training.tokenizer import VOCAB_SIZE
from tests.training.tiny import ROOT, tiny_config, write_text

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SMALL = ["--steps", "3", "--batch-size", "4", "--length", "16"]


@pytest.fixture(scope="module")
def text_options(tmp_path_factory) -> list[str]:
    return [*write_text(tmp_path_factory.mktemp("text")), "--held-out", "0.2"]


@pytest.fixture
def arguments(tiny_checkpoint, text_options, tmp_path) -> list[str]:
    """A teacher of a vocabulary of 300, from which a student of its shape learns for three steps."""
    models = ["--teacher", str(tiny_checkpoint), "--student", str(tiny_checkpoint)]
    return [*models, *text_options, *SMALL, "--out", str(tmp_path / "out")]


def outcome(tmp_path, tiny_checkpoint):
    return tmp_path / "out" / tiny_checkpoint.resolve().name


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        (["--objective", "scratch"], "None: it learned the text's tokens alone."),
        (["--temperature", "2", "--hard-weight", "0.5"], "by forward kl at temperature 2; the text's tokens"),
        (["--objective", "features", "--layer-map", "1:2"], "the text's tokens; hidden states with weight 1"),
        (["--objective", "both", "--values", "2", "--layer-map", "last"], "value relations with weight 2."),
        (
            ["--objective", "own-text"],
            "by reverse kl at temperature 1. With a chance of 0.5 it wrote a batch",
        ),
        (["--top-k", "5", "--start", "stored"], "of its 5 largest probabilities"),
    ],
)
def test_a_student_of_each_kind(arguments, options, learned, tmp_path, tiny_checkpoint, capsys):
    assert main([*arguments, *options]) == 0
    folder, output = outcome(tmp_path, tiny_checkpoint), capsys.readouterr().out
    assert learned in (folder / "README.md").read_text(encoding="utf-8")
    records = read_records(folder.with_suffix(".jsonl"))
    assert [line["step"] for line in records] == [1, 2, 3] and records[-1]["tokens"] == 3 * 4 * 16
    report = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    assert [each["domain"] for each in report["held_out"]] == ["poems", "code"]
    assert all(0 <= each["acceptance"]["mean"] <= 1 for each in report["held_out"])
    model = load(folder).model
    assert model.config.vocab_size == 300 and f"written to {folder}" in output
    assert "3 steps of 4 × 16 tokens" in output


def test_a_stored_start_is_where_it_says(arguments, tmp_path, tiny_checkpoint):
    rates = ["--matrix-lr", "1e-9", "--other-lr", "1e-9", "--start", "stored"]
    assert main([*arguments, *rates]) == 0
    records = read_records(outcome(tmp_path, tiny_checkpoint).with_suffix(".jsonl"))
    assert records[0]["loss"] < 1e-6, "it is its teacher"


def test_stored_weights_of_other_tokens_are_refused(arguments, tiny_checkpoint, tmp_path, capsys):
    """As many, but two of them have changed places; new weights do not know of any yet."""
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first = min(vocabulary["A"], vocabulary["B"])
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    changed = [*arguments, "--student", str(other)]
    assert main([*changed, "--start", "stored"]) == 2
    said = capsys.readouterr().err
    assert f"student's tokens must be the teacher's, got 2 others, the first of them {first}; distil" in said
    assert main(changed) == 0


def test_out_of_time_and_on(arguments, tmp_path, tiny_checkpoint, capsys):
    assert main([*arguments, "--minutes", "1e-9"]) == 3
    assert "the time is up; start again with the same arguments to go on" in capsys.readouterr().err
    folder = outcome(tmp_path, tiny_checkpoint)
    assert len(read_records(folder.with_suffix(".jsonl"))) == 1 and not folder.exists()
    assert main(arguments) == 0
    found = [line["loss"] for line in read_records(folder.with_suffix(".jsonl"))]
    again = tmp_path / "again"
    assert main([*arguments[:-1], str(again)]) == 0
    assert found == [line["loss"] for line in read_records(again / f"{folder.name}.jsonl")]


def test_interrupted_it_says_so_in_one_line(arguments, tmp_path, tiny_checkpoint):
    command = [sys.executable, "-u", "-m", "llmcourse.distillation", *arguments, "--steps", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    records = outcome(tmp_path, tiny_checkpoint).with_suffix(".jsonl")
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        for line in process.stdout:
            if "losses of each" in line:
                break
        while not (records.is_file() and len(records.read_text().splitlines()) > 3):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.endswith("interrupted; start again with the same arguments to go on\n")
    assert "Traceback" not in errors
    state = torch.load(tmp_path / "out" / ".training" / f"{records.stem}.pt", weights_only=True)
    assert state["step"] == len(read_records(records))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "nobody"], "no model or folder named 'nobody'"),
        (["--student", "nobody"], "no model or folder named 'nobody'"),
        (["--student", "draft"], f"vocabulary must be of {VOCAB_SIZE} tokens as the student's, got 300"),
        (["--temperature", "0"], "temperature must be above 0 and finite, got 0.0"),
        (["--hard-weight", "2"], "hard_weight must be in [0, 1], got 2.0"),
        (["--objective", "features", "--layer-map", "1:9"], "teacher's layer must be in [1, 2], got 9"),
        (
            ["--layer-map", "middle"],
            "argument --layer-map: expected one of uniform, skip, tail, last or pairs",
        ),
        (["--own-text", "0.5"], "own_text must be left out for the objective response"),
        (["--objective", "scratch", "--top-k", "4"], "top_k must be None without a teacher's response"),
        (["--cache", "kept"], "top_k must be given where a cache is"),
        (["--batch-size", "5", "--accumulation", "2"], "batch_size must be a multiple of 2"),
        (["--length", "65"], "sequence_length must be at most the model's context, 64, got 65"),
        (["--seed", str(2**64)], "seed must be in [-2^63, 2^64), of 64 bits, got 18446744073709551616"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--mix", "verse=1"], "mix must name domains that are given (poems, code), got 'verse'"),
        (["--text", "more=nowhere.txt"], "no file or folder 'nowhere.txt' for the domain 'more'"),
        (["--held-out", "1e-9"], "the split leaves"),
        (["--device", "abacus"], "device must be one that PyTorch knows, got 'abacus'"),
        (["--matrix-lr", "-1"], "matrix_lr must be above 0 and finite, got -1.0"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, options, message, tmp_path, capsys):
    try:
        code = main([*arguments, *options])
    except SystemExit as stop:
        code = stop.code
    errors = capsys.readouterr().err.split("\r")[-1]
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], errors
    assert not (tmp_path / "out" / "tiny0").exists()


def test_another_configuration_in_a_used_folder(arguments, capsys):
    assert main([*arguments, "--minutes", "1e-9"]) == 3
    assert main([*arguments, "--temperature", "2"]) == 2
    assert "made with another recipe (temperature was 1.0, is 2.0); remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.json", "[]"),
        ("corpus.json", "{}"),
        ("sources.json", "null"),
        ("sources.json", "{}"),
    ],
)
def test_notes_of_something_else_are_damage(arguments, tmp_path, name, content, capsys):
    assert main([*arguments, "--minutes", "1e-9"]) == 3
    (tmp_path / "out" / ".training" / name).write_text(content)
    assert main(arguments) == 2
    assert f"{name} is damaged; remove the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "x"}, "no number of steps, or no recipe, stands in it"),
        ({"step": -3}, "no number of steps, or no recipe, stands in it"),
        ({"recipe": [1]}, "no number of steps, or no recipe, stands in it"),
        ({"optimizers": []}, "holds states of 0 optimizers, not of 2"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(arguments, tmp_path, change, said, capsys):
    assert main([*arguments, "--minutes", "1e-9"]) == 3
    path = next((tmp_path / "out" / ".training").glob("*.pt"))
    torch.save(torch.load(path, weights_only=True) | change, path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\n\xff\n", b'{"step": 1, "seconds": "x"}\n{"step": 2}\n'])
def test_records_of_something_else_are_refused(arguments, tmp_path, tiny_checkpoint, content, capsys):
    assert main([*arguments, "--minutes", "1e-9"]) == 3
    outcome(tmp_path, tiny_checkpoint).with_suffix(".jsonl").write_bytes(content)
    assert main(arguments) == 2
    assert "line 1: " in capsys.readouterr().err


def test_too_little_is_held_out_to_measure_on(arguments, tmp_path, capsys):
    (tmp_path / "short").mkdir()
    for number in range(30):
        (tmp_path / "short" / f"{number}.py").write_text(f"# {number}\n" + "a = b\n" * 40, encoding="utf-8")
    assert main([*arguments, "--python", f"short={tmp_path / 'short'}", "--held-out", "0.02"]) == 2
    assert "error: " in capsys.readouterr().err


def options_of(*given: str):
    return parser("words").parse_args(["--out", "out", *given])


def test_what_is_not_said_is_as_the_family_is_trained():
    recipe = recipe_of(options_of(), list(FAMILY["draft"].mix))
    assert recipe == FAMILY["draft"]
    stored = recipe_of(options_of("--student", "small", "--start", "stored", "--seed", "4"), ["code"])
    assert stored.matrix_lr == pytest.approx(FAMILY["small"].matrix_lr / 5) and stored.seed == 4


def test_quick_is_small_and_its_warm_up_ends():
    recipe = recipe_of(options_of("--quick", "--length", "64"), ["code"])
    assert (recipe.steps, recipe.batch_size, recipe.sequence_length, recipe.warmup) == (100, 8, 64, 10)


def test_the_losses_that_options_ask_for():
    options = options_of("--objective", "both", "--hidden", "0", "--attention", "3", "--relation-heads", "2")
    teacher = tiny_config(num_layers=4)
    found = distillation_of(options, FAMILY["draft"], teacher)
    assert (found.features.hidden, found.features.attention, found.features.relation_heads) == (0, 3, 2)
    assert found.layer_map.pairs == ((1, 2), (2, 4))
    own = distillation_of(options_of("--objective", "own-text", "--own-text", "1"), FAMILY["draft"], teacher)
    assert (own.own_text, own.response.divergence, own.features) == (1.0, "reverse_kl", None)


def test_text_at_hand_is_there_and_stays(tmp_path):
    corpus = corpus_at_hand(tmp_path)
    assert [source.name for source in corpus.sources] == ["reference", "code"]
    assert all(len(source.documents()) > 40 for source in corpus.sources)
    (tmp_path / "text" / "reference.txt").write_text("kept", encoding="utf-8")
    assert corpus_at_hand(tmp_path).sources[0].documents() == ["kept"]
