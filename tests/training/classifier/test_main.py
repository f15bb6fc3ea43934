"""The command from text to table, on a few files: what it keeps, what it refuses, how it is interrupted."""

import json
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.early_exit.classifier.tasks import SIDES, author_task, following_task, side_of
from llmcourse.training.classifier import __main__ as command
from llmcourse.training.classifier import run as exit_run
from llmcourse.training.classifier import texts as exit_texts
from llmcourse.training.classifier.__main__ import main, parser, run_of
from llmcourse.training.classifier.fine_tune import Tuning
from llmcourse.training.classifier.setting import Setting
from llmcourse.training.paced import Pace
from llmcourse.training.text import Source

SMALL = Setting(
    num_layers=2, length=16, rows=8, steps=2, tuning_steps=2, test_examples=40, tuning=Tuning(batch_size=4)
)


def source(number: int) -> str:
    head = f'def f_{number}(x):\n    """What number {number} makes of x in the end."""\n'
    return f"{head}    return x + {number}\n" + "\n".join(f"a_{n} = {number * n}" for n in range(10))


@pytest.fixture(autouse=True)
def few_files():
    with (
        mock.patch.object(exit_texts, "standard_library", lambda: {f"{n}.py": source(n) for n in range(60)}),
        mock.patch.object(command, "CPU", SMALL),
    ):
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def arguments(out, *more):
    return ["--out", str(out), "--device", "cpu", *more]


def test_one_command_makes_the_table_and_a_second_trains_nothing(out, capsys):
    assert main(arguments(out)) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 3 + len(METHODS) and "docstring" in table[0]
    assert (out / "encoder" / "model.safetensors").is_file()
    with (
        mock.patch.object(exit_run, "pretrain", side_effect=AssertionError),
        mock.patch.object(exit_run, "fine_tune", side_effect=AssertionError),
    ):
        assert main(arguments(out)) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == table
    assert main(arguments(out, "--seed", "1")) == 2
    assert "must be of these arguments, got another run's" in capsys.readouterr().err


def test_only_the_training_side_is_pre_trained_on(tmp_path):
    run = run_of(parser().parse_args(arguments(tmp_path)))
    task, files = run.tasks[0], {f"{n}.py": source(n) for n in range(60)}
    seen = set(run.texts.training_side(0)["python"])
    assert {files[example.document] for example in task.train} <= seen
    assert not seen & {files[e.document] for side in ("validation", "test") for e in task.side(side)}


def signed(number: int) -> str:
    """A book below its title page, with paragraphs of its own."""
    words = " ".join(f"word{number}x{n}" for n in range(20))
    return f"BOOK {number}\n\nby\n\nWriter {number}\n\n" + "\n\n".join(f"{n} {words}" for n in range(400))


def poem(number: int, author: str) -> str:
    return f"《第{number}》{author}\n" + "\n".join(chr(0x4E00 + 40 * number + n) * 5 + "。" for n in range(6))


def test_what_is_pre_trained_on_is_the_training_side_of_the_tasks(tmp_path):
    whole = [signed(number) for number in range(30)]
    poems = [poem(number, "甲乙"[number % 2]) for number in range(120)]
    (tmp_path / "prose.txt").write_text("\n\n".join(whole), encoding="utf-8")
    (tmp_path / "poems.txt").write_text("\n\n".join(poems), encoding="utf-8")
    sources = [Source(k, k, str(tmp_path / f)) for k, f in (("text", "prose.txt"), ("blocks", "poems.txt"))]
    texts = exit_texts.Texts(sources)
    following, author = (
        following_task(texts.documents["text"]),
        author_task(texts.documents["blocks"], authors=2),
    )
    seen = {kind: "\n".join(documents) for kind, documents in texts.training_side(0).items()}
    assert texts.documents["text"] == whole
    for task, kind in ((following, "text"), (author, "blocks")):
        for side in SIDES:
            assert all((text in seen[kind]) == (side == "train") for e in task.side(side) for text in e.texts)
    for book in whole:  # whole or not at all
        assert len({paragraph in seen["text"] for paragraph in book.split("\n\n")[3:]}) == 1


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="text of the domain 'prose' must be one book or more, got 0"):
        exit_texts.Texts([Source("prose", "text", str(tmp_path))])


class TestPackages:
    """A folder of Python beside the standard library."""

    @pytest.fixture
    def asked(self):
        """A file that is tested on."""
        return next(n for n in range(60) if side_of(f"{n}.py") == "test")

    def pre_trained(self, folder, path, text):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        texts = exit_texts.Texts([Source("code", "python", str(folder))])
        return text in texts.training_side(0)["python"]

    def free(self, name):
        """A path on the training side."""
        return next(path for n in range(99) if side_of(path := f"lib{n}/{name}") == "train")

    def test_files_are_split_by_their_paths(self, tmp_path):
        text = "x = 1\n" * 60
        assert self.pre_trained(tmp_path, self.free("a.py"), text)
        held_out = next(path for n in range(99) if side_of(path := f"lib{n}/b.py") != "train")
        assert not self.pre_trained(tmp_path, held_out, text + "# b\n")

    @pytest.mark.parametrize("kept", ["all", "docstring", "code", "neither"])
    def test_copies_of_what_is_held_out_are_left_out(self, tmp_path, asked, kept):
        copy = source(asked)
        if kept in ("docstring", "neither"):
            copy = copy.replace(f"return x + {asked}", "return x - 1")
        if kept == "code":
            copy = copy.replace(f'    """What number {asked} makes of x in the end."""\n', "")
        if kept == "neither":
            copy = copy.replace("makes of x", "makes of y")
        copy = "class Vendored:\n" + "\n".join(f"    {line}" for line in copy.splitlines())
        copy += "\n# from the standard library" * 4
        assert self.pre_trained(tmp_path, self.free("vendored.py"), copy) == (kept == "neither")


def test_an_interrupt_keeps_what_is_whole(tmp_path, capsys):
    whole, calls = exit_run.fine_tune, []

    def interrupted(method, *rest, **more):
        calls.append(method.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(method, *rest, **more)

    with mock.patch.object(exit_run, "fine_tune", interrupted):
        assert main(arguments(tmp_path)) == 130
    assert "start again with the same arguments" in capsys.readouterr().err
    kept = {path.stem for path in (tmp_path / ".tasks").glob("*.safetensors")}
    assert kept == {"docstring-full", "docstring-half_depth"}
    calls.clear()
    with mock.patch.object(exit_run, "fine_tune", interrupted):
        main(arguments(tmp_path))
    assert calls == ["deebert", "pabee", "past_future"]


def test_a_file_that_was_not_written_to_its_end_is_none(tmp_path):
    def stopped(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with mock.patch.object(exit_run, "save_file", stopped):
        assert main(arguments(tmp_path)) == 130
    assert not list((tmp_path / ".tasks").glob("*.safetensors"))


def test_pre_training_gets_the_seed_and_its_share_of_the_time_that_is_left(tmp_path, monkeypatch):
    """Of ten minutes five; of which reading the text may have taken some."""
    clock = [0.0]
    monkeypatch.setattr(exit_run.time, "monotonic", lambda: clock[0])
    asked = parser().parse_args(arguments(tmp_path, "--seed", "3", "--minutes", "10", "--share", "0.5"))
    run = run_of(asked)
    for now, seconds in ((0, 300), (200, 300), (550, 50), (700, 1)):
        clock[0] = now
        stopped = mock.patch.object(exit_run, "pretrain", side_effect=KeyboardInterrupt)
        with stopped as pretrain, pytest.raises(KeyboardInterrupt):
            run.encoder()
        assert pretrain.call_args.kwargs["seed"] == 3
        assert pretrain.call_args.args[2] == Pace(SMALL.steps, seconds)


def test_what_is_not_trained_on_is_cut_to_so_many_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CPU", replace(SMALL, test_examples=3))
    run = run_of(parser().parse_args(arguments(tmp_path)))
    (task,) = run.tasks
    assert [len(run.rows(task, side)) for side in SIDES] == [len(task.train), 3, 3] and len(task.train) > 3


def test_pieces_side_by_side_make_the_same_table(out, tmp_path, capsys):
    """The encoder first, then fine-tunings; what both made is found by the command that makes the table."""
    assert main(arguments(tmp_path, "--encoder-only")) == 0
    assert not list((tmp_path / ".tasks").glob("*.safetensors"))
    with mock.patch.object(exit_run, "pretrain", side_effect=AssertionError):
        assert main(arguments(tmp_path, "--tasks", "docstring")) == 0
    main(arguments(out))
    capsys.readouterr()
    with mock.patch.object(exit_run, "fine_tune", side_effect=AssertionError):
        assert main(arguments(tmp_path)) == 0
    pieces = capsys.readouterr().out
    main(arguments(out))
    assert capsys.readouterr().out == pieces


def test_only_tasks_that_are_asked_for_are_made(tmp_path):
    with mock.patch.object(exit_texts, "docstring_task", side_effect=AssertionError):
        assert exit_texts.Texts([]).tasks(0, ["author"]) == []


class TestSteps:
    """All methods get as many, whatever the clock says; it decides whether another training begins."""

    def test_they_are_the_settings(self, tmp_path):
        found, whole = [], exit_run.fine_tune

        def noted(method, classifier, data, steps, **how):
            found.append(steps)
            return whole(method, classifier, data, 1, **how)

        with mock.patch.object(exit_run, "fine_tune", noted):
            assert main(arguments(tmp_path, "--tuning-steps", "300", "--minutes", "30")) == 0
        assert found == [300] * 5

    def test_when_the_time_is_up_no_training_begins(self, tmp_path, monkeypatch, capsys):
        whole, clock = exit_run.fine_tune, [0.0]

        def slow(*given, **how):
            clock[0] += 50
            return whole(*given, **how)

        monkeypatch.setattr(exit_run.time, "monotonic", lambda: clock[0])
        with mock.patch.object(exit_run, "fine_tune", slow):
            assert main(arguments(tmp_path, "--minutes", "1.5")) == 3
        assert "the time is up; start again with the same arguments" in capsys.readouterr().err
        kept = {path.stem for path in (tmp_path / ".tasks").glob("*.safetensors")}
        assert kept == {"docstring-full", "docstring-half_depth"}
        with mock.patch.object(exit_run, "fine_tune", slow):
            assert main(arguments(tmp_path)) == 0

    def test_steps_are_recorded_on_a_gpu_unless_told_otherwise(self, tmp_path):
        cuda = torch.device("cuda")
        made = [
            exit_run.Run([], tmp_path, SMALL, device=cuda, recorded=recorded)
            for recorded in (None, True, False)
        ]
        assert [(run.recorded, run.compiled) for run in made] == [(True, False), (True, False), (False, True)]
        on_cpu = run_of(parser().parse_args(arguments(tmp_path)))
        assert not on_cpu.recorded and not on_cpu.compiled

    def test_a_table_of_unequal_steps_is_refused(self, out, tmp_path, capsys):
        other = tmp_path / "out"
        shutil.copytree(out, other)
        path = other / ".tasks" / "docstring-pabee.safetensors"
        save_file(load_file(path), path, metadata={"steps": "3"})
        assert main(arguments(other)) == 2
        assert "steps of all methods on docstring must be the same, got {'full': 2" in capsys.readouterr().err
        save_file(load_file(path), path)
        assert main(arguments(other)) == 2
        assert "must be a classifier with its steps" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, None])
    def test_a_classifier_of_another_shape_or_damaged_is_refused(self, out, tmp_path, capsys, content):
        other = tmp_path / "out"
        shutil.copytree(out, other)
        path = other / ".tasks" / "docstring-pabee.safetensors"
        if content:
            save_file(content, path, metadata={"steps": "2"})
        else:
            path.write_bytes(path.read_bytes()[:-7])
        assert main(arguments(other)) == 2
        assert "docstring-pabee.safetensors must hold this classifier, got " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("no file or folder 'nowhere.txt'", ["--text", "prose=nowhere.txt"]),
        ("num_layers must be an integer of at least 1", ["--layers", "0"]),
        ("num_layers must be even, got 3", ["--layers", "3"]),
        ("seed must be an integer in [0, 2**32), got -1", ["--seed", "-1"]),
        ("seed must be an integer in [0, 2**32), got 4294967296", ["--seed", str(2**32)]),
        ("share must be in (0, 1), got 2.0", ["--share", "2"]),
        ("steps must be an integer of at least 1", ["--steps", "0"]),
        ("tasks must be one or more that there is text for, got ['author']", ["--tasks", "author"]),
        ("device must be one that PyTorch knows", ["--device", "abacus"]),
    ],
)
def test_bad_arguments(tmp_path, capsys, message, more):
    assert main(arguments(tmp_path, *more)) == 2
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith("error: ") and message in errors, errors
    assert not list(tmp_path.iterdir())  # better arguments may have the folder


def test_an_encoder_of_another_depth_is_not_taken(out, tmp_path, capsys):
    """Speed-ups are counted in its layers."""
    main(arguments(out))
    shutil.copytree(out / "encoder", tmp_path / "encoder")
    assert main(arguments(tmp_path, "--layers", "4")) == 2
    assert f"layers of the encoder in {tmp_path / 'encoder'} must be 4, got 2" in capsys.readouterr().err
    assert main(arguments(tmp_path / "other", "--layers", "4", "--encoder-only")) == 0


def test_two_sources_of_a_kind(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("text", encoding="utf-8")
    pairs = [part for name in "ab" for part in ("--text", f"{name}={tmp_path / name}")]
    with pytest.raises(ValueError, match="sources of kind text must be one at most, got 2"):
        run_of(parser().parse_args(arguments(tmp_path / "out", *pairs)))


def test_the_note_says_what_it_was_made_from(out):
    note = json.loads((out / ".tasks" / "made_from.json").read_text(encoding="utf-8"))
    assert note["seed"] == 0 and note["setting"]["num_layers"] == 2 and note["sources"] == []
